"""`Lock` and `RLock` for a ``with`` that an interrupt cannot leave half-entered.

Python runs a signal's handler between two instructions of the main thread, and what the handler
raises goes up from there. Up to 3.13 none comes between taking a lock and the block. From 3.14 on
``with`` calls ``__enter__`` like any function, and Python looks for signals when a function written
in C has returned: the lock is taken then, and nobody will let go of it.

It does not look when a function written in Python has returned, nor between the step of a ``for``
and its body. So these take the lock in a step of a ``for``, in an ``__enter__`` of their own; C's
``__exit__`` lets go before Python looks. (CPython 3.14, ``Python/bytecodes.c``: ``CALL``,
``RETURN_VALUE``, ``FOR_ITER``; ``tests/test_locks.py`` tries it.)
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

__all__ = ["Lock", "RLock"]

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
