"""`Lock`, `RLock` and `Changes`, which an interrupt cannot leave half-entered.

Python runs a signal's handler between two instructions of the main thread, and what the handler
raises goes up from there. Up to 3.13 none comes between taking a lock and the block. From 3.14 on
``with`` calls ``__enter__`` like any function, and Python looks for signals when a function written
in C has returned: the lock is taken then, and nobody will let go of it.

It does not look when a function written in Python has returned, nor between the step of a ``for``
and its body. So these take the lock in a step of a ``for``, in an ``__enter__`` of their own; C's
``__exit__`` lets go before Python looks. (CPython 3.14, ``Python/bytecodes.c``: ``CALL``,
``RETURN_VALUE``, ``FOR_ITER``; ``tests/test_locks.py`` tries it.)

`threading.Condition`, and with it `threading.Event` and a thread's start, let their lock go and
take it again in Python: who is interrupted between the two gets a RuntimeError, as the lock is not
taken. `Changes` is for waiting without one; a thread is started under `uninterrupted`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

__all__ = ["Changes", "Lock", "RLock"]

if TYPE_CHECKING or sys.version_info < (3, 14):
    Lock = threading.Lock
    RLock = threading.RLock
else:
    import _thread

    def _enter(self):
        for taken in iter(self.acquire, None):
            return taken

    class RLock(_thread.RLock):
        """As `threading.RLock`."""

        __slots__ = ()
        __enter__ = _enter

    class Lock:
        """As `threading.Lock`."""

        __slots__ = ("__exit__", "acquire", "locked", "release")

        def __init__(self):
            lock = threading.Lock()
            self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
            self.__exit__ = lock.__exit__

        __enter__ = _enter


class Changes:
    """Wakes who waits for something to become true. No lock is held meanwhile."""

    __slots__ = ("_gates",)

    def __init__(self) -> None:
        #: Of each waiting thread a taken lock of its own. Used in single steps only, each of them
        #: whole whatever other threads do.
        self._gates: list[threading.Lock] = []

    def wait_for(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until it is true, or for so long; whether it is."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            gate = threading.Lock()
            gate.acquire()
            # Who makes it true does so before `notify_all` looks for gates.
            self._gates.append(gate)
            try:
                left = -1.0 if deadline is None else deadline - time.monotonic()
                if ready():
                    return True
                if deadline is not None and left <= 0:
                    return False
                gate.acquire(timeout=left)
            finally:
                with suppress(ValueError):  # it was opened
                    self._gates.remove(gate)

    def notify_all(self) -> None:
        """Have everyone who waits look again."""
        while True:
            try:
                gate = self._gates.pop()
            except IndexError:
                return
            gate.release()
