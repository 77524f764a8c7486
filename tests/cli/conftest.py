"""A machine as the command line meets it: its own cache, nothing set, a model to work on."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from trt_runtime.cli import app


def invoke(*arguments: str) -> Result:
    """Run the command; an exception that gets out of it is the test's failure."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a cache that is not the user's."""
    monkeypatch.setenv("TRT_RUNTIME_CACHE", str(tmp_path / "cache"))
    for name in ("TRT_RUNTIME_DEVICE", "TRT_RUNTIME_TENSORRT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def doubling(own_machine: Path) -> str:
    """A model that doubles ``images``, of shape [n, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "images"], ["doubled"])],
        "doubling",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, own_machine / "doubling.onnx")
    return "doubling.onnx"
