"""A short soak, and that leaks are noticed; ``python -m tests.soak`` is the long one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trt_runtime import Device, Event, Session

from .course import RESIDENT_NOISE, WHILE_OPEN, Report, soak, told
from .subjects import Broken, Seat
from .watch import Meter, Sample, Watch
from .ways import WAYS, Hand

#: As brief as these are: results that were all lent would depend on what threads hold at once.
pytestmark = pytest.mark.parametrize("copies", ["brief"], indirect=True)


def short(kind: str = "host", **given: Any) -> Report:
    how: dict[str, Any] = {"inferences": 3000, "cycles": 60, "legs": 6, "warm_up_legs": 3, **given}
    return soak(kind, **how)


@pytest.mark.parametrize("kind", ["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_nothing_grows_over_every_way_and_every_cycle(kind: str) -> None:
    report = short(kind)
    print(told(report))
    assert report.broken == []
    inferences, cycles = report.parts
    assert inferences.done >= 3000
    assert cycles.done == 60
    assert inferences.counts.keys() | {"refused"} == {way.__name__ for way in WAYS} | {"refused"}
    assert inferences.others["cancelled"]
    assert inferences.others["refused"]
    assert json.loads(json.dumps(report.to_json()))["parts"][0]["done"] == inferences.done


def _keep_objects(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    return lambda seat, hand: kept.append([hand.way])


def _keep_results(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    def leak(seat: Seat, hand: Hand) -> None:
        kept.append(seat.session.input_buffers({"x": (1, 8)}))

    return lambda seat, hand: leak(seat, hand) if seat.subject.name == "soak_large" else None


def _keep_on_device(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    def leak(seat: Seat, hand: Hand) -> None:
        kept.append(seat.session.infer(seat.subject.common[0].feed, outputs="device"))

    return leak


def _keep_events(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    return lambda seat, hand: kept.append(Event(seat.session.device))


def _keep_a_session_open(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    return lambda seat, hand: kept.append(Session(seat.session.engine))


def _keep_descriptors(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    return lambda seat, hand: kept.append(open("/proc/self/statm"))


def _keep_threads(kept: list[Any]) -> Callable[[Seat, Hand], None]:
    def leak(seat: Seat, hand: Hand) -> None:
        if len(kept) < 200:
            end = threading.Event()
            kept.append(end)
            threading.Thread(target=end.wait, daemon=True).start()

    return leak


@pytest.mark.parametrize(
    ("leaking", "shown"),
    [
        (_keep_objects, "Python objects"),
        (_keep_results, "page-locked bytes"),
        (_keep_on_device, "device bytes allocated"),
        (_keep_events, "driver handles"),
        (_keep_a_session_open, "ledger entries"),
        (_keep_descriptors, "descriptors"),
        (_keep_threads, "threads"),
    ],
)
def test_what_is_not_given_back_is_noticed(
    leaking: Callable[[list[Any]], Callable[[Seat, Hand], None]], shown: str
) -> None:
    kept: list[Any] = []
    try:
        report = short(inferences=1500, cycles=0, leak=leaking(kept))
    finally:
        for thing in kept:
            if isinstance(thing, threading.Event):
                thing.set()
            elif hasattr(thing, "close"):
                thing.close()
        kept.clear()
    assert any(text.startswith(f"inferences: {shown} grew") for text in report.broken), (
        report.broken
    )


def test_a_result_that_is_another_inputs_is_noticed() -> None:
    def mistake(seat: Seat, hand: Hand) -> None:
        one, other = seat.subject.common[0], seat.subject.common[1]
        hand.take(seat.session.infer(one.feed), replace(one, answer=other.answer))

    report = short(leak=mistake)
    assert any(Broken.__name__ in text for text in report.broken), report.broken


@pytest.mark.parametrize(("each", "kept"), [(0, True), (20, False)])
def test_resident_bytes_may_go_up_and_down_but_not_up_and_up(
    each: int, kept: bool, host: Device
) -> None:
    watch = Watch(host, Meter())
    for number in range(21):
        noise = (number * 7 % 5) * RESIDENT_NOISE // 4
        held = {"resident bytes": (100 << 20) + noise + each * number * 50_000}
        watch.samples.append(Sample(number * 50_000, 0.0, held))
    assert watch.growth(WHILE_OPEN)["resident bytes"].kept is kept
