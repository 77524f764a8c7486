"""What makes inferences fast must not show: every way gives the same bits, and nothing grows."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper

from trt_runtime import Device, Engine, Session
from trt_runtime.futures import InferenceFuture

from ..conftest import open_engine
from ..models import Case, Feed, dynamic, make_model, rng

#: Different inputs among the calls: more than there are memory blocks and graphs to confuse.
INPUTS = 250
#: Batches that change from call to call; each profile of the model has some.
BATCHES = (1, 3, 4, 2, 16, 1, 7, 4)

#: What the process may gain in 100,000 calls: a leak of 100 bytes each would be more. Some it may,
#: since how many results are in hand at once depends on how threads happen to run.
GROWTH_BYTES = 8 << 20
#: Python objects likewise.
GROWTH_OBJECTS = 1000
#: Results of 64 bytes, and how many there can be at once: in flight, pending, and kept by the test.
LENT_BYTES = 64 * 64

Way = Callable[[Session, Iterable[Feed]], Iterator[Feed]]


class Bench(NamedTuple):
    """A device, and how many calls it is fast enough for."""

    device: Device
    calls: int


@pytest.fixture(
    scope="module",
    params=[("host", 300), pytest.param(("cuda", 10_000), marks=pytest.mark.gpu)],
    ids=["host", "cuda"],
)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    name, calls = request.param
    with Device(name) as device:
        yield Bench(device, calls)


@pytest.fixture(scope="module")
def engine(bench: Bench) -> Iterator[Engine]:
    with open_engine(bench.device, dynamic()) as engine:
        yield engine


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    draw = rng(0)
    shapes = ((BATCHES[n % len(BATCHES)], 3, 8, 8) for n in range(INPUTS))
    return [{"x": draw.standard_normal(shape).astype(np.float32)} for shape in shapes]


@pytest.fixture(scope="module")
def expected(engine: Engine, feeds: list[Feed]) -> list[bytes]:
    """What comes out one at a time, without graphs."""
    with Session(engine, graphs=False) as session:
        return [session.infer(feed)["y"].tobytes() for feed in feeds]


def one_by_one(session: Session, feeds: Iterable[Feed]) -> Iterator[Feed]:
    return map(session.infer, feeds)


def overlapped(session: Session, feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Through one array for each shape, which changes as soon as the next item is asked for."""
    arrays: Feed = {}

    def items() -> Iterator[np.ndarray]:
        for feed in feeds:
            x = feed["x"]
            array = arrays.setdefault(str(x.shape), np.empty_like(x))
            array[...] = x
            yield array
            array.fill(np.nan)

    return session.infer_many(items())


def asynchronous(session: Session, feeds: Iterable[Feed]) -> Iterator[Feed]:
    pending: deque[InferenceFuture] = deque()
    for feed in feeds:
        pending.append(session.infer_async(feed))
        if len(pending) > 16:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize(
    ("graphs", "copies"),
    [(True, "long"), (True, "brief"), (False, "long")],
    ids=["graphs", "graphs, brief copies", "no graphs"],
    indirect=["copies"],
)
@pytest.mark.parametrize("way", [one_by_one, overlapped, asynchronous])
def test_every_way_gives_the_same_bits(
    bench: Bench,
    engine: Engine,
    feeds: list[Feed],
    expected: list[bytes],
    way: Way,
    graphs: bool,
    contexts: int,
) -> None:
    with Session(engine, graphs=graphs, contexts=contexts) as session:
        count = 0
        for result in way(session, (feeds[n % INPUTS] for n in range(bench.calls))):
            assert result["y"].tobytes() == expected[count % INPUTS], f"call {count}"
            count += 1
        assert count == bench.calls
        if graphs:
            assert session.graph_fallback is None


def _tiny() -> Case:
    """16 floats in and out: a call costs so little that 100,000 of them are soon made."""
    model = make_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [16])},
        {"y": (TensorProto.FLOAT, [16])},
    )
    return Case("tiny", model, ({"x": np.arange(16, dtype=np.float32)},))


class Held(NamedTuple):
    """What a process holds: device memory that is free, lent results, its own memory, objects."""

    free_bytes: int
    lent_bytes: int
    resident_bytes: int
    objects: int

    @classmethod
    def of(cls, session: Session) -> Held:
        gc.collect()
        resident = 0
        if (statm := Path("/proc/self/statm")).exists():
            resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with session._record as opened:
            lent = opened.pipeline.lent_bytes
        return cls(session.device.memory_info()[0], lent, resident, len(gc.get_objects()))


@pytest.mark.parametrize("copies", ["long", "brief"], indirect=True)
def test_nothing_grows_over_a_hundred_thousand_calls(bench: Bench) -> None:
    case = _tiny()
    (feed,) = case.feeds
    calls = 10 * bench.calls
    with open_engine(bench.device, case) as engine, Session(engine, contexts=2) as session:

        def work(share: int) -> None:
            """Half of them one by one, three tenths overlapped, the rest asynchronous."""
            for way, part in ((one_by_one, 5), (overlapped, 3), (asynchronous, 2)):
                for result in way(session, (feed for _ in range(share * part // 10))):
                    last = result
            np.testing.assert_array_equal(last["y"], feed["x"])

        work(calls // 20)
        before = Held.of(session)
        work(calls)
        after = Held.of(session)
    print(f"before {before}, after {calls} calls {after}")
    assert before.free_bytes - after.free_bytes < GROWTH_BYTES
    assert after.lent_bytes <= LENT_BYTES
    assert after.objects - before.objects < GROWTH_OBJECTS
    if bench.device.kind == "cuda":  # the host device keeps a history of what it did
        assert after.resident_bytes - before.resident_bytes < GROWTH_BYTES
