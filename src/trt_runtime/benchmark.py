"""`benchmark`: how fast a session is, in trtexec's words, beside the least that it could take.

Single layers are the business of `profiling`, and what overlaps with what that of `timeline`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, UnsupportedError
from .graph import CudaGraph
from .ownership import insist
from .staged import Arrays, StagedInference, measured_inputs
from .tensor import Shape, format_shape

if TYPE_CHECKING:
    from .session import Session

#: Of every measurement, however slow it is.
LEAST_CALLS = 5


@dataclass(frozen=True)
class Distribution:
    """Milliseconds of repeated measurements.

    Attributes
    ----------
    samples : tuple of float
        In the order in which they were measured.
    """

    count: int
    minimum: float
    maximum: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    samples: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, samples: Sequence[float]) -> Distribution:
        """Of at least one sample."""
        values = np.asarray(samples, np.float64)
        median, p90, p95, p99 = (float(n) for n in np.percentile(values, (50, 90, 95, 99)))
        return cls(
            len(values),
            float(values.min()),
            float(values.max()),
            float(values.mean()),
            median,
            p90,
            p95,
            p99,
            tuple(values.tolist()),
        )

    def to_json(self) -> dict[str, float]:
        """Every figure but the single samples."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}


@dataclass(frozen=True)
class BenchmarkReport:
    """What `Session.benchmark` found. Times are in milliseconds.

    Attributes
    ----------
    latency : Distribution
        Copy in, compute and copy out together, of device time between CUDA events, one inference at
        a time from page-locked memory; ``h2d``, ``compute`` and ``d2h`` are its parts.
    enqueue : Distribution
        Host time to enqueue the compute.
    infer, infer_page_locked : Distribution
        Wall time of `Session.infer`, with inputs as given and from `Session.input_buffers`.
    floor : Distribution or None
        F, the least a synchronous call can take: wall time of one graph of copy in, compute and
        copy out on page-locked memory, and a synchronisation, straight to the driver. None where
        that cannot be captured.
    throughput : float
        Inferences per second of `Session.infer_many` from page-locked memory, transfers included.
    graph_fallback : str or None
        Why the compute is not a CUDA graph; None where it is.
    on_gpu : bool
        Whether the figures say anything: those of the host device do not.
    """

    model: str
    device: str
    tensorrt: str
    on_gpu: bool
    shapes: Mapping[str, Shape]
    contexts: int
    graph_fallback: str | None
    latency: Distribution
    h2d: Distribution
    compute: Distribution
    d2h: Distribution
    enqueue: Distribution
    infer: Distribution
    infer_page_locked: Distribution
    floor: Distribution | None
    throughput: float
    inferences: int

    @property
    def rows(self) -> tuple[tuple[str, Distribution], ...]:
        """What a table shows: a name, and its figures."""
        rows = [
            ("latency", self.latency),
            ("  H2D", self.h2d),
            ("  GPU compute", self.compute),
            ("  D2H", self.d2h),
            ("enqueue", self.enqueue),
            ("infer", self.infer),
            ("infer, page-locked", self.infer_page_locked),
        ]
        if self.floor is not None:
            rows.append(("floor F", self.floor))
        return tuple(rows)

    @property
    def of_floor(self) -> tuple[float, float] | None:
        """Medians of ``infer`` and ``infer_page_locked`` as multiples of the floor's."""
        if self.floor is None:
            return None
        floor = self.floor.median
        return self.infer.median / floor, self.infer_page_locked.median / floor

    @property
    def conclusions(self) -> tuple[str, ...]:
        """The sentences below the table."""
        contexts = f"{self.contexts} context{'s' if self.contexts > 1 else ''}"
        lines = [
            f"throughput {self.throughput:,.1f} inferences/s with {contexts}, transfers included"
        ]
        if self.of_floor is not None:
            pageable, pinned = self.of_floor
            lines.append(
                f"infer takes {pageable:.2f} of F, from page-locked memory {pinned:.2f}; F is one "
                "graph of both copies and the compute"
            )
        if self.graph_fallback is not None:
            lines.append(f"no CUDA graph: {self.graph_fallback}")
        if not self.on_gpu:
            lines.append("These timings are of the host device; they say nothing about a GPU.")
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Every figure; times are in milliseconds."""
        names = ("latency", "h2d", "compute", "d2h", "enqueue", "infer", "infer_page_locked")
        return {
            "model": self.model,
            "device": self.device,
            "tensorrt": self.tensorrt,
            "timings_are_of_a_gpu": self.on_gpu,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "contexts": self.contexts,
            "graph_fallback": self.graph_fallback,
            "ms": {
                **{name: getattr(self, name).to_json() for name in names},
                "floor": None if self.floor is None else self.floor.to_json(),
            },
            "throughput_inferences_per_s": self.throughput,
            "throughput_inferences": self.inferences,
            "infer_of_floor": None if self.of_floor is None else self.of_floor[0],
            "infer_page_locked_of_floor": None if self.of_floor is None else self.of_floor[1],
        }

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {format_shape(shape)}" for name, shape in self.shapes.items())
        titles = ("ms", *COLUMNS)
        lines = [f"{self.model} on {self.device}, {self.tensorrt}: {shapes}"]
        lines.append(f"{titles[0]:<20}" + "".join(f"{title:>10}" for title in titles[1:]))
        for name, figures in self.rows:
            lines.append(f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells(figures)))
        return "\n".join((*lines, *self.conclusions))


#: The figures of a table, and what `Distribution` calls them.
COLUMNS = {
    "median": "median",
    "mean": "mean",
    "min": "minimum",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
    "max": "maximum",
}


def cells(figures: Distribution) -> tuple[str, ...]:
    """The figures in the order of `COLUMNS`, in milliseconds."""
    return tuple(f"{getattr(figures, name):.4f}" for name in COLUMNS.values())


def benchmark(
    session: Session,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Shape] | None = None,
    warm_up_ms: float = 200,
    duration_s: float = 3.0,
) -> BenchmarkReport:
    """Measure a session; see `Session.benchmark`."""
    if not duration_s > 0 or warm_up_ms < 0:
        raise InputError(
            f"duration_s must be above 0 and warm_up_ms not below it, not {duration_s} and "
            f"{warm_up_ms}"
        )
    arrays = measured_inputs(session, inputs, shapes)
    engine = session.engine
    buffers = session.input_buffers(
        {spec.name: arrays[spec.name].shape for spec in session.inputs if spec.is_dynamic}
    )
    for name, buffer in buffers.items():
        buffer[...] = arrays[name]

    with ExitStack() as stack:
        context = stack.enter_context(engine.create_execution_context())
        graphs, contexts = _settings(session)
        staged = StagedInference(context, arrays, graph=graphs, stack=stack)
        stages: list[tuple[float, ...]] = []

        def step() -> None:
            enqueue_ms = staged.run()
            staged.wait()
            stages.append((*staged.stages_ms(), enqueue_ms))

        _in_turns([step], warm_up_ms / 1e3)
        stages.clear()
        _in_turns([step], duration_s / 8)
        h2d, compute, d2h, enqueue = zip(*stages, strict=True)
        calls: list[Callable[[], object]] = [
            lambda: session.infer(arrays),
            lambda: session.infer(buffers),
            *_floor(staged, stack),
        ]
        # In turns, since a GPU's clock changes meanwhile; and all with the context current.
        with engine.device._primary.current():
            _in_turns(calls, warm_up_ms / 1e3)
            infer, infer_page_locked, *floor = _in_turns(calls, duration_s * 3 / 8)
    count, seconds = _throughput(session, buffers, warm_up_ms / 1e3, duration_s / 2)
    return BenchmarkReport(
        model=_short(engine.name),
        device=session.device.name,
        tensorrt=f"{engine.tensorrt_name} {engine.tensorrt_version}",
        on_gpu=session.device.kind == "cuda",
        shapes={name: array.shape for name, array in arrays.items()},
        contexts=contexts,
        graph_fallback=staged.refusal if graphs else "graphs=False was given",
        latency=Distribution.of([sum(stage[:3]) for stage in stages]),
        h2d=Distribution.of(h2d),
        compute=Distribution.of(compute),
        d2h=Distribution.of(d2h),
        enqueue=Distribution.of(enqueue),
        infer=Distribution.of(infer),
        infer_page_locked=Distribution.of(infer_page_locked),
        floor=Distribution.of(floor[0]) if floor else None,
        throughput=count / seconds,
        inferences=count,
    )


def _settings(session: Session) -> tuple[bool, int]:
    """Whether the session captures graphs, and how many contexts it has."""
    with session._record as opened:
        pipeline = opened.pipeline
        return pipeline.graphs, len(pipeline.slots)


def _floor(staged: StagedInference, stack: ExitStack) -> list[Callable[[], object]]:
    """F, straight to the driver; nothing if both copies and the compute cannot be one graph."""
    context = staged.context
    if staged.refusal is not None:
        return []
    try:
        graph = stack.enter_context(CudaGraph(context, staged.bindings, staged.stream))
    except UnsupportedError:
        return []
    stack.callback(insist, staged.wait)  # its launches are not its own
    driver, stream, executable = context.device._driver, staged.stream.handle, graph._record.handle

    def call() -> None:
        driver.graph_launch(executable, stream)
        driver.stream_synchronize(stream)

    return [call]


def _in_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """The milliseconds of each call, all in turn, for so long, and a few times at least."""
    clock = time.perf_counter
    each_ms: list[list[float]] = [[] for _ in calls]
    now = clock()
    end = now + seconds
    while now < end or len(each_ms[0]) < LEAST_CALLS:
        for call, milliseconds in zip(calls, each_ms, strict=True):
            before = clock()
            call()
            now = clock()
            milliseconds.append((now - before) * 1e3)
    return each_ms


def _throughput(
    session: Session, buffers: Arrays, warm_up_s: float, duration_s: float
) -> tuple[int, float]:
    """Inferences, and the seconds that they took, from the first item to the last result."""

    def items(seconds: float) -> Iterator[Arrays]:
        end = time.perf_counter() + seconds
        for number in range(1 << 62):
            if number >= LEAST_CALLS and time.perf_counter() >= end:
                return
            yield buffers

    for _ in session.infer_many(items(warm_up_s)):
        pass
    started = time.perf_counter()
    count = sum(1 for _ in session.infer_many(items(duration_s)))
    return count, time.perf_counter() - started


def _short(name: str) -> str:
    """An engine's name without its folders, if it is a path."""
    return os.path.basename(name) or name
