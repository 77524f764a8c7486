"""`Session.infer` against loops written by hand, on one engine in one run.

python -m pytest benchmarks --benchmark-json=out.json && python benchmarks/summarize.py out.json
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import (
    BindingSet,
    BuildConfig,
    CudaGraph,
    Device,
    Engine,
    NoDeviceError,
    NoTensorRTError,
    Session,
    Stream,
)

ROUNDS = {"warmup_rounds": 50, "rounds": 300, "iterations": 1}


def detector_like() -> onnx.ModelProto:
    """YOLOv3-608's inputs and outputs (4.4 MB in, 7.7 MB out) around a small backbone."""
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    tensor, channels = "images", 3
    for index, (width, stride) in enumerate(((32, 2), (64, 2), (128, 2), (256, 2), (512, 2))):
        w = rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(w.astype(np.float32), f"w{index}"))
        nodes.append(
            helper.make_node(
                "Conv", [tensor, f"w{index}"], [f"c{index}"], pads=[1] * 4, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("LeakyRelu", [f"c{index}"], [f"r{index}"], alpha=0.1))
        tensor, channels = f"r{index}", width
        side = 608 >> (index + 1)
        if side in (76, 38, 19):
            head = rng.standard_normal((255, channels, 1, 1)) / np.sqrt(channels)
            weights.append(numpy_helper.from_array(head.astype(np.float32), f"h{index}"))
            nodes.append(helper.make_node("Conv", [tensor, f"h{index}"], [f"head_{side}"]))
            outputs.append(
                helper.make_tensor_value_info(
                    f"head_{side}", TensorProto.FLOAT, [1, 255, side, side]
                )
            )
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 608, 608])
    graph = helper.make_graph(nodes, "detector_like", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def identity() -> onnx.ModelProto:
    """16 floats in, 16 floats out: what a call costs when there is nothing to do."""
    spec = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in ("images", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["y"])], "identity", spec[:1], spec[1:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Subject(NamedTuple):
    session: Session
    raw: Any
    image: np.ndarray


@pytest.fixture(scope="module", params=[detector_like, identity], ids=lambda make: make.__name__)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    try:
        device = Device("cuda")
    except NoDeviceError as error:
        pytest.skip(f"needs a GPU: {error.message}")
    with device:
        try:
            library = device.platform.tensorrt()
        except NoTensorRTError as error:
            pytest.skip(error.message)
        from .raw import RawEngine

        config = BuildConfig(precision="fp16", optimization_level=2)
        with (
            Engine.build(request.param(), config, device=device) as engine,
            Session(engine) as session,
        ):
            raw = RawEngine(library.module, engine.serialize())
            raw.capture()
            shape = session.inputs[0].shape
            image = np.random.default_rng(0).random(shape, np.float32)
            yield Subject(session, raw, image)


@pytest.mark.benchmark(group="synchronous call")
def test_floor(benchmark: Any, subject: Subject) -> None:
    np.copyto(subject.raw.inputs[0][0], subject.image)
    benchmark.pedantic(subject.raw.floor, **ROUNDS)


@pytest.mark.benchmark(group="synchronous call")
def test_raw_pinned(benchmark: Any, subject: Subject) -> None:
    benchmark.pedantic(subject.raw.pinned, **ROUNDS)


@pytest.mark.benchmark(group="synchronous call")
def test_raw_pinned_with_host_copies(benchmark: Any, subject: Subject) -> None:
    benchmark.pedantic(subject.raw.copies, args=(subject.image,), **ROUNDS)


@pytest.mark.benchmark(group="synchronous call")
def test_raw_pageable(benchmark: Any, subject: Subject) -> None:
    benchmark.pedantic(subject.raw.pageable_loop, args=(subject.image,), **ROUNDS)


@pytest.mark.benchmark(group="synchronous call")
def test_infer(benchmark: Any, subject: Subject) -> None:
    results = benchmark.pedantic(subject.session.infer, args=(subject.image,), **ROUNDS)
    for got, want in zip(results.values(), subject.raw.copies(subject.image), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.benchmark(group="synchronous call")
def test_infer_into_given_arrays(benchmark: Any, subject: Subject) -> None:
    targets = {s.name: np.empty(s.shape, s.dtype) for s in subject.session.outputs}
    run = subject.session.infer
    benchmark.pedantic(run, args=(subject.image,), kwargs={"outputs": targets}, **ROUNDS)


@pytest.mark.benchmark(group="synchronous call")
def test_graph_launch(benchmark: Any, subject: Subject) -> None:
    """`CudaGraph.launch` and a synchronisation: no staging, no results of one's own."""
    engine = subject.session.engine
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):

        def call() -> None:
            graph.launch(stream)
            stream.synchronize()

        benchmark.pedantic(call, **ROUNDS)
