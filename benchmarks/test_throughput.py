"""Many inferences: `Session.infer_many` and `infer_async` beside loops by hand, on one engine.

Transfers are included everywhere but where the name says compute alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from trt_runtime import Session

from .conftest import Subject
from .raw import back_to_back, in_turns
from .summarize import COMPUTE, IN_TURNS, MANY

pytestmark = pytest.mark.benchmark(group="throughput")
Measure = Callable[..., Any]
CONTEXTS = [1, 2, 3, 4, 6, 8]

#: Buffers that items are read from in turn: more than are in flight at once.
BUFFERS = 32


@pytest.fixture
def count(request: pytest.FixtureRequest, subject: Subject) -> int:
    """Inferences of one measurement."""
    return request.config.getoption("--count") if subject.on_gpu else 10


def test_compute_back_to_back(measure: Measure, subject: Subject, count: int) -> None:
    """What one context computes at most: launches of its graph, without copies."""
    measure(COMPUTE, lambda: back_to_back(subject.lane, count), count=count)
    subject.check(subject.lane.copies(subject.image))


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_raw_in_turns(measure: Measure, subject: Subject, count: int, contexts: int) -> None:
    """The simplest loop by hand: a graph for each context, copies included."""
    lanes = subject.lanes(contexts)
    measure(IN_TURNS, lambda: in_turns(lanes, count), count=count, contexts=contexts)
    for lane in lanes:
        subject.check(lane.results())


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_infer_many_page_locked(
    measure: Measure, subject: Subject, count: int, contexts: int
) -> None:
    session = subject.session(contexts)
    buffers = [subject.buffers()[subject.input] for _ in range(BUFFERS)]

    def call() -> dict[str, np.ndarray]:
        return last(session, (buffers[n % BUFFERS] for n in range(count)))

    lanes = subject.lanes(contexts)
    beside = {IN_TURNS: lambda: in_turns(lanes, count)}
    if contexts == 1:
        beside[COMPUTE] = lambda: back_to_back(subject.lane, count)
    subject.check(measure(MANY, call, count=count, contexts=contexts, beside=beside))


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_infer_many(measure: Measure, subject: Subject, count: int, contexts: int) -> None:
    session = subject.session(contexts)

    def call() -> dict[str, np.ndarray]:
        return last(session, (subject.image for _ in range(count)))

    subject.check(measure("infer_many", call, count=count, contexts=contexts))


@pytest.mark.parametrize("contexts", [1, 4])
def test_infer_async(measure: Measure, subject: Subject, count: int, contexts: int) -> None:
    """With a few more in flight than contexts can take."""
    session = subject.session(contexts)
    image = subject.buffers()[subject.input]

    def call() -> dict[str, np.ndarray]:
        pending: deque[Any] = deque()
        for _ in range(count):
            pending.append(session.infer_async(image))
            if len(pending) > 4 * contexts:
                pending.popleft().result()
        return [future.result() for future in pending][-1]

    way = "infer_async, input page-locked"
    subject.check(measure(way, call, count=count, contexts=contexts))


def test_polygraphy(measure: Measure, subject: Subject, count: int, polygraphy: Any) -> None:
    feed = {subject.input: subject.image}

    def call() -> dict[str, np.ndarray]:
        for _ in range(count):
            results = polygraphy.infer(feed, check_inputs=False)
        return results

    subject.check(measure("Polygraphy, input checks off", call, count=count))


def last(session: Session, items: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
    """Take every result, and keep the last."""
    (results,) = deque(session.infer_many(items), maxlen=1)
    return results
