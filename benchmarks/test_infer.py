"""One inference at a time: `Session.infer` beside loops by hand and Polygraphy, on one engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trt_runtime import BindingSet, CudaGraph, Stream

from .conftest import Subject
from .raw import back_to_back
from .summarize import FLOOR

pytestmark = pytest.mark.benchmark(group="latency")
Measure = Callable[..., Any]


def test_floor(measure: Measure, subject: Subject) -> None:
    """F: one graph of copy in, compute and copy out on pinned memory, then a synchronisation."""
    measure(FLOOR, subject.lane.floor)
    subject.check(subject.lane.results())


def test_compute_alone(measure: Measure, subject: Subject) -> None:
    measure("raw graph of compute alone", back_to_back, subject.lane, 1)
    subject.check(subject.lane.copies(subject.image))


def test_raw_pinned(measure: Measure, subject: Subject) -> None:
    measure("raw pinned loop, no graph", subject.lane.pinned)
    subject.check(subject.lane.results())


def test_raw_pinned_with_host_copies(measure: Measure, subject: Subject) -> None:
    way = "raw pinned loop, copies on the host"
    subject.check(measure(way, subject.lane.copies, subject.image))


def test_raw_pageable(measure: Measure, subject: Subject) -> None:
    subject.check(measure("raw pageable loop", subject.lane.pageable_loop, subject.image))


def test_sample_loop(measure: Measure, subject: Subject) -> None:
    flat = measure("NVIDIA's sample loop", subject.lane.sample, subject.image)
    names = [tensor.name for tensor in subject.lane.outputs]
    subject.check(dict(zip(names, flat, strict=True)))


@pytest.mark.parametrize("checks", [True, False], ids=["checked", "unchecked"])
def test_polygraphy(measure: Measure, subject: Subject, polygraphy: Any, checks: bool) -> None:
    way = "Polygraphy" if checks else "Polygraphy, input checks off"
    feed = {subject.input: subject.image}
    subject.check(measure(way, lambda: polygraphy.infer(feed, check_inputs=checks)))


def test_graph_launch(measure: Measure, subject: Subject) -> None:
    """`CudaGraph.launch` and a synchronisation: no staging, no results of one's own."""
    engine = subject.engine
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context, subject.shapes) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):
        bindings[subject.input].host[...] = subject.image

        def call() -> None:
            graph.launch(stream)
            stream.synchronize()

        measure("CudaGraph.launch, synchronize", call)
        subject.check(bindings.outputs())


def test_infer(measure: Measure, subject: Subject) -> None:
    subject.check(measure("infer", subject.session().infer, subject.image))


def test_infer_page_locked(measure: Measure, subject: Subject) -> None:
    way = "infer, input page-locked"
    subject.check(measure(way, subject.session().infer, subject.buffers()[subject.input]))


def test_infer_into_given_arrays(measure: Measure, subject: Subject) -> None:
    targets = {name: np.empty_like(array) for name, array in subject.expected.items()}
    infer = subject.session().infer
    measure("infer, outputs=", lambda: infer(subject.image, outputs=targets))
    subject.check(targets)


def test_infer_without_graphs(measure: Measure, subject: Subject) -> None:
    session = subject.session(graphs=False)
    subject.check(measure("infer, graphs=False", session.infer, subject.image))


def test_infer_async(measure: Measure, subject: Subject) -> None:
    infer_async = subject.session().infer_async
    way = "infer_async, result()"
    subject.check(measure(way, lambda: infer_async(subject.image).result()))
