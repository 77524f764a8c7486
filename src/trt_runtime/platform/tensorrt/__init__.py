"""TensorRT, whichever release and flavour is installed, behind one set of classes.

What differs between TensorRT 8.6, 10, 11, TensorRT for RTX, and the lean and dispatch runtimes is
known in this package and nowhere else: `flavours` says which there are, `log` collects what they
say, `runtime` loads and runs engines, `inspector` and `refit` ask and change them, `builder` makes
them, `settings` knows what each option of a build is called and where it is missing, `calibrator`
and `timing` are TensorRT's side of those.

TensorRT's own objects never leave the classes that wrap them: TensorRT releases an object when the
last reference goes, so one that leaked, into a traceback even, would outlive its owner.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BuildError, InputError, UnsupportedError
from ...locks import Lock
from .flavours import FLAVOURS, Flavour, import_flavour, installed_flavours, offline_flavour
from .log import Log
from .runtime import PlanContext, PlanEngine, plan_validity, plan_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...build.config import BuildConfig
    from ...build.progress import Reporter
    from .builder import CalibrationData
    from .runtime import Validity
    from .timing import TimingFile

__all__ = [
    "FLAVOURS",
    "Flavour",
    "PlanContext",
    "PlanEngine",
    "TensorRT",
    "installed_flavours",
    "load_tensorrt",
    "offline_flavour",
    "plan_version",
]

logger = logging.getLogger("trt_runtime")

# TensorRT has crashed when two threads of a process built at once with a shared timing cache.
_building = Lock()

# TensorRT keeps the first logger that it is given, so each library is wrapped, with its log, once.
_loading = Lock()
_loaded: dict[str, TensorRT] = {}


class TensorRT:
    """One loaded TensorRT: its module, what that release can do, and its one logger."""

    def __init__(self, module: Any, flavour: str) -> None:
        self.module = module
        self.name = flavour
        self.version = str(module.__version__)
        self.flavour = FLAVOURS[flavour].of_release(self.version)
        self.log = Log(module)
        # Plugins are the library's for as long as it is loaded: engines that are open use them.
        self._plugins: dict[str, Any] = {}
        self._has_standard_plugins = False
        self._loading_plugins = Lock()

    @property
    def has_builder(self) -> bool:
        return self.flavour.builder

    def load(
        self,
        plan: bytes | memoryview,
        *,
        trust_host_code: bool = False,
        lean_library: str | None = None,
        plugin_libraries: Sequence[str] = (),
    ) -> PlanEngine:
        """Deserialise a plan; the device's context must be current. See `runtime.PlanEngine`."""
        self.load_plugins(plugin_libraries)
        return PlanEngine(self, plan, trust_host_code=trust_host_code, lean_library=lean_library)

    def validity(self, plan: bytes | memoryview) -> tuple[Validity, tuple[str, ...]] | None:
        """What the release says of a plan without loading it, or None if it cannot be asked.

        The device's context must be current.
        """
        return plan_validity(self, plan)

    def load_plugins(self, libraries: Sequence[str] = ()) -> None:
        """Register NVIDIA's own plugins and those of ``libraries``, each once in a process.

        Raises
        ------
        InputError
            There is no such file.
        BuildError
            TensorRT cannot take it for a library of plugins.
        """
        with self._loading_plugins:
            if self.has_builder and not self._has_standard_plugins:
                if not self.module.init_libnvinfer_plugins(self.log.logger, ""):
                    logger.warning("%s %s has no plugins of its own", self.name, self.version)
                self._has_standard_plugins = True
            for library in libraries:
                path = str(Path(library).resolve())
                if not os.path.isfile(path):
                    raise InputError(
                        f"there is no plugin library {library!r} (in {os.getcwd()!r}); check "
                        "plugin_libraries"
                    )
                if path in self._plugins:
                    continue
                with self.log.capture() as lines:
                    handle = self.module.get_plugin_registry().load_library(path)
                if handle is None:
                    raise BuildError(
                        f"{self.name} {self.version} cannot load {library!r} as a library of "
                        "plugins; it must be built for this release",
                        log_lines=lines,
                    )
                self._plugins[path] = handle

    def refuse(
        self, config: BuildConfig, quantised: Iterable[str] = (), calibrated: bool = False
    ) -> None:
        """Raise for what this release and flavour cannot build; see `settings.refuse`."""
        from .settings import refuse

        if not self.has_builder:
            raise UnsupportedError(
                f"{self.name} {self.version} is a runtime without a builder. Build the engine with "
                "the full TensorRT (version compatible), or install one: "
                "pip install 'trt-runtime[tensorrt]' or 'trt-runtime[rtx]'"
            )
        refuse(self, config, quantised, calibrated)

    def build(
        self,
        model: bytes,
        path: str | None,
        config: BuildConfig,
        reporter: Reporter,
        calibration: CalibrationData | None = None,
        timings: TimingFile | None = None,
    ) -> bytes:
        """Build a plan from a serialised ONNX model; one build at a time in a process.

        ``path`` is where the model was read from: external data is found relative to it. What
        `refuse` raises for has been refused before.
        """
        from .builder import build_plan

        while not _building.acquire(timeout=0.1):
            reporter.raise_if_stopped()
        try:
            self.load_plugins()
            return build_plan(self, model, path, config, reporter, calibration, timings)
        finally:
            _building.release()

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
