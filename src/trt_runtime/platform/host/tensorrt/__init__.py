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
from .engine import EngineInspector, ICudaEngine, ISerializationConfig
from .interfaces import (
    IHostMemory,
    IInt8EntropyCalibrator2,
    ILogger,
    IOutputAllocator,
    IProfiler,
    IProgressMonitor,
)
from .network import ILayer, INetworkDefinition, ITensor
from .parser import OnnxParser, ParserError
from .plugins import IPluginRegistry
from .profile import IOptimizationProfile
from .refitter import OnnxParserRefitter, Refitter
from .runtime import Runtime
from .seam import Driver
from .weights import Weights

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
    IInt8EntropyCalibrator2 = IInt8EntropyCalibrator2
    IOutputAllocator = IOutputAllocator
    IProfiler = IProfiler
    IProgressMonitor = IProgressMonitor

    EngineInspector = EngineInspector
    IBuilderConfig = IBuilderConfig
    ICudaEngine = ICudaEngine
    IExecutionContext = IExecutionContext
    IHostMemory = IHostMemory
    ILayer = ILayer
    INetworkDefinition = INetworkDefinition
    IOptimizationProfile = IOptimizationProfile
    ISerializationConfig = ISerializationConfig
    IPluginRegistry = IPluginRegistry
    ITensor = ITensor
    ITimingCache = ITimingCache
    ParserError = ParserError
    Weights = Weights

    BuilderFlag = enums.BuilderFlag
    CalibrationAlgoType = enums.CalibrationAlgoType
    DataType = enums.DataType
    DeviceType = enums.DeviceType
    EngineCapability = enums.EngineCapability
    EngineStat = enums.EngineStat
    ErrorCode = enums.ErrorCode
    ExecutionContextAllocationStrategy = enums.ExecutionContextAllocationStrategy
    HardwareCompatibilityLevel = enums.HardwareCompatibilityLevel
    LayerInformationFormat = enums.LayerInformationFormat
    MemoryPoolType = enums.MemoryPoolType
    NetworkDefinitionCreationFlag = enums.NetworkDefinitionCreationFlag
    OnnxParserFlag = enums.OnnxParserFlag
    PreviewFeature = enums.PreviewFeature
    ProfilingVerbosity = enums.ProfilingVerbosity
    SerializationFlag = enums.SerializationFlag
    TacticSource = enums.TacticSource
    TensorFormat = enums.TensorFormat
    TensorIOMode = enums.TensorIOMode
    TensorLocation = enums.TensorLocation

    def __init__(self, driver: Driver, *, version: str = "10.16.1") -> None:
        self.__name__ = "tensorrt_host"
        self.__version__ = version
        self.driver = driver
        self._plugins = IPluginRegistry(self, ILogger())
        self.Builder = functools.partial(Builder, self)
        self.OnnxParser = functools.partial(OnnxParser, self)
        self.OnnxParserRefitter = functools.partial(OnnxParserRefitter, self)
        self.Refitter = functools.partial(Refitter, self)
        self.Runtime = functools.partial(Runtime, self)

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        """Take the logger, and do nothing else: the host has no plugins of its own."""
        self._plugins = IPluginRegistry(self, logger)
        return True

    def get_plugin_registry(self) -> Any:
        return self._plugins
