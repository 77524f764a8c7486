"""Many threads at once: right results, one call in flight on a context, and a close that waits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from trt_runtime import (
    BindingSet,
    BusyError,
    ClosedError,
    CudaGraph,
    Device,
    Engine,
    ExecutionContext,
    Session,
    Stream,
)
from trt_runtime.platform import HostPlatform

from .models import Case, dynamic, nonzero, reference, reshape, static
from .together import PATIENCE_SECONDS, run_together


@pytest.fixture
def often_switching() -> Iterator[None]:
    """Threads take turns a hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


def feeds_of(case: Case, number: int) -> list[dict[str, np.ndarray]]:
    """Inputs of one thread's own: the case's, scaled by the thread's number."""
    return [
        {
            name: array * (number + 1) if array.dtype.kind == "f" else array
            for name, array in feed.items()
        }
        for feed in case.feeds[:4]
    ]


@pytest.mark.usefixtures("often_switching")
@pytest.mark.parametrize("contexts", [1, 4])
@pytest.mark.parametrize("make", [static, dynamic, nonzero, reshape])
def test_each_of_32_threads_gets_its_own_results(
    host: Device, make: Callable[[], Case], contexts: int
) -> None:
    case = make()
    base = [reference(case.model, feed) for feed in case.feeds[:4]]
    with Session(case.model, profiles=case.profiles, device=host, contexts=contexts) as session:

        def infer(number: int) -> None:
            # Every network here scales its float outputs with its float input.
            for feed, want in zip(feeds_of(case, number), base, strict=False):
                for name, array in session.infer(feed).items():
                    expected = want[name]
                    if expected.dtype.kind == "f":
                        expected = expected * (number + 1)
                    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)

        assert run_together(32, infer) == []


@pytest.mark.usefixtures("often_switching")
def test_threads_with_contexts_of_their_own_share_an_engine(host: Device) -> None:
    case = dynamic()
    with Engine.build(case.model, profiles=case.profiles, device=host) as engine:

        def work(number: int) -> None:
            with (
                engine.create_execution_context() as context,
                Stream(host) as stream,
                BindingSet(context, {"x": case.feeds[number % 5]["x"].shape}) as bindings,
            ):
                bindings["x"].host[...] = case.feeds[number % 5]["x"]
                results = context.execute(bindings, stream)
                expected = reference(case.model, case.feeds[number % 5])["y"]
                np.testing.assert_allclose(results["y"], expected, rtol=1e-4, atol=1e-4)

        assert run_together(16, work) == []


# One call in flight on a context --------------------------------------------------------------


class Busy:
    """A context with a call in flight, held inside its profiler until it is let go."""

    def __init__(self, device: Device, stack: ExitStack) -> None:
        self.engine = stack.enter_context(Engine.build(static().model, device=device))
        self.context: ExecutionContext = stack.enter_context(self.engine.create_execution_context())
        self.stream = stack.enter_context(Stream(device))
        self.other_stream = stack.enter_context(Stream(device))
        self.bindings = stack.enter_context(BindingSet(self.context))
        self.others = stack.enter_context(BindingSet(self.context))
        for bindings in (self.bindings, self.others):
            bindings["x"].host[...] = 1
            bindings.copy_to_device(self.stream)
        self.stream.synchronize()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.first_thread = threading.get_ident()
        self.context.profiler = self._hold
        self.thread = threading.Thread(target=self._enqueue, daemon=True)
        self.thread.start()
        assert self.begun.wait(PATIENCE_SECONDS)

    def _enqueue(self) -> None:
        self.context.enqueue(self.bindings, self.stream)

    def _hold(self, layer: str, milliseconds: float) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_SECONDS)

    def let_go(self) -> None:
        self.go_on.set()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@pytest.fixture
def busy(host: Device) -> Iterator[Busy]:
    with ExitStack() as stack:
        busy = Busy(host, stack)
        yield busy
        busy.let_go()


def test_a_second_thread_on_one_context_waits_for_the_first(busy: Busy) -> None:
    done: list[str] = []

    def second() -> None:
        busy.context.enqueue(busy.others, busy.other_stream)
        done.append("second")

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert done == []
    busy.let_go()
    thread.join(PATIENCE_SECONDS)
    assert done == ["second"]
    busy.other_stream.synchronize()


def test_a_second_thread_that_does_not_want_to_wait_is_told_so(busy: Busy) -> None:
    with pytest.raises(BusyError, match="in use by another thread"):
        busy.context.enqueue(busy.others, busy.other_stream, blocking=False)
    busy.let_go()
    busy.context.enqueue(busy.others, busy.other_stream, blocking=False)
    busy.other_stream.synchronize()


def test_a_turn_that_an_interrupt_has_left_taken_is_its_threads_own(host: Device) -> None:
    with (
        Engine.build(static().model, device=host) as engine,
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as bindings,
    ):
        turn = getattr(context, "_tu" + "rn")  # who names it is taken for one who uses it
        turn.take(True)
        context.execute(bindings, stream)
        assert turn._owner is None
        assert turn._lock.acquire(blocking=False)
        turn._lock.release()


def test_a_context_cannot_be_called_from_inside_its_own_callback(host: Device) -> None:
    refused: list[BusyError] = []
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.build(static().model, device=host))
        context = stack.enter_context(engine.create_execution_context())
        stream = stack.enter_context(Stream(host))
        bindings = stack.enter_context(BindingSet(context))

        def again(layer: str, milliseconds: float) -> None:
            try:
                context.enqueue(bindings, stream)
            except BusyError as error:
                refused.append(BusyError(error.message))

        context.profiler = again
        context.enqueue(bindings, stream)
        assert refused
        assert "own callback" in refused[0].message


@pytest.mark.parametrize("which", ["context", "bindings", "engine", "stream"])
def test_close_waits_for_the_call_in_flight(busy: Busy, which: str) -> None:
    closer = threading.Thread(target=getattr(busy, which).close, daemon=True)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    with pytest.raises(ClosedError):
        busy.context.enqueue(busy.bindings, busy.stream)
    busy.let_go()
    closer.join(PATIENCE_SECONDS)
    assert not closer.is_alive()
    assert getattr(busy, which).closed


def test_a_graph_is_captured_of_its_own_bindings_while_others_are_enqueued(host: Device) -> None:
    case = static()
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.build(case.model, device=host))
        context = stack.enter_context(engine.create_execution_context())
        mine, theirs = (stack.enter_context(BindingSet(context)) for _ in range(2))
        my_stream, their_stream = (stack.enter_context(Stream(host)) for _ in range(2))
        mine["x"].host[...] = case.feeds[0]["x"]
        theirs["x"].host[...] = 0
        stop = threading.Event()

        def disturb() -> None:
            while not stop.is_set():
                context.enqueue(theirs, their_stream)
                their_stream.synchronize()

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        expected = reference(case.model, case.feeds[0])["y"]
        try:
            for _ in range(30):
                with CudaGraph(context, mine, my_stream) as graph:
                    graph.launch(my_stream)
                    my_stream.synchronize()
                    np.testing.assert_allclose(mine.outputs()["y"], expected, rtol=1e-4, atol=1e-4)
        finally:
            stop.set()
            thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


# Closing while others work --------------------------------------------------------------------


@pytest.mark.usefixtures("often_switching")
@pytest.mark.parametrize("contexts", [1, 4])
@pytest.mark.parametrize("which", ["session", "engine", "device"])
def test_while_it_closes_each_inference_is_right_or_says_closed(which: str, contexts: int) -> None:
    case = static()
    expected = reference(case.model, case.feeds[0])["y"]
    platform = HostPlatform()
    with Device(platform) as device:
        session = Session(case.model, device=device, contexts=contexts)
        begun = threading.Semaphore(0)
        outcomes: list[str] = []

        def infer(number: int) -> None:
            if number == 16:
                for _ in range(20):
                    assert begun.acquire(timeout=PATIENCE_SECONDS)
                {"session": session, "engine": session.engine, "device": device}[which].close()
                return
            while True:
                try:
                    result = session.infer(case.feeds[0])["y"]
                except ClosedError:
                    outcomes.append("closed")
                    return
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
                begun.release()

        assert run_together(17, infer) == []
        assert outcomes == ["closed"] * 16
        session.close()
    platform.host_driver.ledger.assert_empty()


def test_many_threads_may_close_everything_at_once() -> None:
    for _ in range(10):
        platform = HostPlatform()
        device = Device(platform)
        session = Session(static().model, device=device, contexts=2)
        session.infer(static().feeds[0])
        owners = [device, session.engine, session]
        assert run_together(9, lambda number, owners=owners: owners[number % 3].close()) == []
        platform.host_driver.ledger.assert_empty()


def test_objects_opened_while_the_device_closes_are_closed_or_refused() -> None:
    for _ in range(10):
        platform = HostPlatform()
        device = Device(platform)

        def work(number: int, device: Device = device) -> None:
            if number == 8:
                device.close()
                return
            try:
                stream = Stream(device)
            except ClosedError:
                return
            stream.close()

        assert run_together(9, work) == []
        platform.host_driver.ledger.assert_empty()


# Importing ------------------------------------------------------------------------------------


def test_importing_the_package_brings_in_neither_tensorrt_nor_cuda_nor_onnxruntime() -> None:
    code = (
        "import sys, trt_runtime\n"
        "heavy = ('tensorrt', 'tensorrt_rtx', 'tensorrt_lean', 'tensorrt_dispatch', 'cuda',"
        " 'onnxruntime', 'onnx', 'torch', 'typer', 'rich')\n"
        "print([name for name in sys.modules if name.partition('.')[0] in heavy])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_package_takes_little_more_than_numpy() -> None:
    code = (
        "import time, numpy, ml_dtypes\n"
        "start = time.perf_counter(); import trt_runtime\n"
        "print(time.perf_counter() - start)\n"
    )
    seconds = min(
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        )
        for _ in range(3)
    )
    assert seconds < 0.5
