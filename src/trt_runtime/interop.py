"""Device arrays out and in: `DeviceArray` results, and `borrow` for arrays of other libraries.

How memory is lent is in `lending`, what a capsule is in `dlpack`, where results come from in
`pool`. Nothing here copies, and nothing makes the host wait for another library's work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import dlpack
from .errors import CudaError, DtypeError, InputError, add_note
from .interrupts import uninterrupted
from .lending import Lender, shown
from .platform.driver import LEGACY_STREAM
from .pool import PooledBlock
from .stream import LastUse, Stream, _same_device
from .tensor import Shape, format_bytes, format_shape

#: Memory that NumPy can look into: the ordinary path.
_HOST_MEMORY = (dlpack.CPU, dlpack.CUDA_HOST)


class DeviceArray(Lender):
    """A result in device memory: yours, like an ndarray, and gone when nothing refers to it.

    PyTorch, CuPy and JAX take it without a copy with ``from_dlpack(array)``; what they make of it
    keeps the memory alive, also after this object, the session and the device are closed. There is
    no need to close it; ``close()``, or ``with``, gives this object's hold up early.

    Parameters
    ----------
    memory : PooledBlock
        Taken over. The array is ready when the work that was enqueued so far, on the stream that
        the memory was taken for, has finished.
    shape : sequence of int
    dtype : dtype

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    nbytes : int
        Bytes of the array; the memory behind it may be more.
    device : Device

    Raises
    ------
    InputError
        The memory is too small.
    """

    __slots__ = ("device", "dtype", "nbytes", "shape")

    def __init__(self, memory: PooledBlock, shape: Sequence[int], dtype: DTypeLike) -> None:
        with ExitStack() as stack:
            stack.callback(memory.drop)
            assert memory.stream is not None
            self.shape = tuple(int(n) for n in shape)
            self.dtype = np.dtype(dtype)
            self.nbytes = math.prod(self.shape) * self.dtype.itemsize
            self.device = memory.stream.device
            if self.nbytes > memory.nbytes:
                raise InputError(
                    f"{self.dtype.name}{format_shape(self.shape)} has {self.nbytes} bytes and its "
                    f"memory {memory.nbytes}"
                )
            memory.finish()
            stack.pop_all()
        # No parents: the array outlives session and device, whose context its memory holds.
        self._own(memory, PooledBlock.drop)
        self._record.quiet = True  # it is meant to be forgotten

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next in each dimension; always C-contiguous."""
        sizes = [self.dtype.itemsize]
        for n in reversed(self.shape[1:]):
            sizes.append(sizes[-1] * n)
        return tuple(reversed(sizes[: len(self.shape)]))

    @property
    def address(self) -> int:
        """The ``CUdeviceptr`` as an integer. Use it on a stream that waits for the array only."""
        with self._record as memory:
            return int(memory.address)

    def query(self) -> bool:
        """Whether the work that fills it has finished. Does not synchronise."""
        with self._record as memory, memory._primary.current():
            return bool(memory.written.finished)

    def synchronize(self) -> None:
        """Block until the work that fills it has finished."""
        with self._record as memory, memory._primary.current():
            memory.written.wait()

    def _ready(self, memory: PooledBlock) -> LastUse:
        return memory.written

    def _describe(self) -> str:
        return (
            f"{self.dtype.name}{format_shape(self.shape)} {format_bytes(self.nbytes)} "
            f"at {hex(self.address)} on {self.device}"
        )


class BorrowedArray:
    """Device memory of somebody else, C-contiguous and in order before one stream.

    Attributes
    ----------
    address : int
        The ``CUdeviceptr``; 0 for an empty array.
    shape : tuple of int
    dtype : numpy.dtype
    """

    __slots__ = ("_held", "address", "dtype", "shape")

    def __init__(self, held: object, address: int, shape: Shape, dtype: np.dtype[Any]) -> None:
        self._held: object = held
        self.address = address
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def released(self) -> bool:
        return self._held is None

    def release(self) -> None:
        """Let the owner have its memory back; only once the last use has finished on the device."""
        self._held = None

    def __enter__(self) -> BorrowedArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        text = f"<BorrowedArray {self.dtype.name}{format_shape(self.shape)}"
        return f"{text} released>" if self.released else f"{text} at {hex(self.address)}>"


def is_device_array(value: Any) -> bool:
    """Whether `borrow` is to be tried: its memory is that of a GPU, or of a `Lender` here."""
    if isinstance(value, np.ndarray):
        return False
    if isinstance(value, Lender):
        return True
    try:
        if hasattr(value, "__dlpack_device__"):
            return value.__dlpack_device__()[0] not in _HOST_MEMORY
        return hasattr(value, "__cuda_array_interface__")
    except Exception as error:  # whatever the object raises
        raise InputError(
            f"a {type(value).__name__} does not say where its memory is: {error!r}"
        ) from error


def borrow(
    value: Any,
    stream: Stream,
    *,
    what: str = "the array",
    dtype: np.dtype[Any] | None = None,
) -> BorrowedArray | None:
    """Take a device array of any library as an input of work on ``stream``, without a copy.

    ``stream`` is made to wait for the work that produces the array, as its library knows it:
    PyTorch and CuPy for their current stream, ``__cuda_array_interface__`` for the stream that it
    names. The host does not wait.

    Parameters
    ----------
    value : object
        A `DeviceArray` or `DeviceBuffer`, something with ``__dlpack__``, or something with
        ``__cuda_array_interface__``.
    stream : Stream
        Where the memory will be used; its device is the one the array must be on.
    what : str
        What errors call it, such as ``"input 'x'"``.
    dtype : dtype, optional
        What its dtype must be: device memory is never converted.

    Returns
    -------
    BorrowedArray or None
        Holds the memory until ``release()``, which must come after the last use. None for an array
        in host memory.

    Raises
    ------
    InputError
        It is on another device, not C-contiguous, masked, or its library refuses to export it.
    DtypeError
        Its dtype is another than ``dtype``, or none that NumPy has.
    """
    if not is_device_array(value):
        return None
    if isinstance(value, Lender):
        borrowed = _from_lender(value, stream, what)
    elif _offers(value, "__dlpack__"):
        borrowed = _from_dlpack(value, stream, what)
    else:
        borrowed = _from_cuda_array_interface(value, stream, what)
    if dtype is not None and borrowed.dtype != dtype:
        raise DtypeError(
            f"{what} takes {np.dtype(dtype).name} and has {borrowed.dtype.name}; device memory is "
            "never converted behind your back: convert it with its own library, for instance "
            "x.to(dtype) (PyTorch) or x.astype(dtype) (CuPy)"
        )
    return borrowed


def _offers(value: Any, name: str) -> bool:
    try:
        return hasattr(value, name)
    except Exception as error:  # a property's own
        raise InputError(f"{name} of a {type(value).__name__} fails: {error!r}") from error


def _from_lender(value: Lender, stream: Stream, what: str) -> BorrowedArray:
    _same_device(value.device, stream.device, what, "stream")
    with (
        value._record as memory,
        stream._record as handle,
        memory._primary.current(),
    ):
        value._ready(memory).begin(stream, handle)
        held = shown(memory, memory.address, value.nbytes)
        return BorrowedArray(held, memory.address, value.shape, value.dtype)


def _from_dlpack(value: Any, stream: Stream, what: str) -> BorrowedArray:
    try:
        kind, ordinal = (int(n) for n in value.__dlpack_device__())
    except Exception as error:  # whatever the object raises
        raise InputError(
            f"{what} cannot be borrowed: {type(value).__name__} does not say where it is: {error!r}"
        ) from error
    _require_device(kind, ordinal, stream, what)
    with stream._record as handle:
        capsule = _exported(value, handle or LEGACY_STREAM, what)
    # Never consumed: it frees what it holds when it goes, in its library's own way.
    described = dlpack.read(capsule, what)
    _require_device(*described.device, stream, what)
    dlpack.require_contiguous(described.shape, described.strides, described.dtype.itemsize, what)
    return BorrowedArray(capsule, described.address, described.shape, described.dtype)


def _exported(value: Any, handle: int, what: str) -> Any:
    try:
        try:
            return value.__dlpack__(stream=handle, max_version=dlpack.MAX_VERSION)
        except TypeError:  # older than the array API of 2023
            return value.__dlpack__(stream=handle)
    except Exception as error:
        raise InputError(
            f"{what} cannot be borrowed: {type(value).__name__} refused to export it: {error}"
        ) from error


def _from_cuda_array_interface(value: Any, stream: Stream, what: str) -> BorrowedArray:
    try:
        interface = value.__cuda_array_interface__
        masked = interface.get("mask") is not None
        shape = tuple(int(n) for n in interface["shape"])
        dtype = np.dtype(str(interface["typestr"]))
        strides = interface.get("strides")
        strides = None if strides is None else tuple(int(n) for n in strides)
        address, producer = int(interface["data"][0]), interface.get("stream")
        producer = None if producer is None else int(producer)
        ranks_differ = strides is not None and len(strides) != len(shape)
        if min(shape, default=0) < 0 or ranks_differ:
            raise ValueError(f"it has shape {shape} and strides {strides}")
        if not (0 <= address < 2**64 and 0 <= (producer or 0) < 2**64):
            raise ValueError(f"it is at {address:#x}, written on stream {producer}")
    except Exception as error:  # whatever the object raises, or what it has of another type
        raise InputError(
            f"{what} cannot be borrowed: {type(value).__name__}.__cuda_array_interface__ is not "
            f"as it should be: {error!r}"
        ) from error
    if masked:
        raise InputError(f"{what} is masked; fill the masked elements first")
    if dtype.kind not in "biufc":
        raise DtypeError(f"{what} has type {interface['typestr']!r}, which is no number's")
    dlpack.require_contiguous(shape, strides, dtype.itemsize, what)
    primary = stream.device._primary
    driver = primary.driver
    _require_device(dlpack.CUDA, stream.device.ordinal, stream, what)
    with stream._record as handle, primary.current():
        if address and math.prod(shape):
            try:
                ordinal = driver.pointer_device(address)
            except CudaError as error:
                add_note(error, f"{what} was said to be at {hex(address)}")
                raise
            _require_device(dlpack.CUDA, ordinal, stream, what)
        if producer == 0:
            raise InputError(
                f"{what} names stream 0, which could be two; 1 is the legacy default stream and 2 "
                "the per-thread one"
            )
        if producer is not None and producer != handle:
            with uninterrupted():
                written = LastUse(driver)
                try:
                    written.end(None, producer)
                    written.begin(stream, handle)
                finally:
                    written.destroy()
    return BorrowedArray((value, interface), address, shape, dtype)


def _require_device(kind: int, ordinal: int, stream: Stream, what: str) -> None:
    device = stream.device
    mine = device._driver.dlpack_device_type
    if mine != dlpack.CUDA or kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        fits = False
    else:
        fits = ordinal == device.ordinal
    if not fits:
        raise InputError(
            f"{what} is on {dlpack.device_name((kind, ordinal))} and must be on {device}; copy it "
            "there, or to the host, with its own library"
        )
