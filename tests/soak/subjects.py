"""What is asked over and over, and the one answer to each question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from trt_runtime import Device, DeviceBuffer, Engine, Profile, Session

from ..conftest import plan_of
from ..models import (
    Case,
    Feed,
    assert_matches,
    dynamic,
    half_dynamic,
    make_model,
    nonzero,
    reshape,
    rng,
    several,
    static,
)

#: Variants of each of a case's inputs, so that a result which is another's is noticed.
VARIANTS = 3


class Broken(AssertionError):
    """A promise that did not hold."""


@cache
def large() -> Case:
    """Results that are lent, not copied, and inputs of 36 KB to 288 KB: staged, and not staged."""
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", "w"])},
        {"y": (TensorProto.FLOAT, ["n", "w"])},
    )
    feeds = tuple({"x": rng(n).standard_normal((n, 9000)).astype(np.float32)} for n in (1, 2, 1, 8))
    return Case("soak_large", model, feeds, (Profile({"x": ((1, 1), (2, 9000), (8, 9000))}),))


@dataclass(frozen=True, eq=False)
class Question:
    """An input, and the bits of the first answer to it."""

    feed: Feed
    answer: Mapping[str, tuple[tuple[int, ...], np.dtype[Any], bytes]]

    def check(self, results: Mapping[str, Any]) -> None:
        """Raise `Broken` unless these are the first answer's bits."""
        if len(results) != len(self.answer):
            raise Broken(f"outputs {sorted(results)} in place of {sorted(self.answer)}")
        for name, (shape, dtype, content) in self.answer.items():
            array = results[name]
            if array.shape != shape or array.dtype != dtype or array.tobytes() != content:
                raise Broken(
                    f"{name}, {array.dtype}{array.shape}, is not what the same input gave first"
                )


@dataclass(frozen=True, eq=False)
class Subject:
    """A case, its plan, and questions with their answers.

    ``settling`` are inputs that bring any session of it into one and the same state: as many shapes
    as a session keeps memory for, of which none lends results, or all shapes that there are.
    """

    case: Case
    plan: bytes
    contexts: int
    common: tuple[Question, ...]
    rare: tuple[Question, ...]
    settling: tuple[Question, ...]

    @property
    def name(self) -> str:
        return self.case.name


@dataclass(frozen=True, eq=False)
class Seat:
    """An open session of a subject, and an input in device memory that it must refuse."""

    subject: Subject
    session: Session
    misfit: DeviceBuffer

    def settle(self) -> None:
        """Bring the session into the state that its samples are compared in.

        What it keeps depends on how threads happened to run: which shapes, graphs, idle blocks.
        """
        session = self.session
        with session._record as opened:
            every_track = 2 * opened.pipeline.capacity
        for question in self.subject.settling:
            for results in session.infer_many([question.feed] * every_track):
                question.check(results)
        with session._record as opened:
            for slot in opened.pipeline.slots:
                with session._primary.current(), slot.at_rest():
                    pass
            with opened.pipeline.device_pool._record as shelf:
                shelf.clear()


def _varied(feeds: Iterable[Feed]) -> Iterator[Feed]:
    for feed in feeds:
        for number in range(VARIANTS):
            yield {
                name: array * array.dtype.type(number + 1) if array.dtype.kind == "f" else array
                for name, array in feed.items()
            }


def _by_shape(feeds: Iterable[Feed]) -> tuple[Feed, ...]:
    """One for each combination of shapes and of integers, which may be shapes."""
    found = {}
    for feed in feeds:
        key = tuple(a.shape if a.dtype.kind == "f" else a.tobytes() for a in feed.values())
        found[key] = feed
    return tuple(found.values())


def _images(batches: Iterable[int]) -> tuple[Feed, ...]:
    draw = rng(99)
    return tuple({"x": draw.standard_normal((n, 3, 8, 8)).astype(np.float32)} for n in batches)


#: Cases, contexts, inputs that come seldom, and what settles; None is the case's own shapes.
_CHOSEN: tuple[tuple[Callable[[], Case], int, tuple[Feed, ...], tuple[Feed, ...] | None], ...] = (
    (static, 1, (), None),
    # More shapes than a session keeps memory for.
    (dynamic, 3, _images((3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)), _images(range(1, 9))),
    (several, 1, (), None),
    (nonzero, 1, (), None),
    (reshape, 3, (), None),
    (half_dynamic, 1, (), None),
    (large, 3, (), tuple({"x": np.ones((n, 8), np.float32)} for n in range(1, 9))),
)


def subjects(device: Device, tell: Callable[[str], None] = print) -> tuple[Subject, ...]:
    """Every case that the device's TensorRT runs, with questions and checked answers."""
    made = []
    for make, contexts, rare, settling in _CHOSEN:
        case = make()
        try:
            plan = plan_of(device, case)
        except pytest.skip.Exception as reason:
            tell(f"without {case.name}: {reason}")
            continue
        case = replace(case, feeds=tuple(_varied(case.feeds)))
        with (
            Engine.load(plan, device=device, trust_host_code=True) as engine,
            Session(engine, graphs=False) as session,
        ):

            def ask(
                feeds: Iterable[Feed], session: Session = session, case: Case = case
            ) -> tuple[Question, ...]:
                return tuple(_answered(session, case, feed) for feed in feeds)

            made.append(
                Subject(
                    case,
                    plan,
                    contexts,
                    ask(case.feeds),
                    ask(rare),
                    ask(_by_shape(case.feeds) if settling is None else settling),
                )
            )
    return tuple(made)


def _answered(session: Session, case: Case, feed: Feed) -> Question:
    answer = session.infer(feed)
    assert_matches(answer, case.expected(feed), case.tolerance)
    return Question(feed, {n: (a.shape, a.dtype, a.tobytes()) for n, a in answer.items()})


@contextmanager
def seated(subject: Subject, device: Device) -> Iterator[Seat]:
    """An open session of the subject."""
    shape = next(iter(subject.common[0].feed.values())).shape
    with (
        Session(
            subject.plan, device=device, contexts=subject.contexts, trust_host_code=True
        ) as session,
        DeviceBuffer(shape, np.uint8, device=device) as misfit,
    ):
        yield Seat(subject, session, misfit)
