"""``trt-runtime bench``: how fast a model is; and the session that `profile` opens likewise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from trt_runtime import InputError, MissingProfileError, Profile, Session
from trt_runtime.benchmark import COLUMNS, cells
from trt_runtime.cli import grammar, networks, output
from trt_runtime.cli import options as shared
from trt_runtime.cli.build import Samples
from trt_runtime.cli.grammar import Shape, format_dimensions
from trt_runtime.cli.onnx_file import input_specs
from trt_runtime.cli.options import BuildOptions, takes_build_options
from trt_runtime.cli.progress import build_display
from trt_runtime.cli.saving import require_writable
from trt_runtime.pictures import plot_benchmark, require_matplotlib
from trt_runtime.timeline import record_timeline

EXAMPLES = """\
Examples:

  trt-runtime bench yolo.onnx --precision fp16 --contexts 4

  trt-runtime bench bert.engine --shapes ids:8x128,mask:8x128 --duration 10

  trt-runtime bench yolo.engine --plot yolo.png --trace yolo.json
"""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx model, an .engine or .plan file, or the name of a network that run knows.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1, help="Size of the first dimension of every input, where it is dynamic.", metavar="N"
    ),
]


@takes_build_options
def bench(
    model: Model,
    batch: Batch = None,
    contexts: Annotated[
        int, typer.Option(min=1, help="How many inferences may compute at once.")
    ] = 1,
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="Capture inferences in CUDA graphs.")
    ] = True,
    duration: Annotated[
        float, typer.Option(help="Of all measurements together.", metavar="SECONDS")
    ] = 3.0,
    warm_up: Annotated[
        float, typer.Option(help="Before each measurement.", metavar="MILLISECONDS")
    ] = 200.0,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the latencies, and what overlaps with what: .png, .svg or .pdf.",
            metavar="FILE",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write what overlaps with what, for chrome://tracing and Perfetto.",
            metavar="FILE.json",
        ),
    ] = None,
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    no_cache: shared.NoCache = False,
    trust_host_code: shared.TrustHostCode = False,
    lean_library: shared.LeanLibrary = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
    *,
    options: BuildOptions,
) -> None:
    """Measure MODEL: latency and its parts, a call of infer, the floor below it, and throughput.

    Figures and their names are trtexec's: latency is H2D, GPU compute and D2H by CUDA events,
    throughput counts transfers. The floor F is one CUDA graph of them, launched and waited for.
    """
    measured = Measured.of(model, batch, options)
    if plot is not None:
        require_matplotlib()
    for file in (plot, trace):
        if file is not None:
            require_writable(file, force=True)
    opened = measured.open(
        device=shared.device_of(device),
        tensorrt=tensorrt,
        cache=not no_cache and (cache_dir or True),
        contexts=contexts,
        graphs=graphs,
        trust_host_code=trust_host_code,
        lean_library=lean_library,
    )
    with opened as session:
        shapes = measured.shapes_of(session)
        report = session.benchmark(shapes=shapes, warm_up_ms=warm_up, duration_s=duration)
        timeline = None
        if plot is not None or trace is not None:
            timeline = record_timeline(session, shapes=shapes)
    report = replace(report, model=model)
    if plot is not None:
        plot_benchmark(report, timeline, plot)
    if trace is not None and timeline is not None:
        try:
            timeline.save(trace)
        except OSError as error:
            raise InputError(f"{str(trace)!r} cannot be written: {error.strerror}") from error
    saved = [str(file) for file in (plot, trace) if file is not None]
    if json:
        output.document({**report.to_json(), "saved": saved})
        return
    output.line(f"{model} on {report.device}")
    output.line(report.tensorrt)
    output.line(", ".join(f"{n} {format_dimensions(s)}" for n, s in report.shapes.items()))
    output.table(("time, ms", *COLUMNS), [(name, *cells(figures)) for name, figures in report.rows])
    for conclusion in report.conclusions:
        output.line(conclusion)
    if saved:
        output.line(f"saved {', '.join(saved)}")


@dataclass(frozen=True)
class Measured:
    """A model, the shapes to measure it at, and how it is built if it must be."""

    path: Path
    options: BuildOptions
    shapes: dict[str, Shape]
    batch: int | None

    @classmethod
    def of(cls, model: str, batch: int | None, options: BuildOptions) -> Measured:
        path = networks.model_file(model)
        shapes = grammar.parse_shapes("--shapes", options.shapes or ())
        measured = cls(path, options, shapes, batch)
        taken = BuildOptions(shapes=options.shapes, plugin=options.plugin)
        if not measured.is_onnx and options != taken:
            raise InputError(
                f"{model} is an engine, and built already: of the options of a build it takes "
                "--shapes, the shapes to run it at, and --plugin alone."
            )
        return measured

    @property
    def is_onnx(self) -> bool:
        return self.path.suffix.lower() == ".onnx"

    @contextmanager
    def open(self, **settings: Any) -> Iterator[Session]:
        """The session; an ONNX model without profiles is built for these shapes alone."""
        if not self.is_onnx:
            plugins = self.options.plugin or ()
            with Session(self.path, plugin_libraries=plugins, **settings) as session:
                yield session
            return
        config = self.options.config()
        if not config.profiles and self.batch is not None:
            ranges = {
                spec.name: (self.batch, *spec.shape[1:])
                for spec in input_specs(self.path)
                if spec.is_dynamic and spec.shape[0] == -1
            }
            if ranges and not any(-1 in shape for shape in ranges.values()):
                config = replace(config, profiles=(Profile(ranges),))
        with build_display() as display:
            try:
                session = Session(
                    self.path,
                    config=config,
                    calibration=Samples.of(self.options.calibrate or ()),
                    on_progress=display,
                    **settings,
                )
            except MissingProfileError as error:
                raise _no_shapes(self.path, error) from error
        with session:
            yield session

    def shapes_of(self, session: Session) -> dict[str, Shape]:
        """What to run at: as told, else what the first profile is best at, at the batch told."""
        shapes = {}
        for spec in session.inputs:
            if spec.is_shape_tensor or not spec.is_dynamic:
                continue
            best = spec.profiles[0].opt if spec.profiles else spec.shape
            if self.batch is not None and spec.shape[0] == -1:
                best = (self.batch, *best[1:])
            shapes[spec.name] = self.shapes.get(spec.name, best)
        if self.batch is not None and not any(s.shape[:1] == (-1,) for s in session.inputs):
            raise InputError(f"--batch {self.batch}: no input of {self.path} has a dynamic batch.")
        unknown = [n for n in self.shapes if n not in (spec.name for spec in session.inputs)]
        if unknown:
            known = ", ".join(spec.name for spec in session.inputs)
            raise InputError(f"--shapes names {unknown[0]!r}, but the inputs are {known}.")
        return shapes


def _no_shapes(path: Path, error: MissingProfileError) -> MissingProfileError:
    shapes = ",".join(
        f"{name}:{format_dimensions(shape, unknown='SIZE')}" for name, shape in error.inputs.items()
    )
    return MissingProfileError(
        f"{path} has inputs of dynamic shape. Choose the shapes to measure: --shapes {shapes}; or "
        "a range to build for: --profile.",
        error.inputs,
    )
