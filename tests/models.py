"""Small networks that between them have every kind of tensor, and how to check their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import Profile

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model, the profiles it needs, and inputs to try.

    ``unsupported_by`` maps a TensorRT major version to why it cannot build the model.
    """

    name: str
    model: onnx.ModelProto
    feeds: tuple[Feed, ...]
    profiles: tuple[Profile, ...] = ()
    tolerance: float = 1e-4
    unsupported_by: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, tuple[int, list[int | str] | None]],
    initializers: Mapping[str, np.ndarray] | None = None,
    name: str = "net",
) -> onnx.ModelProto:
    """A checked model of opset 17, which every supported TensorRT parses."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
        [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
        [numpy_helper.from_array(array, n) for n, array in (initializers or {}).items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests"
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
    assert list(got) == list(want)
    for name, expected in want.items():
        array = got[name]
        assert array.shape == expected.shape, name
        if expected.dtype.kind == "f":
            scale = max(1e-6, float(np.abs(expected).max(initial=0)))
            error = np.abs(array.astype(np.float64) - expected.astype(np.float64))
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
    return Case("nonzero", model, feeds)


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
