"""Faults on demand: fail the Nth platform call, or run out of memory at a size.

Every driver call and every TensorRT call that can fail counts, so that the whole life cycle can be
run once for each N.
"""

from __future__ import annotations

import threading


class Faults:
    """What shall go wrong, and what has been called so far.

    Parameters
    ----------
    fail_call : int, optional
        Fail the platform call of this number, counting from 1.
    persistent : bool
        Fail every call from that one on, not it alone.
    device_memory, pinned_memory : int, optional
        Bytes that can be allocated at once before `OutOfMemoryError`.
    """

    def __init__(
        self,
        fail_call: int | None = None,
        *,
        persistent: bool = False,
        device_memory: int | None = None,
        pinned_memory: int | None = None,
    ) -> None:
        self.fail_call = fail_call
        self.persistent = persistent
        self.device_memory = device_memory
        self.pinned_memory = pinned_memory
        self.count = 0
        self.failed: list[str] = []
        self._lock = threading.RLock()  # a finaliser's call may come in between

    def fails(self, call: str) -> bool:
        """Count one platform call; whether it must fail."""
        with self._lock:
            self.count += 1
            if self.fail_call is None or self.count < self.fail_call:
                return False
            if self.count > self.fail_call and not self.persistent:
                return False
            self.failed.append(call)
            return True
