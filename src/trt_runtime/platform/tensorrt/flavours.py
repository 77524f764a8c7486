"""Which TensorRT packages there are, and what each release of them can do.

Every fact here is held against the surfaces in ``tests/manifests``, read off the real packages.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Any

from ...errors import NoTensorRTError, UnsupportedError


@dataclass(frozen=True)
class Flavour:
    """A TensorRT package, and what a release of it has.

    Attributes
    ----------
    name : str
        The import name.
    generation : int
        8, 10 or 11: the TensorRT major version whose Python surface it has.
    builder : bool
        Whether it can build engines.
    needs_explicit_batch : bool
        Networks need the ``EXPLICIT_BATCH`` flag (8.6).
    typed_only : bool
        Only strongly typed networks: precision comes from the ONNX model alone (11, RTX).
    shared_profiles : bool
        Contexts may share an optimisation profile without a preview feature (10 and later).
    compute_capabilities : bool
        Builds for chosen compute capabilities, without a GPU (RTX).
    timing_cache : bool
        Times kernels while it builds. RTX 1.7.1 calls its timing cache a no-op.
    hardware_compatibility : bool
        Builds for several GPUs by level. RTX 1.7.1 ignores the level, with a warning.
    dla : bool
        Can build for deep learning accelerators. RTX 1.7.1 says that its DLA is disabled.
    install : str
        The command that installs it.
    """

    name: str
    generation: int
    builder: bool
    install: str
    needs_explicit_batch: bool = False
    typed_only: bool = False
    shared_profiles: bool = True
    compute_capabilities: bool = False
    timing_cache: bool = True
    hardware_compatibility: bool = True
    dla: bool = True

    @property
    def monitor(self) -> bool:
        """Whether a build tells its progress, and can be cancelled (10 and later)."""
        return self.generation >= 10

    def of_release(self, version: str) -> Flavour:
        """The same flavour as of that release."""
        if self.name == "tensorrt_rtx":
            return self
        major, minor = (int(part) for part in version.split(".")[:2])
        if (major, minor) < (8, 6):
            raise UnsupportedError(
                f"{self.name} {version} is too old; trt_runtime needs TensorRT 8.6, 10 or 11"
            )
        old = major < 10
        return replace(
            self,
            generation=8 if old else min(major, 11),
            needs_explicit_batch=old,
            typed_only=major >= 11,
            shared_profiles=not old,
        )


#: In the order in which they are tried.
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("tensorrt", 10, True, "pip install tensorrt"),
        Flavour(
            "tensorrt_rtx",
            11,
            True,
            "pip install tensorrt-rtx",
            typed_only=True,
            compute_capabilities=True,
            timing_cache=False,
            hardware_compatibility=False,
            dla=False,
        ),
        Flavour("tensorrt_lean", 10, False, "pip install tensorrt-lean"),
        Flavour("tensorrt_dispatch", 10, False, "pip install tensorrt-dispatch"),
        Flavour("tensorrt_host", 10, True, "pip install onnxruntime"),
    )
}

_IMPORTABLE = tuple(name for name in FLAVOURS if name != "tensorrt_host")


def offline_flavour(asked: str | None, for_chosen_gpus: bool) -> str | None:
    """The flavour that builds without a GPU, if it is asked for.

    Naming it is asking for it, and so is choosing GPUs to build for without naming a flavour.
    """
    if asked is None and not for_chosen_gpus:
        return None
    offline = (flavour.name for flavour in FLAVOURS.values() if flavour.compute_capabilities)
    return next((name for name in offline if asked in (None, name)), None)


def installed_flavours() -> list[str]:
    """Names of the TensorRT packages that can be found, without importing them."""
    return [name for name in _IMPORTABLE if importlib.util.find_spec(name) is not None]


def import_flavour(name: str | None) -> tuple[Any, str]:
    """Import that flavour, or the first installed; the module and its name."""
    if name is not None and name not in _IMPORTABLE:
        raise NoTensorRTError(
            f"TensorRT flavour {name!r} is not known; expected one of {', '.join(_IMPORTABLE)}"
        )
    candidates = [name] if name is not None else installed_flavours()
    failures = []
    for candidate in candidates:
        try:
            return importlib.import_module(candidate), candidate
        except Exception as error:  # a TensorRT wheel raises several kinds without its libraries
            failures.append(f"{candidate}: {error}")
    if name is not None:
        hint = f"Install it: {FLAVOURS[name].install}."
        raise NoTensorRTError(f"{name} cannot be imported ({'; '.join(failures)}). {hint}")
    raise NoTensorRTError(
        "no TensorRT is installed"
        + (f" that can be imported ({'; '.join(failures)})" if failures else "")
        + ". Install one: pip install tensorrt (or tensorrt-rtx, tensorrt-lean)."
    )
