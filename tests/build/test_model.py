"""What a model keeps in other files: found, and never looked for outside of its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import BuildConfig, Device, ModelError, Session, build_plan
from trt_runtime.build.model import external_files, tensors_of

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


# Weights are not searched -----------------------------------------------------------------


def with_weights(weights: bytes) -> onnx.ModelProto:
    """The static network with more weights, and a location that leads nowhere in their bytes."""
    model = onnx.ModelProto()
    model.CopyFrom(static().model)
    for number in range(3):
        tensor = model.graph.initializer.add(name=f"more{number}", data_type=onnx.TensorProto.INT8)
        tensor.dims.append(len(weights))
        tensor.raw_data = weights
    return model


def test_a_model_whose_weights_look_like_external_data_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # importing it is an error
    data = with_weights(b"location" * 1024).SerializeToString()
    assert external_files(data, None) == ()
    assert external_files(memoryview(data), None) == ()


@pytest.mark.parametrize("position", range(5))
def test_external_data_is_found_wherever_it_is_among_weights(position: int) -> None:
    model = with_weights(b"location" * 1024)
    tensors = list(model.graph.initializer)
    outside = onnx.TensorProto(name="outside", data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="o.bin")
    del model.graph.initializer[:]
    model.graph.initializer.extend([*tensors[:position], outside, *tensors[position:]])
    with pytest.raises(ModelError, match="'outside'"):
        external_files(model.SerializeToString(), None)


def test_what_protobuf_skips_hides_no_external_data() -> None:
    """In a group, unknown to ONNX, lies what looks like weights that reach to the model's end."""
    model = onnx.ModelProto()
    outside = model.graph.initializer.add(name="o", data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="o.bin")
    for filler in range(4):
        hidden = bytes([100 << 3 & 0x7F | 4 | 0x80, 100 >> 4]) + model.SerializeToString()
        hidden += b"\x12" + _varint(8192) + bytes(8192)  # a producer_name, to make it large
        for field in (9, 5, 7):  # raw_data of an initializer of the graph
            hidden = bytes([field << 3 | 2]) + _varint(len(hidden)) + hidden
        head = hidden[: hidden.index(b"\xa4\x06")]
        body = b"\x0a" + bytes([filler + len(head)]) + bytes(filler) + hidden
        data = b"\xa3\x06" + body
        assert [t.name for t in tensors_of(onnx.ModelProto.FromString(data))] == ["o"]
        with pytest.raises(ModelError, match="'o'"):
            external_files(data, None)


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])


def test_a_model_that_breaks_off_is_no_surprise() -> None:
    data = with_weights(b"\x4a" * 8192).SerializeToString()
    for size in (*range(200), *range(len(data) - 200, len(data))):
        assert external_files(data[:size], None) == ()


def test_no_external_tensor_is_overlooked_in_whatever_still_is_a_model() -> None:
    """Bytes are flipped, and lengths with them, as long as protobuf reads the result."""
    model = with_weights(b"location" * 1024)
    tensor = model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value").t
    tensor.name, tensor.data_location = "c", onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.bin")
    data = model.SerializeToString()
    heads = [at for at in range(len(data)) if data[max(0, at - 8) : at + 8] not in LOCATIONS]
    seen = 0

    @settings(max_examples=1000, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(heads), st.integers(0, 255)), max_size=3))
    def change(changes: list[tuple[int, int]]) -> None:
        nonlocal seen
        other = bytearray(data)
        for at, value in changes:
            other[at] = value
        try:
            proto = onnx.ModelProto.FromString(bytes(other))
        except Exception:
            return
        outside = [t for t in tensors_of(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
        if any(entry.key == "location" for t in outside for entry in t.external_data):
            seen += 1
            with pytest.raises(ModelError):
                external_files(bytes(other), None)

    change()
    assert seen > 50


LOCATIONS = {(b"location" * 3)[start : start + 16] for start in range(8)}
