"""The whole life cycle, once for each platform call that fails: a typed error, nothing left."""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from unittest import mock

import numpy as np
import pytest

from trt_runtime import (
    BindingSet,
    BuildConfig,
    BuildError,
    CudaError,
    CudaGraph,
    Device,
    DeviceBuffer,
    Engine,
    Event,
    OutOfMemoryError,
    PinnedBuffer,
    Session,
    Stream,
    TrtRuntimeError,
    UnsupportedError,
    build_plan,
    pipeline,
)
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults

from .models import Case, Feed, assert_matches, dynamic, nonzero, reference, reshape, static

#: More calls than any of the life cycles makes: a run that gets here does not end by itself.
MANY_CALLS = 5_000

Life = Callable[[HostPlatform], None]


@cache
def plan(case: Callable[[], Case]) -> bytes:
    """The case's plan, built once and without faults."""
    with Device(HostPlatform()) as device:
        return build_plan(case().model, profiles=case().profiles, device=device)


@cache
def expected(case: Callable[[], Case], number: int) -> Feed:
    """What its feed of that number must give."""
    return reference(case().model, case().feeds[number])


# The life cycles --------------------------------------------------------------------------


def _explicit(platform: HostPlatform, case: Callable[[], Case], steps: int) -> None:
    """The sample's own sequence, every step of it a visible object."""
    with (
        Device(platform) as device,
        Engine.load(plan(case), device=device) as engine,
        engine.create_execution_context(name="the one") as context,
        Stream(device) as stream,
    ):
        for number, feed in enumerate(case().feeds[:steps]):
            shape_tensors = {spec.name for spec in engine.inputs if spec.is_shape_tensor}
            shapes = {n: a.shape for n, a in feed.items() if n not in shape_tensors}
            values = {n: a for n, a in feed.items() if n in shape_tensors}
            with BindingSet(context, shapes, values) as bindings:
                for name in shapes:
                    bindings[name].host[...] = feed[name]
                assert_matches(context.execute(bindings, stream), expected(case, number), 1e-4)


def static_life(platform: HostPlatform) -> None:
    _explicit(platform, static, 1)


def profile_switching_life(platform: HostPlatform) -> None:
    case = dynamic()
    with (
        Device(platform) as device,
        Engine.load(plan(dynamic), device=device) as engine,
        engine.create_execution_context() as context,
        Stream(device) as stream,
        BindingSet(context, {"x": (2, 3, 8, 8)}) as small,
        BindingSet(context, {"x": (16, 3, 8, 8)}) as large,
    ):
        assert (small.profile, large.profile) == (0, 1)
        for number, bindings in ((1, small), (4, large), (1, small)):
            bindings["x"].host[...] = case.feeds[number]["x"]
            assert_matches(context.execute(bindings, stream), expected(dynamic, number), 1e-4)


def data_dependent_life(platform: HostPlatform) -> None:
    _explicit(platform, nonzero, 3)


def shape_tensor_life(platform: HostPlatform) -> None:
    _explicit(platform, reshape, 2)


def session_life(platform: HostPlatform) -> None:
    case = dynamic()
    with (
        Device(platform) as device,
        Session(plan(dynamic), device=device, contexts=2) as session,
    ):
        for number in (0, 1, 4):
            assert_matches(session.infer(case.feeds[number]), expected(dynamic, number), 1e-4)


def data_dependent_session_life(platform: HostPlatform) -> None:
    case = nonzero()
    with Device(platform) as device, Session(plan(nonzero), device=device) as session:
        for number, feed in enumerate(case.feeds):
            assert_matches(session.infer(feed), expected(nonzero, number), 1e-4)


def graph_life(platform: HostPlatform) -> None:
    (feed,) = static().feeds
    with (
        Device(platform) as device,
        Engine.load(plan(static), device=device) as engine,
        engine.create_execution_context() as context,
        Stream(device) as stream,
        BindingSet(context) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):
        bindings["x"].host[...] = feed["x"]
        for _ in range(2):
            graph.launch(stream)
            stream.synchronize()
        assert_matches(bindings.outputs(), expected(static, 0), 1e-4)


def buffers_life(platform: HostPlatform) -> None:
    with (
        Device(platform) as device,
        Stream(device) as first,
        Stream(device) as second,
        PinnedBuffer(16, np.int32, device=device) as source,
        PinnedBuffer(16, np.int32, device=device) as target,
        DeviceBuffer(16, np.int32, device=device) as memory,
        Event(device, timing=True) as start,
    ):
        source.array[...] = range(16)
        start.record(first)
        memory.copy_from(source, stream=first)
        memory.copy_to(target, stream=second)  # on another stream: ordered by the buffer
        with second.record() as copied:
            first.wait(copied)
        second.synchronize()
        first.synchronize()
        assert list(target.array) == list(range(16))


def another_context_life(platform: HostPlatform) -> None:
    """With another context current throughout, so that every call switches and restores."""
    driver = platform.host_driver
    other = Device(platform, 1)
    with other:
        driver.set_current_context(other._primary.handle)
        try:
            _explicit(platform, static, 1)
            assert driver.current_context_quietly() == other._primary.handle
        finally:
            driver._local.context = 0  # as the end of a thread would: not a call that can fail


def build_life(platform: HostPlatform) -> None:
    case = dynamic()
    config = BuildConfig(profiles=case.profiles, precision="fp32", optimization_level=0)
    with Device(platform) as device, Engine.build(case.model, config, device=device) as engine:
        assert engine.serialize()


def calibrated_build_life(platform: HostPlatform) -> None:
    """Examples in device memory, a timing cache, and other types at the border."""
    case = dynamic()
    batch = {"x": np.ones(case.profiles[0]["x"].opt, np.float32)}
    with tempfile.TemporaryDirectory() as folder, Device(platform) as device:
        config = BuildConfig(
            profiles=case.profiles,
            precision="int8",
            io_types={"y": "float16"},
            timing_cache=f"{folder}/timing.cache",
        )
        for _ in range(2):
            build_plan(case.model, config, calibration=[batch] * 2, device=device)


def refit_life(platform: HostPlatform) -> None:
    """New weights under an open session, a context and a graph, by the parser and by name."""
    (feed,) = static().feeds
    config = BuildConfig(refittable=True)
    with (
        Device(platform) as device,
        Engine.build(static().model, config, device=device) as engine,
        Session(engine, graphs=False) as session,
        engine.create_execution_context() as context,
        Stream(device) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = feed["x"]
        for number in range(2):
            if number == 1:
                del engine._library.module.OnnxParserRefitter
            with CudaGraph(context, bindings, stream) as graph:
                graph.launch(stream)
                engine.refit(static().model)
                assert graph.closed
            assert_matches(context.execute(bindings, stream), expected(static, 0), 1e-4)
            assert_matches(session.infer(feed), expected(static, 0), 1e-4)
        assert engine.serialize()


def stripped_life(platform: HostPlatform) -> None:
    (feed,) = static().feeds
    config = BuildConfig(strip_weights=True, weight_streaming=True, precision="as-typed")
    with (
        Device(platform) as device,
        Engine.build(static().model, config, device=device) as engine,
    ):
        engine.weight_streaming_budget = 0
        engine.refit(static().model)
        with Session(engine) as session:
            assert_matches(session.infer(feed), expected(static, 0), 1e-4)


def inspect_life(platform: HostPlatform) -> None:
    with Device(platform) as device:
        assert Engine.check(plan(static), device=device).usable
        with Engine.load(plan(static), device=device) as engine:
            for _ in range(3):
                assert engine.inspect().layers


def session_from_onnx_life(platform: HostPlatform) -> None:
    with Device(platform) as device, Session(static().model, device=device) as session:
        session.infer(static().feeds[0])


def many_life(platform: HostPlatform) -> None:
    with (
        Device(platform) as device,
        Session(plan(dynamic), device=device) as session,
        closing(session.infer_many(dynamic().feeds * 2)) as many,
    ):
        for number, outputs in enumerate(many):
            assert_matches(outputs, expected(dynamic, number % len(dynamic().feeds)), 1e-4)
            del outputs  # which would outlive the session, and what it shows with it
            if number == 6:
                break
        _tell_what_was_overcome(session)


def many_brief_life(platform: HostPlatform) -> None:
    with mock.patch.object(pipeline, "BRIEF_BYTES", 1 << 16):
        many_life(platform)


def async_life(platform: HostPlatform) -> None:
    with Device(platform) as device, Session(plan(static), device=device) as session:
        for _ in range(4):  # one at a time, so that the calls come in the same order every time
            assert_matches(
                session.infer_async(static().feeds[0]).result(), expected(static, 0), 1e-4
            )
        _tell_what_was_overcome(session)


def device_results_life(platform: HostPlatform) -> None:
    with Device(platform) as device, Session(plan(static), device=device) as session:
        for _ in range(4):
            with session.infer(static().feeds[0], outputs="device")["y"] as y:
                assert_matches({"y": y.copy_to_host()}, expected(static, 0), 1e-4)
                with session.infer(static().feeds[0], outputs="device")["y"] as again:
                    assert_matches({"y": again.copy_to_host()}, expected(static, 0), 1e-4)
        _tell_what_was_overcome(session)


def _tell_what_was_overcome(session: Session) -> None:
    """Where a graph could not be captured, inference goes on and the session says why."""
    if session.graph_fallback is not None:
        raise UnsupportedError(session.graph_fallback)


LIVES: tuple[Life, ...] = (
    static_life,
    profile_switching_life,
    data_dependent_life,
    shape_tensor_life,
    session_life,
    data_dependent_session_life,
    graph_life,
    buffers_life,
    another_context_life,
    build_life,
    calibrated_build_life,
    session_from_onnx_life,
    refit_life,
    stripped_life,
    inspect_life,
    many_life,
    many_brief_life,
    async_life,
    device_results_life,
)


# The proof --------------------------------------------------------------------------------


class Interrupted(Faults):
    """Ctrl-C at the Nth platform call."""

    def fails(self, call: str) -> bool:
        if super().fails(call):
            raise KeyboardInterrupt
        return False


@pytest.fixture(autouse=True)
def quick_collection() -> Iterator[None]:
    """What lives before the test is not looked at by the many collections in it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=LIVES, ids=lambda life: life.__name__)
def life(request: pytest.FixtureRequest) -> Life:
    chosen: Life = request.param
    return chosen


def each_failure(
    life: Life, faults: Callable[[int], Faults]
) -> Iterator[tuple[HostPlatform, BaseException | None]]:
    """Run ``life`` once for each N until no call fails; the platform, and what was raised."""
    for number in range(1, MANY_CALLS):
        platform = HostPlatform(faults(number), devices=2)
        raised: BaseException | None = None
        try:
            life(platform)
        except BaseException as error:
            raised = error
        if not platform.host_driver.faults.failed:
            assert raised is None, f"failed without a fault: {raised!r}"
            return
        yield platform, raised
    pytest.fail("the life cycle calls the platform without end")


def told(platform: HostPlatform, raised: BaseException | None) -> str:
    faults = platform.host_driver.faults
    return f"call {faults.fail_call} ({faults.failed[0]}) failed; raised: {raised!r}"


def let_go(raised: BaseException | None) -> None:
    """Forget where an exception came from: its frames, and those behind them, hold objects.

    The host's TensorRT is Python, so frames of its callbacks refer to frames of its methods.
    NVIDIA's has no frames, and `test_ownership` shows that an exception may be kept.
    """
    linked, seen = [raised], set()
    while linked:
        error = linked.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            linked += [error.__cause__, error.__context__]  # not always the same one
    gc.collect()


def test_after_any_failing_call_the_error_is_typed_and_nothing_is_left(
    life: Life, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    points = 0
    for platform, raised in each_failure(life, lambda number: Faults(fail_call=number)):
        points += 1
        assert isinstance(raised, TrtRuntimeError), told(platform, raised)
        assert str(raised)
        let_go(raised)
        try:
            platform.host_driver.ledger.assert_empty()
        except AssertionError as left:
            pytest.fail(f"{told(platform, raised)}\n{left}")
    record_property("injection_points", points)
    with capsys.disabled():
        print(f"\n{life.__name__}: {points} injection points", end=" ")
    assert points > 20


def test_after_an_interrupt_at_any_call_nothing_is_left(life: Life) -> None:
    for platform, raised in each_failure(life, lambda number: Interrupted(fail_call=number)):
        assert isinstance(raised, KeyboardInterrupt), told(platform, raised)
        let_go(raised)
        try:
            platform.host_driver.ledger.assert_empty()
        except AssertionError as left:
            pytest.fail(f"{told(platform, raised)}\n{left}")


def test_when_every_call_fails_from_some_point_only_what_unrun_work_holds_is_left(
    life: Life,
) -> None:
    # A wait that always fails leaves work that never runs, and the host refuses to free memory
    # under it; a GPU whose calls all fail keeps it until the process ends. The rest must go.
    for platform, raised in each_failure(
        life, lambda number: Faults(fail_call=number, persistent=True)
    ):
        assert isinstance(raised, TrtRuntimeError), told(platform, raised)
        let_go(raised)
        ledger = platform.host_driver.ledger
        idle = [str(entry) for entry in ledger.entries if not entry.busy]
        assert not idle, told(platform, raised)
        unexplained = [
            text
            for text in ledger.violations
            if "is used by work" not in text and "it still holds" not in text
        ]
        assert not unexplained, told(platform, raised)
        if not ledger.entries:
            assert not [text for text in ledger.violations if "it still holds" in text]


def test_a_failure_leaves_no_object_for_the_collector_to_report() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for life in (graph_life, session_life, data_dependent_life, buffers_life):
            for _, raised in each_failure(life, lambda number: Faults(fail_call=number)):
                let_go(raised)
    assert [str(warning.message) for warning in caught] == []


# Out of memory ----------------------------------------------------------------------------


def _until_it_fits(life: Life, limit: Callable[[int], Faults], sizes: list[int]) -> int:
    """Run with each limit, smallest first; how many were too small."""
    for count, size in enumerate(sizes):
        platform = HostPlatform(limit(size), devices=2)
        raised: BaseException | None = None
        try:
            life(platform)
        except BaseException as error:
            raised = error
        if raised is not None:
            assert isinstance(raised, OutOfMemoryError), (size, raised)
            assert isinstance(raised, MemoryError)
            let_go(raised)
        platform.host_driver.ledger.assert_empty()
        if raised is None:
            return count
    pytest.fail("never had enough memory")


MEMORY_LIVES = (
    static_life,
    profile_switching_life,
    data_dependent_life,
    shape_tensor_life,
    data_dependent_session_life,
    graph_life,
    buffers_life,
)


@pytest.mark.parametrize("life", MEMORY_LIVES, ids=lambda life: life.__name__)
def test_out_of_device_memory_at_any_size_leaves_nothing(life: Life) -> None:
    sizes = [0, 1, 63, *range(64, 40_000, 128)]
    assert _until_it_fits(life, lambda size: Faults(device_memory=size), sizes) > 0


@pytest.mark.parametrize("life", MEMORY_LIVES, ids=lambda life: life.__name__)
def test_out_of_page_locked_memory_at_any_size_leaves_nothing(life: Life) -> None:
    sizes = [0, 1, 63, *range(64, 40_000, 128)]
    assert _until_it_fits(life, lambda size: Faults(pinned_memory=size), sizes) > 0


def test_memory_that_did_not_suffice_can_be_asked_for_again_when_there_is_some() -> None:
    platform = HostPlatform(Faults(device_memory=1024))
    with Device(platform) as device:
        with DeviceBuffer(1000, device=device), pytest.raises(OutOfMemoryError, match="1024"):
            DeviceBuffer(100, device=device)
        DeviceBuffer(1024, device=device).close()
    platform.host_driver.ledger.assert_empty()


# What a failure leaves usable -------------------------------------------------------------


def test_a_session_works_again_after_any_failing_call_of_an_inference() -> None:
    case = dynamic()
    first, second = case.feeds[1], case.feeds[4]
    for number in range(1, MANY_CALLS):
        faults = Faults()
        platform = HostPlatform(faults)
        with Device(platform) as device, Session(plan(dynamic), device=device) as session:
            session.infer(first)
            faults.fail_call = faults.count + number
            failed = False
            try:
                session.infer(second)
            except TrtRuntimeError:
                failed = True
            assert failed == bool(faults.failed)
            faults.fail_call = None
            # Other values than the failed call had staged, which nothing may still be reading.
            doubled = session.infer(x=second["x"] * 2)
            assert_matches(doubled, {"y": expected(dynamic, 4)["y"] * 2}, 1e-4)
            del doubled  # it shows memory that the session lends
            assert_matches(session.infer(first), expected(dynamic, 1), 1e-4)
        platform.host_driver.ledger.assert_empty()
        if not failed:
            assert number > 20
            return
    pytest.fail("an inference calls the platform without end")


def test_a_failing_build_is_a_build_error_with_the_log_line_that_explains_it() -> None:
    for call in ("Builder", "create_network", "OnnxParser", "build_serialized_network"):
        faults = FailByName(call)
        with Device(HostPlatform(faults)) as device:
            with pytest.raises(BuildError) as caught:
                Engine.build(static().model, device=device)
            assert f"injected failure of {call}" in str(caught.value)


class FailByName(Faults):
    """Fail every call of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def fails(self, call: str) -> bool:
        super().fails(call)
        return call == self.name


def test_a_kept_exception_of_a_failing_build_keeps_no_tensorrt_object() -> None:
    platform = HostPlatform(FailByName("build_serialized_network"))
    with Device(platform) as device, pytest.raises(BuildError) as kept:
        Engine.build(static().model, device=device)
    assert kept.value.__traceback__ is not None
    platform.host_driver.ledger.assert_empty()


def test_an_event_that_cannot_be_recorded_is_not_left_to_the_collector() -> None:
    platform = HostPlatform(FailByName("cuEventRecord"))
    with Device(platform) as device, Stream(device) as stream:
        with pytest.raises(CudaError, match="cuEventRecord") as kept:
            stream.record()
        kinds = [entry.kind for entry in platform.host_driver.ledger.entries]
        assert kinds == ["primary context", "stream"], kept


def test_an_error_names_the_call_that_failed() -> None:
    with Device(HostPlatform(FailByName("cuStreamCreateWithPriority"))) as device:
        with pytest.raises(CudaError, match="cuStreamCreateWithPriority failed") as caught:
            Stream(device)
        assert caught.value.call == "cuStreamCreateWithPriority"
        assert caught.value.code == 999


def test_a_failing_restore_of_the_callers_context_does_not_leak_what_was_made() -> None:
    for open_one in (
        lambda device: Stream(device),
        lambda device: Event(device),
        lambda device: DeviceBuffer(8, device=device),
        lambda device: PinnedBuffer(8, device=device),
    ):
        for number in range(1, 40):
            faults = Faults()
            platform = HostPlatform(faults)
            with Device(platform) as device:
                faults.fail_call = faults.count + number
                with suppress(CudaError):
                    open_one(device).close()
                faults.fail_call = None
                assert [e.kind for e in platform.host_driver.ledger.entries] == ["primary context"]
            if not faults.failed:
                break
        else:
            pytest.fail("never ran without a fault")
