"""Every public operation, once for each platform call that fails: a typed error, nothing left.

What the operations are is in `lives`. A run is one operation, from opening its device to closing
it, with one fault in it; the report of the tests ends with how many there were. Every call fails
once in any case. Of the rest every fifth position is tried, unless
``TRT_RUNTIME_TEST_FAULTS=all`` asks for each of them.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from trt_runtime import (
    BuildError,
    CudaError,
    Device,
    DeviceBuffer,
    Engine,
    EngineError,
    Event,
    MisuseError,
    OutOfMemoryError,
    PinnedBuffer,
    Session,
    StickyCudaError,
    Stream,
    TrtRuntimeError,
)
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import ANY_ERROR, BROKEN_CONTEXT, NO_MEMORY, Error, Faults

from . import lives
from .lives import OPERATIONS, Operation, check, plan
from .models import nonzero, static

#: More calls than any of the operations makes: a run that gets here does not end by itself.
MANY_CALLS = 5_000
STRIDE = 1 if os.environ.get("TRT_RUNTIME_TEST_FAULTS") == "all" else 5

#: What is tried again in silence: a plan in the cache, which somebody may just be replacing, and
#: results in device memory, for which the pool first gives up what it keeps.
TRIED_AGAIN = {"deserialize_cuda_engine", "cuMemAlloc", "cuEventCreate"}

Life = Callable[[HostPlatform], str | None]


# The proof --------------------------------------------------------------------------------


def life_of(operation: Operation) -> Life:
    """The operation from opening its device to closing it."""

    def life(platform: HostPlatform) -> str | None:
        with Device(platform) as device, operation(device) as use:
            return use()

    return life


def beside_another_context(platform: HostPlatform) -> str | None:
    """With another context current throughout, so that every call switches and restores."""
    driver = platform.host_driver
    other = Device(platform, 1)
    with other:
        driver.set_current_context(other._primary.handle)
        try:
            said = life_of(lives.capture_and_launch)(platform)
            assert driver.current_context_quietly() == other._primary.handle
            return said
        finally:
            driver._local.context = 0  # as the end of a thread would: not a call that can fail


LIVES = {operation.__name__: life_of(operation) for operation in OPERATIONS} | {
    "beside_another_context": beside_another_context
}


class Interrupted(Faults):
    """Ctrl-C at the Nth platform call."""

    def fails(self, call: str) -> bool:
        if super().fails(call):
            raise KeyboardInterrupt
        return False


class _Warnings(logging.Handler):
    """What the library warns of: that it went without something, say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@contextmanager
def warned() -> Iterator[list[str]]:
    """What the library warns of inside."""
    handler, logger = _Warnings(), logging.getLogger("trt_runtime")
    logger.addHandler(handler)
    try:
        yield handler.told
    finally:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def quick_collection() -> Iterator[None]:
    """What lives before the test is not looked at by the many collections in it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=LIVES)
def life(request: pytest.FixtureRequest) -> Life:
    return LIVES[request.param]


class Outcome:
    """One run with a fault in it: what was raised, or what the library says it went without."""

    def __init__(self, platform: HostPlatform, raised: BaseException | None, without: str) -> None:
        self.platform = platform
        self.raised = raised
        self.without = without
        self.words = "\n".join(said(raised))
        let_go(raised)

    def __str__(self) -> str:
        faults = self.platform.host_driver.faults
        return f"call {faults.fail_call} ({faults.failed[0]}) failed; raised: {self.words}"

    def assert_typed(self) -> None:
        """A typed error that says something; or the right result, and a word about it."""
        failed = self.platform.host_driver.faults.failed
        assert self.raised is not None or self.without or set(failed) <= TRIED_AGAIN, str(self)
        if self.raised is not None:
            assert isinstance(self.raised, TrtRuntimeError), str(self)
            assert str(self.raised)
        assert MisuseError.__name__ not in self.words, str(self)

    def assert_nothing_left(self) -> None:
        try:
            self.platform.host_driver.ledger.assert_empty()
        except AssertionError as left:
            pytest.fail(f"{self}\n{left}")

    def assert_next_session_works(self) -> None:
        """On the same platform, from which the fault is gone."""
        self.platform.host_driver.faults.fail_call = None
        with Device(self.platform) as device, Session(plan(static), device=device) as session:
            for _ in range(2):  # the second is captured
                check(session.infer(static().feeds[0]), static, 0)
            assert session.graph_fallback is None, str(self)


def each_failure(life: Life, faults: Callable[[int], Faults], stride: int = 1) -> Iterator[Outcome]:
    """Run ``life`` once for each N until no call fails."""
    for number in range(1, MANY_CALLS, stride):
        platform = HostPlatform(faults(number), devices=2)
        raised: BaseException | None = None
        without = None
        with warned() as warnings_told:
            try:
                without = life(platform)
            except BaseException as error:
                raised = error
        if not platform.host_driver.faults.failed:
            assert raised is None, f"failed without a fault: {raised!r}"
            assert without is None
            return
        outcome = Outcome(platform, raised, without or "; ".join(warnings_told))
        del raised
        yield outcome
    pytest.fail("the operation calls the platform without end")


def said(raised: BaseException | None) -> Iterator[str]:
    """An exception, those behind it, and their notes."""
    linked, seen = [raised], set()
    while linked:
        error = linked.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            yield repr(error)
            yield from getattr(error, "__notes__", ())
            linked += [error.__cause__, error.__context__]


def let_go(raised: BaseException | None) -> None:
    """Forget where an exception came from: its frames, and those behind them, hold objects.

    The host's TensorRT is Python, so frames of its callbacks refer to frames of its methods.
    NVIDIA's has no frames, and `test_ownership` shows that an exception may be kept.
    Not for use in the ``except`` clause: Python 3.10 holds the traceback until that ends.
    """
    linked, seen = [raised], set()
    while linked:
        error = linked.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            linked += [error.__cause__, error.__context__]  # not always the same one
    gc.collect()


def test_after_any_failing_call_the_error_is_typed_nothing_is_left_and_the_next_session_works(
    life: Life, injected: Counter[str]
) -> None:
    points = 0
    for outcome in each_failure(life, lambda number: Faults(number)):
        points += 1
        outcome.assert_typed()
        outcome.assert_nothing_left()
        if points % STRIDE == 0:
            outcome.assert_next_session_works()
            outcome.assert_nothing_left()
    injected["failing once"] += points
    assert points > 20


def test_after_an_interrupt_at_any_call_nothing_is_left_and_the_next_session_works(
    life: Life, injected: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[object] = []  # Python raises to nobody what is raised while an array is collected
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))
    for outcome in each_failure(life, lambda number: Interrupted(number), STRIDE):
        injected["interrupted"] += 1
        assert isinstance(outcome.raised, KeyboardInterrupt) or lost == [KeyboardInterrupt]
        lost.clear()
        outcome.assert_nothing_left()
        outcome.assert_next_session_works()


def test_when_every_call_fails_from_some_point_only_what_unrun_work_holds_is_left(
    life: Life, injected: Counter[str]
) -> None:
    # A wait that always fails leaves work that never runs, and the host refuses to free memory
    # under it; a GPU whose calls all fail keeps it until the process ends. The rest must go.
    for outcome in each_failure(life, lambda number: Faults(number, persistent=True), STRIDE):
        injected["failing from then on"] += 1
        assert isinstance(outcome.raised, TrtRuntimeError), str(outcome)
        ledger = outcome.platform.host_driver.ledger
        idle = [str(entry) for entry in ledger.entries if not entry.busy]
        assert not idle, str(outcome)
        unexplained = [
            text
            for text in ledger.violations
            if "is used by work" not in text and "it still holds" not in text
        ]
        assert not unexplained, str(outcome)
        if not ledger.entries:
            assert not [text for text in ledger.violations if "it still holds" in text]
        outcome.assert_next_session_works()


def test_after_a_sticky_error_at_any_call_everything_was_released_and_the_next_open_says_to_restart(
    life: Life, injected: Counter[str]
) -> None:
    for outcome in each_failure(life, lambda n: Faults(n, error=BROKEN_CONTEXT), STRIDE):
        injected["breaking the context"] += 1
        assert outcome.raised is not None, str(outcome)
        outcome.assert_typed()
        outcome.assert_nothing_left()
        assert "process must be restarted" in outcome.words, str(outcome)
        with pytest.raises(StickyCudaError, match="process must be restarted"):
            Device(outcome.platform)


def test_a_failure_leaves_no_object_for_the_collector_to_report() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("capture_and_launch", "infer", "execute_data_dependent", "device_inputs"):
            for _ in each_failure(LIVES[name], lambda number: Faults(number), STRIDE):
                pass
    assert [str(warning.message) for warning in caught] == []


# Out of memory ----------------------------------------------------------------------------


def test_after_any_allocation_that_fails_the_error_says_so_and_nothing_is_left(
    life: Life, injected: Counter[str]
) -> None:
    for persistent in (False, True):
        for outcome in each_failure(life, partial(Faults, persistent=persistent, error=NO_MEMORY)):
            injected["no memory"] += 1
            outcome.assert_typed()
            if outcome.raised is not None:
                assert isinstance(outcome.raised, OutOfMemoryError), str(outcome)
            outcome.assert_nothing_left()
            outcome.assert_next_session_works()


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


@pytest.fixture(
    params=(
        "execute",
        "execute_data_dependent",
        "execute_shape_values",
        "switch_profiles",
        "infer_data_dependent",
        "capture_and_launch",
        "copy_between_streams",
    )
)
def large_life(request: pytest.FixtureRequest) -> Life:
    return LIVES[request.param]


def test_out_of_device_memory_at_any_size_leaves_nothing(large_life: Life) -> None:
    sizes = [0, 1, 63, *range(64, 40_000, 128)]
    assert _until_it_fits(large_life, lambda size: Faults(device_memory=size), sizes) > 0


def test_out_of_page_locked_memory_at_any_size_leaves_nothing(large_life: Life) -> None:
    sizes = [0, 1, 63, *range(64, 40_000, 128)]
    assert _until_it_fits(large_life, lambda size: Faults(pinned_memory=size), sizes) > 0


def test_memory_that_did_not_suffice_can_be_asked_for_again_when_there_is_some() -> None:
    platform = HostPlatform(Faults(device_memory=1024))
    with Device(platform) as device:
        with DeviceBuffer(1000, device=device), pytest.raises(OutOfMemoryError, match="1024"):
            DeviceBuffer(100, device=device)
        DeviceBuffer(1024, device=device).close()
    platform.host_driver.ledger.assert_empty()


# What a failure leaves usable -------------------------------------------------------------


@pytest.mark.parametrize("error", [ANY_ERROR, NO_MEMORY], ids=["any error", "out of memory"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_after_any_failing_call_of_an_operation_the_same_objects_go_on_working(
    operation: Operation, error: Error, injected: Counter[str]
) -> None:
    for number in range(1, MANY_CALLS, STRIDE if error is ANY_ERROR else 1):
        faults = Faults(error=error)
        platform = HostPlatform(faults)
        words: list[str] = []
        with Device(platform) as device, operation(device) as use:
            faults.fail_call = faults.count + number
            for _ in range(2):  # the second time much is there already
                raised: TrtRuntimeError | None = None
                try:
                    use()
                except TrtRuntimeError as failure:
                    raised = failure
                if raised is not None:
                    words += said(raised)
                    let_go(raised)
            faults.fail_call = None
            use()
        platform.host_driver.ledger.assert_empty()
        assert not [text for text in words if MisuseError.__name__ in text], faults.failed
        if not faults.failed:
            return
        injected["failing once, going on" if error is ANY_ERROR else "no memory, going on"] += 1
    pytest.fail("the operation calls the platform without end")


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


def test_an_output_allocator_that_was_refused_is_given_again() -> None:
    faults = FailByName("set_output_allocator")
    (feed, *_) = nonzero().feeds
    with (
        Device(HostPlatform(faults)) as device,
        Session(plan(nonzero), device=device) as session,
    ):
        with pytest.raises(EngineError, match="output allocator"):
            session.infer(feed)
        faults.name = ""
        check(session.infer(feed), nonzero, 0)


def test_a_kept_line_of_the_log_keeps_nothing_alive(caplog: pytest.LogCaptureFixture) -> None:
    # A finaliser can only log a failure. An error's traceback would have the frames below it, and
    # those hold whatever was being used when the collector came.
    faults = Faults()
    with Device(HostPlatform(faults)) as device:
        with PinnedBuffer(8, device=device) as buffer:
            arrays = [buffer.array]
        faults.fail_call = faults.count + 1
        arrays.clear()
    (record,) = caplog.records
    assert "injected failure" in record.getMessage()
    assert not [value for value in record.args or () if isinstance(value, BaseException)]


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
