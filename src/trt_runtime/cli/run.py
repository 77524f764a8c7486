"""``trt-runtime run``: open a model, run it, and say what came out and how long it took."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from trt_runtime import (
    HostDeviceWarning,
    InputError,
    MissingProfileError,
    Profile,
    Session,
    TensorSpec,
)
from trt_runtime.cli import networks
from trt_runtime.cli.failure import errors_as_text
from trt_runtime.cli.report import Report, Timings, compare, print_json, print_text

Arrays = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An .onnx model, an .engine or .plan file, or the name of a network that comes "
            f"with the onnx package: {', '.join(networks.names())}.",
        ),
    ],
    device: Annotated[
        str, typer.Option(help="auto, host, cuda or cuda:N.", metavar="DEVICE")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of a dynamic input, such as images:1x3x224x224. Repeatable.",
            metavar="NAME:SHAPE",
        ),
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="Timed inferences after the first one.")
    ] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Run MODEL once to warm up and then ITERATIONS times.

    Exit status 0 when it ran, 1 when its output does not match the reference, 2 on an error.
    """
    with errors_as_text(traceback=debug), _host_device_as_one_line():
        report = _measure(
            model,
            device=device,
            seed=seed,
            shapes=_parse_shapes(shape or ()),
            iterations=iterations,
        )
    if json:
        print_json(report)
    else:
        print_text(report)
    if report.comparison is not None and not report.comparison.matches:
        raise typer.Exit(1)


def _measure(
    model: str, *, device: str, seed: int, shapes: Mapping[str, Shape], iterations: int
) -> Report:
    network = networks.find(model)
    path = network.model if network else _existing_file(model)

    started = time.perf_counter()
    with _open(path, device, shapes) as session:
        open_ms = _ms_since(started)
        _check_names(session.inputs, shapes)
        if network:
            inputs = {spec.name: networks.ramp(spec.shape) for spec in session.inputs}
        else:
            inputs = _random_inputs(session.inputs, shapes, seed)

        started = time.perf_counter()
        outputs = session.infer(inputs)
        first_ms = _ms_since(started)

        each_ms = []
        for _ in range(iterations):
            started = time.perf_counter()
            outputs = session.infer(inputs)
            each_ms.append(_ms_since(started))

        return Report(
            model=model,
            device_name=session.device.name,
            device_kind=session.device.kind,
            tensorrt_name=session.device.tensorrt_name,
            tensorrt_version=session.device.tensorrt_version,
            inputs=inputs,
            outputs=outputs,
            timings=Timings(open_ms, first_ms, statistics.median(each_ms), iterations),
            comparison=compare(outputs, network.reference()) if network else None,
        )


def _open(path: Path, device: str, shapes: Mapping[str, Shape]) -> Session:
    try:
        return Session(path, device=device, profiles=_profiles(path, shapes))
    except MissingProfileError as error:
        options = (f"--shape {name}:{_dimensions(shape)}" for name, shape in error.inputs.items())
        raise InputError(
            f"{path} has inputs of dynamic shape. Choose one for each: {' '.join(options)}."
        ) from error


def _dimensions(shape: Shape) -> str:
    """``(-1, 3, 8)`` as ``SIZEx3x8``."""
    return "x".join("SIZE" if size < 0 else str(size) for size in shape)


def _existing_file(model: str) -> Path:
    path = Path(model)
    if not path.is_file():
        raise InputError(
            f"{model} is neither a file nor a network that comes with the onnx package; "
            f"those are {', '.join(networks.names())}."
        )
    return path


def _parse_shapes(options: Sequence[str]) -> dict[str, Shape]:
    """Read ``name:1x3x224x224``; the name may hold colons itself."""
    shapes: dict[str, Shape] = {}
    for option in options:
        name, colon, dimensions = option.rpartition(":")
        sizes = dimensions.split("x")
        if not (name and colon and all(size.isdecimal() for size in sizes)):
            raise InputError(
                f"--shape takes NAME:SIZExSIZEx..., such as images:1x3x224x224, got {option!r}."
            )
        if name in shapes:
            raise InputError(f"--shape gives input {name!r} twice.")
        shapes[name] = tuple(int(size) for size in sizes)
    return shapes


def _profiles(path: Path, shapes: Mapping[str, Shape]) -> list[Profile] | None:
    """The shapes as a profile for the build; an engine file already has its own."""
    if path.suffix.lower() != ".onnx" or not shapes:
        return None
    return [Profile({name: (shape, shape, shape) for name, shape in shapes.items()})]


def _check_names(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> None:
    known = [spec.name for spec in specs]
    for name in shapes:
        if name not in known:
            raise InputError(f"--shape names {name!r}, but the inputs are {', '.join(known)}.")


def _random_inputs(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape], seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {spec.name: _random(generator, spec.dtype, _input_shape(spec, shapes)) for spec in specs}


def _input_shape(spec: TensorSpec, shapes: Mapping[str, Shape]) -> Shape:
    shape = shapes.get(spec.name, spec.shape)
    if -1 in shape:
        raise InputError(
            f"Input {spec.name!r} has a dynamic shape: "
            f"choose one with --shape {spec.name}:{_dimensions(shape)}."
        )
    return shape


def _random(generator: np.random.Generator, dtype: np.dtype[Any], shape: Shape) -> npt.NDArray[Any]:
    """Fractions of 1 for floating-point types; 0 and 1 for the others, which are valid indices."""
    if dtype.kind in "biu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.random(shape, np.float32).astype(dtype)


@contextmanager
def _host_device_as_one_line() -> Iterator[None]:
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", HostDeviceWarning)
            yield
    finally:
        for warning in caught:
            if issubclass(warning.category, HostDeviceWarning):
                typer.echo(f"note: {warning.message}", err=True)
            else:
                warnings.showwarning(
                    warning.message, warning.category, warning.filename, warning.lineno
                )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
