"""Inferences in flight: results without a copy, graphs, overlap and futures."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from random import Random
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from trt_runtime import (
    ClosedError,
    CudaError,
    Device,
    DeviceArray,
    DeviceBuffer,
    DtypeError,
    EngineError,
    InputError,
    OutOfMemoryError,
    Session,
    ShapeError,
    Stream,
    pipeline,
)
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.driver import Part
from trt_runtime.platform.host.faults import Faults
from trt_runtime.platform.tensorrt import PlanContext

from .conftest import open_engine
from .models import (
    Case,
    Feed,
    assert_matches,
    dynamic,
    empty,
    expand,
    make_model,
    nonzero,
    reference,
    reshape,
    rng,
    several,
    static,
)
from .test_session import Recorder, image

PATIENCE_SECONDS = 30


@pytest.fixture(params=["long", "direct", "brief"], autouse=True)
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Copies that take long, and copies that are brief, as the tests' small tensors' really are.

    With "direct", as with "brief", graphs have the outputs written where they go.
    """
    how: str = request.param
    if how != "brief":
        monkeypatch.setattr(pipeline, "BRIEF_BYTES", -1)
    if how == "long":
        monkeypatch.setattr(pipeline, "DIRECT_BYTES", -1)
    return how


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def session(recorder: Recorder) -> Iterator[Session]:
    """A session of the static case on a host device whose calls are recorded."""
    platform = HostPlatform(recorder)
    with (
        Device(platform) as device,
        Session(static().model, device=device) as session,
    ):
        yield session
    gc.collect()
    platform.host_driver.ledger.assert_empty()


def expected(seed: int, case: Callable[[], Case] = static, batch: int = 1) -> Feed:
    return reference(case().model, {"x": image(seed, batch)})


def pinned_bytes(device: Device) -> int:
    platform = device.platform
    assert isinstance(platform, HostPlatform)
    entries = platform.host_driver.ledger.entries
    return sum(entry.nbytes for entry in entries if entry.kind == "pinned memory")


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


# Results without a copy -------------------------------------------------------------------------


@pytest.mark.parametrize("copies", ["long"], indirect=True)
def test_a_result_that_was_dropped_gives_its_memory_to_a_later_one(session: Session) -> None:
    addresses = set()
    for seed in range(10):
        result = session.infer(image(seed))["y"]
        assert_matches({"y": result}, expected(seed), 1e-4)
        addresses.add(address(result))
    assert len(addresses) == 2  # the one that `result` still shows while the next is computed


@pytest.mark.parametrize(
    "keep",
    [
        lambda y: y,
        lambda y: y[0, 1],
        lambda y: y.reshape(-1)[::7],
        lambda y: np.asarray(y).view(np.uint8),
        lambda y: memoryview(y).cast("B"),
        lambda y: y.T,
        lambda y: np.lib.stride_tricks.sliding_window_view(y, 2, axis=3),
        iter,
    ],
    ids=["itself", "slice", "strided", "bytes", "memoryview", "transposed", "windows", "iterator"],
)
def test_whatever_shows_a_result_keeps_it(session: Session, keep: Callable[[Any], Any]) -> None:
    kept, wanted = [], []
    for seed in range(6):
        y = session.infer(image(seed))["y"]
        wanted.append(keep(y.copy()))
        kept.append(keep(y))
        del y
    for _ in range(6):
        session.infer(image(99))
    for got, want in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(*(np.array(list(each)) for each in (got, want)))


def test_results_are_plain_writable_arrays_that_pickle(session: Session) -> None:
    result = session.infer(image(1))["y"]
    assert type(result) is np.ndarray
    assert result.flags.writeable
    assert result.flags.c_contiguous
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again, result)
    result[:] = 0
    assert_matches(session.infer(image(1)), expected(1), 1e-4)


def test_results_outlive_their_session_and_are_freed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BRIEF_BYTES", 0)  # lent, not copied
    kind = type(device._driver)
    alloc, free = kind.mem_host_alloc, kind.mem_host_free
    blocks: set[int] = set()

    def noted(self: Any, nbytes: int) -> int:
        blocks.add(address := alloc(self, nbytes))
        return address

    def forgotten(self: Any, address: int) -> None:
        free(self, address)
        blocks.remove(address)

    monkeypatch.setattr(kind, "mem_host_alloc", noted)
    monkeypatch.setattr(kind, "mem_host_free", forgotten)
    with open_engine(device, static()) as engine, Session(engine) as session:
        kept = [session.infer(image(seed)) for seed in range(20)]
    assert len(blocks) == len(kept)
    for seed, results in enumerate(kept):
        assert_matches(results, expected(seed), 1e-2)
    del results, kept
    assert not blocks


def test_results_outlive_the_session_and_the_device() -> None:
    platform = HostPlatform()
    with Device(platform) as device, Session(static().model, device=device) as session:
        kept = [session.infer(image(seed))["y"] for seed in range(4)]
        parts = [y[0, 1:] for y in kept]
    for seed, y in enumerate(kept):
        assert_matches({"y": y}, expected(seed), 1e-4)
    del kept, y
    for seed, part in enumerate(parts):
        np.testing.assert_allclose(part, expected(seed)["y"][0, 1:], rtol=1e-4, atol=1e-4)
    del part
    parts.clear()
    platform.host_driver.ledger.assert_empty()


def test_beyond_the_bound_results_are_copies(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session.infer(image(0))["y"]
    monkeypatch.setattr(pipeline, "LENT_BYTES", 6 * first.nbytes)
    before = pinned_bytes(session.device)
    kept = [session.infer(image(seed))["y"] for seed in range(50)]
    for seed, y in enumerate(kept):
        assert_matches({"y": y}, expected(seed), 1e-4)
    assert pinned_bytes(session.device) <= before + 6 * (first.nbytes + 256)  # a spare among them
    del kept[:], y
    lent = address(session.infer(image(0))["y"])
    assert lent == address(session.infer(image(0))["y"])


@pytest.mark.parametrize("contexts", [1, 2])
def test_results_are_lent_while_they_are_dropped_however_large_they_are(
    host: Device, contexts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "LENT_BYTES", 0)
    monkeypatch.setattr(pipeline, "BRIEF_BYTES", -1)  # which are copied
    with Session(static().model, device=host, contexts=contexts) as session:
        for results in session.infer_many(image(seed) for seed in range(40)):
            assert not results["y"].flags.owndata
        del results
        kept = [session.infer(image(seed))["y"] for seed in range(3 * contexts + 3)]
        lent = [y for y in kept if not y.flags.owndata]
        assert 3 <= len(lent) <= 4 * contexts  # each context has its own
        del kept, lent


def test_a_track_that_an_interrupt_has_left_aside_is_found_again(session: Session) -> None:
    for seed in range(3):
        session.infer(image(seed))
    with session._record as opened:
        (slot,) = opened.pipeline.slots
    lost = [slot.idle.pop() for _ in range(len(slot.idle))]  # as before a flight
    for seed in range(3):
        assert_matches(session.infer(image(seed)), expected(seed), 1e-4)
    lost = [slot.idle.pop() for _ in range(len(slot.idle))]
    for track in lost:  # as after one
        track.flight = pipeline.Flight(track, track.lane, (), None)
        track.flight.claimed = True
    for seed in range(3):
        assert_matches(session.infer(image(seed)), expected(seed), 1e-4)
    assert len(slot.idle) == len(lost)


def test_who_looks_for_lost_tracks_waits_for_nobody_that_enqueues(session: Session) -> None:
    session.infer(image(0))
    with session._record as opened:
        (slot,) = opened.pipeline.slots
    lost, held, go_on = slot.idle.pop(), threading.Event(), threading.Event()

    def enqueue() -> None:
        with slot._lock:
            held.set()
            assert go_on.wait(PATIENCE_SECONDS)

    enqueuer = threading.Thread(target=enqueue)
    enqueuer.start()
    assert held.wait(PATIENCE_SECONDS)
    finder = threading.Thread(target=slot._find_lost_tracks)
    finder.start()
    finder.join(PATIENCE_SECONDS)
    hung = finder.is_alive()
    go_on.set()
    enqueuer.join(PATIENCE_SECONDS)
    assert not hung
    with session.device._primary.current():
        slot._find_lost_tracks()
    assert lost in slot.idle


@pytest.mark.parametrize("ending", ["make_way", "finish"])
def test_an_interrupt_is_told_to_nobody_but_whom_it_came_to(
    session: Session, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with session._record as opened, session.device._primary.current():
        flight = opened.pipeline.submit(*session._arrange((image(7),), {}, None))
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.Track, "_wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                getattr(flight, ending)()
        if ending == "make_way":
            assert_matches(flight.finish(), expected(7), 1e-4)
        (slot,) = opened.pipeline.slots
        assert len(slot.idle) == pipeline.TRACKS
    for seed in range(4):
        assert_matches(session.infer(image(seed)), expected(seed), 1e-4)


@pytest.mark.parametrize("ending", ["land", "abandon"])
def test_whoever_takes_over_from_an_interrupted_thread_has_the_context(
    session: Session, ending: str
) -> None:
    """A flight that another thread waits for may be left to its owner after all."""
    waits, go_on = threading.Event(), threading.Event()
    patched = pytest.MonkeyPatch()

    def interrupt(*_: object) -> None:
        patched.undo()
        waits.set()
        assert go_on.wait(PATIENCE_SECONDS)
        raise KeyboardInterrupt

    def make_way() -> None:
        with session.device._primary.current(), pytest.raises(KeyboardInterrupt):
            flight.make_way()

    with session._record as opened, session.device._primary.current():
        flight = opened.pipeline.submit(*session._arrange((image(7),), {}, None))
    patched.setattr(pipeline.Track, "_wait", interrupt)
    other = threading.Thread(target=make_way)
    other.start()
    assert waits.wait(PATIENCE_SECONDS)
    threading.Timer(0.05, go_on.set).start()
    if ending == "land":
        assert_matches(session._land(deque([flight])), expected(7), 1e-4)
    else:
        session._abandon(flight)
    other.join(PATIENCE_SECONDS)
    assert not other.is_alive()


def test_memory_that_results_did_not_get_is_not_counted(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OutOfMemoryError(2, "CUDA_ERROR_OUT_OF_MEMORY", "cuMemHostAlloc")

    with session._record as opened:
        lent = opened.pipeline.lent_bytes
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "Results", refuse)
        for _ in range(3):
            with pytest.raises(OutOfMemoryError):
                session.infer(image(0))
    assert opened.pipeline.lent_bytes == lent
    assert_matches(session.infer(image(0)), expected(0), 1e-4)


def test_nothing_grows_over_many_calls(device: Device) -> None:
    with open_engine(device, dynamic()) as engine, Session(engine) as session:
        feeds = {batch: image(batch, batch) for batch in (1, 3, 6)}
        wants = {batch: reference(dynamic().model, {"x": x}) for batch, x in feeds.items()}

        def work() -> None:
            for batch, x in feeds.items():
                assert_matches(session.infer(x), wants[batch], 1e-2)
            for got, batch in zip(session.infer_many(feeds.values()), feeds, strict=True):
                assert_matches(got, wants[batch], 1e-2)

        for _ in range(20):
            work()
        gc.collect()
        if device.kind == "host":
            before = pinned_bytes(device), len(gc.get_objects())
            for _ in range(100):
                work()
            gc.collect()
            assert pinned_bytes(device) == before[0]
            assert len(gc.get_objects()) < before[1] + 50
        else:
            free = device.memory_info()[0]  # of the whole device: nothing else may use it now
            for _ in range(2000):
                work()
            assert device.memory_info()[0] == free


# Graphs -----------------------------------------------------------------------------------------


def test_from_the_third_call_on_an_inference_is_one_launch(
    session: Session, recorder: Recorder
) -> None:
    results = []
    for seed in range(8):
        recorder.calls.clear()
        results.append(session.infer(image(seed)))
        del results[:-1]
    launch, *waits = [call for call in recorder.calls if "Ctx" not in call]
    assert launch == "cuGraphLaunch"
    assert set(waits) in ({"cuStreamQuery"}, {"cuStreamSynchronize"})
    assert session.graph_fallback is None
    assert_matches(results[0], expected(7), 1e-4)


@pytest.mark.parametrize(("direct_bytes", "copied"), [(-1, 2), (16, 1), (48, 0)])
def test_what_is_small_is_written_where_it_goes_and_the_rest_copied(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, direct_bytes: int, copied: int
) -> None:
    monkeypatch.setattr(pipeline, "DIRECT_BYTES", direct_bytes)
    model = make_model(
        [
            helper.make_node("Concat", ["x", "x", "x"], ["large"], axis=1),
            helper.make_node("Neg", ["x"], ["small"]),
        ],
        {"x": (TensorProto.FLOAT, [1, 4])},
        {"large": (TensorProto.FLOAT, [1, 12]), "small": (TensorProto.FLOAT, [1, 4])},
    )
    captures = []
    with Device(HostPlatform(recorder)) as device, Session(model, device=device) as session:
        for number in range(5):
            recorder.calls.clear()
            x = np.full((1, 4), number, np.float32)
            got = session.infer(x)
            np.testing.assert_array_equal(got["large"], np.tile(x, 3))
            np.testing.assert_array_equal(got["small"], -x)
            calls = list(recorder.calls)
            if "cuStreamBeginCapture" in calls:
                captures.append(calls[calls.index("cuStreamBeginCapture") :])
    assert captures
    assert {calls.count("cuMemcpyDtoHAsync") for calls in captures} == {copied}


@pytest.mark.parametrize("copies", ["long"], indirect=True)
@pytest.mark.parametrize("page_locked", [True, False])
def test_of_an_input_that_is_read_in_part_nothing_else_crosses(
    device: Device, monkeypatch: pytest.MonkeyPatch, page_locked: bool
) -> None:
    monkeypatch.setattr(pipeline, "STAGED_BYTES", -1)  # no graph holds the copy
    model = make_model(
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [12, 4])},
        {"y": (TensorProto.FLOAT, [12, 4])},
    )
    case = Case("read_in_part", model, ({"x": rng().standard_normal((12, 4), np.float32)},))
    read = np.zeros((12, 4), bool)
    read[[1, 2, 3, 7, 8, 9], :2] = True
    with open_engine(device, case) as engine, Session(engine) as session:
        session._upload_only({"x": [Part(16, 8, 16, 3, 96, 2)]})
        seen = []
        for seed in range(5):
            x = rng(seed).standard_normal((12, 4), np.float32)
            given = session.input_buffers()["x"] if page_locked else x.copy()
            given[...] = x
            y = session.infer(given)["y"]
            np.testing.assert_array_equal(y[read], -x[read])
            seen.append(y.view(np.uint32)[~read].tolist())
        assert all(rest == seen[0] for rest in seen)  # what lay there before
        xs = [rng(seed).standard_normal((12, 4), np.float32) for seed in range(7)]
        for x, outputs in zip(xs, session.infer_many(xs), strict=True):
            np.testing.assert_array_equal(outputs["y"][read], -x[read])


def test_where_layers_cannot_write_there_the_graph_copies(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    copies: str,
) -> None:
    refused = []
    set_address = PlanContext.set_address

    def only_device_memory(self: PlanContext, name: str, address: int) -> None:
        if session.device._driver.host_pointer(address) == address:
            refused.append(name)
            raise EngineError(f"TensorRT refused address {hex(address)} for tensor {name!r}")
        set_address(self, name, address)

    monkeypatch.setattr(PlanContext, "set_address", only_device_memory)
    kept = [session.infer(image(seed)) for seed in range(6)]
    for seed, results in enumerate(kept):
        assert_matches(results, expected(seed), 1e-4)
    for seed in range(4):
        del kept[:]
        assert_matches(session.infer(image(seed)), expected(seed), 1e-4)
    assert session.graph_fallback is None
    assert refused == ([] if copies == "long" else ["y"])
    assert caplog.text.count("copy their small outputs") == len(refused)


def test_a_lone_thread_waits_by_asking_unless_the_wait_is_brief(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, copies: str
) -> None:
    alone = "cuStreamSynchronize" if copies == "brief" else "cuStreamQuery"
    with (
        Device(HostPlatform(recorder)) as device,
        Session(static().model, device=device) as session,
    ):
        for threads, way in ((1, alone), (2, "cuStreamSynchronize")):
            monkeypatch.setattr(threading, "active_count", lambda n=threads: n)
            recorder.calls.clear()
            assert_matches(session.infer(image(threads)), expected(threads), 1e-4)
            assert {c for c in recorder.calls if "Query" in c or "Synchronize" in c} == {way}


def test_where_waiting_threads_are_to_sleep_nobody_asks(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with Device(HostPlatform(recorder)) as device:
        monkeypatch.setattr(device._driver, "primary_context_spins", lambda _: False)
        with Session(static().model, device=device) as session:
            assert_matches(session.infer(image(0)), expected(0), 1e-4)
    assert "cuStreamQuery" not in recorder.calls


def test_without_graphs_nothing_is_captured(recorder: Recorder) -> None:
    with (
        Device(HostPlatform(recorder)) as device,
        Session(static().model, device=device, graphs=False) as session,
    ):
        for seed in range(5):
            assert_matches(session.infer(image(seed)), expected(seed), 1e-4)
        assert session.graph_fallback == "graphs=False was given"
    assert not [call for call in recorder.calls if "Graph" in call or "Capture" in call]


@pytest.mark.parametrize("where", ["enqueue", "end"])
def test_where_capture_fails_inference_goes_on_and_the_reason_can_be_read(
    session: Session, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    driver = session.device._driver
    enqueue, end_capture = PlanContext.enqueue, driver.stream_end_capture

    def enqueue_unless_captured(self: PlanContext, stream: int) -> None:
        if where == "enqueue" and driver.is_capturing(stream):
            raise EngineError("TensorRT could not enqueue the inference")
        enqueue(self, stream)

    def end(stream: int) -> int:
        graph = end_capture(stream)
        if where == "end":
            driver.graph_destroy(graph)
            raise CudaError(901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "cuStreamEndCapture")
        return graph

    monkeypatch.setattr(PlanContext, "enqueue", enqueue_unless_captured)
    monkeypatch.setattr(driver, "stream_end_capture", end)
    for seed in range(6):
        assert_matches(session.infer(image(seed)), expected(seed), 1e-4)
    assert "cannot be captured" in str(session.graph_fallback)


@pytest.mark.parametrize("case", [static(), dynamic(), nonzero(), reshape()], ids=lambda c: c.name)
@pytest.mark.parametrize("contexts", [1, 3])
def test_every_way_of_running_gives_the_same_bits(
    device: Device, case: Case, contexts: int
) -> None:
    feeds = [case.feeds[n % len(case.feeds)] for n in range(30)]
    with open_engine(device, case) as engine:
        with Session(engine, graphs=False) as plain:
            wants = [plain.infer(feed) for feed in feeds]
        with Session(engine, contexts=contexts) as session:
            ways: dict[str, list[Feed]] = {
                "infer": [session.infer(feed) for feed in feeds],
                "infer again": [session.infer(feed) for feed in feeds],
                "many": list(session.infer_many(feeds)),
                "async": [f.result() for f in [session.infer_async(feed) for feed in feeds]],
            }
            for way, results in ways.items():
                for got, want in zip(results, wants, strict=True):
                    assert list(got) == list(want), way
                    for name, array in got.items():
                        np.testing.assert_array_equal(array, want[name], err_msg=way)


@pytest.mark.parametrize(
    "case", [static(), dynamic(), several(), expand(), reshape()], ids=lambda c: c.name
)
def test_a_graph_stays_right_whatever_is_captured_beside_it(device: Device, case: Case) -> None:
    chance = Random(0)
    ways: tuple[Callable[[Session, Feed], Feed], ...] = (
        lambda session, feed: session.infer(feed),
        lambda session, feed: next(iter(session.infer_many([feed]))),
        lambda session, feed: {
            name: array.copy_to_host()
            for name, array in session.infer(feed, outputs="device").items()
        },
    )
    with open_engine(device, case) as engine:
        with Session(engine, graphs=False) as plain:
            wants = [plain.infer(feed) for feed in case.feeds]
        with Session(engine) as session:
            kept = deque[tuple[Feed, Feed]](maxlen=3)  # each further one wants a graph of its own
            for _ in range(300):
                number = chance.randrange(len(wants))
                got = chance.choice(ways)(session, case.feeds[number])
                if chance.random() < 0.5:
                    kept.append((got, wants[number]))
                for results, want in (*kept, (got, wants[number])):
                    for name, array in results.items():
                        np.testing.assert_array_equal(array, want[name])
            assert session.graph_fallback is None


# Page-locked inputs -----------------------------------------------------------------------------


def test_input_buffers_are_page_locked_and_can_be_inferred_from(device: Device) -> None:
    with open_engine(device, static()) as engine, Session(engine) as session:
        buffers = session.input_buffers()
        for seed in range(5):
            buffers["x"][...] = image(seed)
            assert_matches(session.infer(buffers), expected(seed), 1e-2)
    buffers["x"][...] = 0  # still the caller's


def test_input_buffers_of_dynamic_inputs_need_a_shape(device: Device) -> None:
    with open_engine(device, dynamic()) as engine, Session(engine) as session:
        with pytest.raises(ShapeError, match="dynamic"):
            session.input_buffers()
        assert session.input_buffers({"x": (5, 3, 8, 8)})["x"].shape == (5, 3, 8, 8)


@pytest.mark.parametrize("staged_bytes", [0, 1 << 20], ids=["directly", "staged"])
@pytest.mark.parametrize("layout", ["as it is", "strided", "cast", "page-locked"])
def test_large_and_small_inputs_arrive_whole_in_any_layout(
    session: Session, monkeypatch: pytest.MonkeyPatch, staged_bytes: int, layout: str
) -> None:
    monkeypatch.setattr(pipeline, "STAGED_BYTES", staged_bytes)
    for seed in range(5):
        x = image(seed)
        if layout == "strided":
            x = np.ascontiguousarray(x.T).T
        elif layout == "cast":
            x = x.astype(np.float64)
        elif layout == "page-locked":
            x = session.input_buffers()["x"]
            x[...] = image(seed)
        assert_matches(session.infer(x), expected(seed), 1e-4)
    results = list(session.infer_many(image(seed) for seed in range(7)))
    for seed, got in enumerate(results):
        assert_matches(got, expected(seed), 1e-4)


# infer_many -------------------------------------------------------------------------------------


def test_many_results_come_in_order_while_others_are_in_flight(session: Session) -> None:
    asked = 0

    def items() -> Iterator[np.ndarray]:
        nonlocal asked
        for asked in range(1, 21):
            yield image(asked)

    ahead = []
    for number, got in enumerate(session.infer_many(items()), 1):
        assert_matches(got, expected(number), 1e-4)
        ahead.append(asked - number)
    assert number == 20
    assert max(ahead) == pipeline.TRACKS - 1  # read no further than there is memory for


def test_items_may_be_mappings_tuples_and_arrays_and_reuse_one_buffer(session: Session) -> None:
    buffer = np.empty((1, 3, 8, 8), np.float32)

    def items() -> Iterator[Any]:
        for seed in range(9):
            buffer[...] = image(seed)
            yield ({"x": buffer}, (buffer,), buffer)[seed % 3]

    for seed, got in enumerate(session.infer_many(items())):
        assert_matches(got, expected(seed), 1e-4)


def test_nothing_in_nothing_out(session: Session) -> None:
    assert list(session.infer_many([])) == []


def test_stopping_early_leaves_nothing_in_flight(session: Session) -> None:
    for number, _ in enumerate(session.infer_many(image(n) for n in range(100))):
        if number == 4:
            break
    gc.collect()
    assert len(session._record.handle.pipeline.slots[0].idle) == pipeline.TRACKS
    assert_matches(session.infer(image(3)), expected(3), 1e-4)


def test_a_bad_item_is_raised_in_its_place_and_leaves_nothing_in_flight(session: Session) -> None:
    items = [image(0), image(1), np.zeros(3, np.float32), image(3)]
    many = session.infer_many(items)
    with pytest.raises(ShapeError):
        list(many)
    assert len(session._record.handle.pipeline.slots[0].idle) == pipeline.TRACKS


def test_an_error_of_the_iterable_comes_out(session: Session) -> None:
    def items() -> Iterator[np.ndarray]:
        yield image(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(session.infer_many(items()))
    assert len(session._record.handle.pipeline.slots[0].idle) == pipeline.TRACKS


def test_other_inferences_may_come_in_between(session: Session) -> None:
    inner = 0
    for seed, got in enumerate(session.infer_many(image(n) for n in range(8))):
        for other, more in enumerate(session.infer_many(image(50 + n) for n in range(4))):
            assert_matches(more, expected(50 + other), 1e-4)
            assert_matches(session.infer(image(70)), expected(70), 1e-4)
            assert_matches(session.infer_async(image(71)).result(), expected(71), 1e-4)
            inner += 1
        assert_matches(got, expected(seed), 1e-4)
    assert inner == 32


def test_closing_in_the_middle_keeps_what_was_in_flight(session: Session) -> None:
    many = session.infer_many(image(n) for n in range(10))
    got = [next(many)]
    session.close()
    with pytest.raises(ClosedError):
        got.extend(many)
    for seed, result in enumerate(got):
        assert_matches(result, expected(seed), 1e-4)


def test_a_forgotten_generator_of_a_closed_session_is_harmless(session: Session) -> None:
    many = session.infer_many(image(n) for n in range(10))
    next(many)
    session.close()
    del many
    gc.collect()


# infer_async ------------------------------------------------------------------------------------


def test_a_future_can_be_awaited_and_asked(session: Session) -> None:
    async def main() -> list[Feed]:
        one = await session.infer_async(image(0))
        return [one, *await asyncio.gather(*(session.infer_async(image(n)) for n in range(1, 40)))]

    for seed, got in enumerate(asyncio.run(main())):
        assert_matches(got, expected(seed), 1e-4)
    assert_matches(session.infer_async(x=image(7)).result(PATIENCE_SECONDS), expected(7), 1e-4)


def test_wrong_arguments_are_told_at_the_call(session: Session) -> None:
    with pytest.raises(InputError, match="unknown input"):
        session.infer_async(image=image(0))


def test_an_error_in_flight_is_the_futures() -> None:
    faults = Faults()
    with (
        Device(HostPlatform(faults)) as device,
        Session(static().model, device=device) as session,
    ):
        session.infer_async(image(0)).result(PATIENCE_SECONDS)
        faults.fail_call = faults.count + 3
        with pytest.raises(CudaError):
            session.infer_async(image(1)).result(PATIENCE_SECONDS)
        assert_matches(session.infer_async(image(2)).result(PATIENCE_SECONDS), expected(2), 1e-4)


def test_what_has_not_been_enqueued_can_be_cancelled(session: Session) -> None:
    session.infer_async(image(0)).result(PATIENCE_SECONDS)
    with session._record.handle.pipeline.slots[0]._lock:  # nothing can be enqueued
        futures = [session.infer_async(image(n)) for n in range(5)]
        cancelled = [future.cancel() for future in futures[2:]]
    assert cancelled == [True] * 3
    for future in futures[2:]:
        with pytest.raises(CancelledError):
            future.result(PATIENCE_SECONDS)
    for seed, future in enumerate(futures[:2]):
        assert_matches(future.result(PATIENCE_SECONDS), expected(seed), 1e-4)


def test_a_cancelled_await_leaves_the_session_usable(session: Session) -> None:
    async def main() -> Feed:
        with session._record.handle.pipeline.slots[0]._lock:
            task = asyncio.ensure_future(_await(session, 0))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await session.infer_async(image(1))

    assert_matches(asyncio.run(main()), expected(1), 1e-4)


async def _await(session: Session, seed: int) -> Feed:
    return await session.infer_async(image(seed))


def test_closing_finishes_what_was_accepted(session: Session) -> None:
    futures = [session.infer_async(image(n)) for n in range(50)]
    session.close()
    for seed, future in enumerate(futures):
        assert future.done()
        assert_matches(future.result(), expected(seed), 1e-4)
    with pytest.raises(ClosedError):
        session.infer_async(image(0))


def test_a_callback_may_infer_and_ask_for_more(session: Session) -> None:
    done = threading.Event()
    got: list[Feed] = []

    def again(future: Any) -> None:
        got.append(future.result())
        got.append(session.infer(image(len(got))))
        if len(got) < 200:
            session.infer_async(image(len(got))).add_done_callback(again)
        else:
            done.set()

    session.infer_async(image(0)).add_done_callback(again)
    assert done.wait(PATIENCE_SECONDS)
    for seed, result in enumerate(got[:20]):
        assert_matches(result, expected(seed), 1e-4)


def test_a_callback_may_close_the_session(session: Session) -> None:
    futures = [session.infer_async(image(n)) for n in range(10)]
    futures[3].add_done_callback(lambda _: session.close())
    assert not wait(futures, PATIENCE_SECONDS).not_done
    session.close()
    for seed, future in enumerate(futures):
        assert_matches(future.result(), expected(seed), 1e-4)


def test_too_many_at_once_wait_for_room(session: Session) -> None:
    slot = session._record.handle.pipeline.slots[0]
    session.infer_async(image(0)).result(PATIENCE_SECONDS)
    asked: list[Any] = []
    with slot._lock:

        def ask() -> None:
            for seed in range(200):
                asked.append(session.infer_async(image(seed)))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        assert len(asked) < 200
    asking.join(PATIENCE_SECONDS)
    assert not asking.is_alive()
    for seed, future in enumerate(asked):
        if seed % 20 == 0:
            assert_matches(future.result(PATIENCE_SECONDS), expected(seed), 1e-4)
    wait(asked, PATIENCE_SECONDS)


# On the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [static(), dynamic(), several(), nonzero(), reshape(), empty()], ids=lambda c: c.name
)
def test_results_may_stay_on_the_device(device: Device, case: Case) -> None:
    feeds = [case.feeds[n % len(case.feeds)] for n in range(12)]
    with open_engine(device, case) as engine, Session(engine) as session:
        wants = [session.infer(feed) for feed in feeds]
        ways = {
            "infer": [session.infer(feed, outputs="device") for feed in feeds],
            "many": list(session.infer_many(feeds, outputs="device")),
            "async": [session.infer_async(feed, outputs="device").result() for feed in feeds],
        }
    for way, results in ways.items():
        for got, want in zip(results, wants, strict=True):
            assert list(got) == list(want), way
            for name, array in got.items():
                assert type(array) is DeviceArray
                assert array.shape == want[name].shape
                np.testing.assert_array_equal(array.copy_to_host(), want[name], err_msg=way)
    del ways, results, got, array


def test_what_is_on_the_device_may_go_in_again_without_visiting_the_host() -> None:
    recorder = Recorder()
    platform = HostPlatform(recorder)
    with (
        Device(platform) as device,
        Session(several().model, device=device) as first,
        Session(several().model, device=device) as second,
    ):
        feed = several().feeds[0]
        want = first.infer(feed)
        want = second.infer(first=want["sum"], second=want["minus"])
        want = {name: array.copy() for name, array in want.items()}
        for _ in range(4):
            between = first.infer(feed, outputs="device")
            recorder.calls.clear()
            got = second.infer(first=between["sum"], second=between["minus"], outputs="device")
            assert not [call for call in recorder.calls if "HtoD" in call or "DtoH" in call]
            for name, array in got.items():
                np.testing.assert_array_equal(array.copy_to_host(), want[name])
            del between, got, array
    platform.host_driver.ledger.assert_empty()


def test_inputs_may_come_from_both_sides(device: Device) -> None:
    feed = several().feeds[0]
    with open_engine(device, several()) as engine, Session(engine) as session:
        want = session.infer(feed)
        buffer = DeviceBuffer(feed["first"].shape, np.float32, device=device)
        with buffer, Stream(device) as stream:
            buffer.copy_from(feed["first"], stream=stream)
            for _ in range(5):
                got = session.infer(first=buffer, second=feed["second"])
                for name, array in got.items():
                    np.testing.assert_array_equal(array, want[name])


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [((1, 3, 8, 8), np.float16, DtypeError), ((1, 3, 8, 9), np.float32, ShapeError)],
)
def test_device_memory_is_never_converted(
    session: Session, shape: tuple[int, ...], dtype: type, kind: type[InputError]
) -> None:
    with DeviceBuffer(shape, dtype, device=session.device) as buffer, pytest.raises(kind):
        session.infer(buffer)
    assert len(session._record.handle.pipeline.slots[0].idle) == pipeline.TRACKS
    assert_matches(session.infer(image(0)), expected(0), 1e-4)


def test_a_shape_tensor_is_wanted_on_the_host() -> None:
    platform = HostPlatform()
    with (
        Device(platform) as device,
        Session(reshape().model, device=device, profiles=reshape().profiles) as session,
        DeviceBuffer(2, np.int64, device=device) as buffer,
    ):
        x, _ = session.inputs
        with pytest.raises(InputError, match="shape tensor"):
            session.infer(np.zeros((2, 6), np.float32), buffer)
        assert x.name


def test_results_on_the_device_outlive_the_session() -> None:
    platform = HostPlatform()
    with Device(platform) as device, Session(static().model, device=device) as session:
        kept = [session.infer(image(seed), outputs="device")["y"] for seed in range(8)]
    for seed, y in enumerate(kept):
        assert_matches({"y": np.from_dlpack(y)}, expected(seed), 1e-4)
    del kept, y
    gc.collect()
    platform.host_driver.ledger.assert_empty()


# Everything at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_generators_and_futures_share_a_session(device: Device, contexts: int) -> None:
    case = dynamic()
    wants = {batch: expected(batch, dynamic, batch) for batch in range(1, 9)}
    with open_engine(device, case) as engine, Session(engine, contexts=contexts) as session:

        def check(batch: int, got: Feed) -> None:
            assert_matches(got, wants[batch], 1e-2)

        def work(number: int) -> None:
            batches = [1 + (number + n) % 8 for n in range(24)]
            if number % 3 == 0:
                for batch in batches:
                    check(batch, session.infer(image(batch, batch)))
            elif number % 3 == 1:
                images = (image(batch, batch) for batch in batches)
                for batch, got in zip(batches, session.infer_many(images), strict=True):
                    check(batch, got)
            else:
                futures = [session.infer_async(image(batch, batch)) for batch in batches]
                for batch, future in zip(batches, futures, strict=True):
                    check(batch, future.result(PATIENCE_SECONDS))

        from .test_threads import run_together

        assert run_together(12, work) == []
