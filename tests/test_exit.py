"""The interpreter's end, an interrupt, and a fork: no hang, no crash, nothing left in silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PRELUDE = """
import os, signal, sys, threading, time, warnings
import numpy as np
from tests.models import dynamic, reference, static
from trt_runtime import *
from trt_runtime.platform import HostPlatform, host_platform

platform = host_platform()
ledger = platform.host_driver.ledger
case = static()
feed = case.feeds[0]
"""

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals or fork")


@dataclass
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def unclosed(self) -> list[str]:
        """What the interpreter warned about, in its order."""
        return [
            line.partition("ResourceWarning: unclosed ")[2]
            for line in self.err.splitlines()
            if "ResourceWarning: unclosed" in line
        ]

    def assert_clean(self, *, code: int = 0) -> None:
        for bad in ("Traceback", "Fatal", "Segmentation", "Exception ignored", "still open"):
            assert bad not in self.err, self.err
        assert self.code == code, self.err


def program(text: str) -> list[str]:
    return [sys.executable, "-X", "dev", "-W", "default", "-c", PRELUDE + textwrap.dedent(text)]


def run(text: str) -> Ended:
    done = subprocess.run(program(text), capture_output=True, text=True, timeout=60, cwd=ROOT)
    return Ended(done.returncode, done.stdout, done.stderr)


OPEN_EVERYTHING = """
device = Device("host")
engine = Engine.build(case.model, device=device)
context = engine.create_execution_context()
stream = Stream(device)
event = Event(device)
pinned = PinnedBuffer(8, device=device)
memory = DeviceBuffer(8, device=device)
bindings = BindingSet(context)
graph = CudaGraph(context, bindings, stream)
session = Session(case.model, device=device)
session.infer(feed)
"""


def test_a_program_that_closes_everything_ends_in_silence() -> None:
    ended = run("""
        with Session(case.model, device="host") as session:
            session.infer(feed)
        ledger.assert_empty()
        print("closed")
    """)
    ended.assert_clean()
    assert ended.out == "closed\n"
    assert ended.unclosed == []
    assert ended.err == ""


def test_what_is_open_at_exit_is_released_newest_first_and_listed() -> None:
    ended = run(OPEN_EVERYTHING + "graph.launch(stream)\n")
    ended.assert_clean()
    assert ended.unclosed == [
        "Session 'engine'",
        "CudaGraph",
        "BindingSet",
        "DeviceBuffer",
        "PinnedBuffer",
        "Event",
        "Stream",
        "ExecutionContext",
        "Engine 'engine'",
        "Device host:0",
    ]


def test_objects_in_a_cycle_and_in_a_module_are_released_at_exit() -> None:
    ended = run(
        OPEN_EVERYTHING
        + """
holder = {"session": session}
holder["self"] = holder
sys.modules["somewhere"] = holder
del session, holder
"""
    )
    ended.assert_clean()
    assert ended.unclosed[0] == "Session 'engine'"


def test_exit_inside_with_closes_and_keeps_the_exit_code() -> None:
    ended = run("""
        with Session(case.model, device="host") as session:
            session.infer(feed)
            sys.exit(7)
    """)
    ended.assert_clean(code=7)
    assert ended.err == ""


def test_an_unhandled_exception_inside_with_closes_and_shows_only_itself() -> None:
    ended = run("""
        with Session(case.model, device="host") as session:
            session.infer(feed)
            raise LookupError("mine")
    """)
    assert ended.code == 1
    assert ended.err.count("Traceback") == 1
    assert ended.err.strip().endswith("LookupError: mine")
    assert ended.unclosed == []
    assert "still open" not in ended.err


def test_an_unhandled_exception_with_everything_open_still_releases_everything() -> None:
    ended = run(OPEN_EVERYTHING + "raise LookupError('mine')\n")
    assert ended.code == 1
    assert ended.err.count("Traceback") == 1
    assert "still open" not in ended.err
    assert len(ended.unclosed) == 10


def test_exit_in_the_middle_of_an_inference_of_a_daemon_thread_does_not_hang_or_crash() -> None:
    ended = run("""
        threading.excepthook = lambda arguments: None  # it may meet a closed session
        session = Session(case.model, device="host")
        begun = threading.Event()
        def infer():
            while True:
                session.infer(feed)
                begun.set()
        threading.Thread(target=infer, daemon=True).start()
        assert begun.wait(30)
    """)
    ended.assert_clean()
    assert ended.unclosed == ["Session 'engine'"]


def test_exit_does_not_wait_for_ever_for_a_daemon_thread_that_is_stuck_in_a_call() -> None:
    ended = run("""
        import trt_runtime.ownership
        trt_runtime.ownership.EXIT_PATIENCE_SECONDS = 0.2
        device = Device("host")
        engine = Engine.build(case.model, device=device)
        context = engine.create_execution_context()
        stream = Stream(device)
        bindings = BindingSet(context)
        stuck = threading.Event()
        def hang(layer, milliseconds):
            stuck.set()
            threading.Event().wait()
        context.profiler = hang
        enqueue = lambda: context.enqueue(bindings, stream)
        threading.Thread(target=enqueue, daemon=True).start()
        assert stuck.wait(30)
    """)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert "still in use when the interpreter exited" in ended.err
    assert ended.unclosed == [
        "BindingSet",
        "Stream",
        "ExecutionContext",
        "Engine 'engine'",
        "Device host:0",
    ]


def test_exit_does_not_wait_for_ever_for_a_thread_that_is_stuck_in_a_sessions_part() -> None:
    ended = run("""
        import trt_runtime.ownership
        trt_runtime.ownership.EXIT_PATIENCE_SECONDS = 0.2
        session = Session(case.model, device="host")
        stuck = threading.Event()
        def hang():
            with session.engine._record:
                stuck.set()
                threading.Event().wait()
        threading.Thread(target=hang, daemon=True).start()
        assert stuck.wait(30)
    """)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err


def test_exit_waits_for_a_thread_that_is_not_a_daemon() -> None:
    ended = run("""
        session = Session(case.model, device="host")
        main_ended = threading.main_thread().join
        def infer():
            main_ended(30)
            result = session.infer(feed)["y"]
            np.testing.assert_allclose(result, reference(case.model, feed)["y"], rtol=1e-4)
            print("inferred")
        threading.Thread(target=infer).start()
    """)
    ended.assert_clean()
    assert ended.out == "inferred\n"
    assert ended.unclosed == ["Session 'engine'"]


def test_a_result_that_is_held_at_exit_is_no_leak() -> None:
    ended = run("""
        with Session(case.model, device="host") as session:
            results = session.infer(feed)
    """)
    ended.assert_clean()
    assert ended.err == ""


@posix
def test_an_interrupt_in_a_loop_of_inferences_leaves_nothing() -> None:
    # The signal comes as a platform call begins, since NVIDIA's calls cannot be cut in two.
    ended = run("""
        from trt_runtime.platform.host.faults import Faults

        class Interrupt(Faults):
            def fails(self, call):
                super().fails(call)
                if self.count == self.fail_call:
                    signal.raise_signal(signal.SIGINT)
                return False

        with Device("host") as device:
            plan = build_plan(case.model, device=device)
        for call in range(30, 130, 3):
            platform.host_driver.faults = Interrupt(call)
            try:
                with Session(plan, device="host") as session:
                    for _ in range(100):
                        session.infer(feed)
                raise SystemExit("was not interrupted")
            except KeyboardInterrupt:
                pass
            # Here, as the exception refers to frames of the host's TensorRT, which is Python.
            ledger.assert_empty()
        print("interrupted", call)
    """)
    ended.assert_clean()
    assert ended.out == "interrupted 129\n"
    # What is interrupted at its constructor's end never reached its `with`: it is released, and
    # reported as forgotten, as a file is that `open` has just returned.
    assert set(ended.unclosed) <= {"Session 'engine'"}


@posix
def test_an_interrupt_that_nobody_catches_closes_and_ends_as_an_interrupt_does() -> None:
    ended = run("""
        with Session(case.model, device="host") as session:
            session.infer(feed)
            signal.raise_signal(signal.SIGINT)
    """)
    assert ended.code == -signal.SIGINT
    assert ended.err.strip().endswith("KeyboardInterrupt")
    assert ended.unclosed == []
    assert "still open" not in ended.err


# Fork -----------------------------------------------------------------------------------------

FORK = """
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print("child:", type(error).__name__, error, flush=True)
            os._exit(1)
        print("child: ok", flush=True)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@posix
def test_a_fork_cannot_use_what_its_parent_opened_and_is_told_to_spawn() -> None:
    ended = run(
        FORK
        + OPEN_EVERYTHING
        + """
for work in (
    lambda: session.infer(feed),
    stream.synchronize,
    lambda: Stream(device),
    lambda: context.enqueue(bindings, stream),
    lambda: device.memory_info(),
    lambda: stream.__enter__(),
    lambda: Device("host"),
):
    assert in_child(work) == 1
for each in (session, graph, bindings, memory, pinned, event, stream, context, engine, device):
    each.close()
ledger.assert_empty()
"""
    )
    ended.assert_clean()
    lines = ended.out.splitlines()
    assert len(lines) == 7
    for line in lines:
        assert line.startswith("child: ForkedProcessError")
        assert "spawn" in line
    assert ended.err == ""


@posix
def test_a_forks_close_is_silent_and_its_parent_goes_on() -> None:
    ended = run(
        FORK
        + OPEN_EVERYTHING
        + """
array = pinned.array
calls = platform.host_driver.faults.count
def close_all():
    global array
    everything = (session, graph, bindings, memory, pinned, event, stream, context, engine, device)
    for each in everything:
        each.close()
        assert each.closed and "closed" in repr(each)
    del array
    import gc; gc.collect()
    assert platform.host_driver.faults.count == calls
assert in_child(close_all) == 0
session.infer(feed)
graph.launch(stream)
stream.synchronize()
del array
for each in (session, graph, bindings, memory, pinned, event, stream, context, engine, device):
    each.close()
ledger.assert_empty()
"""
    )
    ended.assert_clean()
    assert ended.out == "child: ok\n"
    assert ended.err == ""


@posix
def test_a_fork_that_exits_normally_reports_and_releases_nothing() -> None:
    ended = run(
        FORK
        # No engine: onnxruntime itself, once loaded, hangs in the exit of a fork (1.32.0).
        + """
device = Device("host")
owned = [Stream(device), Event(device), PinnedBuffer(8, device=device)]
owned.append(DeviceBuffer(8, device=device))
array = owned[2].array
pid = os.fork()
if pid == 0:
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
del array
for each in (*owned, device):
    each.close()
ledger.assert_empty()
"""
    )
    ended.assert_clean()
    assert ended.err == ""


@posix
def test_a_fork_while_another_thread_infers_does_not_hang_the_child() -> None:
    ended = run(
        FORK
        + """
session = Session(case.model, device="host")
stop, begun = threading.Event(), threading.Event()
def infer():
    while not stop.is_set():
        session.infer(feed)
        begun.set()
thread = threading.Thread(target=infer)
thread.start()
assert begun.wait(30)
for _ in range(20):
    assert in_child(session.close) == 0
stop.set()
thread.join()
session.close()
ledger.assert_empty()
"""
    )
    ended.assert_clean()
    assert ended.out == "child: ok\n" * 20


def test_spawned_workers_infer(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing
        import numpy as np
        from tests.models import reference, static
        from trt_runtime import Session

        def infer(plan):
            with Session(plan, device="host") as session:
                return session.infer(static().feeds[0])["y"]

        if __name__ == "__main__":
            with Session(static().model, device="host") as session:
                plan = session.engine.serialize()
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    results = pool.map(infer, [plan] * 3)
                    pool.close()
                    pool.join()
                session.infer(static().feeds[0])
            for result in results:
                expected = reference(static().model, static().feeds[0])["y"]
                np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
            print("spawned")
        """)
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "default", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    ended.assert_clean()
    assert ended.out == "spawned\n"
