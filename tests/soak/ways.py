"""Every way to an inference, in bouts: each result is checked, and some are kept for a while.

`WAYS` are functions of a seat, what a thread has in hand, and how many inferences to ask for.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from random import Random
from typing import Any

import numpy as np

from trt_runtime import DeviceArray, DtypeError, InputError, ShapeError, TrtRuntimeError
from trt_runtime.futures import InferenceFuture

from .subjects import Broken, Question, Seat

#: Inferences asked for at once, at most.
LONGEST_BOUT = 32
#: Results that a thread keeps, at most; of each kind.
KEPT = 6
#: Futures that a thread has open, at most.
OPEN_FUTURES = 8
#: How seldom something rare happens: a shape that is not among the usual ones.
RARE = 0.02
#: How seldom a thread collects garbage, in bouts.
COLLECTIONS = 0.005


class Hand:
    """What one thread has in hand: its chance, the results that it keeps, and what it counted."""

    def __init__(self, seed: int | str) -> None:
        self.chance = Random(seed)
        self.way = ""
        #: Results of each way.
        self.counts: Counter[str] = Counter()
        #: What else happened.
        self.others: Counter[str] = Counter()
        self._kept: deque[tuple[dict[str, Any], Question]] = deque()
        self._on_device: deque[tuple[dict[str, DeviceArray], Question]] = deque()

    def question(self, seat: Seat) -> Question:
        subject = seat.subject
        if subject.rare and self.chance.random() < RARE:
            return self.chance.choice(subject.rare)
        return self.chance.choice(subject.common)

    def questions(self, seat: Seat, count: int) -> list[Question]:
        return [self.question(seat) for _ in range(count)]

    def take(self, results: dict[str, Any], question: Question) -> None:
        """Check a result, and keep it perhaps: it must be the same when it is dropped."""
        question.check(results)
        self.counts[self.way] += 1
        if self.chance.random() < 0.1:
            self._kept.append((results, question))
            if len(self._kept) > self.chance.randrange(KEPT):
                kept, its = self._kept.popleft()
                its.check(kept)

    def take_from_device(self, results: dict[str, DeviceArray], question: Question) -> None:
        """As `take`, of results in device memory."""
        question.check(self._read(results))
        self.counts[self.way] += 1
        luck = self.chance.random()
        if luck < 0.2:
            self._on_device.append((results, question))
            if len(self._on_device) > self.chance.randrange(KEPT):
                kept, its = self._on_device.popleft()
                its.check(self._read(kept))
        elif luck < 0.5:
            for array in results.values():
                array.close()

    def _read(self, results: dict[str, DeviceArray]) -> dict[str, Any]:
        # NumPy looks into memory of the CPU, such as the host device's, and no other.
        shared = self.chance.random() < 0.5
        return {
            name: np.from_dlpack(array)
            if shared and array.device.kind == "host" and array.dtype.kind in "fiu" and array.nbytes
            else array.copy_to_host()
            for name, array in results.items()
        }

    def drop(self) -> None:
        """Check what is kept for the last time, and let it go."""
        while self._kept:
            kept, question = self._kept.popleft()
            question.check(kept)
        while self._on_device:
            on_device, question = self._on_device.popleft()
            question.check(self._read(on_device))


Way = Callable[[Seat, Hand, int], None]


# One at a time ----------------------------------------------------------------------------------


def infer(seat: Seat, hand: Hand, count: int) -> None:
    for question in hand.questions(seat, count):
        form, feed = hand.chance.randrange(3), question.feed
        if form == 0:
            results = seat.session.infer(feed)
        elif form == 1:
            results = seat.session.infer(**feed)
        else:  # another layout, which the session takes as it is
            spread = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in feed.items()}
            results = seat.session.infer(spread)
        hand.take(results, question)


def into_buffers(seat: Seat, hand: Hand, count: int) -> None:
    """Through page-locked inputs, of which new ones are made for every shape."""
    buffers: dict[object, dict[str, Any]] = {}
    dynamic = {spec.name for spec in seat.session.inputs if spec.is_dynamic}
    for question in hand.questions(seat, count):
        shapes = {n: a.shape for n, a in question.feed.items() if n in dynamic}
        key = tuple(shapes.values())
        if key not in buffers:
            buffers[key] = seat.session.input_buffers(shapes)
        for name, array in question.feed.items():
            buffers[key][name][...] = array
        hand.take(seat.session.infer(buffers[key]), question)


def into_outputs(seat: Seat, hand: Hand, count: int) -> None:
    """Results written into the caller's arrays, of any layout; some into new ones."""
    for question in hand.questions(seat, count):
        targets = {
            name: np.empty(shape, dtype, order=hand.chance.choice("CF"))
            for name, (shape, dtype, _) in question.answer.items()
            if hand.chance.random() < 0.8
        }
        results = seat.session.infer(question.feed, outputs=targets)
        for name, target in targets.items():
            if results[name] is not target:
                raise Broken(f"{name} was not written where it was wanted")
        hand.take(results, question)


def on_device(seat: Seat, hand: Hand, count: int) -> None:
    for question in hand.questions(seat, count):
        hand.take_from_device(seat.session.infer(question.feed, outputs="device"), question)


def through_device(seat: Seat, hand: Hand, count: int) -> None:
    """A result in device memory is the next inference's input: the largest subject's alone fits."""
    if seat.subject.name != "soak_large":
        on_device(seat, hand, count)
        return
    for question in hand.questions(seat, count):
        first = seat.session.infer(question.feed, outputs="device")["y"]
        if hand.chance.random() < 0.5:
            hand.take(seat.session.infer(first), question)  # relu(relu(x)) is relu(x)
        else:
            hand.take_from_device(seat.session.infer(x=first, outputs="device"), question)


# Several at a time ------------------------------------------------------------------------------


def asynchronous(seat: Seat, hand: Hand, count: int) -> None:
    """Futures that a thread waits for, of which some are cancelled."""
    pending: deque[tuple[InferenceFuture, Question]] = deque()
    for question in hand.questions(seat, count):
        future = seat.session.infer_async(question.feed)
        if hand.chance.random() < 0.1 and future.cancel():
            hand.others["cancelled"] += 1
            continue
        pending.append((future, question))
        del future
        while len(pending) > hand.chance.randrange(OPEN_FUTURES):
            _land(pending, hand)
    while pending:
        _land(pending, hand)


def _land(pending: deque[tuple[InferenceFuture, Question]], hand: Hand) -> None:
    future, question = pending.popleft()
    hand.take(future.result(), question)


def tasks(seat: Seat, hand: Hand, count: int) -> None:
    """Tasks of an event loop, of which some are cancelled."""

    async def one(question: Question) -> None:
        hand.take(await seat.session.infer_async(question.feed), question)

    async def all_of_them() -> None:
        questions = hand.questions(seat, count)
        while questions:
            some = [questions.pop() for _ in range(min(len(questions), OPEN_FUTURES))]
            jobs = [asyncio.ensure_future(one(question)) for question in some]
            if hand.chance.random() < 0.3:
                await asyncio.sleep(0)
                hand.chance.choice(jobs).cancel()
            for ended in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(ended, asyncio.CancelledError):
                    hand.others["cancelled"] += 1
                elif ended is not None:
                    raise ended

    asyncio.run(all_of_them())


def many(seat: Seat, hand: Hand, count: int) -> None:
    """All of them, through arrays that change as soon as the next is asked for."""
    questions = hand.questions(seat, count)
    names = [spec.name for spec in seat.session.inputs]
    arrays: dict[object, Any] = {}

    def items() -> Iterator[Any]:
        for question in questions:
            feed = {}
            for name in names:
                array = question.feed[name]
                feed[name] = arrays.setdefault((name, array.shape), np.empty_like(array))
                feed[name][...] = array
            yield feed if hand.chance.random() < 0.5 else tuple(feed.values())
            for array in feed.values():
                array.fill(0)

    for question, results in zip(questions, seat.session.infer_many(items()), strict=True):
        hand.take(results, question)


def many_on_device(seat: Seat, hand: Hand, count: int) -> None:
    questions = hand.questions(seat, count)
    feeds = (question.feed for question in questions)
    every = zip(questions, seat.session.infer_many(feeds, outputs="device"), strict=True)
    for question, results in every:
        hand.take_from_device(results, question)


class _Left(Exception):
    """Why a loop is left."""


def many_left_early(seat: Seat, hand: Hand, count: int) -> None:
    """Left by a break, a close, an exception on either side, or just forgotten."""
    questions = hand.questions(seat, count + 2)
    after = hand.chance.randrange(count)
    how = hand.chance.choice(("break", "close", "raise", "source", "wrong", "forget"))

    def items() -> Iterator[Any]:
        for number, question in enumerate(questions):
            if number == after and how == "source":
                raise _Left
            yield _misshapen(question) if number == after and how == "wrong" else question.feed

    every = seat.session.infer_many(items())
    if how == "forget":
        for question in questions[: after + 1]:
            hand.take(next(every), question)
        return
    try:
        with closing(every):
            for number, (question, results) in enumerate(zip(questions, every, strict=False)):
                hand.take(results, question)
                if number == after and how == "break":
                    break
                if number == after and how == "close":
                    every.close()
                    break
                if number == after and how == "raise":
                    raise _Left
    except _Left:
        if how not in ("raise", "source"):
            raise
    except ShapeError:
        if how != "wrong":
            raise
    else:
        if how in ("raise", "source", "wrong"):
            raise Broken(f"an infer_many that should end with an exception ({how}) did not")


# Mistakes in between ----------------------------------------------------------------------------


def _misshapen(question: Question) -> dict[str, Any]:
    return {name: array[..., np.newaxis] for name, array in question.feed.items()}


def _refused(call: Callable[[], Any], kind: type[TrtRuntimeError]) -> None:
    try:
        call()
    except kind:
        return
    raise Broken(f"a mistake was let through in place of a {kind.__name__}")


def mistakes(seat: Seat, hand: Hand, count: int) -> None:
    """Each mistake is a typed error, and the next inference is right."""
    session = seat.session
    for question in hand.questions(seat, max(1, count // 2)):
        feed, (name, array) = question.feed, next(iter(question.feed.items()))
        output, (shape, dtype, _) = next(iter(question.answer.items()))
        kind = hand.chance.randrange(8)
        if kind == 0:
            _refused(partial(session.infer, _misshapen(question)), ShapeError)
        elif kind == 1:
            other = {**feed, name: array.astype(np.complex64)}
            _refused(partial(session.infer, other), DtypeError)
        elif kind == 2:
            _refused(partial(session.infer, feed, nobody=1), InputError)
        elif kind == 3:
            target = {output: np.empty((*shape, 1), dtype)}
            _refused(partial(session.infer, feed, outputs=target), ShapeError)
        elif kind == 4:
            target = {output: np.empty(shape, np.complex64)}
            _refused(partial(session.infer, feed, outputs=target), DtypeError)
        elif kind == 5:
            _refused(partial(session.infer_async, _misshapen(question)), ShapeError)
        else:  # noticed when all else has begun
            first = seat.subject.common[0].feed
            mixed = {**first, next(iter(first)): seat.misfit}
            if kind == 6:
                _refused(partial(session.infer, mixed), DtypeError)
            else:
                _refused(lambda mixed=mixed: session.infer_async(mixed).result(), DtypeError)
        hand.others["refused"] += 1
        hand.take(session.infer(feed), question)


WAYS: tuple[Way, ...] = (
    infer,
    infer,
    into_buffers,
    into_outputs,
    on_device,
    through_device,
    asynchronous,
    asynchronous,
    tasks,
    many,
    many,
    many_on_device,
    many_left_early,
    mistakes,
)


def bout(seat: Seat, hand: Hand) -> None:
    """A few inferences in a way that chance takes, and perhaps a collection."""
    way = hand.chance.choice(WAYS)
    hand.way = way.__name__
    way(seat, hand, hand.chance.randint(1, LONGEST_BOUT))
    if hand.chance.random() < COLLECTIONS:
        gc.collect(hand.chance.randrange(3))
        hand.others["collections"] += 1


def every_way(seat: Seat, hand: Hand) -> None:
    """A few inferences in each way."""
    for way in WAYS:
        hand.way = way.__name__
        way(seat, hand, OPEN_FUTURES)
    hand.drop()
