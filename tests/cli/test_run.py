"""``trt-runtime run`` as a user meets it: text, JSON and exit status, on the host device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import Result

from trt_runtime import Engine, Profile
from trt_runtime.cli import networks

from ..models import reshape
from .conftest import invoke


def run(*arguments: str) -> Result:
    return invoke("run", *arguments, "--device", "host")


def facts(*arguments: str, status: int = 0) -> Any:
    result = run(*arguments, "--json", "--iterations", "1")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_a_network_of_the_onnx_package_matches_its_reference() -> None:
    result = run("squeezenet", "--iterations", "1")
    assert result.exit_code == 0, result.output
    assert "\nmatches the reference: max relative error" in result.output
    assert "say nothing about a GPU" in result.output


def test_an_output_that_differs_from_its_reference_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = networks.Network("squeezenet").reference()
    monkeypatch.setattr(networks.Network, "reference", lambda self: reference * 1.01)
    result = run("squeezenet", "--iterations", "1")
    assert result.exit_code == 1, result.output
    assert "does not match the reference" in result.output


def test_json_holds_shapes_and_timings(doubling: str) -> None:
    report = facts(doubling, "--shape", "images:2x4")
    assert report["device"]["kind"] == "host"
    assert [tensor["shape"] for tensor in report["inputs"]] == [[2, 4]]
    assert [tensor["shape"] for tensor in report["outputs"]] == [[2, 4]]
    assert report["timings_ms"]["iterations"] == 1
    assert report["timings_are_of_a_gpu"] is False
    assert report["reference"] is None


def test_the_environment_sets_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "host")
    result = invoke("run", "squeezenet", "--iterations", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""  # the host device was chosen: nothing to warn of


def test_the_seed_chooses_the_random_inputs(doubling: str) -> None:
    def outputs(seed: int) -> Any:
        return facts(doubling, "--shape", "images:2x4", "--seed", str(seed))["outputs"]

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing-of-that-name"], "squeezenet"),
        (["squeezenet", "--shape", "1x3"], "--shape takes NAME:SIZE"),
        (["squeezenet", "--shape", "a:1", "--shape", "a:2"], "twice"),
        (["squeezenet", "--shape", "data_0:-1x3"], "negative"),
        (["squeezenet", "--input", "missing.npy"], "no file 'missing.npy'"),
        (["squeezenet", "--compare", "missing.npz"], "no file 'missing.npz'"),
        (["squeezenet", "--reference", "missing.onnx"], "missing.onnx"),
        (["squeezenet", "--iterations", "0"], "--iterations"),
    ],
)
def test_an_error_is_one_paragraph_and_exit_status_2(arguments: list[str], expected: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert expected in result.output
    assert "Traceback" not in result.output


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
    result = run(doubling)
    assert result.exit_code == 2
    assert "--shape images:SIZEx4" in result.stderr


def test_an_engine_with_a_profile_runs_at_its_optimum(doubling: str) -> None:
    profile = Profile({"images": ((1, 4), (3, 4), (5, 4))})
    with Engine.build(doubling, profiles=[profile], device="host") as engine:
        engine.save("doubling.engine")
    assert facts("doubling.engine")["inputs"][0]["shape"] == [3, 4]
    assert facts("doubling.engine", "--shape", "images:5x4")["inputs"][0]["shape"] == [5, 4]


# Inputs -----------------------------------------------------------------------------------------

WANTED = np.arange(8, dtype=np.float32).reshape(2, 4)


def written(kind: str) -> str:
    """``WANTED`` in a file of that kind."""
    path = f"given.{kind}"
    if kind == "npy":
        np.save(path, WANTED)
    elif kind == "npz":
        np.savez(path, images=WANTED)
    else:
        Path(path).write_bytes(numpy_helper.from_array(WANTED, "other").SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "pb"])
@pytest.mark.parametrize("name", ["", "images="])
def test_an_input_from_a_file_gives_the_shape_and_the_values(
    doubling: str, kind: str, name: str
) -> None:
    result = run(doubling, "--input", name + written(kind), "--save", "out.npz")
    assert result.exit_code == 0, result.output
    with np.load("out.npz") as saved:
        np.testing.assert_array_equal(saved["doubled"], WANTED * 2)


def test_the_values_of_a_shape_tensor_come_from_a_file_too() -> None:
    case = reshape()
    onnx.save(case.model, "reshape.onnx")
    np.save("x.npy", case.feeds[0]["x"])
    np.save("shape.npy", case.feeds[0]["shape"])
    report = facts("reshape.onnx", "--input", "shape=shape.npy", "--input", "x.npy")
    assert [tensor["shape"] for tensor in report["outputs"]] == [[3, 4]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing=given.npy"], "the inputs are images"),
        (["given.npy", "given.npy"], "given already"),
        (["images=given.npy", "images=given.npy"], "twice"),
        (["broken.npy"], "cannot be read"),
        (["broken.npz"], "cannot be read"),
        (["pickled.npy"], "cannot be read"),
        (["broken.pb"], "no ONNX tensor"),
        (["broken.jpg"], "no image"),
        (["others.npz"], "'a'"),
        (["images=others.npz"], "no array 'images'"),
    ],
)
def test_an_input_that_cannot_be_used_is_a_usage_error(
    doubling: str, arguments: list[str], expected: str
) -> None:
    written("npy")
    for name in ("broken.npy", "broken.npz", "broken.pb", "broken.jpg"):
        Path(name).write_bytes(b"\xff\xfe no such thing")
    np.save("pickled.npy", np.array([{}], object), allow_pickle=True)
    np.savez("others.npz", a=WANTED, b=WANTED)
    options = [word for argument in arguments for word in ("--input", argument)]
    result = run(doubling, *options, "--shape", "images:2x4")
    assert result.exit_code == 2
    assert expected in result.stderr


def test_a_file_whose_name_holds_an_equals_sign_is_found(doubling: str) -> None:
    np.save("a=b.npy", WANTED)
    assert facts(doubling, "--input", "a=b.npy")["inputs"][0]["shape"] == [2, 4]
    assert facts(doubling, "--input", "images=a=b.npy")["inputs"][0]["shape"] == [2, 4]


# Outputs ----------------------------------------------------------------------------------------


def test_outputs_are_saved_to_a_folder(doubling: str) -> None:
    report = facts(doubling, "--input", written("npy"), "--save", "outputs")
    assert report["saved"] == [str(Path("outputs/doubled.npy"))]
    np.testing.assert_array_equal(np.load("outputs/doubled.npy"), WANTED * 2)


def test_outputs_with_awkward_names_are_saved(own_machine: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], [name]) for name in ("file", "a/b", "a:b")],
        "awkward",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("file", "a/b", "a:b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "awkward.onnx")
    facts("awkward.onnx", "--save", "out.npz")
    with np.load("out.npz") as saved:
        assert sorted(saved.files) == ["a/b", "a:b", "file"]
    assert len(facts("awkward.onnx", "--save", "out")["saved"]) == 3
    assert len(list((own_machine / "out").iterdir())) == 3


def test_a_place_that_cannot_be_written_is_a_usage_error(doubling: str) -> None:
    for place in ("missing/out.npz", doubling):
        result = run(doubling, "--shape", "images:1x4", "--save", place)
        assert result.exit_code == 2, result.output
        assert "--save" in result.stderr or "cannot be written" in result.stderr


# Comparing --------------------------------------------------------------------------------------


def test_onnxruntime_confirms_the_result(doubling: str) -> None:
    report = facts(doubling, "--shape", "images:2x4", "--compare", "onnxruntime")
    assert report["reference"]["source"] == "onnxruntime"
    (figures,) = report["reference"]["outputs"]
    assert figures["matches"]
    assert figures["name"] == "doubled"
    assert figures["max_absolute_error"] == 0
    assert figures["cosine_similarity"] == pytest.approx(1)


def test_an_engine_is_compared_with_the_model_that_is_named(doubling: str) -> None:
    with Engine.build(doubling, profiles=[Profile({"images": (2, 4)})], device="host") as engine:
        engine.save("doubling.engine")
    assert facts("doubling.engine", "--reference", doubling)["reference"]["matches"]
    result = run("doubling.engine", "--compare", "onnxruntime")
    assert result.exit_code == 2
    assert "--reference" in result.stderr


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (0.0009, 0), (0.01, 1)])
def test_a_file_of_expected_outputs_decides_the_exit_status(
    doubling: str, error: float, status: int
) -> None:
    np.savez("expected.npz", doubled=WANTED * 2 * (1 + error))
    arguments = [doubling, "--input", written("npy"), "--compare", "expected.npz"]
    report = facts(*arguments, status=status)
    assert report["reference"]["matches"] is (status == 0)
    result = run(*arguments)
    assert result.exit_code == status
    assert ("does not match expected.npz" in result.stdout) is (status == 1)
    assert facts(*arguments, "--rtol", "0.1")["reference"]["matches"]


def test_an_expected_output_that_does_not_exist_is_a_usage_error(doubling: str) -> None:
    np.savez("expected.npz", tripled=WANTED)
    result = run(doubling, "--input", written("npy"), "--compare", "expected.npz")
    assert result.exit_code == 2
    assert "'tripled'" in result.stderr
    assert "doubled" in result.stderr
