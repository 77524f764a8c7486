"""``trt-runtime run`` as a user meets it: text, JSON and exit status, on the host device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from trt_runtime.cli import app, networks
from trt_runtime.cli.report import compare


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["run", *arguments, "--device", "host"])


@pytest.fixture
def doubling(tmp_path: Path) -> str:
    """A model that doubles ``images``, of shape [n, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "images"], ["doubled"])],
        "doubling",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "doubling.onnx"
    onnx.save(model, path)
    return str(path)


def test_a_network_of_the_onnx_package_matches_its_reference() -> None:
    result = invoke("squeezenet", "--iterations", "1")
    assert result.exit_code == 0, result.output
    assert "\nmatches the reference: max relative error" in result.output
    assert "say nothing about a GPU" in result.output


def test_an_output_that_differs_from_its_reference_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = networks.Network("squeezenet").reference()
    monkeypatch.setattr(networks.Network, "reference", lambda self: reference * 1.01)
    result = invoke("squeezenet", "--iterations", "1")
    assert result.exit_code == 1, result.output
    assert "does not match the reference" in result.output


def test_json_holds_shapes_and_timings(doubling: str) -> None:
    result = invoke(doubling, "--shape", "images:2x4", "--iterations", "3", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"]["kind"] == "host"
    assert [tensor["shape"] for tensor in report["inputs"]] == [[2, 4]]
    assert [tensor["shape"] for tensor in report["outputs"]] == [[2, 4]]
    assert report["timings_ms"]["iterations"] == 3
    assert report["timings_are_of_a_gpu"] is False
    assert report["reference"] is None


def test_the_seed_chooses_the_random_inputs(doubling: str) -> None:
    def outputs(seed: int) -> Any:
        result = invoke(doubling, "--shape", "images:2x4", "--json", "--seed", str(seed))
        return json.loads(result.stdout)["outputs"]

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing-of-that-name"], "squeezenet"),
        (["squeezenet", "--shape", "1x3"], "--shape takes NAME:SIZE"),
        (["squeezenet", "--shape", "a:1", "--shape", "a:2"], "twice"),
    ],
)
def test_an_error_is_one_paragraph_and_exit_status_2(arguments: list[str], expected: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert expected in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.1])
def test_a_wrong_value_does_not_match(value: float) -> None:
    reference = np.full((1, 4), 0.001, np.float32)
    output = reference.copy()
    output[0, 2] = value
    assert compare({"y": reference}, reference).matches
    assert not compare({"y": output}, reference).matches


def test_another_shape_does_not_match() -> None:
    reference = np.full((1, 4), 0.001, np.float32)
    assert not compare({"y": reference.reshape(4)}, reference).matches


@pytest.mark.parametrize("name", networks.names())
def test_every_network_has_a_model_and_a_reference(name: str) -> None:
    network = networks.find(name)
    assert network is not None
    assert network.model.is_file()
    assert network.reference().size == 1000


def test_the_ramp_is_the_input_of_the_onnx_test_runner() -> None:
    from onnx.backend.test.runner import Runner

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    np.testing.assert_array_equal(networks.ramp((1, 3, 8, 8)), Runner.generate_dummy_data(value))


def test_a_dynamic_input_without_a_shape_names_the_option_to_add(doubling: str) -> None:
    result = invoke(doubling)
    assert result.exit_code == 2
    assert "--shape images:SIZEx4" in result.stderr
