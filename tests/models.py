"""Small networks that between them have every kind of tensor, and how to check their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import Profile

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model, the profiles it needs, and inputs to try.

    ``unsupported_by`` maps a TensorRT major version to why it cannot build the model, or a
    TensorRT flavour to why it cannot run the plan that 8.6 built. ``compute`` says what is right
    where onnxruntime has no kernel for the types.
    """

    name: str
    model: onnx.ModelProto
    feeds: tuple[Feed, ...]
    profiles: tuple[Profile, ...] = ()
    tolerance: float = 1e-4
    unsupported_by: Mapping[str, str] = field(default_factory=dict)
    compute: Callable[[Feed], Feed] | None = None

    def expected(self, feed: Feed) -> Feed:
        return self.compute(feed) if self.compute else reference(self.model, feed)

    def __str__(self) -> str:
        return self.name


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, tuple[int, list[int | str] | None]],
    initializers: Mapping[str, np.ndarray] | None = None,
    name: str = "net",
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model; every supported TensorRT parses opset 17."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
        [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
        [numpy_helper.from_array(array, n) for n, array in (initializers or {}).items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8 if opset < 19 else 9,
        producer_name="tests",
    )
    onnx.checker.check_model(model)
    return model


def reference(model: onnx.ModelProto, feed: Feed) -> Feed:
    """What onnxruntime makes of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def assert_matches(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float) -> None:
    """Same names, shapes and values; floats within ``tolerance`` of the largest value."""
    # A model's outputs are a set to TensorRT 8.6: the engine has an order of its own.
    assert sorted(got) == sorted(want)
    for name, expected in want.items():
        array = got[name]
        assert array.shape == expected.shape, name
        if expected.dtype.kind == "f" or "float" in expected.dtype.name:  # ml_dtypes' have "V"
            assert array.dtype == expected.dtype, name
            right = expected.astype(np.float64)
            scale = max(1e-6, float(np.abs(right).max(initial=0)))
            error = np.abs(array.astype(np.float64) - right)
            assert not np.isnan(error).any(), name
            assert error.max(initial=0) <= tolerance * scale, name
        else:
            np.testing.assert_array_equal(array.astype(np.int64), expected.astype(np.int64), name)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _conv(batch: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    weights = rng(1).standard_normal((4, 3, 3, 3)).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": (dtype, [batch, 3, 8, 8])},
        {"y": (dtype, [batch, 4, 8, 8])},
        {"w": weights},
        name="conv",
    )


def _images(batch: int, dtype: Any = np.float32) -> np.ndarray:
    return rng(batch).standard_normal((batch, 3, 8, 8)).astype(dtype)


@cache
def static() -> Case:
    return Case("static", _conv(1), ({"x": _images(1)},))


@cache
def dynamic() -> Case:
    """Two profiles: small batches, and large ones."""
    return Case(
        "dynamic",
        _conv("n"),
        tuple({"x": _images(n)} for n in (1, 2, 4, 5, 16, 1)),
        (
            Profile({"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}),
            Profile({"x": ((1, 3, 8, 8), (16, 3, 8, 8), (16, 3, 8, 8))}),
        ),
    )


@cache
def several() -> Case:
    """Two inputs, three outputs, in an order that is not alphabetical."""
    model = make_model(
        [
            helper.make_node("Add", ["second", "first"], ["sum"]),
            helper.make_node("Mul", ["second", "first"], ["product"]),
            helper.make_node("Neg", ["first"], ["minus"]),
        ],
        {"second": (TensorProto.FLOAT, [2, 3]), "first": (TensorProto.FLOAT, [2, 3])},
        {
            "sum": (TensorProto.FLOAT, [2, 3]),
            "product": (TensorProto.FLOAT, [2, 3]),
            "minus": (TensorProto.FLOAT, [2, 3]),
        },
    )
    feed = {
        "second": rng(2).standard_normal((2, 3)).astype(np.float32),
        "first": rng(3).standard_normal((2, 3)).astype(np.float32),
    }
    return Case("several", model, (feed,))


@cache
def nonzero() -> Case:
    """An output whose shape depends on the data, from nothing to everything."""
    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("NonZero", ["r"], ["where"]),
        ],
        {"x": (TensorProto.FLOAT, [4, 5])},
        {"where": (TensorProto.INT64, [2, "found"]), "r": (TensorProto.FLOAT, [4, 5])},
    )
    some = rng(4).standard_normal((4, 5)).astype(np.float32)
    feeds = (
        {"x": some},
        {"x": np.ones((4, 5), np.float32)},
        {"x": -np.ones((4, 5), np.float32)},
        {"x": -some},
    )
    reason = "an 8.6 engine cannot tell a later release shapes that depend on the data"
    return Case("nonzero", model, feeds, unsupported_by={"tensorrt_lean": reason})


@cache
def reshape() -> Case:
    """A shape tensor: its values decide the output's shape."""
    model = make_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (TensorProto.FLOAT, [2, 6]), "shape": (TensorProto.INT64, [2])},
        {"y": (TensorProto.FLOAT, ["a", "b"])},
    )
    x = rng(5).standard_normal((2, 6)).astype(np.float32)
    feeds = tuple({"x": x, "shape": np.array(s, np.int64)} for s in ((3, 4), (12, 1), (1, 12)))
    return Case("reshape", model, feeds, (Profile({"shape": ((1, 1), (3, 4), (12, 12))}),))


@cache
def expand() -> Case:
    model = make_model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        {"x": (TensorProto.FLOAT, [1, 3]), "shape": (TensorProto.INT64, [2])},
        {"y": (TensorProto.FLOAT, ["a", 3])},
    )
    x = rng(6).standard_normal((1, 3)).astype(np.float32)
    feeds = tuple({"x": x, "shape": np.array((n, 3), np.int64)} for n in (1, 5, 8))
    return Case("expand", model, feeds, (Profile({"shape": ((1, 3), (4, 3), (8, 3))}),))


@cache
def half() -> Case:
    return Case(
        "half", _conv(2, TensorProto.FLOAT16), ({"x": _images(2, np.float16)},), tolerance=5e-3
    )


@cache
def integers() -> Case:
    model = make_model(
        [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Neg", ["a"], ["m"])],
        {"a": (TensorProto.INT64, [3, 4]), "b": (TensorProto.INT64, [3, 4])},
        {"y": (TensorProto.INT64, [3, 4]), "m": (TensorProto.INT64, [3, 4])},
    )
    draw = rng(7).integers(-1000, 1000, (2, 3, 4))
    return Case("integers", model, ({"a": draw[0], "b": draw[1]},))


@cache
def booleans() -> Case:
    model = make_model(
        [helper.make_node("Greater", ["x", "t"], ["g"]), helper.make_node("Not", ["g"], ["y"])],
        {"x": (TensorProto.FLOAT, [3, 4])},
        {"g": (TensorProto.BOOL, [3, 4]), "y": (TensorProto.BOOL, [3, 4])},
        {"t": np.zeros((1,), np.float32)},
    )
    return Case("booleans", model, ({"x": rng(8).standard_normal((3, 4)).astype(np.float32)},))


@cache
def scalar() -> Case:
    model = make_model(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        {"x": (TensorProto.FLOAT, [])},
        {"y": (TensorProto.FLOAT, [])},
    )
    return Case("scalar", model, ({"x": np.array(3.5, np.float32)},))


@cache
def empty() -> Case:
    """Zero elements are a shape like any other."""
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 4])},
        {"y": (TensorProto.FLOAT, ["n", 4])},
    )
    feeds = tuple({"x": rng(n).standard_normal((n, 4)).astype(np.float32)} for n in (3, 0, 2))
    return Case("empty", model, feeds, (Profile({"x": ((0, 4), (3, 4), (8, 4))}),))


@cache
def bfloat16() -> Case:
    bias = rng(9).standard_normal((4,)).astype(ml_dtypes.bfloat16)
    model = make_model(
        [helper.make_node("Add", ["x", "b"], ["s"]), helper.make_node("Relu", ["s"], ["y"])],
        {"x": (TensorProto.BFLOAT16, [3, 4])},
        {"y": (TensorProto.BFLOAT16, [3, 4])},
        {"b": bias},
    )

    def compute(feed: Feed) -> Feed:
        total = feed["x"].astype(np.float32) + bias.astype(np.float32)
        return {"y": np.maximum(total, 0).astype(ml_dtypes.bfloat16)}

    feed = {"x": rng(10).standard_normal((3, 4)).astype(ml_dtypes.bfloat16)}
    return Case(
        "bfloat16",
        model,
        (feed,),
        tolerance=8e-3,
        unsupported_by={"8": "TensorRT 8.6 has no bfloat16"},
        compute=compute,
    )


def _quantized(name: str, onnx_type: int, dtype: Any, scale: float, why_not: str) -> Case:
    """A quantised tensor coming in and one going out."""
    model = make_model(
        [
            helper.make_node("DequantizeLinear", ["p", "scale", "zero"], ["wide"]),
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["narrow"]),
        ],
        {"p": (onnx_type, [3, 4]), "x": (TensorProto.FLOAT, [3, 4])},
        {"wide": (TensorProto.FLOAT, [3, 4]), "narrow": (onnx_type, [3, 4])},
        {"scale": np.array(scale, np.float32), "zero": np.zeros((), dtype)},
        opset=19 if onnx_type == TensorProto.FLOAT8E4M3FN else 17,
    )

    def compute(feed: Feed) -> Feed:
        quotient = feed["x"] / np.float32(scale)
        narrow = (np.rint(quotient) if dtype is np.int8 else quotient).astype(dtype)
        return {"wide": feed["p"].astype(np.float32) * np.float32(scale), "narrow": narrow}

    feed = {
        "p": rng(11).integers(-100, 100, (3, 4)).astype(np.float32).astype(dtype),
        "x": rng(12).uniform(-100 * scale, 100 * scale, (3, 4)).astype(np.float32),
    }
    return Case(name, model, (feed,), unsupported_by={"8": why_not}, compute=compute)


@cache
def int8() -> Case:
    return _quantized(
        "int8",
        TensorProto.INT8,
        np.int8,
        0.05,
        "TensorRT 8.6 quantises under BuilderFlag.INT8 only",
    )


@cache
def fp8() -> Case:
    return _quantized(
        "fp8",
        TensorProto.FLOAT8E4M3FN,
        ml_dtypes.float8_e4m3fn,
        0.5,
        "float8 needs opset 19, which TensorRT 8.6 does not parse",
    )


@cache
def uint8() -> Case:
    """Pixels: TensorRT takes uint8 at the border only, cast at once."""
    model = make_model(
        [
            helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["f", "one"], ["g"]),
            helper.make_node("Cast", ["g"], ["brighter"], to=TensorProto.UINT8),
        ],
        {"pixels": (TensorProto.UINT8, [2, 5])},
        {"brighter": (TensorProto.UINT8, [2, 5])},
        {"one": np.ones((1,), np.float32)},
    )
    return Case("uint8", model, ({"pixels": rng(13).integers(0, 255, (2, 5)).astype(np.uint8)},))


@cache
def int32() -> Case:
    model = make_model(
        [helper.make_node("Mul", ["a", "b"], ["y"])],
        {"a": (TensorProto.INT32, [3, 4]), "b": (TensorProto.INT32, [3, 4])},
        {"y": (TensorProto.INT32, [3, 4])},
    )
    draw = rng(14).integers(-40_000, 40_000, (2, 3, 4)).astype(np.int32)
    return Case("int32", model, ({"a": draw[0], "b": draw[1]},))


@cache
def half_dynamic() -> Case:
    """float16 with three open dimensions."""
    model = make_model(
        [helper.make_node("Mul", ["x", "two"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        {"x": (TensorProto.FLOAT16, ["n", "h", "w"])},
        {"y": (TensorProto.FLOAT16, ["n", "h", "w"])},
        {"two": np.full((1,), 2, np.float16)},
    )
    feeds = tuple(
        {"x": rng(n).standard_normal((n, h, w)).astype(np.float16)}
        for n, h, w in ((1, 1, 1), (2, 5, 3), (4, 9, 9))
    )
    return Case(
        "half_dynamic",
        model,
        feeds,
        (Profile({"x": ((1, 1, 1), (2, 4, 4), (4, 9, 9))}),),
        tolerance=1e-3,
    )


SMALL: tuple[Callable[[], Case], ...] = (
    static,
    dynamic,
    several,
    nonzero,
    reshape,
    expand,
    half,
    integers,
    booleans,
    scalar,
    empty,
    bfloat16,
    int8,
    fp8,
    uint8,
    int32,
    half_dynamic,
)


LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def light_folder() -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light(name: str) -> tuple[Case, Feed]:
    """One of the classic networks that the onnx package ships, and its reference output.

    Their weights are constants, so the reference shows shapes and arithmetic but not whether the
    input arrived; `varied` does.
    """
    model = onnx.load(light_folder() / f"light_{name}.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name not in weights:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            feed[value.name] = (np.arange(count, dtype=np.float32) / count).reshape(shape)
    expected = onnx.TensorProto()
    expected.ParseFromString((light_folder() / f"light_{name}_output_0.pb").read_bytes())
    output = model.graph.output[0].name
    return Case(f"light_{name}", model, (feed,)), {output: numpy_helper.to_array(expected)}


def varied(name: str) -> Case:
    """A light network with random weights in place of its constant ones, and a random input.

    Scaled so that the signal neither dies nor explodes on its way: convolutions and products by
    their fan-in, variances around 1.
    """
    case, _ = light(name)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    shapes = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    variances = {n.input[4] for n in model.graph.node if n.op_type == "BatchNormalization"}
    draw = rng(len(name))
    nodes = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.attribute[0].t.data_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        weights = draw.standard_normal(shape).astype(np.float32)
        if node.output[0] in variances:
            weights = 1 + np.abs(weights) / 4
        elif len(shape) > 1:
            weights *= np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
        else:
            weights = 0.5 + weights / 10 if "_s_" in node.output[0] else weights / 10
        model.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in model.graph.node for name in node.input}
    _keep(model.graph.initializer, used)
    _keep(model.graph.input, used)
    model.ir_version = 8  # from 4 on a weight need not be an input
    ((input_name, like),) = case.feeds[0].items()
    # A colour cast, since the networks average over the picture; and its negative, which differs.
    colour = draw.standard_normal((1, like.shape[1], 1, 1)) * 3
    picture = (draw.standard_normal(like.shape) + colour).astype(np.float32)
    feeds = ({input_name: picture}, {input_name: -picture})
    return Case(f"varied_{name}", model, feeds, tolerance=1e-3)


def _keep(values: Any, names: set[str]) -> None:
    kept = [value for value in values if value.name in names]
    del values[:]
    values.extend(kept)
