"""`record_timeline`: what ran beside what, when inferences overlap.

For a picture, and as a Chrome trace for chrome://tracing and Perfetto.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .pipeline import TRACKS
from .staged import StagedInference, measured_inputs
from .stream import Event, Stream
from .tensor import Shape

if TYPE_CHECKING:
    from .session import Session

STAGES = ("H2D", "GPU compute", "D2H")


@dataclass(frozen=True)
class Span:
    """One step of one inference; times are milliseconds of device time from the first one's start.

    Attributes
    ----------
    inference : int
        Counted from 0.
    stage : "H2D", "GPU compute" or "D2H"
    context, stream : int
        Which of the contexts, and which of its streams.
    """

    inference: int
    stage: str
    context: int
    stream: int
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Timeline:
    """Overlapped inferences, step by step."""

    model: str
    device: str
    on_gpu: bool
    spans: tuple[Span, ...]

    def chrome_trace(self) -> dict[str, Any]:
        """The trace event format: a process for each context, a thread for each of its streams."""
        events: list[dict[str, Any]] = []
        for context in sorted({span.context for span in self.spans}):
            named = {"name": f"context {context}"}
            events.append({"ph": "M", "name": "process_name", "pid": context, "args": named})
        for context, stream in sorted({(span.context, span.stream) for span in self.spans}):
            named = {"name": f"stream {stream}"}
            where = {"pid": context, "tid": stream}
            events.append({"ph": "M", "name": "thread_name", **where, "args": named})
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "name": span.stage,
                    "cat": "inference",
                    "pid": span.context,
                    "tid": span.stream,
                    "ts": span.start_ms * 1e3,  # microseconds
                    "dur": (span.end_ms - span.start_ms) * 1e3,
                    "args": {"inference": span.inference},
                }
            )
        told = {"model": self.model, "device": self.device, "timings_are_of_a_gpu": self.on_gpu}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the Chrome trace."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.chrome_trace(), file)


def record_timeline(
    session: Session,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Shape] | None = None,
    inferences: int = 12,
) -> Timeline:
    """Run inferences as `Session.infer_many` does, with events between the steps.

    On contexts of its own, as many as the session has; each with as many streams as a session
    gives it, one where outputs depend on the data. The compute is a CUDA graph where the session's
    is. Nothing of the session's own is used.

    Parameters
    ----------
    session : Session
    inputs
        As `Session.infer` takes; random by default.
    shapes : mapping of str to shape, optional
        Of random inputs of dynamic shape; what the first profile is best at by default.
    inferences : int
        How many to record, after as many to get going.
    """
    if inferences < 1:
        raise InputError(f"inferences must be 1 or more, not {inferences}")
    arrays = measured_inputs(session, inputs, shapes)
    engine = session.engine
    with session._record as opened:
        contexts, graphs = len(opened.pipeline.slots), opened.pipeline.graphs
    with ExitStack() as stack:
        lanes: list[tuple[int, int, StagedInference]] = []
        made = [stack.enter_context(engine.create_execution_context()) for _ in range(contexts)]
        for stream in range(TRACKS):
            for number, context in enumerate(made):
                staged = StagedInference(context, arrays, graph=graphs, stack=stack)
                lanes.append((number, stream, staged))
            if any(binding.data_dependent for binding in staged.bindings.values()):
                break  # the memory of such outputs is the context's
        base = stack.enter_context(Event(session.device, timing=True))
        clock = stack.enter_context(Stream(session.device))
        base.record(clock)
        clock.synchronize()
        spans: list[Span] = []
        latest: dict[int, StagedInference] = {}
        flying: list[int | None] = [None] * len(lanes)

        def land(lane: int) -> None:
            inference = flying[lane]
            if inference is None:
                return
            number, stream, staged = lanes[lane]
            staged.wait()
            started, sent, ready, computed, received = (
                point.elapsed_ms(base) for point in staged.points
            )
            steps = ((started, sent), (ready, computed), (computed, received))
            spans.extend(
                Span(inference, stage, number, stream, *step)
                for stage, step in zip(STAGES, steps, strict=True)
            )

        for inference in range(2 * inferences):
            lane = inference % len(lanes)
            land(lane)
            number, _, staged = lanes[lane]
            staged.run(after=latest.get(number))
            latest[number], flying[lane] = staged, inference
        for lane in range(len(lanes)):
            land(lane)
    kept = [span for span in spans if span.inference >= inferences]
    start = min(span.start_ms for span in kept)
    moved = (
        Span(
            span.inference - inferences,
            span.stage,
            span.context,
            span.stream,
            span.start_ms - start,
            span.end_ms - start,
        )
        for span in sorted(kept, key=lambda span: (span.inference, span.start_ms))
    )
    return Timeline(
        os.path.basename(engine.name) or engine.name,
        session.device.name,
        session.device.kind == "cuda",
        tuple(moved),
    )
