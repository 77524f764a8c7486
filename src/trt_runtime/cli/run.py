"""``trt-runtime run``: open a model, run it, and say what came out and how long it took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from trt_runtime import InputError, MissingProfileError, Profile, Session, TensorSpec
from trt_runtime.cli import grammar, networks, options
from trt_runtime.cli.failure import DIFFERS
from trt_runtime.cli.grammar import Shape, format_dimensions
from trt_runtime.cli.inputs import Arrays, Given, random_input, read_inputs
from trt_runtime.cli.onnx_file import input_specs
from trt_runtime.cli.progress import build_display
from trt_runtime.cli.reference import compare as compared
from trt_runtime.cli.reference import from_file, from_onnxruntime
from trt_runtime.cli.report import Reference, Report, Timings, print_json, print_text
from trt_runtime.cli.saving import save_outputs

_INPUT = "Inputs"
_COMPARING = "Outputs"

EXAMPLES = """\
Examples:

  trt-runtime run squeezenet

  trt-runtime run yolo.onnx --input images=cat.jpg --save out.npz

  trt-runtime run yolo.engine --reference yolo.onnx --compare onnxruntime --rtol 1e-2
"""


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An .onnx model, an .engine or .plan file, or the name of a network that comes "
            f"with the onnx package: {', '.join(networks.names())}.",
        ),
    ],
    device: options.Device = None,
    tensorrt: options.TensorRT = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="Timed inferences after the first one.")
    ] = 10,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="NAME=FILE, or FILE for the next input in order: .npy, .npz, .pb (an ONNX "
            "tensor) or an image. Repeatable. What is not given is random.",
            metavar="[NAME=]FILE",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the random inputs.", rich_help_panel=_INPUT)
    ] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of a dynamic input, such as images:1x3x224x224; an engine's first profile "
            "has a default. Repeatable.",
            metavar="NAME:SHAPE",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the outputs: an .npz file, or a folder of .npy files.",
            metavar="PATH",
            rich_help_panel=_COMPARING,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime (the ONNX model on the CPU), or an .npz file of expected outputs.",
            metavar="onnxruntime|FILE",
            rich_help_panel=_COMPARING,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The ONNX model that onnxruntime runs, where MODEL is an engine.",
            metavar="ONNX",
            rich_help_panel=_COMPARING,
        ),
    ] = None,
    rtol: Annotated[
        float,
        typer.Option(min=0, help="Relative tolerance.", rich_help_panel=_COMPARING),
    ] = 1e-3,
    atol: Annotated[
        float,
        typer.Option(
            min=0,
            help="Absolute tolerance: an element passes within ATOL + RTOL * |reference|.",
            rich_help_panel=_COMPARING,
        ),
    ] = 1e-5,
    cache_dir: options.CacheDirectory = None,
    no_cache: options.NoCache = False,
    trust_host_code: options.TrustHostCode = False,
    lean_library: options.LeanLibrary = None,
    plugin: options.Plugins = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run MODEL once to warm up and then ITERATIONS times.

    Exit status 1 when its output does not match what it is compared with.
    """
    network = networks.find(model)
    path = networks.model_file(model)
    expected = _expected(compare, reference, path)
    shapes = _parse_shapes(shape or ())
    known = _Known(path, inputs or (), shapes)

    started = time.perf_counter()
    with known.open(
        device=options.device_of(device),
        tensorrt=tensorrt,
        cache=not no_cache and (cache_dir or True),
        trust_host_code=trust_host_code,
        lean_library=lean_library,
        plugin_libraries=plugin or (),
    ) as session:
        open_ms = _ms_since(started)
        _check_names(session.inputs, shapes)
        given = read_inputs(inputs or (), session.inputs, shapes)
        if network and not given.arrays:
            arrays = {spec.name: networks.ramp(spec.shape) for spec in session.inputs}
        else:
            arrays = _fill_up(session.inputs, given, shapes, seed)

        started = time.perf_counter()
        outputs = session.infer(arrays)
        first_ms = _ms_since(started)

        each_ms = []
        for _ in range(iterations):
            started = time.perf_counter()
            outputs = session.infer(arrays)
            each_ms.append(_ms_since(started))

        against = None
        if expected is not None:
            source, compute = expected
            figures = compared(outputs, compute(arrays), rtol=rtol, atol=atol)
            against = Reference(source, figures)
        elif network:
            right = dict.fromkeys(outputs, network.reference())
            figures = compared(outputs, right, rtol=networks.RELATIVE_TOLERANCE, atol=0.0)
            against = Reference("the onnx package", figures, is_expected=True)

        report = Report(
            model=model,
            device_name=session.device.name,
            device_kind=session.device.kind,
            tensorrt_name=session.engine.tensorrt_name,
            tensorrt_version=session.engine.tensorrt_version,
            inputs=arrays,
            outputs=outputs,
            timings=Timings(open_ms, first_ms, statistics.median(each_ms), iterations),
            reference=against,
            remarks=given.remarks,
            saved=save_outputs(save, outputs) if save is not None else (),
        )
    if json:
        print_json(report)
    else:
        print_text(report)
    if report.reference is not None and not report.reference.matches:
        raise typer.Exit(DIFFERS)


def _expected(
    compare: str | None, reference: Path | None, path: Path
) -> tuple[str, Callable[[Arrays], Arrays]] | None:
    """What to compare with, by name, and how to get it from the inputs."""
    if compare not in (None, "onnxruntime"):
        if reference is not None:
            raise InputError("--reference is for --compare onnxruntime; leave one of them out.")
        arrays = from_file(Path(compare))  # before the work, not after it
        return str(compare), lambda _: arrays
    if compare is None and reference is None:
        return None
    onnx = reference or (path if _is_onnx(path) else None)
    if onnx is None:
        raise InputError(
            f"--compare onnxruntime needs the ONNX model that {str(path)!r} was built from: "
            "--reference MODEL.onnx."
        )
    if not onnx.is_file():
        raise InputError(f"--reference: there is no file {str(onnx)!r}.")
    return "onnxruntime", lambda inputs: from_onnxruntime(onnx, inputs)


class _Known:
    """What the command line says of the inputs before there is an engine.

    An ONNX model with dynamic inputs is built for exactly the shapes that will be run; an engine
    has its own profiles.
    """

    def __init__(self, path: Path, inputs: Sequence[str], shapes: Mapping[str, Shape]) -> None:
        self._path = path
        self._shapes = dict(shapes)
        self._arrays: Arrays = {}
        self._dynamic = set(shapes)
        if _is_onnx(path) and inputs:
            specs = input_specs(path)
            self._arrays = read_inputs(inputs, specs, shapes).arrays
            self._dynamic |= {spec.name for spec in specs if spec.is_dynamic}

    def open(self, **settings: Any) -> Session:
        """The session; the error of a dynamic input without a shape names the option to add."""
        if not _is_onnx(self._path):
            return Session(self._path, **settings)
        given = {name: array.shape for name, array in self._arrays.items()} | self._shapes
        ranges: dict[str, Shape] = {n: s for n, s in given.items() if n in self._dynamic}
        try:
            return self._built(ranges, settings)
        except MissingProfileError as error:
            # What has a fixed shape and needs a range nevertheless is a shape tensor.
            for name, shape in error.inputs.items():
                if name in self._arrays and -1 not in shape:
                    ranges[name] = tuple(int(n) for n in self._arrays[name].ravel())
            if not all(name in ranges for name in error.inputs):
                raise _no_shape(self._path, error.inputs, ranges) from error
        return self._built(ranges, settings)

    def _built(self, ranges: Mapping[str, Shape], settings: Mapping[str, Any]) -> Session:
        profiles = [Profile(ranges)] if ranges else None
        with build_display() as display:
            return Session(self._path, profiles=profiles, on_progress=display, **settings)


def _no_shape(path: Path, inputs: Mapping[str, Shape], ranges: Mapping[str, Shape]) -> InputError:
    missing = {name: shape for name, shape in inputs.items() if name not in ranges}
    options = [
        f"--shape {name}:{format_dimensions(shape, unknown='SIZE')}"
        for name, shape in missing.items()
        if -1 in shape
    ]
    options += [f"--input {name}=FILE" for name, shape in missing.items() if -1 not in shape]
    return InputError(
        f"{path} has inputs of dynamic shape. Choose one for each: {' '.join(options)}."
    )


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def _parse_shapes(texts: Sequence[str]) -> dict[str, Shape]:
    shapes = grammar.parse_shapes("--shape", texts)
    for name, shape in shapes.items():
        if any(size < 0 for size in shape):
            raise InputError(f"--shape {name}:{format_dimensions(shape)}: a size is negative.")
    return shapes


def _check_names(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> None:
    known = [spec.name for spec in specs]
    for name in shapes:
        if name not in known:
            raise InputError(f"--shape names {name!r}, but the inputs are {', '.join(known)}.")


def _fill_up(
    specs: Sequence[TensorSpec], given: Given, shapes: Mapping[str, Shape], seed: int
) -> Arrays:
    """Every input in the engine's order: as given, or random."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for spec in specs:
        if spec.name in given.arrays:
            arrays[spec.name] = given.arrays[spec.name]
        elif spec.values:
            shape = shapes.get(spec.name, spec.shape)
            arrays[spec.name] = np.array(spec.values[0].opt, spec.dtype).reshape(shape)
        else:
            arrays[spec.name] = random_input(generator, spec.dtype, _shape_of(spec, shapes))
    return arrays


def _shape_of(spec: TensorSpec, shapes: Mapping[str, Shape]) -> Shape:
    """The shape that was asked for; else the only one, or what the first profile is fastest at."""
    if spec.name in shapes:
        return shapes[spec.name]
    shape = spec.profiles[0].opt if spec.is_dynamic and spec.profiles else spec.shape
    if -1 in shape:
        raise InputError(
            f"Input {spec.name!r} has a dynamic shape: "
            f"choose one with --shape {spec.name}:{format_dimensions(shape, unknown='SIZE')}."
        )
    return shape


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
