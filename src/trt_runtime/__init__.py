"""A runtime for TensorRT: engines, contexts, memory and streams as objects that own what they hold.

    from trt_runtime import Session

    with Session("yolov3.onnx") as s:
        outputs = s.infer(img)

Importing this package imports neither TensorRT nor CUDA; both come in on first use.
"""

from .bindings import Binding, BindingSet
from .build.config import BuildConfig, Profile
from .context import ExecutionContext
from .device import Device
from .engine import Engine, build_plan
from .errors import (
    BuildError,
    BusyError,
    ClosedError,
    CorruptPlanError,
    CudaError,
    DtypeError,
    EngineError,
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
    ShapeError,
    StickyCudaError,
    TrtRuntimeError,
    UnsupportedError,
    UntrustedPlanError,
)
from .graph import CudaGraph
from .memory import DeviceBuffer, PinnedBuffer
from .session import Session
from .stream import Event, Stream
from .tensor import Range, TensorSpec

__version__ = "0.1.0"

__all__ = [
    "Binding",
    "BindingSet",
    "BuildConfig",
    "BuildError",
    "BusyError",
    "ClosedError",
    "CorruptPlanError",
    "CudaError",
    "CudaGraph",
    "Device",
    "DeviceBuffer",
    "DtypeError",
    "Engine",
    "EngineError",
    "Event",
    "ExecutionContext",
    "ForkedProcessError",
    "HostDeviceWarning",
    "InputError",
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
    "PlanVersionError",
    "Profile",
    "Range",
    "Session",
    "ShapeError",
    "StickyCudaError",
    "Stream",
    "TensorSpec",
    "TrtRuntimeError",
    "UnsupportedError",
    "UntrustedPlanError",
    "build_plan",
]
