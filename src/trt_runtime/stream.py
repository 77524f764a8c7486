"""`Stream` and `Event`, and `LastUse`: the end of the device work that still touches something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from .device import Device, PrimaryContext, borrow_or_open
from .errors import ClosedError, InputError
from .interrupts import uninterrupted
from .ownership import Owned, Record, insist, release_all
from .platform.driver import Driver


class LastUse:
    """The end of the latest device work on something, as an event.

    ``begin`` makes a stream wait for work that another stream began, so that an object which moves
    from stream to stream is never used by two at once. ``end`` marks the work's end. The stream is
    None where the handle is another library's.

    Between `expect` and `end` work may have been enqueued whose end is not marked. An interrupt can
    leave it so: then whoever comes next waits for all of that stream.
    """

    __slots__ = ("_driver", "_event", "_expected", "_stream", "_used")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._event = driver.event_create(False)
        self._stream: Record | None = None
        self._used = False
        self._expected: Record | None = None

    def begin(self, stream: Stream | None, handle: int) -> None:
        self._wait_for_unmarked()
        if self._used and (stream is None or self._stream is not stream._record):
            self._driver.stream_wait_event(handle, self._event)

    def expect(self, stream: Stream) -> None:
        """Be told that work is about to be enqueued there, which `end` will mark."""
        self._expected = stream._record

    def end(self, stream: Stream | None, handle: int) -> None:
        self._stream = None if stream is None else stream._record
        self._used = True
        try:
            self._driver.event_record(self._event, handle)
        except BaseException:
            # Nothing marks the end of the work now, so it must end here.
            insist(lambda: self._driver.stream_synchronize(handle))
            raise
        finally:
            self._expected = None

    def _wait_for_unmarked(self) -> None:
        expected = self._expected
        if expected is not None:
            # Closing a stream waits for its work.
            with suppress(ClosedError), expected as handle:
                insist(lambda: self._driver.stream_synchronize(handle))

    @property
    def finished(self) -> bool:
        self._wait_for_unmarked()
        return not self._used or self._driver.event_query(self._event)

    def wait(self) -> None:
        """Block until the work has ended; the device's context must be current."""
        self._wait_for_unmarked()
        if self._used:
            insist(lambda: self._driver.event_synchronize(self._event))

    def destroy(self) -> None:
        event, self._event = self._event, 0
        if event:
            self._driver.event_destroy(event)


class ordered:
    """Enqueue work on several things: after their last uses, and as their last use now."""

    __slots__ = ("_handle", "_stream", "_uses")

    def __init__(self, uses: Sequence[LastUse], stream: Stream, handle: int) -> None:
        self._uses = uses
        self._stream = stream
        self._handle = handle

    def __enter__(self) -> None:
        for use in self._uses:
            use.begin(self._stream, self._handle)
            use.expect(self._stream)

    def __exit__(self, *_: object) -> None:
        release_all([partial(use.end, self._stream, self._handle) for use in self._uses])


class Event(Owned):
    """A point in a stream that can be waited for.

    Parameters
    ----------
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.
    timing : bool
        Whether `elapsed_ms` can be asked; costs a little at each record.
    """

    __slots__ = ("_driver", "device", "timing")

    def __init__(self, device: Device | str | int | None = None, *, timing: bool = False) -> None:
        with uninterrupted(), ExitStack() as stack:
            self.device, then = borrow_or_open(device, stack)
            self.timing = timing
            self._driver = self.device._driver
            primary = self.device._primary
            with self.device._record:
                handle = primary.create(
                    lambda: self._driver.event_create(timing), self._driver.event_destroy
                )
                stack.pop_all()
                self._own(handle, _EventReleaser(primary), parents=[self.device], then=then)

    @property
    def handle(self) -> int:
        """The ``CUevent`` as an integer; raises `ClosedError` when closed."""
        with self._record as handle:
            return int(handle)

    def record(self, stream: Stream) -> None:
        """Mark the end of what is enqueued on ``stream`` so far. Does not synchronise."""
        _same_device(self.device, stream.device, "event", "stream")
        with self._record as event, stream._record as handle, self.device._primary.current():
            self._driver.event_record(event, handle)

    def synchronize(self) -> None:
        """Block until the recorded point is reached; returns at once if none was recorded."""
        with self._record as event, self.device._primary.current():
            self._driver.event_synchronize(event)

    def query(self) -> bool:
        """Whether the recorded point is reached. Does not synchronise."""
        with self._record as event, self.device._primary.current():
            return self._driver.event_query(event)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds of device time from ``since`` to this event; both must have been reached."""
        if not (self.timing and since.timing):
            raise InputError("elapsed_ms needs two events made with timing=True")
        with self._record as end, since._record as start, self.device._primary.current():
            return self._driver.event_elapsed_ms(start, end)

    def _describe(self) -> str:
        return f"{hex(self.handle)} on {self.device}"


class Stream(Owned):
    """An in-order queue of device work: a created, non-blocking CUDA stream, never the default one.

    Parameters
    ----------
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.
    priority : int
        CUDA's; lower numbers run first, 0 is the default.

    Notes
    -----
    ``close`` waits for the work that is enqueued.
    """

    __slots__ = ("_driver", "device", "owner")

    def __init__(self, device: Device | str | int | None = None, *, priority: int = 0) -> None:
        with uninterrupted(), ExitStack() as stack:
            self.device, then = borrow_or_open(device, stack)
            self.owner: Any = None
            self._driver = driver = self.device._driver
            primary = self.device._primary
            with self.device._record:
                handle = primary.create(
                    lambda: driver.stream_create(priority), driver.stream_destroy
                )
                stack.pop_all()
                self._own(handle, _StreamReleaser(primary), parents=[self.device], then=then)

    @classmethod
    def from_handle(cls, handle: int, *, device: Device, owner: Any) -> Stream:
        """Borrow a stream that another library made.

        ``owner`` is whatever keeps the stream alive; it is held until this object is closed.
        Closing waits for the work and leaves the stream to its owner.
        """
        if not isinstance(handle, int) or handle < 0:
            raise InputError(f"a stream handle is a non-negative int, not {handle!r}")
        self = cls.__new__(cls)
        self.device = device
        self.owner = owner
        self._driver = device._driver
        with device._record as primary:
            self._own(handle, _StreamReleaser(primary, owned=False), parents=[device])
        return self

    @classmethod
    def borrow(cls, stream: Any, *, device: Device) -> Stream:
        """Borrow a stream object of another library, through its ``__cuda_stream__``.

        The object is held until this one is closed. Closing waits for the work and leaves the
        stream to its owner.

        Raises
        ------
        InputError
            The object has no ``__cuda_stream__``, or one of another version than 0.
        """
        try:
            protocol = stream.__cuda_stream__
        except AttributeError:
            raise InputError(
                f"{type(stream).__name__} has no __cuda_stream__; pass its handle to "
                "Stream.from_handle(handle, device=..., owner=...), for instance s.cuda_stream of "
                "a torch.cuda.Stream or s.ptr of a cupy.cuda.Stream"
            ) from None
        version, handle = protocol()
        if version != 0:
            raise InputError(
                f"{type(stream).__name__} speaks version {version} of __cuda_stream__; 0 is known"
            )
        return cls.from_handle(int(handle), device=device, owner=stream)

    @property
    def handle(self) -> int:
        """The ``CUstream`` as an integer; raises `ClosedError` when closed, and is never 0 then."""
        with self._record as handle:
            return int(handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """The stream protocol of cuda.core: version 0, and the handle."""
        return (0, self.handle)

    def synchronize(self) -> None:
        """Block until everything enqueued so far has finished."""
        with self._record as handle, self.device._primary.current():
            self._driver.stream_synchronize(handle)

    def query(self) -> bool:
        """Whether everything enqueued so far has finished. Does not synchronise."""
        with self._record as handle, self.device._primary.current():
            return self._driver.stream_query(handle)

    def wait(self, event: Event) -> None:
        """Make later work on this stream wait for ``event``. Does not block the host."""
        _same_device(self.device, event.device, "stream", "event")
        with self._record as handle, event._record as point, self.device._primary.current():
            self._driver.stream_wait_event(handle, point)

    def record(self, event: Event | None = None) -> Event:
        """Record ``event``, or a new one, at the end of what is enqueued; returns it."""
        with ExitStack() as stack:
            if event is None:
                event = stack.enter_context(Event(self.device))
            event.record(self)
            stack.pop_all()
        return event

    def _describe(self) -> str:
        return f"{hex(self.handle)} on {self.device}" + (" (borrowed)" if self.owner else "")


class _EventReleaser:
    """Destroys an event."""

    __slots__ = ("_primary",)

    def __init__(self, primary: PrimaryContext) -> None:
        self._primary = primary

    def __call__(self, handle: int) -> None:
        self._primary.release(lambda: self._primary.driver.event_destroy(handle))


class _StreamReleaser:
    """Waits for a stream's work, and destroys the stream if it is ours."""

    __slots__ = ("_owned", "_primary")

    def __init__(self, primary: PrimaryContext, *, owned: bool = True) -> None:
        self._primary = primary
        self._owned = owned

    def __call__(self, handle: int) -> None:
        driver = self._primary.driver
        steps: list[Callable[[], object]] = [
            lambda: insist(lambda: driver.stream_synchronize(handle))
        ]
        if self._owned:
            steps.append(lambda: driver.stream_destroy(handle))
        self._primary.release(*steps)


def _same_device(mine: Device, other: Device, what: str, other_what: str) -> None:
    if mine is not other and not mine.same_as(other):
        raise InputError(
            f"the {what} is on {mine} and the {other_what} on {other}; both must be on one device"
        )
