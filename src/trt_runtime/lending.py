"""Memory that outlives its owner: `Counted` by its holders, and how a `Lender` shows it to others.

Device memory is handed to other libraries in two ways. DLPack says which stream the consumer will
use and when it is done. ``__cuda_array_interface__`` says neither, so that memory stays for as long
as the object that showed it. Nothing here waits on the host for a consumer on a GPU.
"""

from __future__ import annotations

import logging
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import dlpack
from .errors import ExportError, InputError
from .interrupts import uninterrupted
from .locks import RLock
from .ownership import Owned, insist, when_collected
from .platform.driver import LEGACY_STREAM, address_of
from .tensor import Shape

if TYPE_CHECKING:
    from .device import Device, PrimaryContext
    from .stream import LastUse

logger = logging.getLogger("trt_runtime")


class Counted:
    """Something that is released when its last holder gives it up, from whichever thread."""

    __slots__ = ("_holds", "_lock", "_pid")

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = RLock()  # an array of it may be collected at any point
        self._holds = 1

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
            self._release()

    def hold_for(self, thing: object) -> None:
        """Hold it for as long as ``thing`` lives."""
        when_collected(thing, _Hold(self).end).atexit = False

    def drop_quietly(self) -> None:
        """`drop`, from the finaliser of an array: there is nobody to raise to."""
        try:
            self.drop()
        except Exception as error:
            why = str(error)  # the error itself would keep its frames alive, and what they hold
            logger.error("freeing memory of a collected array failed: %s", why)

    def _release(self) -> None:
        raise NotImplementedError


class _Hold:
    """A hold that `end` gives up, once, also when an interrupt makes Python drop a finaliser."""

    __slots__ = ("_memory",)

    def __init__(self, memory: Counted) -> None:
        self._memory: Counted | None = memory
        memory.hold()

    def end(self) -> None:
        with uninterrupted():
            memory, self._memory = self._memory, None
            if memory is not None:
                memory.drop_quietly()

    __del__ = end


class DeviceMemory(Counted):
    """Counted memory of a device, which a `Lender` can lend."""

    __slots__ = ("_primary", "kept")

    _primary: PrimaryContext

    def __init__(self) -> None:
        super().__init__()
        #: Whether the lender holds it for as long as it lives, closed or not.
        self.kept = False

    @property
    def address(self) -> int:
        """The ``CUdeviceptr`` as an integer."""
        raise NotImplementedError

    def lent_to(self, stream: int | None) -> None:
        """Be told that a consumer will use the memory on ``stream``; None if nobody knows where."""


class _Export:
    """The base of an array that shows counted memory: holds it while the array lives."""

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, memory: Counted, address: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
        memory.hold_for(self)


def shown(memory: Counted, address: int, nbytes: int) -> NDArray[np.uint8]:
    """The bytes as an array that holds ``memory``; of device memory, not to be looked into."""
    return np.asarray(_Export(memory, address, nbytes))


class Lender(Owned):
    """Base of the objects whose device memory other libraries can take without a copy.

    The record's handle is the `DeviceMemory`.
    """

    __slots__ = ()

    shape: Shape
    dtype: np.dtype[Any]
    nbytes: int
    device: Device

    def _ready(self, memory: Any) -> LastUse:
        """The end of the work that makes the memory what it is."""
        raise NotImplementedError

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device type and the ordinal; the host device's memory is the CPU's."""
        kind = self.device._driver.dlpack_device_type
        return (kind, self.device.ordinal if kind == dlpack.CUDA else 0)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The memory as a DLPack capsule, which keeps it alive until its consumer is done.

        Parameters
        ----------
        stream : int, optional
            Where the consumer will use it: 1 or None is the legacy default stream, 2 the per-thread
            one, more is a ``CUstream``, -1 asks for no ordering. The stream is made to wait for the
            work that fills the memory; the host does not wait. On the host device it must be None,
            and the host waits.
        max_version : tuple of int, optional
            The newest DLPack that the consumer knows.
        dl_device : tuple of int, optional
            Where the consumer wants it. ``(1, 0)``, the CPU, gives a copy of a GPU's memory and
            synchronises.
        copy : bool, optional
            False forbids that copy.

        Raises
        ------
        ExportError
            A `BufferError` too, as the array API asks: another device, a copy on the device, or a
            dtype that DLPack has no name for.
        InputError
            ``stream`` is 0, which could mean two streams, or none of the above.
        """
        mine = self.__dlpack_device__()
        wanted = mine if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        if wanted != mine or copy:
            return self._copied_capsule(wanted, stream, max_version, copy)
        consumer = _consumer(stream, mine)
        with self._record as memory:
            address = self._lend(memory, consumer)
            raw = shown(memory, address, self.nbytes)
            return dlpack.make(raw, self.shape, self.dtype, mine, max_version)

    def _lend(self, memory: DeviceMemory, consumer: int | None) -> int:
        """Order ``consumer`` after the work on the memory (None: the host); where that finds it."""
        driver = memory._primary.driver
        with memory._primary.current():
            if consumer is None:
                self._ready(memory).wait()
                return driver.host_pointer(memory.address)
            memory.lent_to(consumer if consumer > 0 else None)
            if consumer > 0:
                self._ready(memory).begin(None, consumer)
            return memory.address

    def _copied_capsule(
        self,
        wanted: tuple[int, int],
        stream: int | None,
        max_version: tuple[int, int] | None,
        copy: bool | None,
    ) -> Any:
        here = f"this {type(self).__name__} is on {self.device}"
        if wanted != (dlpack.CPU, 0):
            raise ExportError(
                f"{here}, and was asked for as {'a copy' if copy else 'memory'} on "
                f"{dlpack.device_name(wanted)}; take it where it is and copy it with the library "
                "that takes it"
            )
        if copy is False:
            raise ExportError(f"{here}: memory of the CPU would be a copy, and copy=False")
        _consumer(stream, wanted)
        array = self.copy_to_host()
        raw = array.reshape(-1).view(np.uint8)
        return dlpack.make(raw, self.shape, self.dtype, wanted, max_version, copied=True)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the CUDA array interface; there is none on the host device.

        The legacy default stream is made to wait for the work that fills the memory, and named as
        the stream to be ordered after: consumers that ignore the entry, as PyTorch does, are right
        there too. Prefer DLPack, which orders every stream.
        """
        kind, _ = self.__dlpack_device__()
        if kind != dlpack.CUDA or self.dtype.kind not in "biufc":
            # Not an error of ours: `hasattr` is how consumers ask.
            raise AttributeError(
                f"{self.dtype.name} memory on {self.device} has no __cuda_array_interface__"
            )
        with self._record as memory:
            address = self._lend(memory, LEGACY_STREAM)
            memory.lent_to(None)
            if not memory.kept:  # the consumer holds this object, not the memory
                memory.kept = True
                memory.hold_for(self)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (address if self.nbytes else 0, False),
            "strides": None,
            "version": 3,
            "stream": LEGACY_STREAM,
        }

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refused: a copy from the device that nobody sees would cost more than it says."""
        raise InputError(
            f"this {type(self).__name__} is in device memory; copy it with copy_to_host(), or take "
            "it where it is with the from_dlpack of PyTorch, CuPy or JAX"
        )

    def copy_to_host(self) -> NDArray[Any]:
        """A copy in a new array, after all work on the memory so far that is ours.

        Synchronises. Runs on the legacy default stream, so that it also comes after what a consumer
        enqueued there.
        """
        target = np.empty(self.shape, self.dtype)
        with self._record as memory, memory._primary.current():
            driver = memory._primary.driver
            self._ready(memory).begin(None, LEGACY_STREAM)
            if self.nbytes:
                try:
                    driver.memcpy_dtoh_async(
                        address_of(target), memory.address, self.nbytes, LEGACY_STREAM
                    )
                finally:
                    insist(lambda: driver.stream_synchronize(LEGACY_STREAM))
            else:
                driver.stream_synchronize(LEGACY_STREAM)
        return target


def _consumer(stream: int | None, device: tuple[int, int]) -> int | None:
    """The handle of the consumer's stream; -1 for no ordering, None for the host."""
    if device[0] == dlpack.CPU:
        if stream is not None:
            raise InputError(f"memory of the CPU has no streams; stream must be None, not {stream}")
        return None
    if stream is None:
        return LEGACY_STREAM
    try:
        handle = operator.index(stream)
    except TypeError:
        handle = 0
    if handle == 0 or handle < -1 or isinstance(stream, bool):
        raise InputError(
            f"stream {stream!r} is not understood; expected None or 1 (legacy default stream), "
            "2 (per-thread default stream), a CUstream as an int above 2, or -1 (no ordering). "
            "0 could mean either default stream"
        )
    return handle
