"""What a model keeps in other files: found, and never looked for outside of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import BuildConfig, Device, ModelError, Session, build_plan
from trt_runtime.build.model import external_files

from ..models import assert_matches, make_model, reference, static

FOR_AMPERE = BuildConfig(compute_capabilities=("8.6",))


def saved(folder: Path, location: str = "weights.bin") -> Path:
    """The static case, its weights in a file of that name."""
    folder.mkdir(exist_ok=True, parents=True)
    model = onnx.ModelProto()
    model.CopyFrom(static().model)
    path = folder / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return relocated(path, location)


def relocated(path: Path, location: str, **entries: str) -> Path:
    """The same model, naming another file for its weights."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        kept = {e.key: e.value for e in tensor.external_data} | {"location": location} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_files_are_listed_with_their_parts(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (file,) = external_files(path.read_bytes(), path)
    assert (file.tensor, file.location) == ("w", "weights.bin")
    assert file.path == (tmp_path / "weights.bin").resolve()
    weights = numpy_helper.to_array(static().model.graph.initializer[0])
    part = file.path.read_bytes()[file.offset : file.offset + file.length]
    assert part == weights.tobytes()


def test_a_model_without_external_data_has_none() -> None:
    assert external_files(static().model.SerializeToString(), None) == ()
    assert external_files(b"garbage", None) == ()


def test_tensors_in_attributes_and_inner_graphs_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(8))

    def outside() -> TensorProto:
        tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="a.bin")
        return tensor

    def branch(name: str) -> onnx.GraphProto:
        made = helper.make_node("Constant", [], [name], value=outside())
        return helper.make_graph(
            [made], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    files = external_files(helper.make_model(graph).SerializeToString(), tmp_path / "net.onnx")
    assert [(file.offset, file.length) for file in files] == [(0, 8), (0, 8)]


@pytest.mark.parametrize("target", ["host", "rtx"])
def test_a_build_reads_the_weights_beside_the_model(
    host: Device, tmp_path: Path, target: str
) -> None:
    path = saved(tmp_path / "models")
    if target == "host":
        case = static()
        (feed,) = case.feeds
        with Session(path, device=host) as session:
            assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)
        return
    pytest.importorskip("tensorrt_rtx")
    for precision in ("tf32", "fp16"):
        config = BuildConfig(compute_capabilities=("8.6",), precision=precision)
        assert len(build_plan(path, config)) > 1000


def escapes(folder: Path) -> dict[str, Path]:
    """Ways out of the model's folder to a file that is there."""
    saved(folder)
    outside = folder.parent / "outside.bin"
    os.replace(folder / "weights.bin", outside)
    (folder / "inner").mkdir()
    (folder / "link.bin").symlink_to(outside)
    (folder / "up").symlink_to(folder.parent)
    return {
        "absolute": Path(str(outside)),
        "parent": Path("../outside.bin"),
        "through a folder": Path("inner/../../outside.bin"),
        "link": Path("link.bin"),
        "linked folder": Path("up/outside.bin"),
    }


@pytest.mark.parametrize("way", ["absolute", "parent", "through a folder", "link", "linked folder"])
def test_a_path_out_of_the_models_folder_is_refused_before_anything_reads_it(
    host: Device, tmp_path: Path, way: str
) -> None:
    location = str(escapes(tmp_path / "models")[way])
    path = relocated(tmp_path / "models" / "net.onnx", location)
    with pytest.raises(ModelError, match="external data that cannot be used") as caught:
        build_plan(path, device=host)
    (problem,) = caught.value.problems
    assert "tensor 'w'" in problem
    assert "leads out of the model's folder" in problem
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        build_plan(path, FOR_AMPERE)


@pytest.mark.parametrize("location", ["inner/../weights.bin", r"..\weights.bin", r"C:\w.bin", ""])
def test_a_path_that_another_system_would_follow_outside_is_refused(
    tmp_path: Path, location: str
) -> None:
    path = saved(tmp_path, location)
    with pytest.raises(ModelError, match=r"leads out of the model's folder|is no path"):
        external_files(path.read_bytes(), path)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    os.replace(tmp_path / "weights.bin", tmp_path / "real.bin")
    (tmp_path / "weights.bin").symlink_to("real.bin")
    (file,) = external_files(path.read_bytes(), path)
    assert file.path.name == "real.bin"


def test_a_missing_file_is_named(host: Device, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"there is no file .*weights\.bin"):
        build_plan(path, device=host)


def test_a_file_that_is_too_short_is_told_with_both_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match=r"needs bytes 0 to 432 of .*which has 100"):
        external_files(path.read_bytes(), path)


@pytest.mark.parametrize("entries", [{"offset": "x"}, {"length": "x"}, {"offset": "-4"}])
def test_numbers_that_are_none_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    path = relocated(saved(tmp_path), "weights.bin", **entries)
    with pytest.raises(ModelError, match=r"is no number|needs bytes"):
        external_files(path.read_bytes(), path)


@pytest.mark.parametrize("kind", ["bytes", "proto"])
def test_external_data_without_a_path_says_what_to_do(
    host: Device, tmp_path: Path, kind: str
) -> None:
    path = saved(tmp_path)
    model = path.read_bytes() if kind == "bytes" else onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match=r"pass the model's path, or load it with onnx\.load"):
        build_plan(model, device=host)
    assert build_plan(onnx.load(path), device=host)


def test_a_text_that_only_says_location_is_no_external_data() -> None:
    model = make_model(
        [helper.make_node("Relu", ["location"], ["y"])],
        {"location": (TensorProto.FLOAT, [2])},
        {"y": (TensorProto.FLOAT, [2])},
        {"unused": np.zeros(2, np.float32)},
    )
    assert external_files(model.SerializeToString(), None) == ()
