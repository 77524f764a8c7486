"""The CUDA driver as this project needs it: a protocol, and what its two implementations share.

Handles are plain integers; ``0`` is never a valid one, except that stream 0 is CUDA's default
stream. Sizes are bytes. Every method raises `CudaError` on failure; none returns a status.
Implementations: `cuda.CudaDriver` over ``cuda.bindings.driver``, and `host.driver.HostDriver`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CudaError, OutOfMemoryError, StickyCudaError

#: ``CUresult`` values that the project tells apart (cuda.h of CUDA 13).
SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
DEINITIALIZED = 4
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_READY = 600
UNKNOWN = 999

#: CUDA's names for its default streams, the same whatever it was compiled with (cuda.h:
#: ``CU_STREAM_LEGACY``, ``CU_STREAM_PER_THREAD``).
LEGACY_STREAM = 1
PER_THREAD_STREAM = 2

#: After these the context is unusable and the process must restart (CUDA driver API, "CUresult").
STICKY = frozenset({214, 220, 700, 702, 714, 715, 716, 717, 718, 719})


def cuda_error(code: int, name: str, call: str, detail: str = "") -> CudaError:
    """The exception for a failed call, of the class that its code deserves."""
    if code == OUT_OF_MEMORY:
        return OutOfMemoryError(code, name, call, detail)
    if code in STICKY:
        restart = "the GPU context is broken; this process must be restarted"
        return StickyCudaError(code, name, call, f"{detail}; {restart}" if detail else restart)
    return CudaError(code, name, call, detail)


def host_bytes(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Host memory as an array that holds nothing: the caller keeps it alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _field_behind_head(array: NDArray[Any]) -> int:
    return _word_at(id(array) + object.__basicsize__).value


def _interface_address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _is_behind_head() -> bool:
    part = np.empty(3)[1:]
    is_address = sys.implementation.name == "cpython"  # elsewhere an object's number may be none
    return is_address and _field_behind_head(part) == _interface_address(part)


_word_at = ctypes.c_size_t.from_address
#: Where an array's first element is in host memory. NumPy's own ways make a dictionary or an object
#: for it, 2 µs, and ten times as much after a wait. It is the first field behind the object's head,
#: as compiled extensions have it (``PyArray_DATA``, ``numpy/ndarraytypes.h``).
address_of = _field_behind_head if _is_behind_head() else _interface_address


class Part(NamedTuple):
    """Rows of a tensor's memory at regular distances, and slices of such rows: what one copy takes.

    Attributes
    ----------
    offset : int
        Where the first row begins, in bytes.
    width, pitch : int
        A row's length and the distance to the next one, in bytes; rows do not overlap.
    rows : int
    slice_pitch : int
        The distance to the next slice in bytes, a multiple of ``pitch``; nor do slices.
    slices : int
    """

    offset: int
    width: int
    pitch: int
    rows: int
    slice_pitch: int
    slices: int

    @classmethod
    def whole(cls, nbytes: int) -> Part:
        """All of so many bytes."""
        return cls(0, nbytes, nbytes, 1, nbytes, 1)

    @property
    def nbytes(self) -> int:
        """How many bytes are copied."""
        return self.width * self.rows * self.slices

    @property
    def span(self) -> int:
        """From the first byte to the last one."""
        return self.slice_pitch * (self.slices - 1) + self.pitch * (self.rows - 1) + self.width


#: Copies from the host to the device: of the addresses of both sides, and a stream.
Upload = Callable[[int, int, int], None]


class Driver(Protocol):
    """What a CUDA driver does for the layers above the seam."""

    #: What DLPack calls the device memory (``DLDeviceType``).
    dlpack_device_type: int

    # Devices and contexts -------------------------------------------------------------------
    def driver_version(self) -> int:
        """CUDA version the driver supports, as 1000 * major + 10 * minor."""

    def device_count(self) -> int: ...
    def device_name(self, ordinal: int) -> str: ...
    def compute_capability(self, ordinal: int) -> tuple[int, int]: ...
    def total_memory(self, ordinal: int) -> int: ...
    def multiprocessor_count(self, ordinal: int) -> int: ...
    def retain_primary_context(self, ordinal: int) -> int: ...
    def release_primary_context(self, ordinal: int) -> None: ...
    def primary_context_spins(self, ordinal: int) -> bool:
        """Whether a thread that waits for the device keeps its processor busy, as by default."""

    def current_context(self) -> int:
        """The context current on this thread; 0 when there is none."""

    def set_current_context(self, context: int) -> None: ...

    # Memory ---------------------------------------------------------------------------------
    def memory_info(self) -> tuple[int, int]:
        """Free and total device memory of the current context's device, in bytes."""

    def mem_alloc(self, nbytes: int) -> int: ...
    def mem_free(self, address: int) -> None: ...
    def pointer_device(self, address: int) -> int:
        """The ordinal of the device that an address belongs to."""

    def host_pointer(self, address: int) -> int:
        """Where the host finds what is at a device address; an error where it cannot."""

    def mem_host_alloc(self, nbytes: int) -> int: ...
    def mem_host_free(self, address: int) -> None: ...
    def memcpy_htod_async(self, device: int, host: int, nbytes: int, stream: int) -> None: ...
    def prepare_upload(self, part: Part) -> Upload:
        """A `memcpy_htod_async` of a part of what is at both addresses, for a thread at a time."""

    def memcpy_dtoh_async(self, host: int, device: int, nbytes: int, stream: int) -> None: ...
    def memcpy_dtod_async(self, target: int, source: int, nbytes: int, stream: int) -> None: ...
    def memset_d8_async(self, device: int, value: int, nbytes: int, stream: int) -> None: ...

    # Streams and events ---------------------------------------------------------------------
    def stream_create(self, priority: int) -> int:
        """A non-blocking stream: it never synchronises with the legacy default stream."""

    def stream_destroy(self, stream: int) -> None: ...
    def stream_is_blocking(self, stream: int) -> bool:
        """Whether it synchronises with the legacy default stream."""

    def stream_synchronize(self, stream: int) -> None: ...
    def stream_query(self, stream: int) -> bool:
        """Whether everything enqueued so far has finished."""

    def stream_poll(self, stream: int) -> None:
        """Wait for everything enqueued so far by asking again and again."""

    def stream_wait_event(self, stream: int, event: int) -> None: ...
    def event_create(self, timing: bool, blocking: bool = False) -> int:
        """An event; a thread that waits for a ``blocking`` one sleeps, and does not spin."""

    def event_destroy(self, event: int) -> None: ...
    def event_record(self, event: int, stream: int) -> None: ...
    def event_synchronize(self, event: int) -> None: ...
    def event_query(self, event: int) -> bool: ...
    def event_elapsed_ms(self, start: int, end: int) -> float: ...

    # Graphs ---------------------------------------------------------------------------------
    def stream_begin_capture(self, stream: int) -> None:
        """Begin capture in thread-local mode: other threads' calls do not disturb it."""

    def stream_end_capture(self, stream: int) -> int: ...
    def is_capturing(self, stream: int) -> bool: ...
    def graph_instantiate(self, graph: int) -> int: ...
    def graph_launch(self, executable: int, stream: int) -> None: ...
    def graph_exec_destroy(self, executable: int) -> None: ...
    def graph_destroy(self, graph: int) -> None: ...
