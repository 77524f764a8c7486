"""The host TensorRT's refitter: NVIDIA's surface, and its strictness where a GPU has none."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trt_runtime import BuildConfig, Device, MisuseError, build_plan
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.tensorrt.refitter import OnnxParserRefitter, Refitter
from trt_runtime.platform.tensorrt import TensorRT

from ..models import make_model

MANIFEST = Path(__file__).parents[1] / "manifests" / "tensorrt-10.16.1.json"

Load = Callable[..., Any]


def scaled(by: float) -> ModelProto:
    return make_model(
        [
            helper.make_node("Mul", ["x", "w"], ["y"]),
            helper.make_node("Reshape", ["y", "s"], ["z"]),
        ],
        {"x": (TensorProto.FLOAT, [4])},
        {"z": (TensorProto.FLOAT, [2, 2])},
        {"w": np.full(4, by, np.float32), "s": np.array([2, 2], np.int64)},
    )


@pytest.fixture
def library(host: Device) -> TensorRT:
    return host.platform.tensorrt()


@pytest.fixture
def load(host: Device, library: TensorRT) -> Iterator[Load]:
    """Load an engine of ``scaled(2)``, with a current context for the rest of the test."""

    def make(**options: Any) -> Any:
        plan = build_plan(scaled(2), BuildConfig(**{"refittable": True, **options}), device=host)
        return library.module.Runtime(library.log.logger).deserialize_cuda_engine(plan)

    with host._primary.current():
        yield make
        gc.collect()


def test_every_member_is_in_the_real_module() -> None:
    classes = json.loads(MANIFEST.read_text())["classes"]
    for kind in (Refitter, OnnxParserRefitter):
        members = {name for name in vars(kind) if not name.startswith("_")}
        assert members <= set(classes[kind.__name__]), kind


def test_weights_are_the_models_by_name_without_shapes(load: Load, library: TensorRT) -> None:
    engine = load()
    refitter = library.module.Refitter(engine, library.log.logger)
    assert refitter.get_all_weights() == ["w"]
    assert refitter.get_missing_weights() == []
    prototype = refitter.get_weights_prototype("w")
    assert (prototype.dtype.name, prototype.size, prototype.nbytes) == ("FLOAT", 4, 16)
    assert refitter.get_weights_prototype("s").size == -1


def test_a_change_needs_the_right_name_type_and_count(load: Load, library: TensorRT) -> None:
    module = library.module
    refitter = module.Refitter(load(), library.log.logger)
    good = np.full(4, 3, np.float32)
    for name, array in (("s", good), ("w", good[:3]), ("w", good.astype(np.float16))):
        kept = np.ascontiguousarray(array)
        assert not refitter.set_named_weights(name, module.Weights(kept))
    assert refitter.set_named_weights("w", module.Weights(good))
    np.testing.assert_array_equal(refitter.get_named_weights("w").numpy(), good)
    assert refitter.unset_named_weights("w")
    assert not refitter.unset_named_weights("w")


def test_weights_whose_array_is_gone_are_misuse(load: Load, library: TensorRT) -> None:
    module = library.module
    refitter = module.Refitter(load(), library.log.logger)
    array = np.full(4, 3, np.float32)
    assert refitter.set_named_weights("w", module.Weights(array))
    del array
    gc.collect()
    with pytest.raises(MisuseError, match="is gone"):
        refitter.refit_cuda_engine()


def test_weights_of_a_type_that_numpy_lacks_are_given_by_address(library: TensorRT) -> None:
    import ml_dtypes

    module = library.module
    array = np.ones(3, ml_dtypes.bfloat16)
    with pytest.raises(TypeError, match="Could not implicitly convert"):
        module.Weights(array)
    weights = module.Weights(module.DataType.BF16, array.ctypes.data, 3)
    np.testing.assert_array_equal(weights.numpy(), array)
    assert module.Weights().numpy().size == 0


def test_an_engine_that_is_not_refittable_has_no_refitter(load: Load, library: TensorRT) -> None:
    with pytest.raises(TypeError, match="nullptr"), library.log.capture() as lines:
        library.module.Refitter(load(refittable=False), library.log.logger)
    assert "isRefittable" in lines[0]


def test_a_model_that_lacks_weights_is_refused_with_each_of_them(
    load: Load, library: TensorRT
) -> None:
    module = library.module
    refitter = module.Refitter(load(), library.log.logger)
    parser = module.OnnxParserRefitter(refitter, library.log.logger)
    other = scaled(3)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), "w"))
    assert not parser.refit_from_bytes(other.SerializeToString())
    assert parser.num_errors == 1
    assert "'w' do not fit" in parser.get_error(0).desc()
    parser.clear_errors()
    assert not parser.refit_from_bytes(b"garbage")
    parser.clear_errors()
    assert parser.refit_from_bytes(scaled(3).SerializeToString())
    assert parser.num_errors == 0
    assert refitter.refit_cuda_engine()


def test_work_in_flight_makes_a_refit_misuse(
    host: Device, platform: HostPlatform, load: Load, library: TensorRT
) -> None:
    driver = platform.host_driver
    engine = load()
    context = engine.create_execution_context()
    x, z, stream = driver.mem_alloc(16), driver.mem_alloc(16), driver.stream_create(0)
    context.set_tensor_address("x", x)
    context.set_tensor_address("z", z)
    assert context.execute_async_v3(stream)
    refitter = library.module.Refitter(engine, library.log.logger)
    with pytest.raises(MisuseError, match="work enqueued"):
        refitter.refit_cuda_engine()
    driver.stream_synchronize(stream)
    assert refitter.refit_cuda_engine()
    driver.stream_destroy(stream)
    driver.mem_free(x)
    driver.mem_free(z)


@pytest.mark.parametrize("keep_refittable", [True, False])
def test_a_plan_that_is_written_again_says_what_it_contains(
    load: Load, library: TensorRT, keep_refittable: bool
) -> None:
    module = library.module
    engine = load()
    config = engine.create_serialization_config()
    if keep_refittable:
        config.set_flag(module.SerializationFlag.INCLUDE_REFIT)
    again = module.Runtime(library.log.logger).deserialize_cuda_engine(
        engine.serialize_with_config(config)
    )
    assert again.refittable == keep_refittable
    stats = module.EngineStat
    assert again.get_engine_stat(stats.TOTAL_WEIGHTS_SIZE) == 16
    assert again.get_engine_stat(stats.STRIPPED_WEIGHTS_SIZE) == -1
    config.set_flag(module.SerializationFlag.EXCLUDE_WEIGHTS)
    stripped = module.Runtime(library.log.logger).deserialize_cuda_engine(
        engine.serialize_with_config(config)
    )
    assert stripped.get_engine_stat(stats.STRIPPED_WEIGHTS_SIZE) == 16


def test_a_stripped_engine_misses_all_weights_and_does_not_run(
    load: Load, library: TensorRT
) -> None:
    module = library.module
    engine = load(strip_weights=True)
    context = engine.create_execution_context()
    assert not context.execute_async_v3(1)
    refitter = module.Refitter(engine, library.log.logger)
    assert refitter.get_missing_weights() == ["w"]
    assert not refitter.refit_cuda_engine()
