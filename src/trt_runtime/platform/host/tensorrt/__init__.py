"""A TensorRT made of onnxruntime: the `tensorrt` module's surface, release 10.16.1, on the CPU.

It reports failure as NVIDIA's does, by returning None or False and logging, and raises
`MisuseError` for what would be undefined behaviour on a GPU. Nothing is imported or created
before it is used: onnx and onnxruntime come in with the first model.
"""

from __future__ import annotations

import functools
from typing import Any

from . import enums
from .builder import Builder
from .config import IBuilderConfig, ITimingCache
from .context import IExecutionContext
from .engine import EngineInspector, ICudaEngine
from .interfaces import IHostMemory, ILogger, IOutputAllocator, IProfiler, IProgressMonitor
from .network import INetworkDefinition, ITensor
from .parser import OnnxParser, ParserError
from .profile import IOptimizationProfile
from .runtime import Runtime
from .seam import Driver

__all__ = ["HostTensorRT"]


class HostTensorRT:
    """The "module" of one host platform; its objects live in that platform's driver and ledger.

    Parameters
    ----------
    driver
        The host driver that owns the memory, the streams, the ledger and the faults.
    version
        The release to pass for; a plan of another one is refused.
    """

    ILogger = ILogger
    IOutputAllocator = IOutputAllocator
    IProfiler = IProfiler
    IProgressMonitor = IProgressMonitor

    EngineInspector = EngineInspector
    IBuilderConfig = IBuilderConfig
    ICudaEngine = ICudaEngine
    IExecutionContext = IExecutionContext
    IHostMemory = IHostMemory
    INetworkDefinition = INetworkDefinition
    IOptimizationProfile = IOptimizationProfile
    ITensor = ITensor
    ITimingCache = ITimingCache
    ParserError = ParserError

    BuilderFlag = enums.BuilderFlag
    DataType = enums.DataType
    EngineCapability = enums.EngineCapability
    ErrorCode = enums.ErrorCode
    ExecutionContextAllocationStrategy = enums.ExecutionContextAllocationStrategy
    HardwareCompatibilityLevel = enums.HardwareCompatibilityLevel
    LayerInformationFormat = enums.LayerInformationFormat
    MemoryPoolType = enums.MemoryPoolType
    NetworkDefinitionCreationFlag = enums.NetworkDefinitionCreationFlag
    OnnxParserFlag = enums.OnnxParserFlag
    PreviewFeature = enums.PreviewFeature
    ProfilingVerbosity = enums.ProfilingVerbosity
    TacticSource = enums.TacticSource
    TensorFormat = enums.TensorFormat
    TensorIOMode = enums.TensorIOMode
    TensorLocation = enums.TensorLocation

    def __init__(self, driver: Driver, *, version: str = "10.16.1") -> None:
        self.__name__ = "tensorrt_host"
        self.__version__ = version
        self.driver = driver
        self.Builder = functools.partial(Builder, self)
        self.OnnxParser = functools.partial(OnnxParser, self)
        self.Runtime = functools.partial(Runtime, self)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        """Do nothing, successfully: the host has no plugins."""
        return True
