"""`uninterrupted`: Ctrl-C waits while a handle is between the call that made it and its owner.

Python runs a signal's handler between any two instructions of the main thread: also between a
call's return and the line that keeps what it returned, and between taking a handle out and
destroying it. Only ``SIGINT`` is put off, and only the first: a second one does what it always
does, should what the first waits for never end, and may leave a handle then.

On Python 3.13 an interrupt as a ``while`` with a condition begins anew passes by the ``try`` or the
``with`` around the loop (python/cpython#130279). So there is none such in this package: the loop is
in a function of its own, or it is ``while True``.

A handler of SIGINT that C code has set, and `signal.siginterrupt`, are lost, as Python tells of
neither.
"""

from __future__ import annotations

# What `signal` wraps: its functions make enums of handlers, which takes 5 µs each.
import _signal  # type: ignore[import-not-found]
import sys
import threading
from types import FrameType, MethodType
from typing import Any


class uninterrupted:
    """A ``with`` in which Ctrl-C is noted; at its end the handler that was there is called.

    Does nothing within another one, in other threads than the main one, which Python never
    interrupts, and where ``SIGINT`` has no handler of Python's.
    """

    __slots__ = ("_handler", "_noted")

    def __init__(self) -> None:
        self._handler: Any = None
        self._noted = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        handler = _signal.getsignal(_signal.SIGINT)
        if not callable(handler) or _is_note(handler):
            return
        try:
            # A signal that is pending comes out of this call, before anything has changed.
            self._handler = _signal.signal(_signal.SIGINT, self._note)
        except ValueError:  # the main thread of a subinterpreter
            return

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        # Whoever has set another handler meanwhile keeps it. A signal that comes before the change
        # is noted in it, and one after it is handled as always.
        if _is_note(_signal.getsignal(_signal.SIGINT)):
            _signal.signal(_signal.SIGINT, self._handler)
        if self._noted:
            self._handler(_signal.SIGINT, sys._getframe(1))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            self._handler(number, frame)
        self._noted = True


def _is_note(handler: object) -> bool:
    return isinstance(handler, MethodType) and handler.__func__ is uninterrupted._note
