"""What decoding needs to know, and that it survives its journey in a model's metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper

from trt_runtime import InputError, ModelError
from trt_runtime.yolov3 import Layout, Network, read_names, yolov3_tiny
from trt_runtime.yolov3.layout import METADATA_KEY

LAYOUT = Layout.of(Network.parse(yolov3_tiny(64, classes=2)), ["a", "b"])


def test_a_layout_survives_its_text() -> None:
    odd = replace(LAYOUT, names=('"', "\ud800é"))
    for layout in (LAYOUT, odd):
        again = Layout.from_json(layout.to_json())
        assert again == layout
        assert hash(again) == hash(layout)


def test_classes_without_names_have_numbers() -> None:
    network = Network.parse(yolov3_tiny(64, classes=2))
    assert Layout.of(network).names == ("0", "1")
    assert Layout.of(network, ("cat", "dog")).names == ("cat", "dog")


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c"], "ab", ["a", 1]])
def test_names_that_are_not_one_for_each_class_are_refused(names: Any) -> None:
    with pytest.raises(InputError, match="names"):
        Layout.of(Network.parse(yolov3_tiny(64, classes=2)), names)


def _changed(**changes: Any) -> str:
    return json.dumps({**json.loads(LAYOUT.to_json()), **changes})


def _head(**changes: Any) -> str:
    first, *others = json.loads(LAYOUT.to_json())["heads"]
    return _changed(heads=[{**first, **changes}, *others])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        _changed(width=0),
        _changed(width=True),
        _changed(height="64"),
        _changed(names="ab"),
        _changed(names=["a"]),
        _changed(names=["a", None]),
        _changed(heads=[]),
        _changed(heads=[1]),
        _head(output=None),
        _head(anchors=[]),
        _head(anchors=[[1]]),
        _head(anchors=[[1, -1]]),
        _head(anchors=[[1, float("nan")]]),
        _head(anchors=[[1, 10**400]]),
        _head(classes=3),
        _head(grid=[1]),
        _head(grid=[1, 2.5]),
    ],
    ids=lambda text: text[:20],
)
def test_metadata_that_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not as to_onnx writes it"):
        Layout.from_json(text)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["width", "height", "heads", "names", "output", "anchors", "grid"]), inner
    ),
).map(json.dumps) | st.text())  # fmt: skip
@settings(deadline=None)
@example('{"width":1,"height":1,"names":[],"heads":{"a":1}}')
def test_any_metadata_is_a_layout_or_an_error(text: str) -> None:
    try:
        layout = Layout.from_json(text)
    except InputError:
        return
    assert layout.heads


def test_a_model_of_someone_else_is_told_apart(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    with pytest.raises(InputError, match=r"says nothing about its boxes.*give the \.cfg"):
        Layout.from_onnx(model)
    helper.set_model_props(model, {METADATA_KEY: LAYOUT.to_json()})
    assert Layout.from_onnx(model) == LAYOUT
    with pytest.raises(ModelError, match="the model is no ONNX"):
        Layout.from_onnx(b"\xff" * 20)
    with pytest.raises(ModelError, match="there is no ONNX model"):
        Layout.from_onnx(tmp_path / "none.onnx")


def test_only_the_metadata_of_a_model_is_read(tmp_path: Path) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(model, {METADATA_KEY: LAYOUT.to_json()})
    tensor = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert Layout.from_onnx(path) == LAYOUT


def test_names_are_read_one_from_each_line(tmp_path: Path) -> None:
    path = tmp_path / "my.names"
    path.write_bytes("\ufeffcat\r\nhot dog \n\nöl".encode())
    assert read_names(path) == ("cat", "hot dog", "öl")
    path.write_bytes(b"\xff\xfe")
    for wrong in (path, tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read_names(wrong)
