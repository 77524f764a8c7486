"""``trt-runtime inspect``: an ONNX model, an engine, an entry of the cache."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_runtime import BuildConfig, Engine, EngineCache, Profile, build_plan

from ..conftest import without_gpu
from .conftest import invoke

PROFILE = Profile({"images": ((1, 4), (2, 4), (8, 4))})


def inspect(*arguments: str, status: int = 0) -> Any:
    result = invoke("inspect", *arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def text(*arguments: str) -> str:
    result = invoke("inspect", *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture
def engine(doubling: str) -> str:
    config = BuildConfig(profiles=(PROFILE,), verbosity="detailed")
    with Engine.build(doubling, config, device="host") as built:
        built.save("doubling.engine")
    return "doubling.engine"


def test_an_onnx_model_tells_its_tensors_and_operators(doubling: str) -> None:
    told = inspect(doubling)
    assert told["kind"] == "onnx"
    assert told["inputs"] == [{"name": "images", "dtype": "float", "shape": ["n", 4]}]
    assert told["outputs"][0]["name"] == "doubled"
    assert told["operators"] == {"Add": 1}
    assert told["opsets"] == {"ai.onnx": 17}
    assert told["ir_version"] == 8
    assert told["dynamic"] == {"images": [0]}
    assert "dynamic: images, axis 0" in text(doubling)


def test_weights_are_counted_where_they_are(own_machine: Path) -> None:
    weights = np.ones((16, 32), np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "external",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 32])],
            [onnx.numpy_helper.from_array(weights, "w")],
        )
    )
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    told = inspect("m.onnx")
    assert told["parameters"] == 512
    assert told["external_files"] == ["m.data"]
    assert told["external_bytes"] == 2048
    Path("m.data").unlink()
    assert "m.data" in inspect("m.onnx")["problem"]
    assert "external data cannot be used" in text("m.onnx")


def test_a_network_of_the_onnx_package_can_be_named() -> None:
    assert inspect("squeezenet")["operators"]["Conv"] == 26


def test_an_engine_tells_tensors_profiles_and_layers(engine: str) -> None:
    told = inspect(engine)
    assert told["kind"] == "engine"
    assert told["bytes"] == Path(engine).stat().st_size
    assert told["for_the_host_device"]
    assert told["not_loaded"] is None
    assert told["engine"]["profiles"][0]["images"]["max"] == [8, 4]
    assert told["engine"]["layers"][0]["type"]
    shown = text(engine, "--layers")
    assert "1x4..2x4..8x4" in shown
    assert "Add" in shown


@without_gpu
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
def test_an_engine_that_cannot_be_loaded_tells_its_header_and_why_no_more() -> None:
    from trt_runtime.cli import networks

    network = networks.find("squeezenet")
    assert network is not None
    plan = build_plan(network.model, BuildConfig(compute_capabilities=("8.6",)))
    Path("rtx.engine").write_bytes(plan)
    told = inspect("rtx.engine")
    assert told["engine"] is None
    assert told["built_by"].startswith("1.")
    assert "driver" in told["not_loaded"]
    assert "no more can be told here" in text("rtx.engine")


def test_an_entry_of_the_cache_is_found_by_the_beginning_of_its_key(doubling: str) -> None:
    cache = EngineCache()
    cache.load_or_build(doubling, profiles=[PROFILE], device="host").close()
    (entry,) = cache.entries()
    told = inspect(entry.key[:8])
    assert told["kind"] == "cache entry"
    assert told["cache"]["key"] == entry.key
    assert told["engine"]["tensors"][0]["name"] == "images"
    assert "doubling.onnx" in text(entry.key[:8].upper())
    entry.path.write_bytes(b"short")
    assert inspect(entry.key[:8])["cache"]["damage"]
    assert "damaged" in text(entry.key[:8])


def test_keys_that_begin_alike_are_refused(doubling: str) -> None:
    folder = EngineCache().directory
    folder.mkdir(mode=0o700, parents=True)
    for end in "01":
        (folder / f"{'a' * 63}{end}.plan").touch()
    assert "2 engines" in inspect("aaaa", status=2)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.onnx", b"\xff\xffgarbage"), ("x.onnx", b""), ("x.engine", b"garbage"), ("x.engine", b"")],
)
def test_a_file_that_is_neither_is_a_usage_error(
    own_machine: Path, name: str, content: bytes
) -> None:
    Path(name).write_bytes(content)
    assert "x." in inspect(name, status=2)["error"]["message"]


@pytest.mark.parametrize("what", ["nothing", "abc", "*"])
def test_what_is_not_there_is_a_usage_error(what: str) -> None:
    assert "cache list" in inspect(what, status=2)["error"]["message"]
