"""The one base of everything that is released: `Owned`, and the `Record` that does the releasing.

A record lives outside its object. It holds the handle, how to destroy it, the parents (strongly,
so that they outlive it) and the records of the children. The object holds the record, and a
`weakref.finalize` holds it too, so that a forgotten object is released, then reported.

Nothing in here knows CUDA or TensorRT.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import CoroutineType, FrameType, GeneratorType, MethodType, TracebackType
from typing import Any, TypeVar

from .errors import BusyError, ClosedError, CudaError, ForkedProcessError, add_note
from .interrupts import uninterrupted
from .locks import Changes, RLock

logger = logging.getLogger("trt_runtime")

_Self = TypeVar("_Self", bound="Owned")
_Result = TypeVar("_Result")
_serials = itertools.count()

#: How long interpreter exit waits for a daemon thread that is inside a call, in seconds.
EXIT_PATIENCE_SECONDS = 5.0
_CUDA_ERROR_DEINITIALIZED = 4
#: How often a close that waits looks for uses that an interrupt has left behind, in seconds.
_LOOK_SECONDS = 0.1


class _Patience(threading.local):
    """How long a close in this thread waits for calls in others; None is as long as it takes."""

    seconds: float | None = None


_patience = _Patience()


class _Process:
    """The process that this is; asking the system would cost every use of every object."""

    pid = os.getpid()

    def forked(self) -> None:
        self.pid = os.getpid()


process = _Process()
if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to notice
    os.register_at_fork(after_in_child=process.forked)


def release_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step, even when one fails; raise the first failure with the rest as its notes."""
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            if first is None:
                first = error
            else:
                add_note(first, f"also failed while releasing: {error!r}")
    if first is not None:
        raise first


def insist(step: Callable[[], _Result]) -> _Result:
    """Run a step that what follows depends on, and once more if it fails; then raise all the same.

    The driver's waiting calls may report an earlier launch's error without having waited (CUDA
    driver API, notes of ``cuEventSynchronize``), an interrupt may come before the call, and what
    follows is the release of memory.
    """
    try:
        return step()
    except BaseException as error:
        try:
            step()
        except Exception as again:
            raise again from error
        raise


class _Grave(weakref.ref[Any]):
    """Notes in C, where no interrupt can come between, that its object was collected."""

    __slots__ = ("action",)

    action: Callable[[], object]


#: Of what was collected since `look_after_graves`.
_graves: deque[_Grave] = deque()


def when_collected(thing: object, action: Callable[[], object]) -> weakref.finalize[..., Any]:
    """Call ``action`` when ``thing`` is collected, or when the interpreter exits before.

    As `weakref.finalize`, whose callback is Python: an interrupt that comes as it begins Python
    drops, and forgets the callback. So ``action`` is called again later, and does nothing then.
    """
    look_after_graves()
    graves: list[_Grave] = []
    finalizer = weakref.finalize(thing, _bury, graves)
    grave = _Grave(thing, _graves.append)  # the newer: noted before the finaliser runs
    grave.action = action
    graves.append(grave)
    return finalizer


def look_after_graves() -> None:
    """Call the action of everything that was collected."""
    if _graves:
        with uninterrupted():
            while True:
                try:
                    grave = _graves.popleft()
                except IndexError:
                    break  # another thread may have looked after the last one
                grave.action()


def _bury(graves: list[_Grave]) -> None:
    for grave in graves:
        grave.action()
        grave.action = _nobody  # without the GIL it may be noted after this: it keeps nothing then
    graves.clear()
    look_after_graves()


class Record:
    """Handle, destroyer, parents, children and users of one owned object.

    ``with record as handle:`` marks a use: it raises `ClosedError` once closing has begun, and
    `close` waits until the last use has ended.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_closing",
        "_destroy",
        "_finished",
        "_lock",
        "_released",
        "_then",
        "_users",
        "children",
        "elsewhere",
        "handle",
        "label",
        "parents",
        "pid",
        "quiet",
        "serial",
    )

    def __init__(
        self,
        label: str,
        handle: Any,
        destroy: Callable[[Any], None],
        parents: tuple[Record, ...],
    ) -> None:
        self.label = label
        self.handle = handle
        self.parents = parents
        self.children: dict[Record, None] = {}
        self.pid = process.pid
        self.quiet = False
        #: Calls something on a thread of the object's own, where it has any.
        self.elsewhere: Callable[[Callable[[], object]], object] | None = None
        self.serial = next(_serials)
        self._destroy = destroy
        self._then: list[Callable[[], object]] = []
        self._users: list[int] = []
        self._closing: int | None = None
        self._released = False  # the handle and the children are gone
        self._finished = False  # and so is what was opened for it
        self._lock = RLock()
        self._changed = Changes()

    def __del__(self) -> None:
        # Python drops an interrupt that comes in a finaliser, and forgets the finaliser.
        if self._closing is None:
            _finalize(self, _nobody)

    @property
    def closed(self) -> bool:
        return self._closing is not None or self.pid != process.pid

    def also(self, steps: Iterable[Callable[[], object]]) -> None:
        """Run ``steps`` after the handle was destroyed, such as closing a device opened for it."""
        self._then.extend(steps)

    def join_parents(self) -> None:
        """From here on they close this one before they close themselves."""
        for parent in self.parents:
            parent._admit(self)

    def _admit(self, child: Record) -> None:
        with self._lock:
            if self._closing is not None:
                raise self.closed_error()
            self.children[child] = None

    def abandon(self) -> None:
        """Keep the handle for as long as this process lives, a fork of the one that opened it.

        TensorRT's objects release themselves with their last reference, and would call the driver.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def closed_error(self) -> ClosedError:
        return ClosedError(f"{self.label} is closed; create a new one, or keep it open longer")

    def forked_error(self) -> ForkedProcessError:
        return ForkedProcessError(
            f"{self.label} belongs to process {self.pid}, and this is a fork of it (process "
            f"{process.pid}). CUDA does not survive a fork: start workers with "
            "multiprocessing.get_context('spawn'), or open everything after the fork."
        )

    def __enter__(self) -> Any:
        if self.pid != process.pid:
            raise self.forked_error()
        # Without the lock, which every use would pay for: a closer begins with `_closing` and then
        # looks at the users, a user the other way round, so that one of them sees the other.
        self._users.append(threading.get_ident())
        if self._closing is not None:
            self.__exit__()
            raise self.closed_error()
        return self.handle

    def __exit__(self, *_: object) -> None:
        self._users.remove(threading.get_ident())
        if self._closing is not None:
            self._changed.notify_all()

    def close(self, *, closing_parent: bool = False, patient: bool = True) -> None:
        """Release once: refuse new uses, wait for the running ones, close children, destroy.

        Of several threads in here one releases and the others wait for it, if they are ``patient``.
        A parent that is being closed waits for the handle only: what is closed *after* it may be
        that very parent. In a forked child nothing is called and the handle is abandoned.
        """
        me = threading.get_ident()
        if self.pid != process.pid:
            self._closing, self._released, self._finished = me, True, True
            self.abandon()
            return
        begun = None
        try:
            with self._lock:
                if self._closing is None:
                    if self._in_call(me):
                        raise BusyError(
                            f"{self.label} cannot be closed from inside a call on it; "
                            "close it after the call has returned"
                        )
                    begun = self._closing = me
            if begun is not None:
                self._release()
            elif self._closing != me and patient:
                self._changed.wait_for(
                    lambda: self._finished or (closing_parent and self._released),
                    _patience.seconds,
                )
        except BaseException as error:
            # An interrupt may have come before a step had begun; each does nothing the second time.
            if begun is not None and not isinstance(error, Exception):
                self._closing = me
                self._release()
            raise

    def _release(self) -> None:
        try:
            release_all(
                [
                    self._wait_for_users,
                    # Again after an interrupt that came before they had begun: each does nothing
                    # the second time, and what follows must not be released before.
                    partial(insist, self._close_children),
                    partial(insist, self._destroy_handle),
                    self._leave_parents,
                    self._run_what_follows,
                ]
            )
        finally:
            self._released = self._finished = True
            self._changed.notify_all()

    def _in_call(self, thread: int) -> bool:
        """Whether the thread uses this record, or one that closing this one would close."""
        if thread in self._users:
            self._forget_interrupted({thread})
        # Copied in one step: a forgotten child that is collected meanwhile takes itself out.
        return thread in self._users or any(
            child._in_call(thread) for child in self.children.copy()
        )

    def _forget_interrupted(self, threads: set[int]) -> None:
        """Take out the uses that an interrupt has left behind, in `__enter__` or `__exit__`.

        A use is real while its thread is inside a function that uses records, or something holds
        the end of a ``with``: a generator, or an `ExitStack`. The threads must not begin a use
        meanwhile: one of them is this, or closing has begun.
        """
        left = [thread for thread in threads if not _may_use_records(thread)]
        if left and not any(map(_holds_a_use, gc.get_referrers(self))):
            for thread in left:
                while thread in self._users:
                    with suppress(ValueError):  # who closes a parent looks as well
                        self._users.remove(thread)

    def _wait_for_users(self) -> None:
        try:
            unused = insist(self._unused)
        except BaseException:
            if self._users:
                self._leave()
            raise
        if not unused:
            self._leave()
            raise BusyError(f"{self.label} was still in use when the interpreter exited")

    def _unused(self) -> bool:
        """Wait for the last use to end, as long as this thread's patience lasts; whether it did."""
        patience = _patience.seconds
        deadline = None if patience is None else time.monotonic() + patience
        while self._users:
            wait = _LOOK_SECONDS
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
                if wait <= 0:
                    return False
            if not self._changed.wait_for(lambda: not self._users, wait):
                self._forget_interrupted(set(self._users))
        return True

    def _leave(self) -> None:
        """Leave the handle, and the parents', to the process.

        Destroying under a thread that is stuck in a call could crash the exit.
        """
        self._destroy, self._then = _leave_to_the_process, []
        for parent in self.parents:
            parent._leave()

    def _close_children(self) -> None:
        children = sorted(self.children.copy(), key=lambda record: record.serial, reverse=True)
        release_all([partial(child.close, closing_parent=True) for child in children])

    def _destroy_handle(self) -> None:
        with uninterrupted():
            # Taken out before it is destroyed: a re-entrant close finds nothing left to destroy.
            handle, self.handle = self.handle, None
            destroy, self._destroy = self._destroy, _leave_to_the_process
            destroy(handle)

    def _leave_parents(self) -> None:
        self._released = True
        self._changed.notify_all()
        parents, self.parents = self.parents, ()
        for parent in parents:
            parent.children.pop(self, None)

    def _run_what_follows(self) -> None:
        try:
            release_all(self._then)
        except Exception:
            self._then = []
            raise
        self._then = []  # not before: an interrupted close begins again


def _may_use_records(thread: int) -> bool:
    """Whether a function that uses records is on that thread's stack.

    Such a function names ``_record``. What a thread has entered it cannot be using when there is
    none: only an interrupt ends a ``with`` without its end.
    """
    while True:
        top = sys._current_frames().get(thread)
        try:
            found = _uses_records(top)
            # It may run meanwhile: what was seen is its stack if the innermost frame stayed.
            if found or sys._current_frames().get(thread) is top:
                return found
        finally:
            del top  # this very frame, perhaps


def _holds_a_use(referrer: object) -> bool:
    """Whether what refers to a record could end a ``with`` on it that is not on any stack."""
    if isinstance(referrer, MethodType):
        return referrer.__func__ is Record.__exit__
    return isinstance(referrer, (GeneratorType, CoroutineType))


def _uses_records(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if "_record" in code.co_names and code is not Owned.__exit__.__code__:
            return True
        frame = frame.f_back
    return False


def _nobody() -> None:
    """Stand-in for a reference to an object that is gone."""


def _leave_to_the_process(_: Any) -> None:
    """Stand-in for a destroyer, or a thread, that has been called or must not be."""


def _finalize(
    record: Record, reference: Callable[[], Owned | None], parents: tuple[Owned, ...] = ()
) -> None:
    """Release a forgotten object, then report it."""
    if record.pid != process.pid:
        record.abandon()
        return
    if record.closed or record.elsewhere is _leave_to_the_process:
        return
    at_exit = reference() is not None  # only the interpreter's exit finalises a living object
    if record.elsewhere is None or at_exit:
        _release_forgotten(record, at_exit)
    else:
        # Objects are collected in the middle of anything: this thread may hold a lock that the
        # object's own threads wait for, and closing waits for them. So one of them closes it.
        record.elsewhere(partial(_release_forgotten, record, False, parents))
        record.elsewhere = _leave_to_the_process
    if not record.quiet:
        warnings.warn(f"unclosed {record.label}", ResourceWarning, stacklevel=2)


def _release_forgotten(record: Record, at_exit: bool, _: tuple[Owned, ...] = ()) -> None:
    _patience.seconds = EXIT_PATIENCE_SECONDS if at_exit else None
    try:
        # Who closes it elsewhere may be waiting for this very thread.
        record.close(patient=record.elsewhere is None or at_exit)
    except CudaError as error:
        if not (at_exit and error.code == _CUDA_ERROR_DEINITIALIZED):
            _report_failure(record, error)
    except Exception as error:
        _report_failure(record, error)
    finally:
        _patience.seconds = None


def _report_failure(record: Record, error: Exception) -> None:
    # As text: a log record that is kept would keep the exception, and with it every frame it names.
    logger.error("%s was never closed, and releasing it failed: %s", record.label, str(error))


class Owned:
    """Base of every object that owns something which must be released.

    ``close()`` is idempotent and safe from several threads; ``with`` calls it. Children are closed
    first, newest first. An object that was forgotten is released when it is collected or when the
    interpreter exits, and then reported with a `ResourceWarning`; one that has threads of its own
    is released by them, which takes a moment longer.
    """

    __slots__ = ("__weakref__", "_finalizer", "_record")

    _record: Record
    _finalizer: weakref.finalize[..., Any]

    def _own(
        self,
        handle: Any,
        destroy: Callable[[Any], None],
        *,
        parents: Iterable[Owned] = (),
        then: Iterable[Callable[[], object]] = (),
        label: str | None = None,
    ) -> None:
        """Take ownership of ``handle``: from here on, whatever happens, it is released once.

        ``destroy``, and the steps ``then`` run after it, must not refer to ``self``, or the object
        could never be collected.
        """
        parents = tuple(parents)
        name = label or type(self).__name__
        record = Record(name, handle, destroy, tuple(parent._record for parent in parents))
        record.also(then)
        try:
            record.join_parents()
        except BaseException as error:
            try:
                record.close()
            except Exception as failure:
                add_note(error, f"releasing it again failed too: {failure!r}")
            raise
        self._record = record
        # The parents ride along as objects: they must not be collected before this one.
        forgotten = partial(_finalize, record, weakref.ref(self), parents)
        self._finalizer = when_collected(self, forgotten)

    def _require_open(self) -> None:
        """Raise `ClosedError` or `ForkedProcessError` unless this object can be used."""
        with self._record:
            pass

    def _be_part(self) -> None:
        """Become a part of another object, which releases it; never reported as forgotten alone."""
        self._record.quiet = True
        self._finalizer.atexit = False

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has begun; never raises."""
        record = getattr(self, "_record", None)
        return record is None or record.closed

    def close(self) -> None:
        """Release everything this object owns; does nothing when it is closed already.

        Waits for calls that other threads have in flight and for device work that still uses what
        is released. If a release fails the rest is released all the same, and the first failure is
        raised with the others as notes.
        """
        record = getattr(self, "_record", None)
        if record is None:
            return
        look_after_graves()
        record.close()
        self._finalizer.detach()

    def __enter__(self: _Self) -> _Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            add_note(error, f"closing {self._record.label} failed too: {failure!r}")

    def _describe(self) -> str:
        """What `repr` says of an open object, without the class's name."""
        return ""

    def __repr__(self) -> str:
        name = type(self).__name__
        if getattr(self, "_record", None) is None:
            return f"<{name} never opened>"
        if self.closed:
            return f"<{name} closed>"
        try:
            description = self._describe()
        except Exception:  # closed by another thread meanwhile
            description = "closing"
        return f"<{name} {description}>" if description else f"<{name}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} owns memory of this process and cannot be pickled or copied; "
            "send what it was made from instead"
        )
