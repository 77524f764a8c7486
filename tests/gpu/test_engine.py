"""`Engine.inspect`, `refit` and `check` with a real TensorRT.

Under a runtime without a builder they are asked of the version-compatible plans that a run with one
left behind: engines of another release, which must not be asked what theirs did not know.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import (
    BindingSet,
    BuildConfig,
    BusyError,
    CudaGraph,
    Device,
    Engine,
    EngineError,
    RefitError,
    Session,
    Stream,
    UnsupportedError,
)

from ..conftest import open_engine, plan_of
from ..models import Feed, assert_matches, light, make_model, reference, rng, static

pytestmark = pytest.mark.gpu


def network(seed: int) -> onnx.ModelProto:
    """Two convolutions with biases; every weight is random and has a name."""
    draw = rng(seed)
    return make_model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="first"),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["y"], pads=[1, 1, 1, 1], name="second"),
        ],
        {"x": (TensorProto.FLOAT, [1, 3, 16, 16])},
        {"y": (TensorProto.FLOAT, [1, 8, 16, 16])},
        {
            "w1": draw.standard_normal((8, 3, 3, 3)).astype(np.float32),
            "b1": draw.standard_normal(8).astype(np.float32),
            "w2": draw.standard_normal((8, 8, 3, 3)).astype(np.float32),
            "b2": draw.standard_normal(8).astype(np.float32),
        },
    )


FEED: Feed = {"x": rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}


def config(device: Device, **options: object) -> BuildConfig:
    typed = device.platform.tensorrt().flavour.typed_only
    chosen = {"precision": "as-typed" if typed else "fp32", "optimization_level": 0, **options}
    return BuildConfig(**chosen)  # type: ignore[arg-type]


def infer(engine: Engine) -> Feed:
    with Session(engine) as session:
        return session.infer(FEED)


# Inspection -------------------------------------------------------------------------------------


def test_a_detailed_engine_tells_its_layers(builder: Device) -> None:
    with Engine.build(network(1), config(builder, verbosity="detailed"), device=builder) as engine:
        told = engine.inspect()
    print(told, told.raw_layers, sep="\n")
    assert told.verbosity == "detailed"
    assert told.layers
    assert told.layer_count is not None
    assert any(layer.type for layer in told.layers)
    assert {"x", "y"} <= {t.name for layer in told.layers for t in (*layer.inputs, *layer.outputs)}
    assert told.memory.scratch is not None
    assert told.refittable is False
    assert told.built_by is not None
    assert told.built_by.split(".")[:2] == told.tensorrt_version.split(".")[:2]
    assert json.loads(json.dumps(told.to_json())) == told.to_json()


def test_an_engine_tells_the_names_of_its_layers_by_default(builder: Device) -> None:
    with Engine.build(network(1), config(builder), device=builder) as engine:
        told = engine.inspect()
    print(told, told.raw_layers, sep="\n")
    assert told.verbosity == "names"
    assert told.layers
    assert all(layer.name for layer in told.layers)
    assert not any(layer.type for layer in told.layers)


def test_an_engine_without_verbosity_tells_why_it_tells_no_layers(builder: Device) -> None:
    with Engine.build(network(1), config(builder, verbosity="none"), device=builder) as engine:
        told = engine.inspect()
    assert told.verbosity == "none"
    assert told.layers == ()
    assert told.untold["layers"]


def test_every_engine_can_be_inspected_whoever_built_it(gpu: Device) -> None:
    """One of 8.6 under the lean runtime of 10 must not take the process down."""
    with open_engine(gpu, static()) as engine:
        told = engine.inspect()
        with Session(engine) as session:
            (feed,) = static().feeds
            want = reference(static().model, feed)
            assert_matches(session.infer(feed), want, static().tolerance)
            assert engine.inspect().tensors == told.tensors
    print(told)
    assert told.built_by is not None
    if told.built_by.split(".")[:2] != told.tensorrt_version.split(".")[:2]:
        assert told.layers == ()
        assert told.memory.scratch is None
        assert "crashes the process" in told.untold["layers"]
    else:
        assert told.layer_count is not None


def test_a_network_of_many_layers_is_inspected(builder: Device) -> None:
    case, _ = light("squeezenet")
    with Engine.build(case.model, config(builder, verbosity="detailed"), device=builder) as engine:
        told = engine.inspect()
    print(told)
    assert len(told.layers) >= 10


# Refitting --------------------------------------------------------------------------------------


def test_a_refit_gives_the_results_of_the_new_model(builder: Device) -> None:
    with Engine.build(network(1), config(builder, refittable=True), device=builder) as engine:
        assert engine.inspect().refittable
        assert_matches(infer(engine), reference(network(1), FEED), 1e-3)
        for seed in (2, 3, 1):
            engine.refit(network(seed))
            assert_matches(infer(engine), reference(network(seed), FEED), 1e-3)
        plan = engine.serialize()
    with Engine.load(plan, device=builder) as loaded:
        assert_matches(infer(loaded), reference(network(1), FEED), 1e-3)


def test_what_is_saved_after_a_refit_has_the_new_weights(builder: Device) -> None:
    with Engine.build(network(1), config(builder, refittable=True), device=builder) as engine:
        engine.refit(network(2))
        plan = engine.serialize()
    with Engine.load(plan, device=builder) as loaded:
        assert_matches(infer(loaded), reference(network(2), FEED), 1e-3)
        loaded.refit(network(3))
        assert_matches(infer(loaded), reference(network(3), FEED), 1e-3)


def test_contexts_survive_a_refit_from_tensorrt_10_on(builder: Device) -> None:
    with (
        Engine.build(network(1), config(builder, refittable=True), device=builder) as engine,
        Session(engine) as session,
        engine.create_execution_context() as context,
        Stream(builder) as stream,
        BindingSet(context) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):
        for _ in range(4):
            session.infer(FEED)
        if builder.platform.tensorrt().flavour.generation < 10:
            with pytest.raises(BusyError, match="demands new ones"):
                engine.refit(network(2))
            assert_matches(session.infer(FEED), reference(network(1), FEED), 1e-3)
            return
        engine.refit(network(2))
        assert graph.closed
        for _ in range(4):
            assert_matches(session.infer(FEED), reference(network(2), FEED), 1e-3)
        bindings["x"].host[...] = FEED["x"]
        want = reference(network(2), FEED)
        assert_matches(context.execute(bindings, stream), want, 1e-3)


def test_weights_that_do_not_fit_are_named_and_nothing_is_changed(builder: Device) -> None:
    wrong = network(2)
    for tensor in wrong.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = numpy_helper.to_array(tensor)[:4]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    wrong.graph.output[0].type.tensor_type.shape.dim[1].Clear()
    with Engine.build(network(1), config(builder, refittable=True), device=builder) as engine:
        # 8.6 does not tell how many values it has, and refuses while it changes them (measured).
        untold = builder.platform.tensorrt().flavour.generation < 10
        with pytest.raises(EngineError if untold else RefitError) as caught:
            engine.refit(wrong)
        print(caught.value)
        if untold:
            with pytest.raises(EngineError, match="refit"):
                infer(engine)
            engine.refit(network(1))
        assert_matches(infer(engine), reference(network(1), FEED), 1e-3)


def test_an_engine_that_is_not_refittable_says_so(builder: Device) -> None:
    with Engine.build(network(1), config(builder), device=builder) as engine:
        with pytest.raises(RefitError, match="refittable=True"):
            engine.refit(network(2))
        assert_matches(infer(engine), reference(network(1), FEED), 1e-3)


def test_an_engine_of_another_release_is_not_refitted(gpu: Device) -> None:
    with open_engine(gpu, static()) as engine:
        told = engine.inspect()
        if told.refittable is not None:
            pytest.skip("the plan is of this release")
        with pytest.raises(UnsupportedError, match="another release"):
            engine.refit(static().model)
        with pytest.raises(UnsupportedError, match="another release"):
            engine.weight_streaming_budget = 0


def test_refits_leave_the_memory_as_it_was(builder: Device) -> None:
    with Engine.build(network(1), config(builder, refittable=True), device=builder) as engine:
        for seed in range(5):
            engine.refit(network(seed))
            infer(engine)
        start, _ = builder.memory_info()
        for seed in range(20):
            engine.refit(network(seed))
            infer(engine)
        end, _ = builder.memory_info()
    print(f"free device memory before and after 20 refits: {start} and {end} bytes")
    assert end == start


def test_tensorrt_8_has_no_weight_streaming(builder: Device) -> None:
    with Engine.build(network(1), config(builder), device=builder) as engine:
        if builder.platform.tensorrt().flavour.generation >= 10:
            assert engine.streamable_weights_bytes == 0
            return
        with pytest.raises(UnsupportedError, match="TensorRT 10 or later"):
            engine.weight_streaming_budget  # noqa: B018


# Whether a plan can be used ---------------------------------------------------------------------


def test_a_plan_is_checked_by_loading_it(gpu: Device) -> None:
    plan = plan_of(gpu, static())
    checked = Engine.check(plan, device=gpu, trust_host_code=True)
    print(checked)
    assert checked.verdict == "valid"
    for spoiled in (b"not a plan", plan[: len(plan) // 2]):
        refused = Engine.check(spoiled, device=gpu, trust_host_code=True)
        print(refused)
        assert not refused.usable
        assert refused.reasons
