"""A runtime for TensorRT: engines, contexts, memory and streams as objects that own what they hold.

    from trt_runtime import Session

    with Session("yolov3.onnx") as s:
        outputs = s.infer(img)

Importing this package imports neither TensorRT nor CUDA; both come in on first use.
"""

from .benchmark import BenchmarkReport
from .bindings import Binding, BindingSet
from .build.cache import CacheEntry, EngineCache, Explanation
from .build.calibration import Calibration
from .build.config import BuildConfig, Profile
from .build.plan import build_plan
from .build.progress import BuildProgress
from .context import ExecutionContext
from .device import Device
from .engine import Engine
from .errors import (
    BuildError,
    BusyError,
    CacheWarning,
    CfgError,
    ClosedError,
    CorruptPlanError,
    CudaError,
    DtypeError,
    EngineError,
    ExportError,
    ForkedProcessError,
    HostDeviceWarning,
    InputError,
    MissingProfileError,
    MisuseError,
    ModelError,
    NoDeviceError,
    NotAPlanError,
    NoTensorRTError,
    OutOfMemoryError,
    PendingWorkError,
    PlanDeviceError,
    PlanError,
    PlanVersionError,
    RefitError,
    ShapeError,
    StaleGraphError,
    StickyCudaError,
    TrtRuntimeError,
    UnsupportedError,
    UntrustedPlanError,
    WeightsError,
)
from .graph import CudaGraph
from .inspection import EngineReport, PlanValidity
from .interop import DeviceArray
from .memory import DeviceBuffer, PinnedBuffer
from .profiling import LayerProfile
from .session import Session
from .stream import Event, Stream
from .tensor import Range, TensorSpec
from .timeline import Timeline, record_timeline

__version__ = "0.1.0"

__all__ = [
    "BenchmarkReport",
    "Binding",
    "BindingSet",
    "BuildConfig",
    "BuildError",
    "BuildProgress",
    "BusyError",
    "CacheEntry",
    "CacheWarning",
    "Calibration",
    "CfgError",
    "ClosedError",
    "CorruptPlanError",
    "CudaError",
    "CudaGraph",
    "Device",
    "DeviceArray",
    "DeviceBuffer",
    "DtypeError",
    "Engine",
    "EngineCache",
    "EngineError",
    "EngineReport",
    "Event",
    "ExecutionContext",
    "Explanation",
    "ExportError",
    "ForkedProcessError",
    "HostDeviceWarning",
    "InputError",
    "LayerProfile",
    "MissingProfileError",
    "MisuseError",
    "ModelError",
    "NoDeviceError",
    "NoTensorRTError",
    "NotAPlanError",
    "OutOfMemoryError",
    "PendingWorkError",
    "PinnedBuffer",
    "PlanDeviceError",
    "PlanError",
    "PlanValidity",
    "PlanVersionError",
    "Profile",
    "Range",
    "RefitError",
    "Session",
    "ShapeError",
    "StaleGraphError",
    "StickyCudaError",
    "Stream",
    "TensorSpec",
    "Timeline",
    "TrtRuntimeError",
    "UnsupportedError",
    "UntrustedPlanError",
    "WeightsError",
    "build_plan",
    "record_timeline",
]
