"""What is promised for any input, and `keeps`, which tries it: an error of ours or a result.

No other exception, no handle left open, an end within seconds, and no memory out of proportion.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trt_runtime import Device, TrtRuntimeError
from trt_runtime.platform import HostPlatform

from .choices import Choices

#: For one input. What takes as long as this has no end as far as a user can tell.
SECONDS = 10.0

#: Growth of the process's peak by one input, in bytes.
MEMORY = 1 << 30

Target = Callable[[Choices, Path], None]


class BrokenPromise(AssertionError):
    """An input took too long, or too much memory."""


def keeps(target: Target, data: bytes, folder: Path) -> None:
    """Give the input to the target; raises whatever is not promised."""
    began, peak = time.monotonic(), _peak()
    with suppress(TrtRuntimeError):
        target(Choices(data), folder)
    took, grown = time.monotonic() - began, _peak() - peak
    if took > SECONDS:
        raise BrokenPromise(f"one input took {took:.1f} s")
    if grown > MEMORY:
        raise BrokenPromise(f"one input took {grown >> 20} MiB")


@contextmanager
def host() -> Iterator[Device]:
    """A host device of one's own, on which nothing may be left open."""
    platform = HostPlatform()
    try:
        with Device(platform) as device:
            yield device
    except TrtRuntimeError:  # the traceback of another exception holds what it likes
        platform.host_driver.ledger.assert_empty()
        raise
    platform.host_driver.ledger.assert_empty()


def _peak() -> int:
    """The most memory that the process had, in bytes; 0 where only Linux would tell."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
