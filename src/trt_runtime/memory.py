"""`DeviceBuffer` and `PinnedBuffer`: one allocation each, of known size, dtype and shape.

A `PinnedBlock` or `DeviceBlock` is the memory itself. It is counted: the buffer holds it, and so
does whatever was handed out, an array or a DLPack capsule, which stays valid after ``close()``.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .device import Device, PrimaryContext, borrow_or_open
from .errors import InputError
from .interrupts import uninterrupted
from .lending import Counted, DeviceMemory, Lender
from .ownership import Owned
from .platform.driver import address_of
from .stream import LastUse, Stream, _same_device, ordered
from .tensor import Shape, format_bytes, format_shape


class PageLocked(np.ndarray[Any, np.dtype[np.uint8]]):
    """The bytes of a page-locked block: the base of every array that shows them to a user.

    Its own base is not an array, so that NumPy keeps it as the base of views and views of views.
    """


class PinnedBlock(Counted):
    """Page-locked memory that is freed when its last holder gives it up."""

    __slots__ = ("_bytes", "_primary", "address", "nbytes", "raw")

    def __init__(self, primary: PrimaryContext, nbytes: int) -> None:
        super().__init__()
        self.nbytes = max(nbytes, 1)  # CUDA has no allocation of zero bytes
        self._primary = primary
        driver = primary.driver
        self.address = primary.create(
            lambda: driver.mem_host_alloc(self.nbytes), driver.mem_host_free
        )
        primary.hold()
        self._bytes = memoryview((ctypes.c_uint8 * self.nbytes).from_address(self.address))
        #: The bytes, without holding the block: for the block's holders only.
        self.raw = np.frombuffer(self._bytes, np.uint8)

    def _release(self) -> None:
        try:
            self._primary.release(lambda: self._primary.driver.mem_host_free(self.address))
        finally:
            self._primary.drop()

    def export(self) -> PageLocked:
        """The bytes as an array that keeps the block alive."""
        memory = self.show()
        self.hold_for(memory)
        return memory

    def show(self) -> PageLocked:
        """The bytes as the base of arrays, whose block the caller keeps alive."""
        return PageLocked((self.nbytes,), np.uint8, self._bytes)


class DeviceBlock(DeviceMemory):
    """Device memory that is freed when its last holder gives it up.

    What another library has enqueued on it by then, ``cuMemFree`` waits for.
    """

    __slots__ = ("_address", "_owned", "nbytes")

    def __init__(self, primary: PrimaryContext, nbytes: int) -> None:
        super().__init__()
        self.nbytes = max(nbytes, 1)  # CUDA has no allocation of zero bytes
        self._primary = primary
        self._owned = True
        driver = primary.driver
        self._address = primary.create(lambda: driver.mem_alloc(self.nbytes), driver.mem_free)
        primary.hold()

    @property
    def address(self) -> int:
        return self._address

    def free(self) -> None:
        """Give up the hold of the one who made it; does nothing the second time."""
        owned, self._owned = self._owned, False
        if owned:
            self.drop()

    def _release(self) -> None:
        try:
            self._primary.release(lambda: self._primary.driver.mem_free(self._address))
        finally:
            self._primary.drop()


def typed(raw: NDArray[np.uint8], shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The first of these bytes as an array."""
    return np.ndarray(shape, dtype, raw)


class _Buffer(Owned):
    """What both kinds of buffer share: device, shape, dtype and size."""

    __slots__ = ("_driver", "_last_use", "device", "dtype", "nbytes", "shape")

    shape: Shape
    dtype: np.dtype[Any]
    nbytes: int

    def _open(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike,
        device: Device | str | int | None,
        allocate: Callable[[PrimaryContext, int], Any],
        free: Callable[[Any], Callable[[], object]],
    ) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        if any(n < 0 for n in self.shape):
            raise InputError(
                f"a buffer needs a known shape; {format_shape(self.shape)} has an unknown size"
            )
        self.dtype = np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        with uninterrupted(), ExitStack() as stack:
            self.device, then = borrow_or_open(device, stack)
            self._driver = self.device._driver
            primary = self.device._primary
            with self.device._record:
                last_use = self._last_use = primary.create(
                    lambda: LastUse(self._driver), LastUse.destroy
                )
                stack.callback(primary.release, last_use.destroy)
                handle = allocate(primary, self.nbytes)

                def destroy(handle: Any) -> None:
                    primary.release(last_use.wait, free(handle), last_use.destroy)

                stack.pop_all()
                self._own(handle, destroy, parents=[self.device], then=then)

    def _refuse_misfit(self, nbytes: int, what: str) -> None:
        if nbytes != self.nbytes:
            raise InputError(
                f"{what} has {nbytes} bytes and this buffer {self.nbytes} "
                f"({self.dtype.name}{format_shape(self.shape)}); a copy needs them equal"
            )

    def _summary(self) -> str:
        return f"{self.dtype.name}{format_shape(self.shape)} {format_bytes(self.nbytes)}"


class PinnedBuffer(_Buffer):
    """Page-locked host memory, which the device copies from and to at full speed.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : dtype
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.

    Raises
    ------
    OutOfMemoryError
        The system cannot lock that much.
    """

    __slots__ = ()

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = np.uint8,
        *,
        device: Device | str | int | None = None,
    ) -> None:
        self._open(shape, dtype, device, PinnedBlock, lambda block: block.drop)

    @property
    def address(self) -> int:
        """Where it begins in the host's address space."""
        with self._record as block:
            return int(block.address)

    @property
    def array(self) -> NDArray[Any]:
        """The memory as an array of the buffer's dtype and shape.

        Every array keeps the memory alive, also after ``close()``.
        """
        with self._record as block:
            return typed(block.export(), self.shape, self.dtype)

    def _describe(self) -> str:
        return f"{self._summary()} at {hex(self.address)}"


class DeviceBuffer(_Buffer, Lender):
    """Device memory, which other libraries take without a copy through DLPack.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : dtype
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.

    Raises
    ------
    OutOfMemoryError
        The device has not that much free.

    Notes
    -----
    ``close`` waits for copies that were begun through this object. Memory that another library took
    stays for as long as that library holds it.
    """

    __slots__ = ()

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = np.uint8,
        *,
        device: Device | str | int | None = None,
    ) -> None:
        self._open(shape, dtype, device, DeviceBlock, lambda block: block.free)

    def _ready(self, memory: DeviceBlock) -> LastUse:
        return self._last_use

    @property
    def address(self) -> int:
        """The ``CUdeviceptr`` as an integer."""
        with self._record as block:
            return int(block.address)

    def copy_from(self, source: PinnedBuffer | NDArray[Any], *, stream: Stream) -> None:
        """Enqueue a copy from the host. Does not synchronise.

        A `PinnedBuffer` must not be written to until the copy has run. An ordinary array is staged
        by the driver before this returns.
        """
        if isinstance(source, PinnedBuffer):
            self._refuse_misfit(source.nbytes, "the source")
            with source._record as pinned:
                self._copy(stream, source, pinned.address, self._driver.memcpy_htod_async)
        else:
            array = _contiguous(source, "the source")
            self._refuse_misfit(array.nbytes, "the source")
            self._copy(stream, None, address_of(array), self._driver.memcpy_htod_async)

    def copy_to(self, target: PinnedBuffer | NDArray[Any], *, stream: Stream) -> None:
        """Enqueue a copy to the host. Does not synchronise when ``target`` is a `PinnedBuffer`.

        Read the target only after the stream was synchronised. An ordinary array is filled before
        this returns.
        """

        def download(address: int, host: int, nbytes: int, stream: int) -> None:
            self._driver.memcpy_dtoh_async(host, address, nbytes, stream)

        if isinstance(target, PinnedBuffer):
            self._refuse_misfit(target.nbytes, "the target")
            with target._record as pinned:
                self._copy(stream, target, pinned.address, download)
        else:
            array = _contiguous(target, "the target")
            if not array.flags.writeable:
                raise InputError("the target array is read-only")
            self._refuse_misfit(array.nbytes, "the target")
            self._copy(stream, None, address_of(array), download)

    def _copy(
        self,
        stream: Stream,
        partner: PinnedBuffer | None,
        host: int,
        copy: Callable[[int, int, int, int], None],
    ) -> None:
        _same_device(self.device, stream.device, "buffer", "stream")
        uses = [self._last_use] + ([partner._last_use] if partner is not None else [])
        with (
            self._record as block,
            stream._record as handle,
            self.device._primary.current(),
            ordered(uses, stream, handle),
        ):
            if self.nbytes:
                copy(block.address, host, self.nbytes, handle)

    def _describe(self) -> str:
        return f"{self._summary()} at {hex(self.address)} on {self.device}"


def _contiguous(array: Any, what: str) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what} must be a PinnedBuffer or a NumPy array, not {type(array)!r}")
    if not array.flags.c_contiguous:
        raise InputError(f"{what} must be C-contiguous; pass np.ascontiguousarray(...)")
    return array
