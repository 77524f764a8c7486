"""The runtime: turns a plan back into an engine, or says why it will not."""

from __future__ import annotations

from typing import Any

from ....errors import NoTensorRTError
from . import plan
from .engine import ICudaEngine
from .enums import EngineCapability, HardwareCompatibilityLevel, ProfilingVerbosity
from .interfaces import ILogger
from .loaded import LoadedNetwork
from .plan import PlanRefused
from .seam import Platform, TensorRTObject, frameless, refuse_construction


class Runtime(TensorRTObject):
    """Deserialises plans on the current CUDA context."""

    def __init__(self, trt: Platform, logger: ILogger) -> None:
        refuse_construction(trt, logger, "Runtime")
        self._driver = trt.driver
        self._require_current_context("Runtime")
        super().__init__(trt, logger, "runtime")
        self.engine_host_code_allowed = False
        self.max_threads = 1

    @property
    def logger(self) -> ILogger:
        return self._logger

    @property
    def num_DLA_cores(self) -> int:
        return 0

    @frameless
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """Return the engine of a plan, or None after logging why there is none."""
        call = "deserialize_cuda_engine"
        if self._fails(call):
            return None
        self._require_current_context(call)
        try:
            header, model = plan.unpack(serialized_engine, self._trt.__version__)
        except PlanRefused as refused:
            self._error(str(refused))
            return None
        if header.get("carries_host_code", True) and not self.engine_host_code_allowed:
            self._error(
                "IRuntime::deserializeCudaEngine: Error Code 3: API Usage Error (The plan carries "
                "host code, its lean runtime, and engine_host_code_allowed is False)"
            )
            return None
        try:
            _require_complete(header)
            network = LoadedNetwork(header, model)
        except NoTensorRTError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base
            self._error(f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({error})")
            return None
        return ICudaEngine(self, header, network, bytes(serialized_engine))


def _require_complete(header: dict[str, Any]) -> None:
    """Raise unless the header has what an engine will be asked for; a checksum does not say so."""
    ProfilingVerbosity(header["profiling_verbosity"])
    HardwareCompatibilityLevel(header["hardware_compatibility_level"])
    EngineCapability(header["engine_capability"])
    given = (header["flags"], header.get("tactic_sources", 0), header.get("stripped_bytes") or 0)
    if not isinstance(header["name"], str) or not all(type(value) is int for value in given):
        raise ValueError("the header's name, flags, tactic sources or stripped bytes are none")
