"""TensorRT, whichever release and flavour is installed, behind one set of classes.

What differs between TensorRT 8.6, 10, 11, TensorRT for RTX, and the lean and dispatch runtimes is
known in this package and nowhere else: `flavours` says which there are, `log` collects what they
say, `runtime` loads and runs engines, `builder` makes them.

TensorRT's own objects never leave the classes that wrap them: TensorRT releases an object when the
last reference goes, so one that leaked, into a traceback even, would outlive its owner.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ...errors import UnsupportedError
from .flavours import FLAVOURS, Flavour, import_flavour, installed_flavours, offline_flavour
from .log import Log
from .runtime import PlanContext, PlanEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...build.config import BuildConfig

__all__ = [
    "FLAVOURS",
    "Flavour",
    "PlanContext",
    "PlanEngine",
    "TensorRT",
    "installed_flavours",
    "load_tensorrt",
    "offline_flavour",
]

# TensorRT has crashed when two threads of a process built at once with a shared timing cache.
_building = threading.Lock()

# TensorRT keeps the first logger that it is given, so each library is wrapped, with its log, once.
_loading = threading.Lock()
_loaded: dict[str, TensorRT] = {}


class TensorRT:
    """One loaded TensorRT: its module, what that release can do, and its one logger."""

    def __init__(self, module: Any, flavour: str) -> None:
        self.module = module
        self.name = flavour
        self.version = str(module.__version__)
        self.flavour = FLAVOURS[flavour].of_release(self.version)
        self.log = Log(module)

    @property
    def has_builder(self) -> bool:
        return self.flavour.builder

    def load(
        self, plan: bytes, *, trust_host_code: bool = False, lean_library: str | None = None
    ) -> PlanEngine:
        """Deserialise a plan; the device's context must be current. See `runtime.PlanEngine`."""
        return PlanEngine(self, plan, trust_host_code=trust_host_code, lean_library=lean_library)

    def build(
        self,
        model: bytes,
        path: str | None,
        config: BuildConfig,
        on_progress: Callable[[str, int, int], bool] | None = None,
    ) -> bytes:
        """Build a plan from a serialised ONNX model; one build at a time in a process.

        ``path`` is where the model was read from: external data is found relative to it.
        """
        if not self.has_builder:
            raise UnsupportedError(
                f"{self.name} {self.version} is a runtime without a builder. Build the engine with "
                "the full TensorRT (version compatible), or install one: "
                "pip install 'trt-runtime[tensorrt]' or 'trt-runtime[rtx]'"
            )
        from .builder import build_plan

        with _building:
            return build_plan(self, model, path, config, on_progress)

    def __repr__(self) -> str:
        return f"<TensorRT {self.name} {self.version}>"


def load_tensorrt(flavour: str | None) -> TensorRT:
    """Import the flavour of that name, or the first that is installed.

    Raises
    ------
    NoTensorRTError
        It is not installed, or none is.
    """
    module, name = import_flavour(flavour)
    with _loading:
        library = _loaded.get(name)
        if library is None or library.module is not module:
            library = _loaded[name] = TensorRT(module, name)
        return library
