"""Random moments: an interrupt anywhere, threads and sessions that come and go, an exit in between.

Each program is run in a process of its own, which has to end by itself in time. A seed makes the
moments differ from run to run and a failure say which it was; ``TRT_RUNTIME_TEST_RACES`` asks for
that many times the usual runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from trt_runtime import BusyError, ownership
from trt_runtime.ownership import Owned

ROOT = Path(__file__).parent.parent
TIMES = int(os.environ.get("TRT_RUNTIME_TEST_RACES", "1"))
DEADLINE_SECONDS = 20.0

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

PRELUDE = """
import asyncio, faulthandler, gc, os, random, signal, sys, threading, time, traceback, warnings
import numpy as np
from tests.models import dynamic, reference, static
from trt_runtime import *
from trt_runtime.platform import HostPlatform, host_platform

faulthandler.dump_traceback_later(12, exit=True)
seed = int(sys.argv[1])
chance = random.Random(seed)
platform = host_platform()
ledger = platform.host_driver.ledger
case = static()
feed = case.feeds[0]
"""

#: What `work` does until it is interrupted, a number of times. A signal that finds NVIDIA's part,
#: which is one call there and Python here, comes again a little later, as it would find the end of
#: that call; so does one that Python drops, in a destructor.
INTERRUPTED = """
HOST = os.sep + os.path.join("trt_runtime", "platform", "host") + os.sep

def interrupt(number, frame):
    while frame is not None:
        name = frame.f_code.co_filename
        if HOST in name or "importlib" in name or frame.f_code.co_name == "__del__":
            signal.setitimer(signal.ITIMER_REAL, 2e-5)
            return
        frame = frame.f_back
    signal.raise_signal(signal.SIGINT)

# What is interrupted before its `with` is reported as forgotten; that it is released counts here.
warnings.simplefilter("ignore", ResourceWarning)
signal.signal(signal.SIGALRM, interrupt)
sys.unraisablehook = lambda dropped: signal.setitimer(signal.ITIMER_REAL, 1e-3)

with Device("host") as device:
    plan = build_plan(case.model, device=device)

def arm():
    if lasts is not None:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, lasts))

def opens():
    arm()
    with Session(plan, device="host") as session:
        session.infer(feed)

def until_interrupted(step):
    while endless:  # not within a `with`: see `trt_runtime.interrupts`
        step()

def infers():
    with Session(plan, device="host") as session:
        arm()
        until_interrupted(lambda: session.infer(feed))

def many():
    with Session(plan, device="host") as session:
        arm()
        until_interrupted(lambda: list(session.infer_many([feed] * 20)))

def awaits():
    with Session(plan, device="host") as session:
        session.infer_async(feed).result()
        arm()

        def step():
            futures = [session.infer_async(feed) for _ in range(8)]
            for future in futures:
                future.result()

        until_interrupted(step)

def keeps():  # the results stay on the device
    with Session(plan, device="host") as session:
        arm()
        until_interrupted(lambda: session.infer(feed, outputs="device"))

def captures():
    arm()
    with (
        Device("host") as device,
        Engine.load(plan, device=device) as engine,
        engine.create_execution_context() as context,
        BindingSet(context) as bindings,
        Stream(device) as stream,
    ):
        for _ in range(5):
            with CudaGraph(context, bindings, stream) as graph:
                graph.launch(stream)
                stream.synchronize()

def builds():
    arm()
    with Session(case.model, device="host", cache=False) as session:
        session.infer(feed)

def loads():
    arm()
    with Session(case.model, device="host") as session:
        session.infer(feed)

work = globals()[sys.argv[2]]
with Session(case.model, device="host") as session:  # imports everything, and fills the cache
    session.infer(feed)
lasts, endless = None, False
began = time.perf_counter()
work()
lasts, endless = time.perf_counter() - began, True
interrupted, at_once = 0, work in (infers, many, awaits)
for number in range(int(sys.argv[3])):
    try:
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        interrupted += 1
        where = error
    else:
        continue
    if not at_once:  # what was interrupted before its `with` goes with the exception
        told = traceback.format_exception(where)
        where = None
        gc.collect()
    try:
        ledger.assert_empty()
    except AssertionError as error:
        if not at_once:
            print("".join(told), file=sys.stderr)
        raise error from where
    finally:
        where = None
print(interrupted, "interrupted")
"""


#: Everything at once, until the end of the program, which comes at any moment.
CROWD = """
warnings.simplefilter("ignore", ResourceWarning)  # an exit in the middle leaves sessions open
threading.excepthook = lambda arguments: None  # a daemon thread may meet a closed session
ends = sys.argv[2]
device = Device("host")
engine = Engine.build(case.model, device=device)
expected = reference(case.model, feed)["y"]
session = Session(engine)
stop, wrong, count = threading.Event(), [], []

def check(results):
    if not np.allclose(results["y"], expected, rtol=1e-4, atol=1e-4):
        wrong.append(results)
    count.append(None)

def infer(number):
    mine = random.Random(seed * 1000 + number)
    while not stop.is_set():
        how = mine.randrange(4)
        if how == 0:
            check(session.infer(feed))
        elif how == 1:
            check(session.infer_async(feed).result())
        elif how == 2:
            for results in session.infer_many([feed] * 3):
                check(results)
                if mine.randrange(3) == 0:
                    break
        else:
            session.infer_async(feed).cancel()

def come_and_go():
    while not stop.is_set():
        with Session(engine) as other:
            check(other.infer(feed))
        forgotten = Session(engine)
        forgotten.infer_async(feed)
        del forgotten

def collect():
    mine = random.Random(seed)
    while not stop.wait(mine.uniform(0, 0.01)):
        gc.collect(mine.randrange(3))

def await_many():
    async def task():
        while not stop.is_set():
            check(await session.infer_async(feed))
    async def tasks():
        await asyncio.gather(*(task() for _ in range(16)))
    asyncio.run(tasks())

threads = [
    threading.Thread(target=target, args=arguments, daemon=ends == "exit")
    for target, *arguments in (
        *((infer, number) for number in range(64)),
        (come_and_go,), (come_and_go,), (collect,), (await_many,),
    )
]
for thread in threads:
    thread.start()
time.sleep(chance.uniform(0.1, 0.4))
if ends == "exit":
    assert not wrong
    print("ended")
    sys.exit()
if ends == "interrupt":
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    try:
        while True:
            session.infer(feed)
    except KeyboardInterrupt:
        pass
stop.set()
for thread in threads:
    thread.join()
assert count and not wrong
session.close()
engine.close()
device.close()
gc.collect()
ledger.assert_empty()
print("ended")
"""


#: An interrupt anywhere; again where Python drops it, in a callback of a weak reference.
ANYWHERE = """
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
sys.unraisablehook = lambda dropped: signal.setitimer(signal.ITIMER_REAL, 1e-3)
"""

#: Of contents in many small pieces, as those of a large model are.
HASHED = f"""{ANYWHERE}
from trt_runtime.build import digest

digest.PIECE_BYTES, digest._THREADS = 4096, 4
content = bytes(40 * digest.PIECE_BYTES)
whole = digest.content_digest(content)
for _ in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 5e-3))
        while True:
            assert digest.content_digest(content) == whole
    except KeyboardInterrupt:
        pass
print(threading.active_count(), "thread")
"""


#: Futures that another thread completes, as a session's do.
COMPLETED = f"""{ANYWHERE}
from queue import SimpleQueue
from trt_runtime.futures import InferenceFuture

pending = SimpleQueue()

def complete():
    while (future := pending.get()) is not None:
        if future.set_running_or_notify_cancel():
            future.set_result(None)

completer = threading.Thread(target=complete)
completer.start()
for number in range(400):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 3e-3))
        while True:
            future = InferenceFuture()
            pending.put(future)
            if number % 4 == 0:
                future.cancel()
            elif number % 4 == 1:
                future.add_done_callback(bool)
                future.running()
                future.exception()
            elif number % 4 == 2:
                future.result()
            future.done(), future.cancelled()
    except KeyboardInterrupt:
        pass
pending.put(None)
completer.join()
print("completed")
"""


def run(text: str, seed: int, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run a program, which must end by itself before the deadline."""
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", PRELUDE + text, str(seed), *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        cwd=ROOT,
        env={**os.environ, "TRT_RUNTIME_CACHE": str(cache)},
    )


@posix
@pytest.mark.parametrize("what", ["infers", "many", "awaits", "keeps"])
def test_an_interrupt_at_any_point_of_an_inference_leaves_nothing(
    what: str, tmp_path: Path
) -> None:
    for seed in range(TIMES):
        done = run(INTERRUPTED, seed, what, "10", cache=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), (seed, done.stdout, done.stderr)
        assert done.stdout == "10 interrupted\n", (seed, done.stdout)


@posix
@pytest.mark.parametrize("what", ["opens", "captures", "builds", "loads"])
def test_an_interrupt_at_any_point_of_opening_and_closing_leaves_nothing(
    what: str, tmp_path: Path
) -> None:
    for seed in range(TIMES):
        done = run(INTERRUPTED, seed, what, "10", cache=tmp_path)
        assert done.returncode == 0, (seed, done.stdout, done.stderr)
        assert done.stdout.endswith("interrupted\n"), (seed, done.stdout)


@posix
def test_an_interrupt_while_a_model_is_hashed_comes_out_and_leaves_no_thread(
    tmp_path: Path,
) -> None:
    for seed in range(TIMES):
        done = run(HASHED, seed, cache=tmp_path)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "1 thread\n"), seed


@posix
def test_an_interrupt_at_any_point_of_waiting_for_a_future_does_not_keep_it_from_completing(
    tmp_path: Path,
) -> None:
    for seed in range(TIMES):
        done = run(COMPLETED, seed, cache=tmp_path)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "completed\n"), seed


@pytest.mark.parametrize("ends", ["work", "interrupt", "exit"])
def test_threads_tasks_sessions_and_collections_at_once(ends: str, tmp_path: Path) -> None:
    if ends == "interrupt" and os.name != "posix":
        pytest.skip("needs POSIX signals")
    for seed in range(TIMES):
        done = run(CROWD, seed, ends, cache=tmp_path)
        assert done.returncode == 0, (seed, done.stderr)
        assert done.stdout == "ended\n", (seed, done.stdout)
        assert "Traceback" not in done.stderr, (seed, done.stderr)


def test_an_interrupt_as_an_inference_is_accepted_does_not_keep_its_threads_from_working(
    tmp_path: Path,
) -> None:
    accepted = """
with Session(case.model, device="host") as session:
    session.infer_async(feed).result()
    left = 0
    def interrupt(frame, event, argument):
        global left
        if frame.f_code.co_filename == threading.__file__:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return interrupt
    for number in range(1, 40):
        left = number
        sys.settrace(interrupt)
        try:
            session.infer_async(feed)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        session.infer_async(feed).result(5)
print("accepted")
"""
    done = run(accepted, 0, cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, "accepted\n"), done.stderr


class Thing(Owned):
    """Something that is owned, and says when it was released."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self._own(1, self.released.append)


def leave_a_use(thing: Thing) -> None:
    """What an interrupt at the beginning of `Record.__exit__` does."""
    thing._record._users.append(threading.get_ident())


def test_a_use_that_an_interrupt_has_left_behind_does_not_keep_its_thread_from_closing() -> None:
    thing = Thing()
    leave_a_use(thing)
    thing.close()
    assert thing.released == [1]


def test_a_use_that_an_interrupt_has_left_behind_does_not_keep_others_from_closing() -> None:
    thing = Thing()
    leave_a_use(thing)
    thread = threading.Thread(target=thing.close, daemon=True)
    thread.start()
    thread.join(10)
    assert thing.released == [1]


def test_a_use_of_a_suspended_generator_is_no_use_that_was_left_behind() -> None:
    thing = Thing()

    def using() -> Iterator[None]:
        with thing._record:
            yield

    generator = using()
    next(generator)
    with pytest.raises(BusyError):
        thing.close()
    generator.close()
    thing.close()
    assert thing.released == [1]


@posix
def test_a_close_that_is_interrupted_as_it_begins_releases_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thing = Thing()
    release_all, calls = ownership.release_all, 0

    def interrupted(steps: Iterable[Callable[[], object]]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            signal.raise_signal(signal.SIGINT)
        release_all(steps)

    monkeypatch.setattr(ownership, "release_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thing.close()
    assert thing.released == [1]
