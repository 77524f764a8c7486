"""`DeviceBuffer` and `PinnedBuffer`: one allocation each, of known size, dtype and shape.

A `PinnedBlock` is the page-locked memory itself. It is counted: the buffer holds it, and so does
every NumPy array that was handed out, so that an array stays valid after ``close()``.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .device import Device, PrimaryContext, borrow_or_open
from .errors import InputError
from .ownership import Owned
from .platform.driver import host_bytes
from .stream import LastUse, Stream, _same_device, ordered
from .tensor import Shape, format_bytes, format_shape

logger = logging.getLogger("trt_runtime")


class _Export:
    """The base of an array that shows page-locked memory: holds the block while the array lives."""

    __slots__ = ("__array_interface__", "__weakref__", "_block")

    def __init__(self, block: PinnedBlock) -> None:
        self._block = block
        self.__array_interface__ = {
            "shape": (block.nbytes,),
            "typestr": "|u1",
            "data": (block.address, False),
            "version": 3,
        }
        block.hold()
        weakref.finalize(self, block.drop_quietly).atexit = False


class PinnedBlock:
    """Page-locked memory that is freed when its last holder gives it up."""

    __slots__ = ("_holds", "_lock", "_pid", "_primary", "address", "nbytes", "raw")

    def __init__(self, primary: PrimaryContext, nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)  # CUDA has no allocation of zero bytes
        self._primary = primary
        self._pid = os.getpid()
        self._lock = threading.RLock()  # an array of it may be collected at any point
        self._holds = 1
        driver = primary.driver
        self.address = primary.create(
            lambda: driver.mem_host_alloc(self.nbytes), driver.mem_host_free
        )
        primary.hold()
        #: The bytes, without holding the block: for the block's holders only.
        self.raw = host_bytes(self.address, self.nbytes)

    def hold(self) -> None:
        with self._lock:
            self._holds += 1

    def drop(self) -> None:
        if self._pid != os.getpid():
            return  # a forked child's copy: the memory is its parent's
        with self._lock:
            self._holds -= 1
            last = self._holds == 0
        if last:
            try:
                self._primary.release(lambda: self._primary.driver.mem_host_free(self.address))
            finally:
                self._primary.drop()

    def drop_quietly(self) -> None:
        """`drop`, from the finaliser of an array: there is nobody to raise to."""
        try:
            self.drop()
        except Exception as error:
            logger.error("freeing page-locked memory of a collected array failed: %s", error)

    def export(self) -> NDArray[np.uint8]:
        """The bytes as an array that keeps the block alive."""
        return np.asarray(_Export(self))


class DeviceBlock:
    """Device memory that its one holder frees."""

    __slots__ = ("_primary", "address", "nbytes")

    def __init__(self, primary: PrimaryContext, nbytes: int) -> None:
        self.nbytes = max(nbytes, 1)  # CUDA has no allocation of zero bytes
        self._primary = primary
        driver = primary.driver
        self.address = primary.create(lambda: driver.mem_alloc(self.nbytes), driver.mem_free)

    def free(self) -> None:
        address, self.address = self.address, 0
        if address:
            self._primary.release(lambda: self._primary.driver.mem_free(address))


def typed(raw: NDArray[np.uint8], shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return raw[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


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
        with ExitStack() as stack:
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


class DeviceBuffer(_Buffer):
    """Device memory.

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
    ``close`` waits for copies that were begun through this object.
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
            self._copy(stream, None, array.ctypes.data, self._driver.memcpy_htod_async)

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
            self._copy(stream, None, array.ctypes.data, download)

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
