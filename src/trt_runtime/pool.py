"""`DevicePool`: device memory for results that belong to their callers, used again when they go.

A block comes back when its last holder gives it up: the `DeviceArray`, or whichever consumer of it
lasts longest. That happens on any thread and in the middle of anything, so coming back takes no
lock that could be held.

By then a consumer's kernels may not have run. The next user of the block must come after them,
without the host waiting:

* A consumer on the legacy default stream, or on one that synchronises with it (the per-thread
  default stream, and every stream made without ``CU_STREAM_NON_BLOCKING``): an event is recorded on
  the legacy default stream when the block comes back, and the next user's stream waits for it.
* A consumer on another stream, or on one that it did not tell: the block is given to ``cuMemFree``,
  which waits for the device, and is not used again. The handle that ``__dlpack__`` was told is
  never used later: its stream may have been destroyed, and CUDA soon gives the same handle to
  another one (rapidsai/rmm#649), whose events would say nothing of the first.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack

from .device import Device, PrimaryContext, borrow_or_open
from .errors import ClosedError, InputError, OutOfMemoryError
from .interrupts import uninterrupted
from .lending import DeviceMemory
from .locks import Lock
from .memory import DeviceBlock
from .ownership import Owned, release_all
from .platform.driver import LEGACY_STREAM, PER_THREAD_STREAM
from .stream import LastUse, Stream, _same_device
from .tensor import format_bytes

#: What a pool keeps unused at most, in bytes, unless it is told otherwise.
DEFAULT_POOL_BYTES = 256 << 20

_SMALLEST_BYTES = 512


def size_class(nbytes: int) -> int:
    """The size of the blocks that serve ``nbytes``: at most an eighth more, 512 at least."""
    if nbytes <= _SMALLEST_BYTES:
        return _SMALLEST_BYTES
    step = 1 << max((nbytes - 1).bit_length() - 4, 9)
    return -(-nbytes // step) * step


class PooledBlock(DeviceMemory):
    """Device memory of a `DevicePool`, with the ends of the work that wrote and read it.

    Attributes
    ----------
    nbytes : int
        Its size, which may be more than was asked for.
    written : LastUse
        The end of the work that filled it, once `finish` was called.
    stream : Stream or None
        Whose work is going to fill it, until `finish` is called.
    """

    __slots__ = (
        "_block",
        "_lent_to_default",
        "_lent_to_unknown",
        "_read",
        "_shelf",
        "stream",
        "written",
    )

    def __init__(self, shelf: _Shelf, nbytes: int) -> None:
        super().__init__()
        self._shelf = shelf
        self._primary = primary = shelf.primary
        self.stream: Stream | None = None
        self._lent_to_default = self._lent_to_unknown = False
        with ExitStack() as stack:
            self.written = LastUse(primary.driver)
            stack.callback(self.written.destroy)
            self._read = LastUse(primary.driver)
            stack.callback(self._read.destroy)
            self._block = DeviceBlock(primary, nbytes)
            stack.pop_all()
        primary.hold()

    @property
    def address(self) -> int:
        return self._block.address

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    def lent_to(self, stream: int | None) -> None:
        if stream in (LEGACY_STREAM, PER_THREAD_STREAM) or (
            stream is not None and self._primary.driver.stream_is_blocking(stream)
        ):
            self._lent_to_default = True
        else:
            self._lent_to_unknown = True

    def begin(self, stream: Stream, handle: int) -> None:
        """Make ``stream`` wait for all earlier work on the block."""
        self.written.begin(stream, handle)
        self._read.begin(None, handle)
        self.stream = stream

    def finish(self) -> None:
        """Mark the end, so far, of the work on the stream it was taken for."""
        stream = self.stream
        if stream is not None:
            try:
                with stream._record as handle, self._primary.current():
                    self.written.end(stream, handle)
            except ClosedError:
                pass  # closing a stream waits for its work
            self.stream = None

    def settle(self) -> bool:
        """Mark the end of all work on it; whether that could be done."""
        if self._lent_to_unknown:
            return False
        try:
            self.finish()  # whoever took it may have failed half-way
            if self._lent_to_default:
                with self._primary.current():
                    self._read.end(None, LEGACY_STREAM)
        except Exception:
            return False
        self._lent_to_default = False
        return True

    def free(self) -> None:
        """Give the memory back to the device, after all work on it that is known of."""
        primary = self._primary
        release_all(
            [
                lambda: primary.release(
                    self.finish,
                    self.written.wait,
                    self._read.wait,
                    self._block.free,
                    self._read.destroy,
                    self.written.destroy,
                ),
                primary.drop,
            ]
        )

    def _release(self) -> None:
        self._shelf.give_back(self)


class _Shelf:
    """The blocks that nobody holds, oldest first, and the way back onto it."""

    __slots__ = ("_idle", "_lock", "_returned", "closed", "max_bytes", "primary")

    def __init__(self, primary: PrimaryContext, max_bytes: int) -> None:
        self.primary = primary
        self.max_bytes = max_bytes
        self.closed = False
        self._idle: list[PooledBlock] = []
        self._returned: deque[PooledBlock] = deque()
        # Held by whoever sorts the returned blocks in. One that finds it held leaves its block to
        # the holder, who looks again after letting go: nobody waits, not even for itself.
        self._lock = Lock()

    @property
    def idle_bytes(self) -> int:
        return sum(block.nbytes for block in tuple(self._idle))

    def give_back(self, block: PooledBlock) -> None:
        self._returned.append(block)
        self._tidy()

    def _tidy(self) -> None:
        with uninterrupted():
            while True:
                if not self._returned or not self._lock.acquire(blocking=False):
                    break
                try:
                    self._sort_in()
                finally:
                    self._lock.release()

    def _sort_in(self) -> None:
        """Make returned blocks idle, and free what is too much; the lock must be held."""
        surplus = []
        try:
            while True:
                if not self._returned:
                    break
                block = self._returned[0]  # stays there if this is interrupted
                if not self.closed and block.nbytes <= self.max_bytes and block.settle():
                    self._idle.append(block)
                else:
                    surplus.append(block)
                self._returned.popleft()
            while True:
                if not self._idle or not (self.closed or self.idle_bytes > self.max_bytes):
                    break
                surplus.append(self._idle.pop(0))
        finally:
            release_all([block.free for block in surplus])

    def take(self, nbytes: int) -> PooledBlock:
        """A block of at least that size, held once; the context must be current."""
        size = size_class(nbytes)
        block = self._find(size)
        try:
            self._tidy()  # for whatever a collection brought back while the lock was held
        except BaseException:
            if block is not None:
                block.drop()
            raise
        if block is not None:
            return block
        try:
            return PooledBlock(self, size)
        except OutOfMemoryError:
            self.clear()
            return PooledBlock(self, size)

    def _find(self, size: int) -> PooledBlock | None:
        """An idle block of exactly that size: the oldest, whose last readers are likely done."""
        with self._lock:
            for number, block in enumerate(self._idle):
                if block.nbytes == size:
                    block.hold()
                    del self._idle[number]
                    return block
        return None

    def clear(self) -> None:
        """Free what is idle."""
        with self._lock:
            surplus, self._idle[:] = list(self._idle), []
        release_all([block.free for block in surplus])
        self._tidy()

    def close(self) -> None:
        self.closed = True  # whatever comes back from here on is freed at once
        self.clear()


class DevicePool(Owned):
    """Device memory that is used again: blocks by size, a bounded number of bytes of them unused.

    Parameters
    ----------
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.
    max_bytes : int
        How much it keeps unused; the oldest goes first. 0 keeps nothing.

    Notes
    -----
    Safe from any thread. ``close`` frees what is unused; memory that is still held frees itself
    when its last holder goes, and keeps the device's primary context until then.
    """

    __slots__ = ("device", "max_bytes")

    def __init__(
        self, device: Device | str | int | None = None, *, max_bytes: int = DEFAULT_POOL_BYTES
    ) -> None:
        if max_bytes < 0:
            raise InputError(f"a pool keeps 0 bytes or more, not {max_bytes}")
        self.max_bytes = max_bytes
        with ExitStack() as stack:
            self.device, then = borrow_or_open(device, stack)
            shelf = _Shelf(self.device._primary, max_bytes)
            stack.pop_all()
            self._own(shelf, _Shelf.close, parents=[self.device], then=then)

    @property
    def idle_bytes(self) -> int:
        """How much is kept unused now."""
        with self._record as shelf:
            return int(shelf.idle_bytes)

    def take(self, nbytes: int, stream: Stream) -> PooledBlock:
        """Memory of at least ``nbytes`` for work on ``stream``. Does not synchronise.

        ``stream`` is made to wait for all earlier work on the memory. The caller holds it once: it
        goes to a `DeviceArray`, or back with ``drop()``.

        Raises
        ------
        OutOfMemoryError
            The device has not that much free, also after the pool gave up what it kept.
        """
        _same_device(self.device, stream.device, "pool", "stream")
        with uninterrupted(), self._record as shelf, stream._record as handle:

            def take() -> PooledBlock:
                block: PooledBlock = shelf.take(nbytes)
                try:
                    block.begin(stream, handle)
                except BaseException:
                    block.drop()
                    raise
                return block

            primary: PrimaryContext = shelf.primary
            return primary.create(take, PooledBlock.drop)

    def _describe(self) -> str:
        return (
            f"on {self.device}: {format_bytes(self.idle_bytes)} of at most "
            f"{format_bytes(self.max_bytes)} unused"
        )
