"""``trt-runtime doctor``: what is there, what fits what, what is missing and how to install it.

Nothing here can be brought down by what it looks at: each TensorRT is imported in a process of its
own, and whatever fails is a row. CUDA is initialised, which finding GPUs takes; no context is made.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from trt_runtime import InputError, TrtRuntimeError
from trt_runtime.cli import options as shared
from trt_runtime.cli import output
from trt_runtime.cli.failure import DIFFERS
from trt_runtime.cli.installed import (
    cuda_major_of,
    driver_command,
    has_nvidia_gpu,
    kernel_module_version,
    probed,
    start_probe,
    version_of,
)
from trt_runtime.cli.output import readable_size
from trt_runtime.platform import cuda_platform
from trt_runtime.platform.tensorrt import FLAVOURS
from trt_runtime.platform.tensorrt.gpus import recommended, supported_gpus
from trt_runtime.tensor import format_bytes

EXAMPLES = """\
Examples:

  trt-runtime doctor

  trt-runtime doctor --device cuda --tensorrt tensorrt_rtx
"""

#: Where NVIDIA has CUDA drivers for.
_HAS_CUDA = ("Linux", "Windows")


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, how it stands, and what to do about it.

    ``status`` is ``ok``, ``missing`` (not there, and somebody may want it), ``failed`` (there and
    does not work) or ``note``.
    """

    name: str
    status: str
    detail: str
    command: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it."""

    ordinal: int
    name: str
    compute_capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, compute capability {major}.{minor}, {format_bytes(self.memory)}"


@dataclass
class Flavour:
    """A TensorRT package as it is installed, or not."""

    name: str
    installed: bool
    version: str | None = None
    builder: bool = False
    error: str = ""
    cuda_major: int | None = None
    supports: dict[int, bool | None] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        return self.version is not None

    def is_too_new_for(self, driver_cuda: int | None) -> bool:
        """Whether its CUDA is of a later major version than the driver's."""
        return bool(self.cuda_major and driver_cuda and driver_cuda // 1000 < self.cuda_major)

    def runs_on(self, gpu: Gpu, driver_cuda: int | None) -> bool:
        """Whether it can, as far as is known without trying."""
        supported = self.supports.get(gpu.ordinal) is not False
        return self.works and supported and not self.is_too_new_for(driver_cuda)


@dataclass
class Diagnosis:
    """Everything that was found."""

    checks: list[Check] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    driver_cuda: int | None = None
    flavours: list[Flavour] = field(default_factory=list)
    host_works: bool = False
    auto: str = ""
    auto_problem: str = ""
    problems: list[str] = field(default_factory=list)


def doctor(
    device: Annotated[
        str | None,
        typer.Option(
            help="What must work: host, cuda or cuda:N; or auto, which is anything; "
            "TRT_RUNTIME_DEVICE, or auto, by default.",
            metavar="DEVICE",
        ),
    ] = None,
    tensorrt: Annotated[
        str | None,
        typer.Option(help="The TensorRT that must work with it.", metavar="FLAVOUR"),
    ] = None,
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Say what is installed, what fits the GPUs, and what to install.

    Exit status 0 when inference can run on what was asked for, and 1 when it cannot.
    """
    if tensorrt is not None and tensorrt not in _packages():
        raise InputError(
            f"--tensorrt {tensorrt!r} is not known; expected one of {', '.join(_packages())}."
        )
    device = device or os.environ.get("TRT_RUNTIME_DEVICE") or "auto"
    if not re.fullmatch(r"auto|host(:\d+)?|cuda(:\d+)?|\d+", device):
        raise InputError(
            f"--device {device!r} is not understood; expected auto, host, cuda, cuda:N."
        )
    found = diagnose(device, tensorrt, shared.cache_of(cache_dir))
    if json:
        output.document(_as_json(found))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(DIFFERS)


def diagnose(device: str, tensorrt: str | None, cache: Any) -> Diagnosis:
    """Look at everything, in the order in which it is shown."""
    found = Diagnosis()
    probes = {name: start_probe(name) for name in _packages()}
    found.checks.append(
        Check(
            "Python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
        )
    )
    _look_at_driver(found)
    _look_at_flavours(found, probes)
    _look_at_onnxruntime(found)
    _look_at_pillow(found)
    _look_at_cache(found, cache)
    _choose(found)
    found.problems += _unmet(found, device, tensorrt)
    return found


def _packages() -> list[str]:
    return [name for name in FLAVOURS if name != "tensorrt_host"]


# The driver and the GPUs ------------------------------------------------------------------------


def _look_at_driver(found: Diagnosis) -> None:
    if platform.system() not in _HAS_CUDA:
        found.checks.append(Check("cuda-python", "note", "there is none for this system"))
        return
    if importlib.util.find_spec("cuda") is None:
        detail = "not installed: no GPU can be used"
        found.checks.append(Check("cuda-python", "missing", detail, "pip install cuda-python"))
        return
    bindings = version_of("cuda-bindings") or version_of("cuda-python")
    found.checks.append(Check("cuda-python", "ok", bindings or "there"))
    try:
        driver = cuda_platform().driver
        found.driver_cuda = driver.driver_version()
        for ordinal in range(driver.device_count()):
            found.gpus.append(
                Gpu(
                    ordinal,
                    driver.device_name(ordinal),
                    driver.compute_capability(ordinal),
                    driver.total_memory(ordinal),
                )
            )
    except Exception as error:  # whatever a broken driver, or broken bindings, raise
        message = _one_line(error.message if isinstance(error, TrtRuntimeError) else str(error))
        if found.driver_cuda is not None or found.gpus:
            found.checks.append(Check("CUDA driver", "failed", message))
        elif has_nvidia_gpu() is False:
            detail = "there is no NVIDIA GPU on this machine's PCI bus"
            found.checks.append(Check("CUDA driver", "note", detail))
        else:
            found.checks.append(Check("CUDA driver", "missing", message, driver_command()))
        return
    release = kernel_module_version()
    found.checks.append(
        Check(
            "CUDA driver",
            "ok",
            f"{release + ', ' if release else ''}CUDA up to {_cuda(found.driver_cuda)}",
        )
    )
    found.checks += [Check(f"GPU cuda:{gpu.ordinal}", "ok", str(gpu)) for gpu in found.gpus]


# TensorRT ---------------------------------------------------------------------------------------


def _look_at_flavours(found: Diagnosis, probes: dict[str, subprocess.Popen[str] | None]) -> None:
    for name, probe in probes.items():
        flavour = Flavour(name, installed=probe is not None)
        found.flavours.append(flavour)
        if probe is None:
            continue
        told = probed(probe)
        flavour.error = _one_line(told.get("error", ""))
        if flavour.error:
            continue
        try:
            FLAVOURS[name].of_release(told["version"])
        except (TrtRuntimeError, ValueError) as error:
            flavour.error = _one_line(str(error))
            continue
        flavour.version, flavour.builder = told["version"], told["builder"]
        flavour.cuda_major = cuda_major_of(name)
        support = supported_gpus(name, flavour.version)
        for gpu in found.gpus:
            fits = support.includes(gpu.compute_capability) if support is not None else None
            flavour.supports[gpu.ordinal] = fits
    satisfied = not found.gpus or _fitting(found, found.gpus, None)
    best = recommended(found.gpus[0].compute_capability if found.gpus else None)
    for flavour in found.flavours:
        wanted = not satisfied and flavour.name == best
        found.checks.append(_flavour_check(flavour, found, wanted=wanted))


def _flavour_check(flavour: Flavour, found: Diagnosis, *, wanted: bool) -> Check:
    install = FLAVOURS[flavour.name].install
    if flavour.error:
        return Check(flavour.name, "failed", flavour.error, install)
    support = supported_gpus(flavour.name, flavour.version)
    does = "builds and runs engines" if support is not None else "runs version-compatible engines"
    if not flavour.installed:
        gpus = f", for compute capability {support}" if support is not None else ""
        status = "missing" if wanted else "note"
        return Check(flavour.name, status, f"not installed; {does}{gpus}", install)
    status, details = "ok", [f"{flavour.version}, {does}"]
    for ordinal, fits in flavour.supports.items():
        if fits is False:
            status = "note"
            details.append(f"not on cuda:{ordinal}: it supports compute capability {support}")
        elif fits:
            details.append(f"supports cuda:{ordinal}")
    if not found.gpus and FLAVOURS[flavour.name].compute_capabilities:
        details.append("without a GPU it builds for others, with --compute-capability")
    if flavour.is_too_new_for(found.driver_cuda):
        status = "failed"
        details.append(
            f"it is for CUDA {flavour.cuda_major}, and the driver knows up to "
            f"{_cuda(found.driver_cuda or 0)}: update the driver"
        )
    return Check(flavour.name, status, "; ".join(details))


# The rest ---------------------------------------------------------------------------------------


def _look_at_onnxruntime(found: Diagnosis) -> None:
    version = version_of("onnxruntime") or version_of("onnxruntime-gpu")
    # The host device imports it when it is used; here it is enough that it can be found.
    found.host_works = importlib.util.find_spec("onnxruntime") is not None
    if found.host_works:
        detail = f"{version or 'there'}: the host device works, and --compare onnxruntime"
        found.checks.append(Check("onnxruntime", "ok", detail))
    else:
        detail = "not installed: no host device, and no --compare onnxruntime"
        found.checks.append(Check("onnxruntime", "missing", detail, "pip install onnxruntime"))


def _look_at_pillow(found: Diagnosis) -> None:
    if importlib.util.find_spec("PIL") is not None:
        found.checks.append(Check("Pillow", "ok", version_of("pillow") or "there"))
    else:
        detail = "not installed: run --input takes no images"
        found.checks.append(Check("Pillow", "note", detail, "pip install pillow"))


def _look_at_cache(found: Diagnosis, cache: Any) -> None:
    reason = cache.unusable()
    if reason:
        found.checks.append(
            Check("engine cache", "failed", reason, f"export TRT_RUNTIME_CACHE={_own_folder()}")
        )
        return
    count = len(cache.entries())
    detail = f"{cache.directory}, {count} engine{'' if count == 1 else 's'}, "
    detail += f"{readable_size(cache.size)} of at most {readable_size(cache.max_bytes)}"
    if not cache.directory.exists():
        detail = f"{cache.directory}, to be made on first use"
    found.checks.append(Check("engine cache", "ok", detail))


def _own_folder() -> str:
    return os.path.join("~", "trt_runtime_cache")


def _choose(found: Diagnosis) -> None:
    """The default device: as `Device` decides, which would initialise more."""
    chosen = os.environ.get("TRT_RUNTIME_TENSORRT")
    usable = [f for f in found.flavours if f.works and chosen in (None, "", f.name)]
    default = os.environ.get("TRT_RUNTIME_DEVICE") or "auto"
    if default != "auto":
        found.auto = f"{default}, as TRT_RUNTIME_DEVICE says"
    elif found.gpus and usable:
        found.auto = f"cuda:0 with {usable[0].name} {usable[0].version}"
        if not usable[0].runs_on(found.gpus[0], found.driver_cuda):
            best = recommended(found.gpus[0].compute_capability)
            found.auto_problem = (
                f"the default is {found.auto}, which does not run there; install one that "
                f"does ({FLAVOURS[best].install}), name it in TRT_RUNTIME_TENSORRT, or set "
                "TRT_RUNTIME_DEVICE=host"
            )
    else:
        found.auto = f"host, as {'no TensorRT works' if found.gpus else 'there is no GPU'}"
        if not found.host_works:
            found.auto += ", and without onnxruntime that cannot run"
    found.checks.append(Check("default device", "note", found.auto))


def _unmet(found: Diagnosis, device: str, tensorrt: str | None) -> list[str]:
    """Why inference cannot run on what was asked for; empty when it can."""
    if device == "auto" and tensorrt is None and found.auto_problem:
        return [found.auto_problem]
    if device == "auto" and tensorrt is None:
        if found.host_works or _fitting(found, found.gpus, None):
            return []
        return ["inference can run nowhere: no GPU with a TensorRT that fits, and no onnxruntime"]
    if device.startswith("host"):
        return [] if found.host_works else ["the host device needs onnxruntime"]
    gpus = found.gpus
    number = device.rpartition(":")[2]
    if number.isdecimal():
        gpus = [gpu for gpu in gpus if gpu.ordinal == int(number)]
    if not gpus:
        return [f"there is no GPU{f' of number {number}' if number.isdecimal() else ''}"]
    if not _fitting(found, gpus, tensorrt):
        which = tensorrt or "installed TensorRT"
        advice = FLAVOURS[recommended(gpus[0].compute_capability)].install
        return [f"no {which} works with {gpus[0].name}; try: {advice}"]
    return []


def _fitting(found: Diagnosis, gpus: Sequence[Gpu], tensorrt: str | None) -> bool:
    """Whether a TensorRT works with one of the GPUs, as far as can be told."""
    return any(
        tensorrt in (None, flavour.name) and flavour.runs_on(gpu, found.driver_cuda)
        for flavour in found.flavours
        for gpu in gpus
    )


def _print(found: Diagnosis) -> None:
    output.table(
        ("check", "status", "what was found"),
        [(check.name, check.status, check.detail) for check in found.checks],
    )
    commands = [check for check in found.checks if check.command]
    if commands:
        output.line("what is missing, and what installs it:")
        for check in commands:
            output.line(f"  {check.name}: {check.command}")
    output.line()
    for problem in found.problems:
        output.line(f"not ready: {problem}")
    if not found.problems:
        output.line("ready")


def _as_json(found: Diagnosis) -> dict[str, Any]:
    return {
        "ready": not found.problems,
        "problems": found.problems,
        "auto": found.auto,
        "driver_cuda": _cuda(found.driver_cuda) if found.driver_cuda is not None else None,
        "gpus": [asdict(gpu) for gpu in found.gpus],
        "tensorrt": [
            {**asdict(flavour), "supports": {str(n): fits for n, fits in flavour.supports.items()}}
            for flavour in found.flavours
        ],
        "host_device": found.host_works,
        "checks": [asdict(check) for check in found.checks],
    }


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
