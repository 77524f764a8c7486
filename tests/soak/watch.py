"""What the process holds, taken now and then, and whether it grew.

A sample is taken when nothing is under way. `Meter` counts what was asked of a driver and not given
back, on a GPU as on the host device; the rest is what the system, Python and the device tell.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from trt_runtime import Device
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.driver import Driver

#: Calls that make something, those that give it back, and what that is.
_PAIRS = (
    ("mem_alloc", "mem_free", "device memory"),
    ("mem_host_alloc", "mem_host_free", "page-locked memory"),
    ("stream_create", "stream_destroy", "streams"),
    ("event_create", "event_destroy", "events"),
    ("stream_end_capture", "graph_destroy", "graphs"),
    ("graph_instantiate", "graph_exec_destroy", "executable graphs"),
)


class Meter:
    """What a driver has given and not got back: handles of each kind, and the bytes of memory."""

    def __init__(self) -> None:
        self._open: dict[str, dict[int, int]] = {kind: {} for _, _, kind in _PAIRS}

    def nbytes(self, kind: str) -> int:
        return sum(self._open[kind].copy().values())

    @property
    def handles(self) -> Counter[str]:
        return Counter({kind: len(handles) for kind, handles in self._open.items()})

    @contextmanager
    def on(self, driver: Driver) -> Iterator[Meter]:
        """Count the driver's calls meanwhile."""
        names = [name for make, destroy, _ in _PAIRS for name in (make, destroy)]
        try:
            for make, destroy, kind in _PAIRS:
                given, sized = self._open[kind], kind.endswith("memory")
                setattr(driver, make, _counting(getattr(driver, make), given, sized))
                setattr(driver, destroy, _uncounting(getattr(driver, destroy), given))
            yield self
        finally:
            for name in names:
                vars(driver).pop(name, None)


def _counting(make: Callable[..., int], given: dict[int, int], sized: bool) -> Callable[..., int]:
    def made(*arguments: Any, **named: Any) -> int:
        handle = make(*arguments, **named)
        if handle:
            given[handle] = arguments[0] if sized else 0
        return handle

    return made


def _uncounting(destroy: Callable[[int], None], given: dict[int, int]) -> Callable[[int], None]:
    def destroyed(handle: int) -> None:
        nbytes = given.pop(handle, 0)  # before another thread is given the same one
        try:
            destroy(handle)
        except BaseException:
            given[handle] = nbytes
            raise

    return destroyed


@dataclass(frozen=True)
class Promise:
    """How far a quantity may grow: ``most`` in all, and ``each`` for an inference or a cycle."""

    most: int = 0
    each: float = 0.0

    def allowed(self, done: int) -> float:
        return self.most + self.each * done


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held after so many inferences or cycles."""

    done: int
    seconds: float
    held: Mapping[str, int]


@dataclass(frozen=True)
class Growth:
    """A quantity's samples in short, how far it grew from the first third to the last, and how far
    it may."""

    first: int
    least: int
    most: int
    last: int
    grown: float
    allowed: float

    @property
    def kept(self) -> bool:
        return self.grown <= self.allowed


class Watch:
    """Samples of one part of a run."""

    def __init__(self, device: Device, meter: Meter) -> None:
        self._device = device
        self._meter = meter
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def look(self, done: int) -> Sample:
        """Take a sample; nothing may be under way."""
        gc.collect()
        gc.collect()  # what finalisers left of the first
        if isinstance(self._device.platform, HostPlatform):
            # Freed blocks of whatever sizes came last: megabytes of difference between samples.
            self._device.platform.host_driver._quarantine.clear()
        _trim()
        now = held(self._device, self._meter)
        now["Python objects"] -= len(self.samples)  # which are objects themselves
        sample = Sample(done, time.monotonic() - self._began, now)
        self.samples.append(sample)
        return sample

    def growth(self, promises: Mapping[str, Promise]) -> dict[str, Growth]:
        """How each quantity developed; nothing if there are not two samples to compare."""
        if len(self.samples) < 2:
            return {}
        done = self.samples[-1].done - self.samples[0].done
        told = {}
        for name, promise in promises.items():
            if name not in self.samples[0].held:
                continue
            values = [sample.held[name] for sample in self.samples]
            if promise.each:
                grown = _slope([(s.done, s.held[name]) for s in self.samples]) * done
            else:
                third = max(1, len(values) // 3)
                grown = min(values[-third:]) - max(values[:third])
            told[name] = Growth(
                values[0], min(values), max(values), values[-1], grown, promise.allowed(done)
            )
        return told


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """The median of the slopes between all pairs, which outliers do not move (Theil and Sen)."""
    return median(
        [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]] or [0]
    )


def held(device: Device, meter: Meter) -> dict[str, int]:
    """Everything that a leak could make more, as far as this system tells."""
    free, total = device.memory_info()
    now = {
        "device bytes used": total - free,
        "device bytes allocated": meter.nbytes("device memory"),
        "page-locked bytes": meter.nbytes("page-locked memory"),
        "driver handles": sum(meter.handles.values()),
        "Python objects": len(gc.get_objects()),
        "threads": threading.active_count(),
    }
    if isinstance(device.platform, HostPlatform):
        now["ledger entries"] = len(device.platform.host_driver.ledger.entries)
    if (in_use := _in_use()) is not None:
        now["malloc bytes in use"] = in_use
    if (own := Path("/proc/self")).exists():
        now["resident bytes"] = int((own / "statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
        now["threads"] = _tasks(own / "task")
        now["descriptors"] = len(os.listdir(own / "fd"))
    return now


#: Of glibc's ``malloc.h``.
_M_TRIM_THRESHOLD = -1


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _in_use() -> int | None:
    """Bytes that were allocated and not freed, which is less noisy than what is resident.

    What threads keep for themselves of freed memory (up to 7 pieces of each size) counts as in use.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _MallocInfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def _trim() -> None:
    """Let the C library give back what it keeps of freed memory, where it can be told to."""
    with suppress(AttributeError, OSError, TypeError):  # glibc's; elsewhere samples are coarser
        ctypes.CDLL(None).malloc_trim(0)


def trim_early() -> None:
    """Let the C library give back the ends of threads' heaps, which `_trim` does not reach.

    glibc keeps ends of up to twice the largest block that was ever mapped and freed: after other
    tests each thread's heap stays as large as it ever was. For the rest of the process.
    """
    with suppress(AttributeError, OSError, TypeError):  # glibc's, as above
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 128 << 10)  # what glibc begins with


def _tasks(folder: Path) -> int:
    """Threads of the system's: one that was joined may take a moment to go."""
    least = len(os.listdir(folder))
    for _ in range(10):
        time.sleep(0.005)
        least = min(least, len(os.listdir(folder)))
    return least
