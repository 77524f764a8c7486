"""The run: inferences in legs, then cycles in legs, a sample after each, and what was promised."""

from __future__ import annotations

import gc
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import onnx

import trt_runtime
from trt_runtime import Device, pipeline
from trt_runtime.platform import HostPlatform, Platform, cuda_platform
from trt_runtime.platform.host import ledger

from .cycles import CYCLES, Place, cycle
from .subjects import Seat, Subject, seated, subjects
from .watch import Growth, Meter, Promise, Sample, Watch, trim_early
from .ways import Hand, bout, every_way

#: Threads that infer at once.
THREADS = 4
#: Legs of each part, of which the first are for warming up.
LEGS, WARM_UP_LEGS = 24, 4

#: Resident bytes go up and down by this much with nothing lost: what the C library can give back
#: depends on where threads' allocations lie (measured on the host device: 4 MB between the least
#: and the most of 30 samples of one run). Bytes in use do not, and show smaller losses.
RESIDENT_NOISE = 8 << 20
IN_USE_NOISE = 1 << 20

#: What may grow while sessions are open, or over cycles. What is ours does not at all.
_NOTHING_OF_OURS = {
    "device bytes used": Promise(),
    "device bytes allocated": Promise(),
    "page-locked bytes": Promise(),
    "driver handles": Promise(),
    "ledger entries": Promise(),
    "threads": Promise(),
    "descriptors": Promise(),
    "Python objects": Promise(most=20),  # of the interpreter's; between samples there are 3
}
WHILE_OPEN = {
    **_NOTHING_OF_OURS,
    "malloc bytes in use": Promise(most=IN_USE_NOISE, each=1),
    "resident bytes": Promise(most=RESIDENT_NOISE, each=1),
}
OVER_CYCLES = {
    **_NOTHING_OF_OURS,
    "malloc bytes in use": Promise(most=IN_USE_NOISE, each=1 << 10),
    "resident bytes": Promise(most=RESIDENT_NOISE, each=1 << 10),
}

Alive = Callable[[], None]


@dataclass
class Part:
    """Inferences, or cycles: how many there were, samples, and how what is held developed."""

    name: str
    done: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    growth: dict[str, Growth] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "done": self.done,
            "seconds": self.seconds,
            "counts": dict(self.counts),
            "others": dict(self.others),
            "samples": [asdict(sample) for sample in self.samples],
            "growth": {name: asdict(growth) for name, growth in self.growth.items()},
        }

    def broken(self) -> list[str]:
        if not self.growth:
            return [f"{self.name}: its time was up before there was anything to compare"]
        return [
            f"{self.name}: {name} grew by {growth.grown:.0f}, and may by {growth.allowed:.0f}"
            for name, growth in self.growth.items()
            if not growth.kept
        ]


@dataclass
class Report:
    """Everything that a run has to say."""

    machine: dict[str, Any]
    left_out: list[str]
    parts: list[Part]
    broken: list[str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "parts": [part.to_json() for part in self.parts]}


def soak(
    kind: str,
    *,
    inferences: int,
    cycles: int,
    seconds: float = float("inf"),
    seed: int = 0,
    legs: int = LEGS,
    warm_up_legs: int = WARM_UP_LEGS,
    alive: Alive = lambda: None,
    leak: Callable[[Seat, Hand], None] | None = None,
) -> Report:
    """Run on the device of that kind; ``alive`` is called while there is progress.

    Three quarters of ``seconds`` are for inferences. ``leak`` is done after each bout: to see that
    it is noticed.
    """
    began = time.monotonic()
    deadlines = began + seconds * 0.75, began + seconds
    chosen: Platform = HostPlatform() if kind == "host" else cuda_platform()
    meter = Meter()
    broken: list[str] = []
    left_out: list[str] = []
    parts = [Part("inferences"), Part("cycles")]
    # The largest inputs are so large as not to be staged.
    staged = mock.patch.object(pipeline, "STAGED_BYTES", 8 << 10)
    with staged, meter.on(chosen.driver), Device(chosen) as device:
        machine = _machine(device)
        asked = subjects(device, left_out.append)
        alive()
        place = Place(chosen, device)
        with _settled():
            _warm_up(place, asked, seed, alive)
            empty = Watch(device, meter).look(0)
            steps: Sequence[Callable[[], None]] = (
                lambda: _infer(
                    parts[0],
                    place,
                    asked,
                    Watch(device, meter),
                    _Legs(inferences, legs, warm_up_legs, deadlines[0]),
                    seed,
                    alive,
                    leak,
                ),
                lambda: _open_and_close(
                    parts[1],
                    place,
                    asked,
                    Watch(device, meter),
                    _Legs(cycles, legs, warm_up_legs, deadlines[1]),
                    seed,
                    alive,
                ),
            )
            for part, step in zip(parts, steps, strict=True):
                started = time.monotonic()
                try:
                    step()
                except BaseException as error:
                    if not isinstance(error, Exception):
                        raise
                    broken.append(f"{part.name}: {''.join(traceback.format_exception(error))}")
                    break
                part.seconds = time.monotonic() - started
                broken += part.broken()
                broken += _left_open(part.name, empty, Watch(device, meter).look(0))
        gc.collect()
    broken += [f"at the end: {count} {kind} open" for kind, count in (+meter.handles).items()]
    if isinstance(chosen, HostPlatform):
        try:
            chosen.host_driver.ledger.assert_empty()
        except AssertionError as left:
            broken.append(f"at the end: {left}")
    return Report(machine, left_out, parts, broken, time.monotonic() - began)


#: What may be left when everything is closed but the device. What the GPU's driver keeps of it for
#: itself is not ours; each part's own samples show whether it grows.
_WHEN_CLOSED = ("device bytes allocated", "page-locked bytes", "driver handles", "ledger entries")


def _left_open(part: str, before: Sample, after: Sample) -> list[str]:
    return [
        f"after all {part}: {name} were {before.held[name]} and are {after.held[name]}"
        for name in _WHEN_CLOSED
        if name in before.held and before.held[name] != after.held[name]
    ]


@contextmanager
def _settled() -> Iterator[None]:
    """What lives before is not looked at by the collections meanwhile; freed memory goes back."""
    gc.collect()
    gc.freeze()
    trim_early()
    try:
        yield
    finally:
        gc.unfreeze()


def _warm_up(place: Place, asked: Sequence[Subject], seed: int, alive: Alive) -> None:
    """Every cycle once, and the host device's memory of what was closed filled to its bound."""
    chance = Random(f"warm up {seed}")
    for number in range(len(CYCLES) * len(asked)):
        cycle(place, asked, number, chance)
        alive()
    if isinstance(place.platform, HostPlatform):
        book = place.platform.host_driver.ledger
        for number in range(ledger._TOMBSTONES):
            book.close(book.open("nothing", str(number)), "soak")


@dataclass(frozen=True)
class _Legs:
    """A part's work, in equal shares, until its time is up."""

    total: int
    legs: int
    warm_up: int
    deadline: float

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        """Up to where each leg goes, and whether a sample is taken after it."""
        for leg in range(1, self.legs + 1):
            yield self.total * leg // self.legs, leg >= self.warm_up
            if time.monotonic() > self.deadline:
                return


# Inferences -------------------------------------------------------------------------------------


def _infer(
    part: Part,
    place: Place,
    asked: Sequence[Subject],
    watch: Watch,
    legs: _Legs,
    seed: int,
    alive: Alive,
    leak: Callable[[Seat, Hand], None] | None,
) -> None:
    with ExitStack() as stack:
        seats = [stack.enter_context(seated(subject, place.device)) for subject in asked]
        first = Hand(f"{seed} first")
        for seat in seats:  # so that however short a leg is, nothing begins after it
            every_way(seat, first)
            alive()
        part.counts, part.done = first.counts, sum(first.counts.values())
        part.others = first.others
        for number, (until, sampled) in enumerate(legs):
            leg = _Leg(seats, part.done, until, legs.deadline, leak)
            leg.run([Hand(f"{seed} {number} {thread}") for thread in range(THREADS)], alive)
            part.done = leg.done
            part.counts += leg.counts
            part.others += leg.others
            del leg
            for seat in seats:
                seat.settle()
                alive()
            if sampled:
                watch.look(part.done)
        part.samples = watch.samples
        part.growth = watch.growth(WHILE_OPEN)


class _Leg:
    """Threads that infer in bouts on all sessions, until there are enough results."""

    def __init__(
        self,
        seats: Sequence[Seat],
        done: int,
        until: int,
        deadline: float,
        leak: Callable[[Seat, Hand], None] | None,
    ) -> None:
        self.done = done
        self.counts: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._seats = seats
        self._until = until
        self._deadline = deadline
        self._leak = leak
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    def run(self, hands: Sequence[Hand], alive: Alive) -> None:
        threads = [threading.Thread(target=self._work, args=[hand], daemon=True) for hand in hands]
        for thread in threads:
            thread.start()
        before = -1
        for thread in threads:
            while thread.is_alive():
                thread.join(1.0)
                if self.done != before:
                    before = self.done
                    alive()
        if self._failures:
            raise self._failures[0]

    def _work(self, hand: Hand) -> None:
        seen = 0
        try:
            while (
                self.done < self._until and not self._failures and time.monotonic() < self._deadline
            ):
                seat = hand.chance.choice(self._seats)
                bout(seat, hand)
                if self._leak is not None:
                    self._leak(seat, hand)
                now = sum(hand.counts.values())
                with self._lock:
                    self.done += now - seen
                seen = now
            hand.drop()
        except BaseException as error:
            self._failures.append(error)
        with self._lock:
            self.counts += hand.counts
            self.others += hand.others


# Cycles -----------------------------------------------------------------------------------------


def _open_and_close(
    part: Part,
    place: Place,
    asked: Sequence[Subject],
    watch: Watch,
    legs: _Legs,
    seed: int,
    alive: Alive,
) -> None:
    chance = Random(f"cycles {seed}")
    for until, sampled in legs:
        while part.done < until and time.monotonic() < legs.deadline:
            part.counts += cycle(place, asked, part.done, chance)
            part.done += 1
            if part.done % 20 == 0:
                alive()
        if sampled:
            watch.look(part.done)
    part.samples = watch.samples
    part.growth = watch.growth(OVER_CYCLES)


# What is told -----------------------------------------------------------------------------------


def _machine(device: Device) -> dict[str, Any]:
    driver = device.platform.driver
    return {
        "device": device.name,
        "TensorRT": f"{device.tensorrt_name} {device.tensorrt_version}",
        "driver": driver.driver_version() if device.kind == "cuda" else None,
        "trt_runtime": trt_runtime.__version__,
        "Python": sys.version.split()[0],
        "NumPy": np.__version__,
        "onnx": onnx.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def told(report: Report) -> str:
    """The report as a few tables."""
    lines = [", ".join(f"{name} {value}" for name, value in report.machine.items() if value)]
    lines += report.left_out
    for part in report.parts:
        lines += ["", f"{part.done:,} {part.name} in {part.seconds:.0f} s"]
        lines += _counted(part.counts) + _counted(part.others)
        if part.growth:
            lines.append(f"  {len(part.samples)} samples, from the {part.samples[0].done:,}th on:")
            titles = ("", "first", "least", "most", "last", "grown", "may grow")
            lines.append(f"  {titles[0]:24}" + "".join(f"{title:>17}" for title in titles[1:]))
            for name, growth in part.growth.items():
                values: Mapping[str, float] = asdict(growth)
                row = "".join(f"{round(value):>17,}" for value in values.values())
                lines.append(f"  {name:24}{row}{'' if growth.kept else '  BROKEN'}")
    lines += ["", *(f"BROKEN {text}" for text in report.broken)]
    lines.append(f"{'broken' if report.broken else 'kept'}, after {report.seconds:.0f} s")
    return "\n".join(lines)


def _counted(counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    return ["  " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))]
