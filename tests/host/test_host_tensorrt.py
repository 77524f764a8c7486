"""The host TensorRT: it answers as NVIDIA's does, and computes what onnxruntime computes."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime.errors import MisuseError, UnsupportedError
from trt_runtime.platform.host.driver import HostDriver
from trt_runtime.platform.host.faults import Faults
from trt_runtime.platform.host.tensorrt import HostTensorRT, plan

OPSET = 19
MANIFEST = Path(__file__).parents[1] / "manifests" / "tensorrt-10.16.1.json"
Array = np.ndarray[Any, Any]
Profile = Mapping[str, Sequence[Any]]


# Models ------------------------------------------------------------------------------------------


def value(name: str, element: int, dims: Sequence[int | str] | None) -> Any:
    return helper.make_tensor_value_info(name, element, dims)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Mapping[str, Any] | None = None,
    name: str = "net",
) -> Any:
    tensors = [
        w if isinstance(w, TensorProto) else numpy_helper.from_array(np.asarray(w), n)
        for n, w in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def relu(dims: Sequence[int | str] = (2, 3), element: int = TensorProto.FLOAT) -> Any:
    return model(
        [helper.make_node("Relu", ["x"], ["y"], name="act")],
        [value("x", element, dims)],
        [value("y", element, dims)],
    )


def non_zero() -> Any:
    return model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.INT64, [1, "n"])],
    )


def reshaped_by_input() -> Any:
    return model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 6]), value("s", TensorProto.INT64, [2])],
        [value("y", TensorProto.FLOAT, ["a", "b"])],
    )


# A rig that stands in for the layers above -------------------------------------------------------


class Rig:
    """One host platform with a current context, and the calls that every test repeats."""

    def __init__(self, version: str = "10.16.1", faults: Faults | None = None) -> None:
        self.driver = HostDriver(faults)
        self.context = self.driver.retain_primary_context(0)
        self.driver.set_current_context(self.context)
        self.trt = HostTensorRT(self.driver, version=version)
        self.lines: list[str] = []
        lines = self.lines

        class Logger(self.trt.ILogger):
            def log(self, severity: IntEnum, msg: str) -> None:
                if severity <= 2:
                    lines.append(msg)

        self.logger = Logger()

    def parse(self, proto: Any) -> tuple[Any, Any, Any]:
        data = proto if isinstance(proto, bytes) else proto.SerializeToString()
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.logger)
        assert parser.parse(data), self.lines
        return builder, network, builder.create_builder_config()

    def plan(
        self,
        proto: Any,
        *profiles: Profile,
        values: Profile | None = None,
        configure: Callable[[Any], None] = lambda config: None,
    ) -> bytes:
        builder, network, config = self.parse(proto)
        configure(config)
        for ranges in profiles or ([{}] if values else []):
            profile = builder.create_optimization_profile()
            for name, shapes in ranges.items():
                profile.set_shape(name, *shapes)
            for name, vectors in (values or {}).items():
                profile.set_shape_input(name, *vectors)
            assert config.add_optimization_profile(profile) >= 0
        memory = builder.build_serialized_network(network, config)
        assert memory is not None, self.lines
        return bytes(memory)

    def load(self, data: bytes, *, allow_host_code: bool = False) -> Any:
        runtime = self.trt.Runtime(self.logger)
        runtime.engine_host_code_allowed = allow_host_code
        return runtime.deserialize_cuda_engine(data)

    def engine(self, proto: Any, *profiles: Profile, values: Profile | None = None) -> Any:
        engine = self.load(self.plan(proto, *profiles, values=values))
        assert engine is not None, self.lines
        return engine

    def put(self, array: Array, *, pinned: bool = False) -> int:
        nbytes = max(array.nbytes, 1)
        allocate = self.driver.mem_host_alloc if pinned else self.driver.mem_alloc
        address = allocate(nbytes)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.driver.view(address, array.nbytes, "test")[:] = flat
        return address

    def get(self, address: int, shape: Sequence[int], dtype: Any) -> Array:
        like = np.empty(shape, dtype)
        data = self.driver.view(address, like.nbytes, "test")
        return data.copy().view(like.dtype).reshape(like.shape)

    def bind(self, context: Any, feeds: Mapping[str, Array]) -> dict[str, int]:
        for name, array in feeds.items():
            on_host = context.engine.is_shape_inference_io(name)
            assert context.set_input_shape(name, array.shape), self.lines
            assert context.set_tensor_address(name, self.put(array, pinned=on_host))
        assert context.infer_shapes() == [], self.lines
        outputs = {}
        for index in range(context.engine.num_io_tensors):
            name = context.engine.get_tensor_name(index)
            shape = context.get_tensor_shape(name)
            if context.engine.get_tensor_mode(name) == 2 and -1 not in shape:
                size = context.engine.get_tensor_bytes_per_component(name)
                outputs[name] = self.driver.mem_alloc(max(1, int(np.prod(shape)) * size))
                assert context.set_tensor_address(name, outputs[name])
        return outputs

    def infer(
        self, engine: Any, feeds: Mapping[str, Array], dtypes: Sequence[Any], context: Any = None
    ) -> list[Array]:
        context = context or engine.create_execution_context()
        outputs = self.bind(context, feeds)
        stream = self.driver.stream_create(0)
        assert context.execute_async_v3(stream), self.lines
        self.driver.stream_synchronize(stream)
        self.driver.stream_destroy(stream)
        return [
            self.get(address, context.get_tensor_shape(name), dtype)
            for (name, address), dtype in zip(outputs.items(), dtypes, strict=True)
        ]

    def said(self, text: str) -> bool:
        return any(text.lower() in line.lower() for line in self.lines)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    gc.collect()
    alive = [e.kind for e in rig.driver.ledger.entries if "memory" not in e.kind]
    assert set(alive) <= {"primary context", "stream"}, alive


class Allocator:
    """An output allocator that takes what it is asked for from the driver."""

    def __init__(self, driver: HostDriver) -> None:
        self.driver = driver
        self.asked: list[tuple[str, int]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def reallocate_output_async(
        self, name: str, memory: int, nbytes: int, alignment: int, stream: int
    ) -> int:
        self.asked.append((name, nbytes))
        self.addresses[name] = self.driver.mem_alloc(max(nbytes, 1))
        return self.addresses[name]

    def notify_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape


# The surface -------------------------------------------------------------------------------------


def test_every_name_and_value_is_in_the_real_module() -> None:
    manifest = json.loads(MANIFEST.read_text())
    for name, offered in vars(HostTensorRT).items():
        if name.startswith("_") or not isinstance(offered, type):
            continue
        if issubclass(offered, IntEnum):
            assert dict(offered.__members__) == manifest["enums"][name]
            continue
        members = {m for m in vars(offered) if not m.startswith("_")}
        assert members <= set(manifest["classes"][name]), name
    assert set(manifest["classes"]) >= {"Builder", "OnnxParser", "Runtime"}


def test_importing_it_imports_neither_onnx_nor_onnxruntime() -> None:
    code = (
        "import sys, trt_runtime.platform.host.tensorrt; "
        "sys.exit(bool({'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    path = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0


def test_engine_describes_its_tensors(rig: Rig) -> None:
    engine = rig.engine(relu(["n", 3]), {"x": ([1, 3], [2, 3], [4, 3])})
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["x", "y"]
    assert engine.get_tensor_mode("x") == rig.trt.TensorIOMode.INPUT
    assert engine.get_tensor_mode("y") == rig.trt.TensorIOMode.OUTPUT
    assert engine.get_tensor_shape("y") == (-1, 3)
    assert engine.get_tensor_dtype("x").name == "FLOAT"
    assert engine.get_tensor_location("x") == rig.trt.TensorLocation.DEVICE
    assert "LINEAR" in engine.get_tensor_format_desc("x")
    assert engine.get_tensor_components_per_element("x") == -1
    assert engine.get_tensor_bytes_per_component("x") == 4
    assert engine.get_tensor_profile_shape("x", 0) == [(1, 3), (2, 3), (4, 3)]
    assert engine.device_memory_size_v2 > 0
    assert engine.name == "net"


def test_unknown_tensors_get_defaults_and_a_log_line(rig: Rig) -> None:
    engine = rig.engine(relu())
    assert engine.get_tensor_mode("nope") == rig.trt.TensorIOMode.NONE
    assert rig.said("invalid tensor name: nope")
    context = engine.create_execution_context()
    assert not context.set_tensor_address("nope", 1)
    assert not context.set_input_shape("nope", (1,))


def test_inspector_names_layers(rig: Rig) -> None:
    inspector = rig.engine(relu()).create_engine_inspector()
    told = json.loads(inspector.get_engine_information(rig.trt.LayerInformationFormat.JSON))
    assert told == {"Layers": ["act"], "Bindings": ["x", "y"]}


# Execution ---------------------------------------------------------------------------------------


def reference(proto: Any, feeds: Mapping[str, Array]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int32", "int64", "uint8", "bool"])
def test_native_types_equal_onnxruntime(rig: Rig, dtype: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
        [value("x", element, [2, 3])],
        [value("y", element, [3, 2])],
    )
    x = np.arange(6).reshape(2, 3).astype(dtype)
    (y,) = rig.infer(rig.engine(proto), {"x": x}, [dtype])
    np.testing.assert_array_equal(y, reference(proto, {"x": x})[0])


def test_float16_convolution_equals_onnxruntime(rig: Rig) -> None:
    rng = np.random.default_rng(0)
    proto = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        [value("x", TensorProto.FLOAT16, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT16, ["n", 16, 8, 8])],
        {"w": rng.standard_normal((16, 3, 3, 3)).astype(np.float16)},
    )
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float16)
    dims = [3, 8, 8]
    engine = rig.engine(proto, {"x": ([1, *dims], [2, *dims], [4, *dims])})
    (y,) = rig.infer(engine, {"x": x}, [np.float16])
    np.testing.assert_array_equal(y, reference(proto, {"x": x})[0])


def test_bfloat16_is_computed_in_float32_and_rounded_once(rig: Rig) -> None:
    bfloat16 = ml_dtypes.bfloat16
    weights = np.array([[1.5, 0.25], [3.0, -1.0]], bfloat16)
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        [value("x", TensorProto.BFLOAT16, ["n", 2])],
        [value("y", TensorProto.BFLOAT16, ["n", 2])],
        {"w": numpy_helper.from_array(weights, "w")},
    )
    x = np.array([[0.3, 7.0]], bfloat16)
    engine = rig.engine(proto, {"x": ([1, 2], [1, 2], [1, 2])})
    assert engine.get_tensor_dtype("x").name == "BF16"
    assert engine.get_tensor_bytes_per_component("x") == 2
    (y,) = rig.infer(engine, {"x": x}, [bfloat16])
    expected = np.maximum(x.astype(np.float32) @ weights.astype(np.float32), 0).astype(bfloat16)
    np.testing.assert_array_equal(y.view(np.uint16), expected.view(np.uint16))


def test_bfloat16_inside_a_branch_runs(rig: Rig) -> None:
    def branch(operator: str) -> Any:
        node = helper.make_node(operator, ["b"], ["r"])
        return helper.make_graph([node], operator, [], [value("r", TensorProto.BFLOAT16, [2])])

    proto = model(
        [
            helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
            helper.make_node(
                "If", ["c"], ["i"], then_branch=branch("Neg"), else_branch=branch("Abs")
            ),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        [value("x", TensorProto.FLOAT, [2]), value("c", TensorProto.BOOL, [1, 1])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    engine = rig.engine(proto)
    feeds = {"x": np.array([1, -2], np.float32), "c": np.array([[True]])}
    np.testing.assert_array_equal(rig.infer(engine, feeds, [np.float32])[0], [-1, 2])


def test_float8_crosses_the_border_exactly(rig: Rig) -> None:
    float8 = ml_dtypes.float8_e4m3fn
    proto = model(
        [
            helper.make_node("DequantizeLinear", ["x", "scale"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["q"]),
        ],
        [value("x", TensorProto.FLOAT8E4M3FN, [256])],
        [value("y", TensorProto.FLOAT, [256]), value("q", TensorProto.FLOAT8E4M3FN, [256])],
        {
            "scale": np.float32(0.5),
            "zero": helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True),
        },
    )
    x = np.arange(256, dtype=np.uint8).view(float8)
    y, q = rig.infer(rig.engine(proto), {"x": x}, [np.float32, float8])
    np.testing.assert_array_equal(y, x.astype(np.float32) * 0.5)
    np.testing.assert_array_equal(q.astype(np.float32), x.astype(np.float32))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_dynamic_and_empty_batches(rig: Rig, rows: int) -> None:
    engine = rig.engine(relu(["n", 3]), {"x": ([0, 3], [1, 3], [4, 3])})
    x = np.arange(-3, 3 * rows - 3, dtype=np.float32).reshape(rows, 3)
    (y,) = rig.infer(engine, {"x": x}, [np.float32])
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_scalars(rig: Rig) -> None:
    engine = rig.engine(relu([]))
    assert engine.get_tensor_shape("y") == ()
    (y,) = rig.infer(engine, {"x": np.array(-2, np.float32)}, [np.float32])
    assert y.shape == ()
    assert y == 0


def test_each_profile_has_its_own_range(rig: Rig) -> None:
    engine = rig.engine(
        relu(["n", 3]), {"x": ([1, 3], [1, 3], [2, 3])}, {"x": ([4, 3], [6, 3], [8, 3])}
    )
    assert engine.num_optimization_profiles == 2
    context = engine.create_execution_context()
    stream = rig.driver.stream_create(0)
    assert context.active_optimization_profile == 0
    assert not context.set_input_shape("x", (5, 3))
    assert rig.said("does not satisfy any optimization profiles")
    assert context.set_input_shape("x", (2, 3))
    assert context.set_optimization_profile_async(1, stream)
    assert context.get_tensor_shape("x") == (-1, 3)
    assert context.infer_shapes() == ["x"]
    x = np.full((5, 3), -1, np.float32)
    (y,) = rig.infer(engine, {"x": x}, [np.float32], context)
    assert y.shape == (5, 3)
    with pytest.raises(RuntimeError, match="profile async"):
        context.set_optimization_profile_async(2, stream)
    rig.driver.stream_synchronize(stream)


@pytest.mark.parametrize("shape", [(1,), (1, 2), (5, 3), (-1, 3)])
def test_shapes_that_do_not_fit_are_refused(rig: Rig, shape: tuple[int, ...]) -> None:
    context = rig.engine(relu(["n", 3]), {"x": ([1, 3], [1, 3], [4, 3])}).create_execution_context()
    assert not context.set_input_shape("x", shape)
    assert rig.said("setInputShape")


def test_output_shape_follows_input_arithmetic(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Mul", ["s", "two"], ["d"]),
            helper.make_node("ConstantOfShape", ["d"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, None)],
        {"two": np.array([2, 2], np.int64)},
    )
    proto.graph.output[0].CopyFrom(value("y", TensorProto.FLOAT, ["a", "b"]))
    engine = rig.engine(proto, {"x": ([1, 2], [2, 2], [4, 2])})
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (3, 2))
    assert context.get_tensor_shape("y") == (6, 4)


def test_output_shape_that_onnx_cannot_infer_is_measured(rig: Rig) -> None:
    # The number of rows goes through float and Ceil, which ONNX's data propagation stops at.
    proto = model(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["f", "three"], ["h"]),
            helper.make_node("Ceil", ["h"], ["c"]),
            helper.make_node("Cast", ["c"], ["i"], to=TensorProto.INT64),
            helper.make_node("Expand", ["one", "i"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["m"])],
        {"three": np.float32(3), "one": np.ones(1, np.float32)},
    )
    engine = rig.engine(proto, {"x": ([1], [4], [9])})
    (y,) = rig.infer(engine, {"x": np.zeros(7, np.float32)}, [np.float32])
    assert y.shape == (3,)


def test_claimed_shapes_of_the_model_do_not_override_the_inputs(rig: Rig) -> None:
    proto = relu(["n", 3])
    proto.graph.output[0].CopyFrom(value("y", TensorProto.FLOAT, ["wrong", 3]))
    proto.graph.value_info.append(value("y", TensorProto.FLOAT, [1, 3]))
    engine = rig.engine(proto, {"x": ([1, 3], [1, 3], [4, 3])})
    assert engine.get_tensor_shape("y") == (-1, 3)
    (y,) = rig.infer(engine, {"x": np.ones((4, 3), np.float32)}, [np.float32])
    assert y.shape == (4, 3)


def test_work_runs_at_the_synchronisation_and_reads_memory_then(rig: Rig) -> None:
    engine = rig.engine(relu([2]))
    context = engine.create_execution_context()
    outputs = rig.bind(context, {"x": np.array([1, 1], np.float32)})
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    x = rig.driver.view(context.get_tensor_address("x"), 8, "test")
    x[:] = np.array([5, -5], np.float32).view(np.uint8)
    rig.driver.stream_synchronize(stream)
    np.testing.assert_array_equal(rig.get(outputs["y"], (2,), np.float32), [5, 0])


def reshaping_engine(rig: Rig, most: int = 24) -> Any:
    """Of `reshaped_by_input`; no side of what comes out is longer than ``most``."""
    return rig.engine(
        reshaped_by_input(),
        {"x": ([1, 6], [2, 6], [4, 6])},
        values={"s": ([1, 1], [3, 4], [most, most])},
    )


@contextlib.contextmanager
def captured(rig: Rig, context: Any) -> Iterator[Callable[[], None]]:
    """An inference as a graph: a call launches it and waits."""
    stream = rig.driver.stream_create(0)
    rig.driver.stream_begin_capture(stream)
    assert context.execute_async_v3(stream)
    graph = rig.driver.stream_end_capture(stream)
    executable = rig.driver.graph_instantiate(graph)

    def launch() -> None:
        rig.driver.graph_launch(executable, stream)
        rig.driver.stream_synchronize(stream)

    yield launch
    rig.driver.stream_synchronize(stream)
    rig.driver.graph_exec_destroy(executable)
    rig.driver.graph_destroy(graph)


def test_a_captured_graph_replays(rig: Rig) -> None:
    engine = rig.engine(relu([2]))
    context = engine.create_execution_context()
    outputs = rig.bind(context, {"x": np.array([1, 1], np.float32)})
    with captured(rig, context) as launch:
        for number in (3.0, 4.0):
            x = rig.driver.view(context.get_tensor_address("x"), 8, "test")
            x[:] = np.full(2, number, np.float32).view(np.uint8)
            launch()
            np.testing.assert_array_equal(rig.get(outputs["y"], (2,), np.float32), [number] * 2)


def test_a_graph_of_a_context_that_was_changed_is_misuse(rig: Rig) -> None:
    engine = rig.engine(relu(["n"]), {"x": ([1], [2], [4])})
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (2,))
    rig.bind(context, {"x": np.array([1, 1], np.float32)})
    with captured(rig, context) as launch:
        assert context.set_input_shape("x", (2,))  # no change
        launch()
        for n in (1, 2):
            assert context.set_input_shape("x", (n,))
        with pytest.raises(MisuseError, match="its context was given other shapes"):
            launch()


def test_a_graph_is_not_launched_once_its_shape_tensor_was_told_again(rig: Rig) -> None:
    """Not even at the same address: see `trt_runtime.context.Configuration`."""
    engine = reshaping_engine(rig)
    context = engine.create_execution_context()
    rig.bind(context, {"x": np.zeros((2, 6), np.float32), "s": np.array([1, 12], np.int64)})
    with captured(rig, context) as launch:
        assert context.set_tensor_address("y", rig.put(np.zeros(12, np.float32)))  # no change
        launch()
        assert context.set_tensor_address("s", context.get_tensor_address("s"))
        with pytest.raises(MisuseError, match="a shape tensor"):
            launch()


def test_contexts_of_one_engine_run_in_parallel(rig: Rig) -> None:
    engine = rig.engine(relu([64]))
    results: dict[int, Array] = {}

    def work(number: int) -> None:
        rig.driver.set_current_context(rig.context)
        for _ in range(20):
            x = np.full(64, number, np.float32)
            (results[number],) = rig.infer(engine, {"x": x}, [np.float32])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: set(r.tolist()) for n, r in results.items()} == {n: {float(n)} for n in range(4)}


def test_input_consumed_event_is_recorded(rig: Rig) -> None:
    context = rig.engine(relu([2])).create_execution_context()
    rig.bind(context, {"x": np.ones(2, np.float32)})
    stream, event = rig.driver.stream_create(0), rig.driver.event_create(False)
    assert context.set_input_consumed_event(event)
    assert context.get_input_consumed_event() == event
    assert context.execute_async_v3(stream)
    rig.driver.event_synchronize(event)
    assert rig.driver.stream_query(stream)
    rig.driver.event_destroy(event)


def test_profiler_hears_of_every_layer(rig: Rig) -> None:
    heard: list[str] = []

    class Profiler(rig.trt.IProfiler):
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            assert ms >= 0
            heard.append(layer_name)

    context = rig.engine(relu([2])).create_execution_context()
    rig.bind(context, {"x": np.ones(2, np.float32)})
    stream = rig.driver.stream_create(0)
    context.profiler = Profiler()
    assert context.execute_async_v3(stream)
    assert heard == ["act"]
    context.enqueue_emits_profile = False
    assert context.execute_async_v3(stream)
    assert heard == ["act"]
    assert context.report_to_profiler()
    assert heard == ["act", "act"]


# Shape tensors -----------------------------------------------------------------------------------


def test_reshape_by_an_input_reads_it_on_the_host(rig: Rig) -> None:
    engine = reshaping_engine(rig)
    assert engine.is_shape_inference_io("s")
    assert not engine.is_shape_inference_io("x")
    assert engine.get_tensor_location("s") == rig.trt.TensorLocation.HOST
    assert engine.get_tensor_profile_values(0, "s") == [(1, 1), (3, 4), (24, 24)]
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    (y,) = rig.infer(engine, {"x": x, "s": np.array([3, 4], np.int64)}, [np.float32])
    np.testing.assert_array_equal(y, x.reshape(3, 4))


def test_shape_values_are_read_at_the_enqueue(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("Cast", ["s"], ["s64"], to=TensorProto.INT64),
            helper.make_node("Expand", ["x", "s64"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, [1]), value("s", TensorProto.INT32, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    engine = rig.engine(proto, values={"s": ([1], [2], [8])})
    context = engine.create_execution_context()
    outputs = rig.bind(context, {"x": np.array([7], np.float32), "s": np.array([3], np.int32)})
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    s = rig.driver.view(context.get_tensor_address("s"), 4, "test")
    s[:] = np.array([8], np.int32).view(np.uint8)
    rig.driver.stream_synchronize(stream)
    np.testing.assert_array_equal(rig.get(outputs["y"], (3,), np.float32), [7, 7, 7])


def test_shape_values_outside_the_profile_are_refused(rig: Rig) -> None:
    engine = reshaping_engine(rig, most=6)
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (2, 6))
    assert context.infer_shapes() == ["s"]
    assert context.get_tensor_shape("y") == (-1, -1)
    assert context.set_tensor_address("s", rig.put(np.array([1, 12], np.int64), pinned=True))
    with pytest.raises(RuntimeError, match="infer_shapes"):
        context.infer_shapes()
    assert rig.said("outside of profile 0")


def test_shape_values_that_contradict_the_input_are_refused(rig: Rig) -> None:
    engine = reshaping_engine(rig)
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (2, 6))
    assert context.set_tensor_address("s", rig.put(np.array([5, 7], np.int64), pinned=True))
    with pytest.raises(RuntimeError, match="infer_shapes"):
        context.infer_shapes()
    assert context.set_tensor_address("x", rig.put(np.zeros((2, 6), np.float32)))
    assert context.set_tensor_address("y", rig.put(np.zeros((5, 7), np.float32)))
    assert not context.execute_async_v3(rig.driver.stream_create(0))
    assert rig.said("do not go together")


def test_integer_inputs_that_are_only_data_stay_on_the_device(rig: Rig) -> None:
    proto = model(
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        [value("x", TensorProto.FLOAT, [4]), value("i", TensorProto.INT64, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    engine = rig.engine(proto)
    assert not engine.is_shape_inference_io("i")
    feeds = {"x": np.arange(4, dtype=np.float32), "i": np.array([3, 1], np.int64)}
    np.testing.assert_array_equal(rig.infer(engine, feeds, [np.float32])[0], [3, 1])


def test_loop_trip_count_is_a_shape_tensor(rig: Rig) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c_in"], ["c_out"]),
            helper.make_node("Add", ["a_in", "x"], ["a_out"]),
            helper.make_node("Identity", ["a_out"], ["scan"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c_in", TensorProto.BOOL, []),
            value("a_in", TensorProto.FLOAT, [2]),
        ],
        [
            value("c_out", TensorProto.BOOL, []),
            value("a_out", TensorProto.FLOAT, [2]),
            value("scan", TensorProto.FLOAT, [2]),
        ],
    )
    proto = model(
        [helper.make_node("Loop", ["m", "yes", "zero"], ["last", "all"], body=body)],
        [value("x", TensorProto.FLOAT, [2]), value("m", TensorProto.INT64, [])],
        [value("last", TensorProto.FLOAT, [2]), value("all", TensorProto.FLOAT, ["m", 2])],
        {"yes": np.array(True), "zero": np.zeros(2, np.float32)},
    )
    engine = rig.engine(proto, values={"m": ([1], [2], [5])})
    assert engine.is_shape_inference_io("m")
    feeds = {"x": np.ones(2, np.float32), "m": np.array(3, np.int64)}
    last, everything = rig.infer(engine, feeds, [np.float32] * 2)
    np.testing.assert_array_equal(last, [3, 3])
    assert everything.shape == (3, 2)


# Data-dependent outputs --------------------------------------------------------------------------


@pytest.mark.parametrize("x", [[0, 1, 0, 2], [0, 0, 0, 0]])
def test_output_allocator_gets_the_shape_that_the_data_has(rig: Rig, x: list[float]) -> None:
    context = rig.engine(non_zero()).create_execution_context()
    allocator = Allocator(rig.driver)
    data = np.array(x, np.float32)
    assert rig.bind(context, {"x": data}) == {}
    assert context.get_tensor_shape("y") == (1, -1)
    assert context.get_max_output_size("y") == 4 * 8
    assert context.set_output_allocator("y", allocator)
    assert context.get_output_allocator("y") is allocator
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream), rig.lines
    expected = np.stack(np.nonzero(data))
    assert allocator.shapes == {"y": expected.shape}
    assert allocator.asked == [("y", expected.nbytes)]
    rig.driver.stream_synchronize(stream)
    found = rig.get(allocator.addresses["y"], expected.shape, np.int64)
    np.testing.assert_array_equal(found, expected)


def test_data_dependence_ends_where_the_shape_is_fixed_again(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("NonZero", ["x"], ["z"]),
            helper.make_node("Shape", ["z"], ["count"]),
            helper.make_node("ReduceMax", ["z"], ["top"], keepdims=0),
        ],
        [value("x", TensorProto.FLOAT, [4])],
        [value("count", TensorProto.INT64, [2]), value("top", TensorProto.INT64, [])],
    )
    feeds = {"x": np.array([0, 1, 0, 2], np.float32)}
    count, top = rig.infer(rig.engine(proto), feeds, [np.int64] * 2)
    assert count.tolist() == [1, 2]
    assert top == 3


def test_shape_computed_from_device_data_is_data_dependent(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("ReduceSum", ["x"], ["f"], keepdims=0),
            helper.make_node("Cast", ["f"], ["n"], to=TensorProto.INT64),
            helper.make_node("Range", ["zero", "n", "one"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.INT64, ["n"])],
        {"zero": np.int64(0), "one": np.int64(1)},
    )
    context = rig.engine(proto).create_execution_context()
    rig.bind(context, {"x": np.array([1, 2, 1], np.float32)})
    assert context.get_tensor_shape("y") == (-1,)
    allocator = Allocator(rig.driver)
    assert context.set_output_allocator("y", allocator)
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    assert allocator.shapes == {"y": (4,)}
    rig.driver.stream_synchronize(stream)


def test_selected_boxes_are_gathered(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["picked"]),
            helper.make_node("Slice", ["picked", "two", "three", "one"], ["index"]),
            helper.make_node("Squeeze", ["index", "one"], ["flat"]),
            helper.make_node("Squeeze", ["boxes", "zero"], ["all"]),
            helper.make_node("Gather", ["all", "flat"], ["kept"]),
        ],
        [value("boxes", TensorProto.FLOAT, [1, "n", 4]), value("scores", 1, [1, 1, "n"])],
        [value("kept", TensorProto.FLOAT, ["k", 4])],
        {
            "most": np.array([10], np.int64),
            "iou": np.array([0.5], np.float32),
            **{n: np.array([i], np.int64) for i, n in enumerate(["zero", "one", "two", "three"])},
        },
    )
    ranges = {
        "boxes": ([1, 1, 4], [1, 3, 4], [1, 9, 4]),
        "scores": ([1, 1, 1], [1, 1, 3], [1, 1, 9]),
    }
    context = rig.engine(proto, ranges).create_execution_context()
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [5, 5, 6, 6]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7]]], np.float32)
    rig.bind(context, {"boxes": boxes, "scores": scores})
    assert context.get_tensor_shape("kept") == (-1, 4)
    assert context.get_max_output_size("kept") >= 3 * 4 * 4
    allocator = Allocator(rig.driver)
    assert context.set_output_allocator("kept", allocator)
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream), rig.lines
    rig.driver.stream_synchronize(stream)
    kept = rig.get(allocator.addresses["kept"], allocator.shapes["kept"], np.float32)
    np.testing.assert_array_equal(kept, boxes[0, [0, 2]])


def test_data_dependent_output_needs_an_allocator_that_works(rig: Rig) -> None:
    context = rig.engine(non_zero()).create_execution_context()
    rig.bind(context, {"x": np.ones(4, np.float32)})
    stream = rig.driver.stream_create(0)
    assert not context.execute_async_v3(stream)
    assert rig.said("No output allocator is set for y")

    class Synchronous(rig.trt.IOutputAllocator):
        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> Any:
            return None

    class Broken(rig.trt.IOutputAllocator):
        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> Any:
            raise KeyError("lost")

    assert context.set_output_allocator("y", Synchronous())
    assert not context.execute_async_v3(stream)
    assert rig.said("gave no memory")
    assert context.set_output_allocator("y", Broken())
    assert not context.execute_async_v3(stream)
    assert rig.said("KeyError")
    assert not context.set_output_allocator("x", Broken())


def test_a_call_inside_of_another_is_misuse(rig: Rig) -> None:
    context = rig.engine(non_zero()).create_execution_context()
    rig.bind(context, {"x": np.ones(4, np.float32)})
    inner: list[bool] = []

    class Reentrant(Allocator):
        def notify_shape(self, name: str, shape: tuple[int, ...]) -> None:
            inner.append(context.execute_async_v3(0))

    assert context.set_output_allocator("y", Reentrant(rig.driver))
    assert not context.execute_async_v3(0)
    assert rig.said("has not returned yet")
    assert inner == []


def test_data_dependent_output_cannot_be_captured(rig: Rig) -> None:
    context = rig.engine(non_zero()).create_execution_context()
    rig.bind(context, {"x": np.ones(4, np.float32)})
    context.set_output_allocator("y", Allocator(rig.driver))
    stream = rig.driver.stream_create(0)
    rig.driver.stream_begin_capture(stream)
    assert not context.execute_async_v3(stream)
    assert rig.said("capturing")
    rig.driver.graph_destroy(rig.driver.stream_end_capture(stream))


# What is refused at the enqueue ------------------------------------------------------------------


def test_missing_shape_and_address_are_named(rig: Rig) -> None:
    engine = rig.engine(relu(["n", 3]), {"x": ([1, 3], [1, 3], [4, 3])})
    context = engine.create_execution_context()
    stream = rig.driver.stream_create(0)
    assert context.infer_shapes() == ["x"]
    assert context.get_max_output_size("y") == -1
    assert not context.execute_async_v3(stream)
    assert rig.said("Input dimensions of x are not set")
    assert context.set_input_shape("x", (2, 3))
    assert not context.execute_async_v3(stream)
    assert rig.said("Address is not set for input tensor x")
    assert context.set_tensor_address("x", rig.put(np.zeros((2, 3), np.float32)))
    assert not context.execute_async_v3(stream)
    assert rig.said("Address is not set for output tensor y")


@pytest.mark.parametrize("by_strategy", [True, False])
def test_scratch_memory_of_the_user_is_needed_and_kept_busy(rig: Rig, by_strategy: bool) -> None:
    engine = rig.engine(relu([2]))
    if by_strategy:
        strategy = rig.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
    else:
        context = engine.create_execution_context_without_device_memory()
    rig.bind(context, {"x": np.ones(2, np.float32)})
    stream = rig.driver.stream_create(0)
    assert not context.execute_async_v3(stream)
    assert rig.said("Device memory was not set")
    size = engine.device_memory_size_v2
    scratch = rig.driver.mem_alloc(size)
    context.set_device_memory(scratch, size - 1)
    assert rig.said("required")
    assert not context.execute_async_v3(stream)
    context.device_memory = scratch
    assert context.execute_async_v3(stream)
    with pytest.raises(MisuseError, match="still used"):
        rig.driver.mem_free(scratch)
    rig.driver.stream_synchronize(stream)
    rig.driver.mem_free(scratch)


def test_buffer_that_is_too_small_is_misuse(rig: Rig) -> None:
    context = rig.engine(relu([64])).create_execution_context()
    rig.bind(context, {"x": np.ones(64, np.float32)})
    assert context.set_tensor_address("y", rig.driver.mem_alloc(16))
    with pytest.raises(MisuseError, match="do not fit"):
        context.execute_async_v3(rig.driver.stream_create(0))


def test_destroying_a_context_with_work_in_flight_is_a_violation(rig: Rig) -> None:
    context = rig.engine(relu([2])).create_execution_context()
    rig.bind(context, {"x": np.ones(2, np.float32)})
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    del context
    gc.collect()
    assert any("~IExecutionContext" in text for text in rig.driver.ledger.violations)
    rig.driver.stream_synchronize(stream)


def test_calls_without_a_current_cuda_context_are_misuse(rig: Rig) -> None:
    data = rig.plan(relu([2]))
    runtime = rig.trt.Runtime(rig.logger)
    engine = runtime.deserialize_cuda_engine(data)
    context = engine.create_execution_context()
    rig.driver.set_current_context(0)
    for call in (
        lambda: rig.trt.Runtime(rig.logger),
        lambda: runtime.deserialize_cuda_engine(data),
        engine.create_execution_context,
        lambda: context.execute_async_v3(0),
        lambda: context.set_optimization_profile_async(0, 0),
    ):
        with pytest.raises(MisuseError, match="no CUDA context is current"):
            call()
    rig.driver.set_current_context(rig.context)


def test_input_that_the_network_cannot_compute_is_misuse(rig: Rig) -> None:
    proto = model(
        [helper.make_node("Gather", ["x", "i"], ["y"])],
        [value("x", TensorProto.FLOAT, [4]), value("i", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    context = rig.engine(proto).create_execution_context()
    rig.bind(context, {"x": np.ones(4, np.float32), "i": np.array([9], np.int64)})
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    with pytest.raises(MisuseError, match="cannot be computed"):
        rig.driver.stream_synchronize(stream)


def test_shape_that_depends_on_data_unseen_is_reported(rig: Rig) -> None:
    def branch(count: int) -> Any:
        node = helper.make_node("Constant", [], ["r"], value_floats=[1.0] * count)
        return helper.make_graph([node], f"b{count}", [], [value("r", 1, [count])])

    proto = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch(2), else_branch=branch(3))],
        [value("c", TensorProto.BOOL, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    context = rig.engine(proto).create_execution_context()
    rig.bind(context, {"c": np.array([True])})
    stream = rig.driver.stream_create(0)
    assert context.execute_async_v3(stream)
    with pytest.raises(UnsupportedError, match="depends on data"):
        rig.driver.stream_synchronize(stream)


# Building ----------------------------------------------------------------------------------------


def test_network_tells_its_tensors(rig: Rig) -> None:
    _, network, _ = rig.parse(reshaped_by_input())
    assert (network.num_inputs, network.num_outputs, network.num_layers) == (2, 1, 1)
    x, s, y = network.get_input(0), network.get_input(1), network.get_output(0)
    assert (x.name, x.shape, x.dtype.name) == ("x", (-1, 6), "FLOAT")
    assert x.get_dimension_name(0) == "n"
    assert s.is_shape_tensor
    assert not x.is_shape_tensor
    assert y.shape == (-1, -1)
    assert network.get_input(2) is None


def test_fixing_a_dimension_needs_no_profile(rig: Rig) -> None:
    builder, network, config = rig.parse(relu(["n", 3]))
    network.get_input(0).shape = (5, 3)
    assert network.get_output(0).shape == (5, 3)
    engine = rig.load(bytes(builder.build_serialized_network(network, config)))
    assert engine.get_tensor_shape("y") == (5, 3)
    assert engine.get_tensor_profile_shape("x", 0) == [(5, 3)] * 3


def test_dynamic_input_without_profile_is_refused(rig: Rig) -> None:
    builder, network, config = rig.parse(relu(["n", 3]))
    assert builder.build_serialized_network(network, config) is None
    assert rig.said("dynamic or shape inputs, but no optimization profile has been defined: x")
    config.add_optimization_profile(builder.create_optimization_profile())
    assert builder.build_serialized_network(network, config) is None
    assert rig.said("x: optimization profile 0 is missing dimensions")


def test_profile_must_agree_with_the_network(rig: Rig) -> None:
    builder, network, config = rig.parse(relu(["n", 3]))
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (1, 4), (2, 4))
    profile.set_shape("stranger", (1,), (1,), (1,))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is None
    assert rig.said("do not match the network's")


def test_profile_ranges_must_be_ordered(rig: Rig) -> None:
    profile = rig.trt.Builder(rig.logger).create_optimization_profile()
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape("x", (2, 3), (1, 3), (4, 3))
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape("x", (1,), (1, 3), (4, 3))
    with pytest.raises(ValueError, match="inconsistent"):
        profile.set_shape_input("s", (1,), (5,), (4,))
    assert profile.get_shape("x") == []
    profile.set_shape("x", (1, 3), (2, 3), (4, 3))
    assert profile.get_shape("x") == [(1, 3), (2, 3), (4, 3)]


def test_shape_tensor_needs_profile_values(rig: Rig) -> None:
    builder, network, config = rig.parse(reshaped_by_input())
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 6), (2, 6), (4, 6))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is None
    assert rig.said("s: optimization profile 0 is missing the values")


def test_strong_typing_excludes_precision_flags(rig: Rig) -> None:
    builder = rig.trt.Builder(rig.logger)
    network = builder.create_network(1 << rig.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert rig.trt.OnnxParser(network, rig.logger).parse(relu().SerializeToString())
    config = builder.create_builder_config()
    config.set_flag(rig.trt.BuilderFlag.FP16)
    assert builder.build_serialized_network(network, config) is None
    assert rig.said("precision flags are set: FP16")
    config.clear_flag(rig.trt.BuilderFlag.FP16)
    assert builder.build_serialized_network(network, config) is not None


def test_progress_monitor_follows_and_cancels(rig: Rig) -> None:
    class Monitor(rig.trt.IProgressMonitor):
        def __init__(self, steps: int) -> None:
            self.steps = steps
            self.open: list[str] = []
            self.seen = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            assert parent_phase == (self.open[-1] if self.open else None)
            self.open.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            assert phase_name == self.open[-1]
            self.seen += 1
            return self.seen < self.steps

        def phase_finish(self, phase_name: str) -> None:
            assert self.open.pop() == phase_name

    builder, network, config = rig.parse(relu())
    for steps, built in ((100, True), (1, False), (2, False)):
        config.progress_monitor = Monitor(steps)
        assert (builder.build_serialized_network(network, config) is not None) == built
        assert config.progress_monitor.open == []
    assert rig.said("cancelled")


def test_timing_cache_grows_and_round_trips(rig: Rig) -> None:
    builder, network, config = rig.parse(relu())
    cache = config.create_timing_cache(b"")
    empty = bytes(cache.serialize())
    assert config.set_timing_cache(cache, False)
    assert builder.build_serialized_network(network, config) is not None
    filled = bytes(config.get_timing_cache().serialize())
    assert len(filled) > len(empty)
    assert bytes(config.create_timing_cache(filled).serialize()) == filled
    assert config.create_timing_cache(b"garbage") is None
    foreign = Rig("10.3.0").parse(relu())[2].create_timing_cache(b"")
    assert not config.set_timing_cache(foreign, False)
    assert config.set_timing_cache(foreign, True)


def test_config_keeps_its_settings(rig: Rig) -> None:
    _, _, config = rig.parse(relu())
    workspace = rig.trt.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(workspace, 1 << 20)
    assert config.get_memory_pool_limit(workspace) == 1 << 20
    assert config.get_flag(rig.trt.BuilderFlag.TF32)
    assert config.builder_optimization_level == 3
    config.set_preview_feature(rig.trt.PreviewFeature.PROFILE_SHARING_0806, True)
    assert config.get_preview_feature(rig.trt.PreviewFeature.PROFILE_SHARING_0806)


# Parsing -----------------------------------------------------------------------------------------


def refused(rig: Rig, data: bytes, path: str | None = None) -> list[Any]:
    network = rig.trt.Builder(rig.logger).create_network()
    parser = rig.trt.OnnxParser(network, rig.logger)
    assert not parser.parse(data, path)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    assert errors
    assert rig.said(errors[0].desc()[:40])
    parser.clear_errors()
    assert parser.num_errors == 0
    return errors


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x00" * 64, relu().SerializeToString()[:40]])
def test_garbage_is_refused(rig: Rig, data: bytes) -> None:
    (error,) = refused(rig, data)
    assert error.code() == rig.trt.ErrorCode.MODEL_DESERIALIZE_FAILED


def test_every_unknown_operator_is_named(rig: Rig) -> None:
    proto = model(
        [
            helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Grind", ["b"], ["y"], domain="acme"),
        ],
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    first, second = refused(rig, proto.SerializeToString())
    assert (first.node(), first.node_name(), first.node_operator()) == (0, "first", "Frobnicate")
    assert (second.node(), second.node_name(), second.node_operator()) == (2, "node_of_y", "Grind")
    assert first.code() == rig.trt.ErrorCode.UNSUPPORTED_NODE


def test_onnxruntime_failure_names_the_node(rig: Rig) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "x"], ["y"], name="product")],
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
    )
    (error,) = refused(rig, proto.SerializeToString())
    assert (error.node_name(), error.node_operator()) == ("product", "MatMul")


@pytest.mark.parametrize(
    "element", [TensorProto.DOUBLE, TensorProto.STRING, TensorProto.INT4, TensorProto.INT16]
)
def test_border_types_that_tensorrt_lacks_are_refused(rig: Rig, element: int) -> None:
    proto = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", element, [2])],
        [value("y", element, [2])],
    )
    errors = refused(rig, proto.SerializeToString())
    assert "unsupported type" in errors[0].desc()


def test_external_weights_are_found_beside_the_model(rig: Rig, tmp_path: Path) -> None:
    weights = np.arange(3, dtype=np.float32)
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, [3])],
        {"w": weights},
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = path.read_bytes()
    assert "path is unknown" in refused(rig, data)[0].desc()
    network = rig.trt.Builder(rig.logger).create_network()
    assert rig.trt.OnnxParser(network, rig.logger).parse(data, str(path)), rig.lines
    builder = rig.trt.Builder(rig.logger)
    network = builder.create_network()
    assert rig.trt.OnnxParser(network, rig.logger).parse_from_file(str(path))
    engine = rig.load(
        bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    )
    (y,) = rig.infer(engine, {"x": np.ones(3, np.float32)}, [np.float32])
    np.testing.assert_array_equal(y, weights + 1)

    moved = onnx.load(path, load_external_data=False)
    moved.graph.initializer[0].external_data[0].value = "../w.bin"
    assert "outside" in refused(rig, moved.SerializeToString(), str(path))[0].desc()
    (tmp_path / "w.bin").unlink()
    assert "Failed to load" in refused(rig, data, str(path))[0].desc()
    parser = rig.trt.OnnxParser(rig.trt.Builder(rig.logger).create_network(), rig.logger)
    assert not parser.parse_from_file(str(tmp_path / "absent.onnx"))
    assert parser.num_errors == 1


def test_local_functions_are_inlined(rig: Rig) -> None:
    function = helper.make_function(
        "acme",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", OPSET)],
    )
    proto = model(
        [helper.make_node("Twice", ["x"], ["y"], domain="acme")],
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    proto.functions.append(function)
    (y,) = rig.infer(rig.engine(proto), {"x": np.ones(2, np.float32)}, [np.float32])
    np.testing.assert_array_equal(y, [2, 2])


# Plans -------------------------------------------------------------------------------------------


def test_plan_round_trips(rig: Rig) -> None:
    data = rig.plan(relu())
    engine = rig.load(memoryview(data))
    assert bytes(engine.serialize()) == data
    assert engine.serialize().nbytes == len(data)
    assert rig.plan(relu()) == data


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "Magic tag does not match"),
        (lambda data: b"not a plan at all", "Magic tag does not match"),
        (lambda data: data[:8], "checksum"),
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "checksum"),
        (lambda data: _altered(data, device="toaster"), "generated on an incompatible device"),
        (lambda data: _altered(data, format=99), "Version tag does not match"),
    ],
)
def test_spoiled_plan_is_refused(rig: Rig, spoil: Callable[[bytes], bytes], reason: str) -> None:
    assert rig.load(spoil(rig.plan(relu()))) is None
    assert rig.said(reason)


def _altered(data: bytes, **changes: Any) -> bytes:
    header, contents = plan.unpack(data, "10.16.1")
    return plan.pack({**header, **changes}, contents)


def test_plan_of_another_version_needs_version_compatibility(rig: Rig) -> None:
    other = Rig("10.3.0")
    assert rig.load(other.plan(relu())) is None
    assert rig.said("Version tag does not match. Note: Current Version: 10.16.1")
    assert rig.said("Serialized Engine Version: 10.3.0")

    def compatible(config: Any) -> None:
        config.set_flag(rig.trt.BuilderFlag.VERSION_COMPATIBLE)

    data = other.plan(relu(), configure=compatible)
    assert rig.load(data) is None
    assert rig.said("host code")
    assert rig.load(data, allow_host_code=True) is not None

    def without_host_code(config: Any) -> None:
        compatible(config)
        config.set_flag(rig.trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)

    assert rig.load(other.plan(relu(), configure=without_host_code)) is not None


# Faults and the ledger ---------------------------------------------------------------------------


def life_cycle(rig: Rig) -> bool:
    """Build, load and run; False or an exception as soon as something fails."""
    builder = rig.trt.Builder(rig.logger)
    network = builder.create_network()
    config = builder.create_builder_config()
    if network is None or config is None:
        return False
    parser = rig.trt.OnnxParser(network, rig.logger)
    if not parser.parse(relu(["n", 3]).SerializeToString()):
        return False
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 3), (2, 3), (4, 3))
    if config.add_optimization_profile(profile) < 0:
        return False
    data = builder.build_serialized_network(network, config)
    if data is None:
        return False
    engine = rig.trt.Runtime(rig.logger).deserialize_cuda_engine(data)
    context = engine and engine.create_execution_context()
    if context is None:
        return False
    context.set_optimization_profile_async(0, 0)
    done = context.set_input_shape("x", (2, 3)) and context.set_tensor_address("x", rig.x)
    done = done and context.set_tensor_address("y", rig.y) and context.infer_shapes() == []
    done = done and context.execute_async_v3(0)
    rig.driver.drain(0)
    return bool(done)


def test_every_call_can_fail_and_nothing_stays_behind() -> None:
    faults = Faults()
    rig = Rig(faults=faults)
    rig.x, rig.y = (rig.put(np.zeros((2, 3), np.float32)) for _ in range(2))
    open_before = len(rig.driver.ledger.entries)
    first = faults.count + 1
    assert life_cycle(rig)
    last = faults.count
    assert last - first >= 14
    failed = []
    for _ in range(first, last + 1):
        faults.fail_call = faults.count + 1 + len(failed)
        with contextlib.suppress(TypeError, RuntimeError):
            assert not life_cycle(rig)
        failed.append(faults.failed[-1])
        gc.collect()
        assert len(rig.driver.ledger.entries) == open_before, failed[-1]
        assert rig.said(f"injected failure of {failed[-1]}")
    assert rig.driver.ledger.violations == []
    assert {"Runtime", "execute_async_v3", "OnnxParser.parse", "infer_shapes"} <= set(failed)


def test_constructors_fail_as_pybind_does() -> None:
    faults = Faults(persistent=True)
    rig = Rig(faults=faults)
    network = rig.parse(relu())[1]
    faults.fail_call = faults.count + 1
    for make in (
        lambda: rig.trt.Runtime(rig.logger),
        lambda: rig.trt.Builder(rig.logger),
        lambda: rig.trt.OnnxParser(network, rig.logger),
    ):
        with pytest.raises(TypeError, match="factory function returned nullptr"):
            make()


def test_a_logger_that_raises_is_ignored(rig: Rig) -> None:
    class Logger(rig.trt.ILogger):
        def log(self, severity: IntEnum, msg: str) -> None:
            raise ValueError("full disk")

    runtime = rig.trt.Runtime(Logger())
    assert runtime.deserialize_cuda_engine(b"garbage") is None


def test_an_exception_that_is_kept_keeps_no_tensorrt_object_alive(rig: Rig) -> None:
    context = rig.engine(relu(["n", 3]), {"x": ([1, 3], [1, 3], [4, 3])}).create_execution_context()
    with pytest.raises(RuntimeError) as kept:
        context.set_optimization_profile_async(7, 0)
    assert context.set_input_shape("x", (1, 3))
    assert context.set_tensor_address("x", rig.put(np.zeros((1, 3), np.float32)))
    assert context.set_tensor_address("y", 1)
    with pytest.raises(MisuseError) as kept_too:
        context.execute_async_v3(0)
    del context
    kinds = {e.kind for e in rig.driver.ledger.entries}
    assert not kinds & {"runtime", "engine", "execution context"}
    assert kept.value is not kept_too.value


def test_children_keep_their_parents(rig: Rig) -> None:
    context = rig.engine(relu([2])).create_execution_context()
    gc.collect()
    kinds = [e.kind for e in rig.driver.ledger.entries]
    assert {"runtime", "engine", "execution context"} <= set(kinds)
    assert context.engine.name == "net"
