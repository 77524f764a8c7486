"""A lock is free after an interrupt, wherever that came."""

from __future__ import annotations

import ast
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trt_runtime
from trt_runtime.locks import Changes, Lock, RLock


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupts() -> Iterator[None]:
    """The timer of the process's own time raises `Interrupted`."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no interval timers")

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGVTALRM, interrupt)
    yield
    signal.signal(signal.SIGVTALRM, before)


def is_free(lock: Any) -> bool:
    """Whether another thread gets it soon."""
    got: list[bool] = []

    def take() -> None:
        got.append(lock.acquire(timeout=0.2))
        if got[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return got[0]


def taken_for_good(make: Callable[[], Any], trials: int) -> int:
    """After how many interrupts of a loop that takes and lets go of a lock it stays taken."""
    lock, rng, stuck = make(), random.Random(0), 0
    for _ in range(trials):
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, rng.uniform(1e-4, 1e-3))
            while True:
                with lock:
                    pass
        except Interrupted:
            pass
        if not is_free(lock):
            stuck += 1
            lock = make()
    return stuck


@pytest.mark.parametrize("make", [Lock, RLock])
@pytest.mark.usefixtures("interrupts")
def test_a_lock_is_free_after_an_interrupt(make: Callable[[], Any]) -> None:
    assert taken_for_good(make, 150) == 0


@pytest.mark.skipif(sys.version_info < (3, 14), reason="threading's own are safe before 3.14")
@pytest.mark.usefixtures("interrupts")
def test_threadings_own_is_not() -> None:
    """If this fails, so that it is, Python has mended it, and `locks` need not."""
    assert taken_for_good(threading.RLock, 30) > 0


def test_they_do_what_threadings_do() -> None:
    lock, reentrant = Lock(), RLock()
    with lock as taken:
        assert taken is True
        assert lock.locked()
        assert not lock.acquire(blocking=False)
        assert not is_free(lock)
    assert not lock.locked()
    with reentrant as taken, reentrant:
        assert taken
        assert reentrant.acquire(blocking=False)
        reentrant.release()
        assert not is_free(reentrant)
    assert is_free(reentrant)
    with pytest.raises(RuntimeError):
        reentrant.release()
    condition = threading.Condition(reentrant)
    with reentrant:
        assert not condition.wait(0.01)
        condition.notify_all()
    for one in (lock, reentrant):
        with pytest.raises(KeyError), one:
            raise KeyError
        assert is_free(one)


def test_no_loop_that_an_interrupt_leaves_past_its_with() -> None:
    """See `trt_runtime.interrupts`: no ``while`` with a condition within a ``try`` or ``with``."""
    found = []

    def look(node: ast.AST, where: str, guarded: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.While)
                and guarded
                and not isinstance(child.test, ast.Constant)
            ):
                found.append(f"{where}:{child.lineno}")
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                look(child, where, False)
            else:
                look(child, where, guarded or isinstance(child, (ast.Try, ast.With, ast.AsyncWith)))

    for path in Path(trt_runtime.__file__).parent.rglob("*.py"):
        look(ast.parse(path.read_text(encoding="utf-8")), path.name, False)
    assert not found


# Changes -----------------------------------------------------------------------------------------


def test_who_waits_looks_when_something_has_changed() -> None:
    changes, seen, done = Changes(), [False], []
    threads = [
        threading.Thread(target=lambda: done.append(changes.wait_for(lambda: seen[0], 30)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    changes.notify_all()
    assert done == []
    seen[0] = True
    changes.notify_all()
    for thread in threads:
        thread.join(10)
    assert done == [True] * 8
    assert changes._gates == []


def test_a_wait_ends_when_its_time_is_up() -> None:
    changes = Changes()
    for seconds in (0.05, 0, -1):
        began = time.monotonic()
        assert not changes.wait_for(lambda: False, seconds)
        assert time.monotonic() - began >= seconds
    assert changes.wait_for(lambda: True, 0)
    assert changes.wait_for(lambda: True)
    assert changes._gates == []


def test_no_change_is_missed() -> None:
    """Two threads that wait for each other in turns."""
    changes, turn = Changes(), [0]

    def take_turns(mine: int) -> None:
        for number in range(mine, 4000, 2):
            assert changes.wait_for(lambda number=number: turn[0] == number, 30)
            turn[0] = number + 1
            changes.notify_all()

    threads = [threading.Thread(target=take_turns, args=[mine]) for mine in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert turn == [4000]


def test_nothing_else_waits_for_changes() -> None:
    """Neither `threading.Condition` nor what is made of one; see `trt_runtime.locks`."""
    others = {"Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore"}
    used = [
        f"{path.name}:{node.lineno}"
        for path in Path(trt_runtime.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "threading"
        and node.attr in others
    ]
    assert not used


def test_an_interrupted_wait_raises_nothing_else(interrupts: None) -> None:
    """As the wait of a `threading.Condition` may: that its lock is not taken."""
    changes, rng = Changes(), random.Random(0)
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, rng.uniform(1e-5, 1e-3))
            while True:
                assert not changes.wait_for(lambda: False, 1e-6)
        except Interrupted:
            pass
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    changes.notify_all()
    assert changes._gates == []
