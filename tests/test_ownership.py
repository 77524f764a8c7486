"""Who releases what, when, and what can go wrong: the fourteen rules, one section each."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    BindingSet,
    BusyError,
    ClosedError,
    CudaError,
    CudaGraph,
    Device,
    DeviceBuffer,
    Engine,
    EngineError,
    Event,
    ForkedProcessError,
    OutOfMemoryError,
    PinnedBuffer,
    Session,
    StickyCudaError,
    Stream,
    build_plan,
    ownership,
)
from trt_runtime.errors import CudaError as AnyCudaError
from trt_runtime.locks import Changes
from trt_runtime.ownership import Owned, release_all
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.driver import cuda_error
from trt_runtime.platform.host.faults import Faults

from .models import assert_matches, dynamic, nonzero, reference, reshape, static

PATIENCE_SECONDS = 20


class Thing(Owned):
    """Owns a name, and writes it down when it is released."""

    __slots__ = ("name",)

    def __init__(
        self,
        name: str,
        released: list[str],
        parents: tuple[Owned, ...] = (),
        *,
        error: BaseException | None = None,
        before: Callable[[], object] = lambda: None,
        then: tuple[Callable[[], object], ...] = (),
    ) -> None:
        self.name = name

        def destroy(handle: str) -> None:
            before()
            released.append(handle)
            if error is not None:
                raise error

        self._own(name, destroy, parents=parents, then=then, label=f"Thing {name}")

    @contextmanager
    def use(self) -> Iterator[str]:
        with self._record as handle:
            yield handle

    def _describe(self) -> str:
        return self.name


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "a thread hangs"


def refusals(
    uses: dict[str, Callable[[], object]], kind: type[Exception], text: str
) -> dict[str, str]:
    """What each use that did not raise such an error did instead."""
    wrong = {}
    for name, use in uses.items():
        try:
            use()
        except kind as error:
            if text not in str(error):
                wrong[name] = str(error)
        except Exception as error:
            wrong[name] = repr(error)
        else:
            wrong[name] = "worked"
    return wrong


@pytest.fixture
def released() -> list[str]:
    return []


@pytest.fixture
def plan() -> bytes:
    with Device(HostPlatform()) as device:
        return build_plan(static().model, device=device)


class Opened:
    """One open object of every class, on one device."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        self.device = device
        self.engine = stack.enter_context(Engine.build(static().model, device=device))
        self.context = stack.enter_context(self.engine.create_execution_context())
        self.stream = stack.enter_context(Stream(device))
        self.event = stack.enter_context(Event(device, timing=True))
        self.pinned = stack.enter_context(PinnedBuffer(8, np.uint8, device=device))
        self.memory = stack.enter_context(DeviceBuffer(8, np.uint8, device=device))
        self.bindings = stack.enter_context(BindingSet(self.context))
        self.graph = stack.enter_context(CudaGraph(self.context, self.bindings, self.stream))
        self.session = stack.enter_context(Session(self.engine))

    @property
    def all(self) -> list[Owned]:
        return [value for value in vars(self).values() if isinstance(value, Owned)]


@pytest.fixture
def opened(platform: HostPlatform) -> Iterator[Opened]:
    with ExitStack() as stack:
        yield Opened(stack.enter_context(Device(platform)), stack)


# 1. One base ------------------------------------------------------------------------------


def test_every_owning_class_has_the_one_base(opened: Opened) -> None:
    assert {type(each) for each in opened.all} == {
        *(Device, Engine, Stream, Event, PinnedBuffer, DeviceBuffer, BindingSet, CudaGraph),
        *(Session, type(opened.context)),
    }


def test_closing_twice_releases_once(released: list[str]) -> None:
    thing = Thing("a", released)
    assert not thing.closed
    thing.close()
    thing.close()
    assert thing.closed
    assert released == ["a"]


def test_everything_can_be_closed_twice(opened: Opened) -> None:
    for each in reversed(opened.all):
        each.close()
        each.close()
        assert each.closed


def test_of_two_threads_in_close_one_releases_and_both_return_after_it(
    released: list[str],
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def destroying() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)

    thing = Thing("a", released, before=destroying)
    seen: list[list[str]] = []

    def close() -> None:
        thing.close()
        seen.append(list(released))

    first = in_thread(close)
    assert begun.wait(PATIENCE_SECONDS)
    second = in_thread(close)
    second.join(0.05)
    assert second.is_alive(), "the second close returned before the release"
    assert thing.closed
    go_on.set()
    join(first, second)
    assert seen == [["a"], ["a"]]


def test_the_second_of_two_closers_also_waits_for_what_is_closed_after(
    released: list[str],
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def following() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)
        released.append("device")

    thing = Thing("engine", released, then=(following,))
    first = in_thread(thing.close)
    assert begun.wait(PATIENCE_SECONDS)
    seen: list[list[str]] = []
    second = in_thread(lambda: (thing.close(), seen.append(list(released))))
    second.join(0.05)
    assert second.is_alive()
    go_on.set()
    join(first, second)
    assert seen == [["engine", "device"]]


def test_with_closes_and_gives_the_object_itself(released: list[str]) -> None:
    with Thing("a", released) as thing:
        assert isinstance(thing, Thing)
        assert released == []
    assert released == ["a"]


def test_a_closed_object_cannot_be_entered_again(opened: Opened) -> None:
    for each in reversed(opened.all):
        each.close()
        with pytest.raises(ClosedError, match="is closed"):
            each.__enter__()


def test_reprs_work_open_closed_and_never_opened(opened: Opened) -> None:
    for each in opened.all:
        name = type(each).__name__
        assert repr(each).startswith(f"<{name} ")
        assert "closed" not in repr(each)
        assert repr(type(each).__new__(type(each))) == f"<{name} never opened>"
    bindings = list(opened.bindings.values())
    for each in reversed(opened.all):
        each.close()
        assert repr(each) == f"<{type(each).__name__} closed>"
    assert all(repr(binding).endswith("closed>") for binding in bindings)


def test_what_was_never_opened_is_closed_and_can_be_closed() -> None:
    for kind in (Device, Engine, Stream, Event, PinnedBuffer, DeviceBuffer, BindingSet, Session):
        half = kind.__new__(kind)
        assert half.closed
        half.close()


def _uses(opened: Opened) -> dict[str, Callable[[], object]]:
    """Every public method and property that needs its object open."""
    o, array = opened, np.zeros(8, np.uint8)
    binding = o.bindings["x"]
    feed = static().feeds[0]
    return {
        "Device.name": lambda: o.device.name,
        "Device.compute_capability": lambda: o.device.compute_capability,
        "Device.total_memory": lambda: o.device.total_memory,
        "Device.memory_info": o.device.memory_info,
        "Engine(device)": lambda: Engine.load(b"TRTHOST", device=o.device),
        "Stream(device)": lambda: Stream(o.device),
        "Event(device)": lambda: Event(o.device),
        "PinnedBuffer(device)": lambda: PinnedBuffer(1, device=o.device),
        "DeviceBuffer(device)": lambda: DeviceBuffer(1, device=o.device),
        "Stream.from_handle": lambda: Stream.from_handle(0, device=o.device, owner=None),
        "Stream.handle": lambda: o.stream.handle,
        "Stream.__cuda_stream__": o.stream.__cuda_stream__,
        "Stream.synchronize": o.stream.synchronize,
        "Stream.query": o.stream.query,
        "Stream.wait": lambda: o.stream.wait(o.event),
        "Stream.record": o.stream.record,
        "Event.handle": lambda: o.event.handle,
        "Event.record": lambda: o.event.record(o.stream),
        "Event.synchronize": o.event.synchronize,
        "Event.query": o.event.query,
        "Event.elapsed_ms": lambda: o.event.elapsed_ms(o.event),
        "PinnedBuffer.address": lambda: o.pinned.address,
        "PinnedBuffer.array": lambda: o.pinned.array,
        "DeviceBuffer.address": lambda: o.memory.address,
        "DeviceBuffer.copy_from": lambda: o.memory.copy_from(array, stream=o.stream),
        "DeviceBuffer.copy_to": lambda: o.memory.copy_to(array, stream=o.stream),
        "Engine.serialize": o.engine.serialize,
        "Engine.save": lambda: o.engine.save(os.devnull),
        "Engine.create_execution_context": o.engine.create_execution_context,
        "Engine.inspect": o.engine.inspect,
        "Engine.streamable_weights_bytes": lambda: o.engine.streamable_weights_bytes,
        "Engine.weight_streaming_budget": lambda: o.engine.weight_streaming_budget,
        "Engine.automatic_weight_streaming_budget": o.engine.automatic_weight_streaming_budget,
        "Engine.check(device)": lambda: Engine.check(b"TRTHOST", device=o.device),
        "Session(engine)": lambda: Session(o.engine),
        "BindingSet(context)": lambda: BindingSet(o.context),
        "ExecutionContext.profile": lambda: o.context.profile,
        "ExecutionContext.shapes": lambda: o.context.shapes,
        "ExecutionContext.profiler": lambda: o.context.profiler,
        "ExecutionContext.profiler=": lambda: setattr(o.context, "profiler", str.format),
        "ExecutionContext.enqueue": lambda: o.context.enqueue(o.bindings, o.stream),
        "ExecutionContext.execute": lambda: o.context.execute(o.bindings, o.stream),
        "BindingSet.outputs": o.bindings.outputs,
        "Binding.host": lambda: binding.host,
        "Binding.device_address": lambda: binding.device_address,
        "BindingSet.copy_to_device": lambda: o.bindings.copy_to_device(o.stream),
        "BindingSet.copy_to_host": lambda: o.bindings.copy_to_host(o.stream),
        "CudaGraph(context)": lambda: CudaGraph(o.context, o.bindings, o.stream),
        "CudaGraph.launch": lambda: o.graph.launch(o.stream),
        "Session.infer": lambda: o.session.infer(feed),
        "Session()": lambda: o.session(feed),
    }


def test_every_use_after_close_says_that_it_is_closed(opened: Opened) -> None:
    uses = _uses(opened)
    for each in reversed(opened.all):
        each.close()
    calls = opened.device._driver.faults.count
    assert refusals(uses, ClosedError, "closed") == {}
    assert opened.device._driver.faults.count == calls, "a closed object called the driver"


def test_a_closed_stream_never_becomes_the_default_stream(opened: Opened) -> None:
    opened.stream.close()
    for use in (lambda: opened.stream.handle, opened.stream.__cuda_stream__):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError):
        opened.context.enqueue(opened.bindings, opened.stream)


def test_nothing_that_owns_can_be_pickled_or_copied(opened: Opened) -> None:
    for each in opened.all:
        for send in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                send(each)


# 2. The record ----------------------------------------------------------------------------


def test_a_close_inside_the_release_does_not_release_again(released: list[str]) -> None:
    holder: list[Thing] = []
    thing = Thing("a", released, before=lambda: holder[0].close())
    holder.append(thing)
    thing.close()
    assert released == ["a"]


def test_after_close_the_finaliser_has_nothing_left_to_do(released: list[str]) -> None:
    thing = Thing("a", released)
    thing.close()
    assert not thing._finalizer.alive
    del thing
    gc.collect()
    assert released == ["a"]


# 3. Parents outlive children --------------------------------------------------------------


def test_closing_a_parent_closes_the_children_first_newest_first(released: list[str]) -> None:
    parent = Thing("parent", released)
    first = Thing("first", released, (parent,))
    second = Thing("second", released, (parent,))
    grandchild = Thing("grandchild", released, (first,))
    parent.close()
    assert released == ["second", "grandchild", "first", "parent"]
    assert first.closed
    assert second.closed
    assert grandchild.closed


def test_a_child_keeps_its_parent_alive_and_open(released: list[str]) -> None:
    parent = Thing("parent", released)
    alive = weakref.ref(parent)
    child = Thing("child", released, (parent,))
    del parent
    gc.collect()
    assert alive() is not None
    assert released == []
    with pytest.warns(ResourceWarning, match="unclosed Thing parent"):
        child.close()  # nobody else holds the parent, and nobody closed it
    assert released == ["child", "parent"]
    assert alive() is None


def test_a_parent_does_not_keep_its_children_alive(released: list[str]) -> None:
    with Thing("parent", released) as parent:
        child = Thing("child", released, (parent,))
        alive = weakref.ref(child)
        child.close()
        del child
        gc.collect()
        assert alive() is None
        assert not parent._record.children
    assert released == ["child", "parent"]


def test_a_closed_parent_admits_no_child_and_the_childs_handle_is_released(
    released: list[str],
) -> None:
    parent = Thing("parent", released)
    parent.close()
    with pytest.raises(ClosedError, match="Thing parent is closed"):
        Thing("child", released, (parent,))
    assert released == ["parent", "child"]


def test_a_child_refused_by_its_parent_says_so_even_if_its_release_fails(
    released: list[str],
) -> None:
    parent = Thing("parent", released)
    parent.close()
    with pytest.raises(ClosedError) as caught:
        Thing("child", released, (parent,), error=RuntimeError("stuck"))
    assert any("stuck" in note for note in caught.value.__dict__.get("__notes__", []))


def test_a_device_that_closes_takes_everything_on_it_along(opened: Opened) -> None:
    opened.device.close()
    assert all(each.closed for each in opened.all)
    opened.device._driver.ledger.assert_empty()


def test_child_and_parent_can_be_closed_by_two_threads_at_once(released: list[str]) -> None:
    # A session closes the engine that it built after itself, and the engine its sessions first.
    for _ in range(50):
        parent = Thing("parent", released)
        child = Thing("child", released, (parent,), then=(parent.close,))
        together = threading.Barrier(2)

        def close(each: Thing, together: threading.Barrier = together) -> None:
            together.wait(PATIENCE_SECONDS)
            each.close()

        join(*[in_thread(partial(close, each)) for each in (parent, child)])
        assert released == ["child", "parent"]
        released.clear()


def test_a_session_and_its_engine_can_be_closed_by_two_threads_at_once(
    plan: bytes, platform: HostPlatform
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    with Device(platform) as device:
        session = Session(plan, device=device)
        session._record.also([])  # the engine's close follows the session's own release
        follows = session._record._then[0]

        def slowly() -> None:
            begun.set()
            assert go_on.wait(PATIENCE_SECONDS)
            follows()

        session._record._then[0] = slowly
        first = in_thread(session.close)
        assert begun.wait(PATIENCE_SECONDS)
        second = in_thread(session.engine.close)
        second.join(PATIENCE_SECONDS)
        hung = second.is_alive()
        go_on.set()
        join(first)
        assert not hung, "the engine waits for a session that waits for the engine"


# 4. Forgotten objects ---------------------------------------------------------------------


def test_a_forgotten_object_is_released_and_then_reported(
    released: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = lambda message, *rest: order.extend([*released, str(message)])  # noqa: E731
        monkeypatch.setattr(warnings, "showwarning", show)
        Thing("a", released)
        gc.collect()
    assert order == ["a", "unclosed Thing a"]


def test_a_warning_that_is_an_error_does_not_stop_the_release(
    released: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: raised.append(info.exc_value))
    # weakref.finalize hands what its callback raises to the hook
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Thing("a", released)
        gc.collect()
    assert released == ["a"]
    assert [type(error) for error in raised] == [ResourceWarning]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: Stream(o.device),
        lambda o: Event(o.device),
        lambda o: DeviceBuffer(8, device=o.device),
        lambda o: PinnedBuffer(8, device=o.device),
        lambda o: Engine.build(static().model, device=o.device),
        lambda o: o.engine.create_execution_context(),
        lambda o: BindingSet(o.context),
        lambda o: CudaGraph(o.context, o.bindings, o.stream),
        lambda o: Session(o.engine),
        lambda o: Session(static().model, device=o.device),
        lambda o: Stream.from_handle(0, device=o.device, owner=object()),
    ],
    ids=lambda make: None,
)
def test_whatever_is_forgotten_leaves_nothing_and_is_named(
    opened: Opened, make: Callable[[Opened], Owned]
) -> None:
    ledger = opened.device._driver.ledger
    before = len(ledger.entries)
    made: Owned | None = make(opened)
    name = type(made).__name__
    with pytest.warns(ResourceWarning, match="unclosed") as reported:
        made = None
    assert [name in str(warning.message) for warning in reported] == [True]
    assert len(ledger.entries) == before


@pytest.mark.filterwarnings("ignore:unclosed Session:ResourceWarning")
def test_who_forgets_a_session_may_hold_what_its_threads_wait_for(opened: Opened) -> None:
    driver = opened.device._driver
    before = len(driver.ledger.entries)
    (spec,) = opened.engine.inputs
    sessions = [Session(opened.engine)]
    future = sessions[0].infer_async(np.zeros(spec.shape, spec.dtype))

    def forget() -> None:
        with driver._lock:
            sessions.clear()

    thread = in_thread(forget)
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it waits for the session's threads"
    future.result(PATIENCE_SECONDS)
    opened.engine.close()  # which waits for whoever releases the session
    assert len(driver.ledger.entries) < before


def test_a_forgotten_cycle_is_released_children_first(released: list[str]) -> None:
    parent = Thing("parent", released)
    child = Thing("child", released, (parent,))
    cycle: list[Any] = [parent, child]
    cycle.append(cycle)
    del parent, child, cycle
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert released == ["child", "parent"]


def test_a_profiler_that_knows_its_context_does_not_keep_it_alive(opened: Opened) -> None:
    context = opened.engine.create_execution_context()
    context.profiler = lambda layer, milliseconds, mine=context: print(mine)
    alive = weakref.ref(context)
    context = None
    with pytest.warns(ResourceWarning, match="ExecutionContext"):
        gc.collect()
    assert alive() is None


def test_a_forgotten_object_whose_release_fails_is_logged_and_reported(
    released: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(ResourceWarning, match="unclosed Thing a"), caplog.at_level(logging.ERROR):
        Thing("a", released, error=RuntimeError("stuck"))  # and forgotten at once
    assert "stuck" in caplog.text


# 5. Order and waiting ---------------------------------------------------------------------


def test_a_session_releases_in_the_order_that_tensorrt_needs(
    platform: HostPlatform, plan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = platform.host_driver.ledger
    order: list[str] = []
    with Device(platform) as device:
        session = Session(plan, device=device)
        session.infer(static().feeds[0])
        close = ledger.close
        monkeypatch.setattr(
            ledger, "close", lambda entry, call: (order.append(entry.kind), close(entry, call))
        )
        session.close()
    firsts = list(dict.fromkeys(order))
    assert firsts.index("stream") < firsts.index("engine") < firsts.index("runtime")
    assert firsts.index("execution context") < firsts.index("stream")
    assert order[-1] == "primary context"
    assert order.index("execution context") < len(order) - 1 - order[::-1].index("event")


@pytest.mark.parametrize("first", ["graph", "bindings", "context", "engine", "stream", "device"])
def test_whatever_is_closed_first_waits_for_the_work_in_flight(opened: Opened, first: str) -> None:
    opened.bindings["x"].host[...] = static().feeds[0]["x"]
    kept = opened.bindings["y"].host
    opened.graph.launch(opened.stream)
    getattr(opened, first).close()
    if first != "stream":
        return  # the ledger of the fixture says whether work was in flight at the release
    assert_matches({"y": kept}, reference(static().model, static().feeds[0]), 1e-4)


def test_closing_a_buffer_waits_for_its_copies(opened: Opened) -> None:
    opened.pinned.array[...] = 7
    target = np.zeros(8, np.uint8)
    opened.memory.copy_from(opened.pinned, stream=opened.stream)
    opened.pinned.close()
    opened.memory.copy_to(target, stream=opened.stream)
    assert (target == 7).all()
    opened.memory.close()


# 6. A failing close -----------------------------------------------------------------------


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def test_a_failing_close_releases_the_rest_and_raises_the_first_with_notes(
    released: list[str],
) -> None:
    parent = Thing("parent", released, error=RuntimeError("the parent is stuck"))
    older = Thing("older", released, (parent,), error=RuntimeError("the older is stuck"))
    newer = Thing("newer", released, (parent,), error=RuntimeError("the newer is stuck"))
    with pytest.raises(RuntimeError, match="the newer is stuck") as caught:
        parent.close()
    assert released == ["newer", "older", "parent"]
    assert newer.closed
    assert older.closed
    text = "\n".join(notes(caught.value))
    assert "the older is stuck" in text
    assert "the parent is stuck" in text


def test_a_failing_close_becomes_a_note_on_the_exception_in_flight(released: list[str]) -> None:
    with (
        pytest.raises(KeyError, match="mine") as caught,
        Thing("a", released, error=RuntimeError("stuck")),
    ):
        raise KeyError("mine")
    assert released == ["a"]
    assert any("Thing a" in note and "stuck" in note for note in notes(caught.value))


def test_a_failing_close_is_not_tried_again(released: list[str]) -> None:
    thing = Thing("a", released, error=RuntimeError("stuck"))
    with pytest.raises(RuntimeError):
        thing.close()
    thing.close()
    assert thing.closed
    assert released == ["a"]


def test_every_step_runs_even_when_one_is_interrupted() -> None:
    ran: list[int] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release_all([lambda: ran.append(1), interrupted, lambda: ran.append(2)])
    assert ran == [1, 2]


# 7. A failing open ------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["rank", "range", "values", "memory"])
def test_a_binding_set_that_cannot_be_made_leaves_nothing(wrong: str) -> None:
    faults = Faults()
    platform = HostPlatform(faults)
    with (
        Device(platform) as device,
        Engine.build(dynamic().model, profiles=dynamic().profiles, device=device) as engine,
        engine.create_execution_context() as context,
    ):
        before = len(platform.host_driver.ledger.entries)
        shapes: dict[str, tuple[int, ...]] = {
            "rank": {"x": (1, 3, 8)},
            "range": {"x": (99, 3, 8, 8)},
            "values": {"y": (1, 4, 8, 8)},
            "memory": {"x": (4, 3, 8, 8)},
        }[wrong]
        if wrong == "memory":
            faults.device_memory = 4096
        kind = OutOfMemoryError if wrong == "memory" else ValueError
        with pytest.raises(kind):
            BindingSet(context, shapes)
        assert len(platform.host_driver.ledger.entries) == before
    platform.host_driver.ledger.assert_empty()


def test_a_session_that_cannot_be_made_closes_what_it_built(platform: HostPlatform) -> None:
    platform.host_driver.faults.pinned_memory = 0
    with Device(platform) as device:
        with pytest.raises(EngineError):
            Session(b"TRTHOST and then nothing", device=device)
        with Session(static().model, device=device) as session, pytest.raises(OutOfMemoryError):
            session.infer(static().feeds[0])


# 8. TensorRT objects never leak out ---------------------------------------------------------


class FailByName(Faults):
    """Fail every call of one name, once it is named."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def fails(self, call: str) -> bool:
        super().fails(call)
        return call == self.name


@pytest.mark.parametrize(
    "call", ["execute_async_v3", "set_input_shape", "set_tensor_address", "infer_shapes"]
)
def test_a_kept_exception_keeps_no_tensorrt_object(call: str) -> None:
    faults = FailByName()
    platform = HostPlatform(faults)
    case = dynamic()
    kept: list[BaseException] = []
    with (
        Device(platform) as device,
        Session(case.model, profiles=case.profiles, device=device) as session,
    ):
        session.infer(case.feeds[0])
        faults.name = call
        try:
            session.infer(case.feeds[4])
        except Exception as error:
            kept.append(error)
        faults.name = ""
    assert kept
    assert kept[0].__traceback__ is not None
    platform.host_driver.ledger.assert_empty()


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "Runtime"])
def test_a_kept_exception_of_a_failing_load_keeps_no_tensorrt_object(
    call: str, plan: bytes
) -> None:
    faults = FailByName()
    platform = HostPlatform(faults)
    faults.name = call
    with Device(platform) as device, pytest.raises(EngineError) as kept:
        Engine.load(plan, device=device)
    platform.host_driver.ledger.assert_empty()
    assert kept.value.__traceback__ is not None


# 9. Addresses keep nothing alive --------------------------------------------------------------


def test_shape_values_outlive_their_bindings_for_as_long_as_the_context_may_read_them(
    platform: HostPlatform,
) -> None:
    case = reshape()
    values = {"shape": case.feeds[0]["shape"]}
    with (
        Device(platform) as device,
        Engine.build(case.model, profiles=case.profiles, device=device) as engine,
        engine.create_execution_context() as context,
    ):
        BindingSet(context, values=values).close()
        assert context.shapes["y"] == (3, 4)


def test_a_graph_keeps_its_bindings_and_bindings_close_their_graph(opened: Opened) -> None:
    assert opened.graph.bindings is opened.bindings
    opened.bindings.close()
    assert opened.graph.closed
    with pytest.raises(ClosedError):
        opened.graph.launch(opened.stream)


def test_forgotten_bindings_are_not_freed_under_their_work(opened: Opened) -> None:
    forgotten = BindingSet(opened.context)
    forgotten["x"].host[...] = 1
    forgotten.copy_to_device(opened.stream)
    opened.context.enqueue(forgotten, opened.stream)
    with pytest.warns(ResourceWarning, match="BindingSet"):
        del forgotten
    opened.bindings["x"].host[...] = static().feeds[0]["x"]
    results = opened.context.execute(opened.bindings, opened.stream)
    assert_matches(results, reference(static().model, static().feeds[0]), 1e-4)


# 10. Context currentness --------------------------------------------------------------------


def test_the_callers_other_context_stays_current_through_every_public_call() -> None:
    platform = HostPlatform(devices=2)
    driver = platform.host_driver
    with Device(platform, 1) as other, ExitStack() as stack:
        mine = other._primary.handle
        driver.set_current_context(mine)
        opened = Opened(stack.enter_context(Device(platform, 0)), stack)
        assert driver.current_context_quietly() == mine
        for name, use in _uses(opened).items():
            with suppress(EngineError):
                made = use()
                if isinstance(made, Owned):
                    made.close()
                del made  # results show memory that the session lends
            assert driver.current_context_quietly() == mine, name
        for each in reversed(opened.all):
            each.close()
            assert driver.current_context_quietly() == mine, each
        driver.set_current_context(0)
    driver.ledger.assert_empty()


def test_the_callers_context_is_restored_after_a_failure(opened: Opened) -> None:
    driver = opened.device._driver
    driver.faults.fail_call = driver.faults.count + 3
    with pytest.raises(CudaError):
        opened.bindings.copy_to_device(opened.stream)
    assert driver.current_context_quietly() == 0


def test_a_context_that_is_current_already_is_not_set_again(opened: Opened) -> None:
    driver = opened.device._driver
    with opened.device._primary.current():
        before = driver.faults.count
        opened.stream.query()
        assert driver.faults.count == before + 2  # which one is current, and the query


def test_a_thread_that_never_touched_cuda_can_do_everything(opened: Opened) -> None:
    failures: list[object] = []

    def work() -> None:
        for name, use in _uses(opened).items():
            try:
                made = use()
                if isinstance(made, Owned):
                    made.close()
            except EngineError as error:
                if "Engine(device)" not in name:
                    failures.append((name, error))
            except Exception as error:
                failures.append((name, error))
        for each in reversed(opened.all):
            each.close()

    join(in_thread(work))
    assert failures == []


# Use and close --------------------------------------------------------------------------------


def test_close_waits_for_a_user_in_another_thread(released: list[str]) -> None:
    thing = Thing("a", released)
    used, go_on = threading.Event(), threading.Event()

    def use() -> None:
        with thing.use() as handle:
            used.set()
            assert go_on.wait(PATIENCE_SECONDS)
            assert handle == "a"
            assert released == []

    user = in_thread(use)
    assert used.wait(PATIENCE_SECONDS)
    closer = in_thread(thing.close)
    closer.join(0.05)
    assert closer.is_alive()
    assert released == []
    with pytest.raises(ClosedError), thing.use():
        pass
    go_on.set()
    join(user, closer)
    assert released == ["a"]


def test_an_interrupted_close_still_waits_for_the_user(
    released: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = Thing("a", released)
    used, go_on = threading.Event(), threading.Event()

    def use() -> None:
        with thing.use():
            used.set()
            assert go_on.wait(PATIENCE_SECONDS)
            assert released == []

    user = in_thread(use)
    assert used.wait(PATIENCE_SECONDS)
    wait_for = Changes.wait_for
    interrupts = [KeyboardInterrupt()]

    def interrupted_once(*args: Any) -> bool:
        if interrupts:
            raise interrupts.pop()
        go_on.set()
        return wait_for(*args)

    monkeypatch.setattr(Changes, "wait_for", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        thing.close()
    join(user)
    assert released == ["a"]


def test_closing_from_inside_a_call_is_refused_and_changes_nothing(released: list[str]) -> None:
    parent = Thing("parent", released)
    child = Thing("child", released, (parent,))
    with child.use():
        for each in (child, parent):
            with pytest.raises(BusyError, match="from inside a call"):
                each.close()
            assert not each.closed
    parent.close()
    assert released == ["child", "parent"]


@pytest.mark.parametrize("which", ["context", "bindings", "stream", "engine", "device"])
def test_closing_from_inside_a_callback_is_refused(opened: Opened, which: str) -> None:
    refused: list[str] = []

    def close(layer: str, milliseconds: float) -> None:
        try:
            getattr(opened, which).close()
        except BusyError as error:
            refused.append(str(error))

    opened.context.profiler = close
    opened.context.enqueue(opened.bindings, opened.stream)
    assert all("from inside a call" in text for text in refused)
    assert refused
    assert not any(each.closed for each in opened.all)
    opened.stream.synchronize()


def test_a_profiler_that_was_taken_away_is_let_go(opened: Opened) -> None:
    class Profiler:
        def __call__(self, layer: str, milliseconds: float) -> None:
            """Take no notice."""

    profiler = Profiler()
    alive = weakref.ref(profiler)
    opened.context.profiler = profiler
    opened.context.enqueue(opened.bindings, opened.stream)
    opened.context.profiler = None
    del profiler
    assert alive() is None


def test_an_exception_in_a_callback_comes_out_of_the_enqueue(opened: Opened) -> None:
    def broken(layer: str, milliseconds: float) -> None:
        raise LookupError("mine")

    opened.context.profiler = broken
    with pytest.raises(LookupError, match="mine"):
        opened.context.enqueue(opened.bindings, opened.stream)
    opened.context.profiler = None
    opened.context.enqueue(opened.bindings, opened.stream)


# 13. Sticky errors ----------------------------------------------------------------------------


class Sticky(Faults):
    """From now on, every driver call meets a broken GPU context."""

    broken = False

    def fails(self, call: str) -> bool:
        super().fails(call)
        if self.broken and call.startswith("cu"):
            raise cuda_error(700, "CUDA_ERROR_ILLEGAL_ADDRESS", call)
        return False


def test_after_a_sticky_error_releases_go_on_and_the_next_open_says_to_restart() -> None:
    faults = Sticky()
    platform = HostPlatform(faults)
    ledger = platform.host_driver.ledger

    def work() -> None:
        with ExitStack() as stack:
            Opened(stack.enter_context(Device(platform)), stack)
            faults.broken = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert any("ILLEGAL_ADDRESS" in note for note in notes(caught.value))
    caught.value.__traceback__ = None
    gc.collect()
    ledger.assert_empty()  # every release was tried
    with pytest.raises(StickyCudaError, match="process must be restarted"):
        Device(platform)


def test_a_release_after_a_sticky_error_raises_it_once_with_the_rest_as_notes() -> None:
    faults = Sticky()
    platform = HostPlatform(faults)
    with ExitStack() as stack:
        device = Device(platform)
        Opened(device, stack)
        faults.broken = True
        with pytest.raises(AnyCudaError) as caught:
            device.close()
    assert len(notes(caught.value)) > 3


# 14. Exported memory --------------------------------------------------------------------------


def test_an_array_of_a_buffer_outlives_buffer_and_device(platform: HostPlatform) -> None:
    ledger = platform.host_driver.ledger
    with Device(platform) as device, PinnedBuffer((2, 3), np.int32, device=device) as buffer:
        array = buffer.array
        array[...] = [[1, 2, 3], [4, 5, 6]]
        row = array[1]
        del array
    assert sorted(entry.kind for entry in ledger.entries) == ["pinned memory", "primary context"]
    assert row.tolist() == [4, 5, 6]
    row[0] = 9  # still writable, and still nobody else's
    assert row.tolist() == [9, 5, 6]
    del row
    ledger.assert_empty()


def test_a_host_side_outlives_bindings_session_and_device(platform: HostPlatform) -> None:
    (feed,) = static().feeds
    ledger = platform.host_driver.ledger
    with ExitStack() as stack:
        opened = Opened(stack.enter_context(Device(platform)), stack)
        opened.bindings["x"].host[...] = feed["x"]
        opened.context.execute(opened.bindings, opened.stream)
        host = opened.bindings["y"].host
        del opened
    assert_matches({"y": host}, reference(static().model, feed), 1e-4)
    assert len(ledger.entries) == 2
    del host
    ledger.assert_empty()


def test_a_collected_array_of_an_open_buffer_frees_nothing(opened: Opened) -> None:
    opened.pinned.array[...] = 5
    for _ in range(3):
        assert opened.pinned.array.tolist() == [5] * 8
        gc.collect()


def test_an_array_may_be_collected_while_its_block_is_being_held(opened: Opened) -> None:
    # The collector runs a finaliser in whatever code it interrupts, the block's own included.
    block = opened.pinned._record.handle
    array = opened.pinned.array
    with block._lock:
        del array
        gc.collect()
    assert block._holds == 1


def test_results_of_a_data_dependent_session_survive_it(platform: HostPlatform) -> None:
    case = nonzero()
    with Device(platform) as device, Session(case.model, device=device) as session:
        results = [session.infer(feed) for feed in case.feeds]
    for result, feed in zip(results, case.feeds, strict=True):
        assert_matches(result, reference(case.model, feed), case.tolerance)


# 12. Fork: what can be shown without forking; `test_exit` forks ---------------------------------


def test_a_fork_never_drops_what_would_call_the_driver_in_its_destructor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Handle:
        """Stands for an object of TensorRT, which releases itself with its last reference."""

        def __del__(self) -> None:
            dropped.append(self)

    class Holder(Owned):
        def __init__(self) -> None:
            self._own(Handle(), lambda handle: None)

    dropped: list[Handle] = []
    closed, forgotten = Holder(), Holder()
    pid = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        patch.setattr(ownership.process, "pid", pid + 1)
        closed.close()
        del closed, forgotten
        gc.collect()
    assert dropped == []


def test_in_another_process_everything_refuses_and_closes_in_silence(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = {
        name: use
        for name, use in _uses(opened).items()
        if name not in ("Stream.from_handle", "Engine(device)")
    }
    array = opened.pinned.array
    pid, calls = os.getpid(), opened.device._driver.faults.count
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        patch.setattr(ownership.process, "pid", pid + 1)
        assert refusals(uses, ForkedProcessError, "spawn") == {}
        assert all(each.closed for each in opened.all)
        del array
    assert opened.device._driver.faults.count == calls, "a fork's copy called the driver"
    block = opened.pinned._record.handle
    assert block._holds == 2, "a fork's copy gave up a hold"
    block.drop()  # the array's, which really is gone
    assert not any(each.closed for each in opened.all)


def test_an_interrupt_that_python_drops_as_a_finaliser_begins_only_puts_it_off(
    platform: HostPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def memory() -> int:
        return sum(entry.kind == "device memory" for entry in platform.host_driver.ledger.entries)

    dropped: list[object] = []
    with Device(platform) as device:
        buffers = [DeviceBuffer(8, device=device)]
        buffers[0]._record.quiet = True
        with monkeypatch.context() as patched:
            patched.setattr(sys, "unraisablehook", lambda it: dropped.append(it.exc_type))
            patched.setattr(weakref.finalize, "__call__", interrupted)
            buffers.clear()
        assert dropped == [KeyboardInterrupt]
        assert memory() == 1
        Stream(device).close()
        assert memory() == 0
