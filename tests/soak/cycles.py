"""Cycles of opening, inferring and closing: of sessions, and of everything that one is made of.

`CYCLES` are functions of a place, a subject and chance; each leaves nothing open.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from unittest import mock

import numpy as np

from trt_runtime import (
    BindingSet,
    CudaGraph,
    Device,
    DeviceBuffer,
    Engine,
    ExecutionContext,
    InputError,
    PinnedBuffer,
    PlanError,
    Session,
    Stream,
    UnsupportedError,
    pipeline,
)
from trt_runtime.platform import Platform

from .subjects import Broken, Question, Subject

#: How long a thread may take to end.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Where cycles run: a device that stays open, and its platform for those who open their own."""

    platform: Platform
    device: Device


Cycle = Callable[[Place, Subject, Random], None]


def _load(subject: Subject, device: Device) -> Engine:
    return Engine.load(subject.plan, device=device, trust_host_code=True)


def _use(session: Session, subject: Subject, chance: Random) -> None:
    """A few inferences, so that graphs are captured, and perhaps some of the other ways."""
    question = chance.choice(subject.common)
    for _ in range(3):
        question.check(session.infer(question.feed))
    other = chance.choice(subject.common)
    how = chance.randrange(4)
    if how == 0:
        for results in session.infer_many([other.feed] * 6):
            other.check(results)
            if chance.random() < 0.1:
                break
    elif how == 1:
        for future in [session.infer_async(other.feed) for _ in range(3)]:
            other.check(future.result())
    elif how == 2:
        results = session.infer(other.feed, outputs="device")
        other.check({name: array.copy_to_host() for name, array in results.items()})
    else:
        shapes = {name: array.shape for name, array in other.feed.items()}
        locked = session.input_buffers(shapes)
        for name, array in other.feed.items():
            locked[name][...] = array
        for _ in range(3):
            other.check(session.infer(locked))


def session_alone(place: Place, subject: Subject, chance: Random) -> None:
    """Results outlive it, in host memory and in the device's."""
    question = chance.choice(subject.common)
    with Session(
        subject.plan,
        device=place.device,
        contexts=chance.choice((1, 1, 3)),
        graphs=chance.random() < 0.7,
        trust_host_code=True,
    ) as session:
        _use(session, subject, chance)
        kept = session.infer(question.feed)
        on_device = session.infer(question.feed, outputs="device")
    question.check(kept)
    question.check({name: array.copy_to_host() for name, array in on_device.items()})


def sessions_of_one_engine(place: Place, subject: Subject, chance: Random) -> None:
    """Closed by their engine, which is closed first."""
    with _load(subject, place.device) as engine:
        sessions = [Session(engine), Session(engine, graphs=False)]
        for session in sessions:
            _use(session, subject, chance)
        engine.close()
        if not all(session.closed for session in sessions):
            raise Broken("a session is open and its engine is not")


def device_and_all(place: Place, subject: Subject, chance: Random) -> None:
    """On a device of its own, which is closed with everything on it."""
    with Device(place.platform) as device:
        session = Session(subject.plan, device=device, trust_host_code=True)
        question = chance.choice(subject.common)
        question.check(session.infer(question.feed))
        stream, pinned = Stream(device), PinnedBuffer(64, device=device)
        stream.synchronize()
    if not (session.closed and stream.closed and pinned.closed):
        raise Broken("something is open and its device is not")


def forgotten(place: Place, subject: Subject, chance: Random) -> None:
    """Never closed: released when it is collected, by its own threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        session = Session(subject.plan, device=place.device, trust_host_code=True)
        _use(session, subject, chance)
        session.infer_async(subject.common[0].feed)
        del session
        gc.collect()
        for thread in threading.enumerate():
            if thread.name.startswith("trt_runtime "):
                thread.join(PATIENCE_SECONDS)
                if thread.is_alive():
                    raise Broken("a forgotten session's thread goes on")


def explicit(place: Place, subject: Subject, chance: Random) -> None:
    """Every step a visible object, and a graph of them where there can be one."""
    with (
        _load(subject, place.device) as engine,
        engine.create_execution_context() as context,
        Stream(place.device) as stream,
    ):
        for _ in range(chance.randint(1, 3)):
            question = chance.choice(subject.common)
            with _bound(context, question) as bindings:
                question.check(context.execute(bindings, stream))
                try:
                    graph = CudaGraph(context, bindings, stream)
                except UnsupportedError:
                    continue
                with graph:
                    graph.launch(stream)
                    stream.synchronize()
                    question.check(bindings.outputs())


def _bound(context: ExecutionContext, question: Question) -> BindingSet:
    values = {s.name: question.feed[s.name] for s in context.engine.inputs if s.is_shape_tensor}
    shapes = {n: a.shape for n, a in question.feed.items() if n not in values}
    bindings = BindingSet(context, shapes, values)
    for name in shapes:
        bindings[name].host[...] = question.feed[name]
    return bindings


def buffers(place: Place, subject: Subject, chance: Random) -> None:
    """Memory, streams and events without an engine."""
    count = chance.randint(1, 1 << 16)
    with (
        Stream(place.device) as one,
        Stream(place.device) as other,
        PinnedBuffer(count, np.int32, device=place.device) as source,
        PinnedBuffer(count, np.int32, device=place.device) as target,
        DeviceBuffer(count, np.int32, device=place.device) as memory,
    ):
        source.array[...] = np.arange(count)
        memory.copy_from(source, stream=one)
        with one.record() as copied:
            other.wait(copied)
        memory.copy_to(target, stream=other)
        other.synchronize()
        kept = target.array
    if not np.array_equal(kept, np.arange(count)):
        raise Broken("a buffer's copy is not what was copied")


def refused(place: Place, subject: Subject, chance: Random) -> None:
    """What cannot be opened leaves nothing."""
    length = chance.choice((8, 64, len(subject.plan) // 2))
    try:
        Engine.load(subject.plan[:length], device=place.device, trust_host_code=True).close()
    except PlanError:
        pass
    else:
        raise Broken(f"{length} of {len(subject.plan)} bytes of a plan were loaded")
    with _load(subject, place.device) as engine:
        try:
            Session(engine, contexts=0).close()
        except InputError:
            return
    raise Broken("a session has no context")


CYCLES: tuple[Cycle, ...] = (
    session_alone,
    session_alone,
    sessions_of_one_engine,
    device_and_all,
    forgotten,
    explicit,
    explicit,
    buffers,
    refused,
)


def cycle(place: Place, subjects: Sequence[Subject], number: int, chance: Random) -> Counter[str]:
    """The cycle of that number: every kind, with every subject, in turns; what it was."""
    kind = CYCLES[number % len(CYCLES)]
    subject = subjects[number // len(CYCLES) % len(subjects)]
    # As long as large tensors' copies in one of two, however small these are.
    bounds = {
        name: getattr(pipeline, name) if chance.random() < 0.5 else -1
        for name in ("BRIEF_BYTES", "STAGED_BYTES")
    }
    with mock.patch.multiple(pipeline, **bounds):
        kind(place, subject, chance)
    return Counter([kind.__name__])
