"""Faults on demand: fail the Nth platform call, or run out of memory at a size.

Every driver call and every TensorRT call that can fail counts, so that the whole life cycle can be
run once for each N.
"""

from __future__ import annotations

from typing import NamedTuple

from ...locks import RLock
from ..driver import OUT_OF_MEMORY, STICKY, UNKNOWN


class Error(NamedTuple):
    """What the driver says of a call that fails; TensorRT says nothing but that one did."""

    code: int
    name: str


ANY_ERROR = Error(UNKNOWN, "CUDA_ERROR_UNKNOWN")
#: Only of calls that need memory, which alone are counted then.
NO_MEMORY = Error(OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY")
#: Sticky: every later call fails with it too, and what was enqueued never runs.
BROKEN_CONTEXT = Error(700, "CUDA_ERROR_ILLEGAL_ADDRESS")

#: The calls that need memory, of the device or of the host.
_ALLOCATING = frozenset(
    {
        "cuDevicePrimaryCtxRetain",
        "cuEventCreate",
        "cuGraphInstantiate",
        "cuMemAlloc",
        "cuMemHostAlloc",
        "cuStreamCreateWithPriority",
    }
)


class Faults:
    """What shall go wrong, and what has been called so far.

    Parameters
    ----------
    fail_call : int, optional
        Fail the platform call of this number, counting from 1.
    persistent : bool
        Fail every call from that one on, not it alone.
    error : Error
        What the driver says then. `NO_MEMORY` counts the calls that need memory only, and
        `BROKEN_CONTEXT` is persistent.
    device_memory, pinned_memory : int, optional
        Bytes that can be allocated at once before `OutOfMemoryError`.

    Attributes
    ----------
    count : int
        The calls so far that count.
    failed : list of str
        Those of them that failed.
    """

    def __init__(
        self,
        fail_call: int | None = None,
        *,
        persistent: bool = False,
        error: Error = ANY_ERROR,
        device_memory: int | None = None,
        pinned_memory: int | None = None,
    ) -> None:
        self.fail_call = fail_call
        self.error = error
        self.persistent = persistent or error.code in STICKY
        self.device_memory = device_memory
        self.pinned_memory = pinned_memory
        self.count = 0
        self.failed: list[str] = []
        self._lock = RLock()  # a finaliser's call may come in between

    @property
    def broken(self) -> bool:
        """Whether the GPU context is broken for good."""
        return self.error.code in STICKY and bool(self.failed)

    def fails(self, call: str) -> bool:
        """Count one platform call; whether it must fail."""
        if self.error is NO_MEMORY and call not in _ALLOCATING:
            return False
        with self._lock:
            self.count += 1
            if self.fail_call is None or self.count < self.fail_call:
                return False
            if self.count > self.fail_call and not self.persistent:
                return False
            self.failed.append(call)
            return True
