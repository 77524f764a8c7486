"""Models converted to 16 bits: valid, close to the original, and float32 where it matters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import InputError, ModelError
from trt_runtime.build.precision import Reduced, quantisation, reduced, with_io_types

from ..models import (
    Case,
    assert_matches,
    dynamic,
    expand,
    fp8,
    int8,
    integers,
    light,
    make_model,
    nonzero,
    reference,
    reshape,
    rng,
    several,
    static,
    varied,
)

FLOAT = TensorProto.FLOAT
ELEMENT = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
#: Of the largest value: eleven and eight bits, and room for sums.
TOLERANCE = {"float16": 1e-2, "bfloat16": 8e-2}


def converted(model: onnx.ModelProto, to: Reduced = "float16", **options: bool) -> Any:
    return onnx.ModelProto.FromString(reduced(model.SerializeToString(), None, to, **options))


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """For onnxruntime, which has no bfloat16 kernels: weights are rounded, and tensors as they are
    cast where the operator set can (13 and later); computed is in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for weight in copy.graph.initializer:
        if weight.data_type == TensorProto.BFLOAT16:
            array = np.frombuffer(weight.raw_data, ml_dtypes.bfloat16).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array.reshape(weight.dims), weight.name))
    can_round = copy.opset_import[0].version >= 13
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and not can_round and node.attribute[0].i == ELEMENT["bfloat16"]:
            node.attribute[0].i = FLOAT
        elif node.op_type == "Cast" and node.attribute[0].i == TensorProto.BFLOAT16:
            rounded = f"{node.output[0]}/rounded"
            (wanted,), node.output[:] = list(node.output), [rounded]
            nodes.append(helper.make_node("Cast", [rounded], [wanted], to=FLOAT))
    kept = list(nodes)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def chain() -> Case:
    """One input read by two unnamed nodes; an output that is read inside as well."""
    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Sigmoid", ["y"], ["z"]),
            helper.make_node("Neg", ["x"], ["w"]),
        ],
        {"x": (FLOAT, [2, 3])},
        {name: (FLOAT, [2, 3]) for name in "yzw"},
    )
    return Case("chain", model, ({"x": rng(1).standard_normal((2, 3)).astype(np.float32)},))


def conditional() -> Case:
    """Branches that read a tensor from outside."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, FLOAT, [2, 3])
        return helper.make_graph([helper.make_node(operator, ["r"], [name])], name, [], [out])

    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node(
                "If", ["c"], ["y"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Exp")
            ),
        ],
        {"x": (FLOAT, [2, 3]), "c": (TensorProto.BOOL, [])},
        {"y": (FLOAT, [2, 3])},
    )
    x = rng(1).standard_normal((2, 3)).astype(np.float32)
    return Case(
        "conditional", model, ({"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)})
    )


def normalised() -> Case:
    """A layer normalisation spelled out, with an epsilon that float16 rounds to zero."""
    model = make_model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1]),
            helper.make_node("Sub", ["x", "mean"], ["d"]),
            helper.make_node("Pow", ["d", "two"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[1]),
            helper.make_node("Add", ["variance", "epsilon"], ["safe"]),
            helper.make_node("Sqrt", ["safe"], ["deviation"]),
            helper.make_node("Div", ["d", "deviation"], ["n"]),
            helper.make_node("MatMul", ["n", "w"], ["y"]),
        ],
        {"x": (FLOAT, [2, 64])},
        {"y": (FLOAT, [2, 8])},
        {
            "two": np.array(2, np.float32),
            "epsilon": np.array(1e-12, np.float32),
            "w": rng(2).standard_normal((64, 8)).astype(np.float32),
        },
    )
    # Squares beyond 65504, and a row that does not vary.
    x = np.stack([rng(3).standard_normal(64) * 400, np.full(64, 3.0)]).astype(np.float32)
    return Case("normalised", model, ({"x": x},))


def upsampled() -> Case:
    """Sizes that are computed from a shape in floating point."""
    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Shape", ["r"], ["shape"]),
            helper.make_node("Cast", ["shape"], ["as_float"], to=FLOAT),
            helper.make_node("Mul", ["as_float", "factors"], ["larger"]),
            helper.make_node("Floor", ["larger"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["sizes"], to=TensorProto.INT64),
            helper.make_node("Resize", ["r", "", "", "sizes"], ["y"], mode="nearest"),
        ],
        {"x": (FLOAT, [1, 1, 1, 2049])},
        {"y": (FLOAT, [1, 1, 1, "w"])},
        {"factors": np.array([1, 1, 1, 2.001], np.float32)},
    )
    return Case("upsampled", model, ({"x": rng(4).standard_normal((1, 1, 1, 2049)).astype("f4")},))


MAKERS: tuple[Callable[[], Case], ...] = (
    static,
    dynamic,
    several,
    nonzero,
    reshape,
    expand,
    integers,
    chain,
    conditional,
    normalised,
    upsampled,
)


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_converted_model_computes_nearly_the_same(make: Any, to: Reduced) -> None:
    case = make()
    model = converted(case.model, to)
    if to == "float16":  # ONNX allows bfloat16 only in later operator sets
        onnx.checker.check_model(model, full_check=True)
    for feed in case.feeds:
        got = reference(runnable(model), feed)
        assert_matches(got, reference(case.model, feed), TOLERANCE[to])


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet", "inception_v1"])
def test_a_classic_network_computes_nearly_the_same(name: str, to: Reduced) -> None:
    case = varied(name)
    model = converted(case.model, to)
    if to == "float16":
        onnx.checker.check_model(model, full_check=True)
    for feed in case.feeds:
        got = reference(runnable(model), feed)
        assert_matches(got, reference(case.model, feed), TOLERANCE[to])
    halves = sum(w.data_type == ELEMENT[to] for w in model.graph.initializer)
    assert halves > 10


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_inputs_and_outputs_change_only_when_asked(to: Reduced) -> None:
    def border(model: onnx.ModelProto) -> set[int]:
        return {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}

    assert border(converted(static().model, to)) == {FLOAT}
    assert border(converted(static().model, to, reduced_io=True)) == {ELEMENT[to]}
    assert border(converted(integers().model, to, reduced_io=True)) == {TensorProto.INT64}


def test_reduced_inputs_and_outputs_compute_nearly_the_same() -> None:
    for case in (static(), chain(), normalised()):
        model = converted(case.model, "float16", reduced_io=True)
        onnx.checker.check_model(model, full_check=True)
        feed = {name: array.astype(np.float16) for name, array in case.feeds[0].items()}
        got = {name: a.astype(np.float32) for name, a in reference(model, feed).items()}
        rounded = {name: array.astype(np.float32) for name, array in feed.items()}
        assert_matches(got, reference(case.model, rounded), TOLERANCE["float16"])


def element_of(model: onnx.ModelProto, tensor: str) -> int:
    """The type in which a node named after its output computes."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values: dict[str, int] = {
        v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info
    }
    return values[tensor]


def test_what_sixteen_bits_would_spoil_stays_in_float32() -> None:
    model = converted(normalised().model)
    for tensor in ("squares", "variance", "safe"):
        assert element_of(model, tensor) == FLOAT, tensor
    assert element_of(model, "n") == TensorProto.FLOAT16


def test_shape_arithmetic_stays_in_float32() -> None:
    model = converted(upsampled().model)
    assert element_of(model, "larger") == FLOAT
    assert element_of(model, "r") == TensorProto.FLOAT16


def test_weights_keep_their_names() -> None:
    names = {w.name for w in static().model.graph.initializer}
    assert {w.name for w in converted(static().model).graph.initializer} == names


def test_values_beyond_the_range_become_its_largest_and_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = np.array([1e6, -1e6, 2.0, np.inf], np.float32)
    model = make_model(
        [helper.make_node("Min", ["x", "w"], ["m"]), helper.make_node("Neg", ["m"], ["y"])],
        {"x": (FLOAT, [4])},
        {"y": (FLOAT, [4])},
        {"w": weights},
    )
    with caplog.at_level(logging.WARNING, "trt_runtime"):
        made = converted(model)
    (stored,) = made.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), [65504, -65504, 2, np.inf])
    assert "2 of 4 values of 'w'" in caplog.text


def test_a_weight_that_both_kinds_of_node_read_exists_in_both_types() -> None:
    model = make_model(
        [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Pow", ["m", "w"], ["y"])],
        {"x": (FLOAT, [2])},
        {"y": (FLOAT, [2])},
        {"w": np.array([2, 3], np.float32)},
    )
    made = converted(model)
    assert {(w.name, w.data_type) for w in made.graph.initializer} == {("w", 1), ("w/float16", 10)}


def test_an_operator_of_a_plugin_keeps_its_types() -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Relu", ["p"], ["y"])],
        {"x": (FLOAT, [2]), "p": (FLOAT, [2])},
        {"y": (FLOAT, [2])},
    )
    model.graph.node.insert(1, helper.make_node("Mine", ["r"], ["p"], domain="my.plugins"))
    del model.graph.input[1]
    made = converted(model)
    mine = next(node for node in made.graph.node if node.op_type == "Mine")
    assert mine.input[0] == "r/float32"
    relu = next(n for n in made.graph.node if n.op_type == "Relu" and n.input[0] == mine.output[0])
    assert relu, "a tensor of unknown type is left alone"


def test_a_model_that_is_float16_already_is_left_as_it_is() -> None:
    once = converted(static().model, reduced_io=True)
    assert converted(once) == once


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot parse the ONNX model"):
        reduced(b"garbage", None, "float16")


def test_inputs_and_outputs_are_cast_to_the_types_asked_for() -> None:
    case = chain()
    types = {"x": "float16", "y": "float16", "w": "int32"}
    model = onnx.ModelProto.FromString(with_io_types(case.model.SerializeToString(), None, types))
    onnx.checker.check_model(model, full_check=True)
    x = np.array([[1, -2, 3], [4, 5, -6]], np.float16)
    got = reference(model, {"x": x})
    assert {name: array.dtype.name for name, array in got.items()} == {
        "y": "float16",
        "z": "float32",
        "w": "int32",
    }
    np.testing.assert_array_equal(got["w"], -x.astype(np.int32))
    np.testing.assert_array_equal(got["y"], np.maximum(x, 0))


def test_a_type_for_an_unknown_tensor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"io_types names 'z', but .* are 'x', 'y'"):
        with_io_types(static().model.SerializeToString(), None, {"z": "float16"})


def test_what_a_model_quantises_to_is_seen() -> None:
    assert quantisation(static().model.SerializeToString()) == frozenset()
    assert quantisation(int8().model.SerializeToString()) == {"int8"}
    assert quantisation(fp8().model.SerializeToString()) == {"fp8"}
    assert quantisation(b"QuantizeLinear garbage") == frozenset()
    assert light("squeezenet")  # none of the classic ones is quantised
    assert quantisation(light("squeezenet")[0].model.SerializeToString()) == frozenset()
