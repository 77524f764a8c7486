"""``trt-runtime build``: an ONNX model becomes an engine file, by way of the engine cache."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from trt_runtime import (
    BuildConfig,
    Engine,
    InputError,
    MissingProfileError,
    NoDeviceError,
    build_plan,
)
from trt_runtime.cli import networks, output
from trt_runtime.cli import options as shared
from trt_runtime.cli.grammar import format_dimensions
from trt_runtime.cli.inputs import Arrays, read_sample
from trt_runtime.cli.options import BuildOptions, takes_build_options
from trt_runtime.cli.output import readable_seconds, readable_size
from trt_runtime.cli.progress import BuildDisplay, build_display
from trt_runtime.cli.saving import require_writable, write_whole
from trt_runtime.platform import cuda_platform
from trt_runtime.platform.tensorrt import load_tensorrt, offline_flavour

EXAMPLES = """\
Examples:

  trt-runtime build yolo.onnx --precision fp16 --workspace 4GiB

  trt-runtime build bert.onnx --profile ids:1x8..8x64..32x512 --profile ids:1x1..1x1..1x8

  trt-runtime build yolo.onnx --tensorrt tensorrt_rtx --compute-capability 8.6
"""


@takes_build_options
def build(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="An .onnx model, or the name of a network that run knows."
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The engine file; by default MODEL's name in this folder.",
            metavar="FILE",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an engine file that is there.")
    ] = False,
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    no_cache: shared.NoCache = False,
    json: shared.Json = False,
    debug: shared.Debug = False,
    *,
    options: BuildOptions,
) -> None:
    """Build MODEL into an engine file.

    An engine that was built of the same model, options, TensorRT and GPU before comes from the
    cache. trtexec's names of options, such as --minShapes, are understood.
    """
    config = options.config()
    path = networks.model_file(model)
    if path.suffix.lower() in (".engine", ".plan"):
        raise InputError(f"{model} is an engine already; run it: trt-runtime run {model}")
    file = target or Path(f"{Path(model).stem}.engine")
    require_writable(file, force=force)
    calibration = Samples.of(options.calibrate or ())

    started = time.perf_counter()
    flavour = flavour_for_elsewhere(config, tensorrt)
    with _missing_profile_names_options(), build_display() as display:
        if flavour is not None:
            built = _built_for_elsewhere(path, config, flavour, calibration, file, display)
        else:
            built = _built_here(
                path,
                config,
                None if no_cache else cache_dir,
                cached=not no_cache,
                settings={
                    "calibration": calibration,
                    "device": shared.device_of(device),
                    "tensorrt": tensorrt,
                },
                file=file,
                display=display,
            )
    seconds = time.perf_counter() - started
    if json:
        output.document(built.to_json(model, file, seconds, config))
    else:
        built.print(model, file, seconds)


def flavour_for_elsewhere(config: BuildConfig, tensorrt: str | None) -> str | None:
    """The TensorRT that builds for GPUs of other machines, if that is what is asked for.

    TensorRT for RTX does when it is told for which, and when there is none here.
    """
    flavour = offline_flavour(tensorrt, bool(config.compute_capabilities))
    if flavour is None or config.compute_capabilities:
        return flavour
    try:
        cuda_platform()
    except NoDeviceError:
        return flavour
    return None


@dataclass(frozen=True)
class _Built:
    """What was built, with what, and where it runs."""

    tensorrt: str
    version: str
    device: str | None
    device_name: str | None
    cache: str | None
    hit: bool
    tensors: Sequence[tuple[str, str, str, str, str]] = ()

    def next_command(self, file: Path) -> str:
        """What the user may want to do with the file."""
        if self.device is None:
            return f"trt-runtime inspect {file}"
        where = " --device host" if self.device.startswith("host") else ""
        return f"trt-runtime run {file}{where}"

    def print(self, model: str, file: Path, seconds: float) -> None:
        where = f" on {self.device_name}" if self.device else ", for GPUs that are elsewhere"
        output.line(f"{model} with {self.tensorrt} {self.version}{where}")
        if self.tensors:
            columns = ("tensor", "mode", "dtype", "shape", "profiles")
            output.table(columns, self.tensors, if_any=("profiles",))
        size = readable_size(file.stat().st_size)
        took = readable_seconds(seconds)
        verb = "taken from the cache" if self.hit else "built"
        output.line(f"{verb} in {took}: {file}, {size}")
        output.line(f"next: {self.next_command(file)}")

    def to_json(
        self, model: str, file: Path, seconds: float, config: BuildConfig
    ) -> dict[str, Any]:
        return {
            "model": model,
            "output": str(file),
            "bytes": file.stat().st_size,
            "seconds": seconds,
            "tensorrt": {"name": self.tensorrt, "version": self.version},
            "device": {"name": self.device_name, "which": self.device} if self.device else None,
            "cache": {"directory": self.cache, "hit": self.hit} if self.cache else None,
            "tensors": [
                dict(zip(("name", "mode", "dtype", "shape", "profiles"), tensor, strict=True))
                for tensor in self.tensors
            ],
            "config": config.to_json(),
            "next": self.next_command(file),
        }


def _built_for_elsewhere(
    path: Path,
    config: BuildConfig,
    flavour: str,
    calibration: Samples | None,
    file: Path,
    display: BuildDisplay,
) -> _Built:
    """A plan that no device here is asked about, and that nothing here can load."""
    library = load_tensorrt(flavour)
    plan = build_plan(path, config, calibration=calibration, tensorrt=flavour, on_progress=display)
    write_whole(file, lambda opened: opened.write(plan))
    return _Built(library.name, library.version, None, None, cache=None, hit=False)


def _built_here(
    path: Path,
    config: BuildConfig,
    directory: Path | None,
    *,
    cached: bool,
    settings: dict[str, Any],
    file: Path,
    display: BuildDisplay,
) -> _Built:
    cache = shared.cache_of(directory) if cached else None
    make = cache.load_or_build if cache is not None else Engine.build
    with make(path, config, **settings, on_progress=display) as engine:
        try:
            engine.save(file)
        except OSError as error:
            raise InputError(
                f"{str(file)!r} cannot be written: {error.strerror or error}"
            ) from error
        return _Built(
            engine.tensorrt_name,
            engine.tensorrt_version,
            str(engine.device),
            engine.device.name,
            cache=str(cache.directory) if cache is not None else None,
            hit=cache is not None and not display.heard,
            tensors=tuple(_described(engine)),
        )


def _described(engine: Engine) -> Iterator[tuple[str, str, str, str, str]]:
    for spec in engine.tensors.values():
        ranges = spec.values or (spec.profiles if spec.is_dynamic else ())
        yield (
            spec.name,
            spec.mode,
            spec.dtype.name,
            format_dimensions(spec.shape, unknown="?"),
            ", ".join("..".join(map(format_dimensions, allowed)) for allowed in ranges),
        )


@contextmanager
def _missing_profile_names_options() -> Iterator[None]:
    """The library's error shows Python; here it shows what to add to the command."""
    try:
        yield
    except MissingProfileError as error:
        ranges, shapes = [], []
        for name, shape in error.inputs.items():
            bounds = [tuple(bound if n < 0 else n for n in shape) for bound in (1, 4, 8)]
            if -1 in shape:
                shapes.append(f"{name}:{format_dimensions(shape, unknown='SIZE')}")
            else:  # a shape tensor: its values, as many as it has elements
                bounds = [(bound,) * math.prod(shape) for bound in (1, 4, 8)]
                shapes.append(f"{name}:{'x'.join(['VALUE'] * math.prod(shape)) or 'VALUE'}")
            ranges.append(f"{name}:{'..'.join(map(format_dimensions, bounds))}")
        raise MissingProfileError(
            f"the model has inputs of dynamic shape, and no profile covers "
            f"{', '.join(map(repr, error.inputs))}. Give a range with your own bounds (min..opt.."
            f"max): --profile {','.join(ranges)}; or what is always the same: --shapes "
            f"{','.join(shapes)}.",
            error.inputs,
        ) from error


class Samples:
    """Calibration data in files, read again for each pass over it: one file is one batch."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Samples | None:
        """The files, and those of the folders in alphabetical order; None without any path."""
        files: list[Path] = []
        for path in paths:
            if path.is_dir():
                inside = [p for p in path.iterdir() if p.suffix.lower() in (".npy", ".npz")]
                if not inside:
                    raise InputError(f"--calibrate: {str(path)!r} has no .npz or .npy file in it.")
                files += sorted(inside)
            elif path.suffix.lower() in (".npy", ".npz") and path.is_file():
                files.append(path)
            else:
                raise InputError(
                    f"--calibrate takes .npz and .npy files and folders of them, not {str(path)!r}."
                )
        return cls(files) if files else None

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Arrays | NDArray[Any]]:
        return map(read_sample, self._files)
