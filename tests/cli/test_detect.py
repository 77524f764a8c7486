"""``trt-runtime detect`` and ``demo``: pictures in, a table, annotated pictures and JSON out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import Result

from trt_runtime import Engine
from trt_runtime.yolov3 import Detections, Detector, Network, read_weights, to_onnx
from trt_runtime.yolov3.digits import SAMPLE
from trt_runtime.yolov3.digits.scenes import held_out_scenes
from trt_runtime.yolov3.images import load_image

from ..yolov3.digits import SAMPLE_DIGITS
from .conftest import invoke

Image = pytest.importorskip("PIL.Image")

DIGITS = SAMPLE.parent


def detect(*arguments: str, status: int = 0) -> Result:
    result = invoke("detect", *arguments, "--device", "host")
    assert result.exit_code == status, result.output
    return result


def facts(*arguments: str, status: int = 0) -> Any:
    return json.loads(detect(*arguments, "--json", status=status).stdout)


@pytest.fixture
def pictures(own_machine: Path) -> list[str]:
    """A folder of two scenes."""
    folder = own_machine / "photos"
    folder.mkdir()
    names = []
    for name, scene in zip(("a.png", "b.png"), held_out_scenes(2), strict=True):
        Image.fromarray(scene.image).save(folder / name)
        names.append(f"photos/{name}")
    return names


@pytest.fixture
def expected(pictures: list[str]) -> Iterator[list[Detections]]:
    with Detector(device="host") as detector:
        yield list(detector.detect_many(pictures))


def assert_found(report: Any, expected: list[Detections]) -> None:
    assert len(report["images"]) == len(expected)
    for image, right in zip(report["images"], expected, strict=True):
        boxes = [found["box"] for found in image["detections"]]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), right.boxes, atol=1e-2)
        assert [found["name"] for found in image["detections"]] == [name for _, _, name in right]


def test_a_table_annotated_copies_and_json(pictures: list[str], expected: list[Detections]) -> None:
    result = detect(*pictures)
    rows = [line for line in result.stdout.splitlines() if line.startswith("photos/")]
    assert len(rows) == sum(map(len, expected)) > 2
    assert f"{len(rows)} objects in 2 images" in result.stdout
    assert "saved detections/a.detected.png, detections/b.detected.png" in result.stdout
    written = json.loads(Path("detections/detections.json").read_text())
    assert_found(written, expected)
    for name, right in zip("ab", expected, strict=True):
        before = load_image(f"photos/{name}.png")
        after = load_image(f"detections/{name}.detected.png")
        assert after.shape == before.shape
        assert len(right) == 0 or (after != before).any()


def test_json_says_what_ran_and_where_things_are(
    pictures: list[str], expected: list[Detections]
) -> None:
    report = facts("photos", "--save", "out")
    assert report["device"]["kind"] == "host"
    assert report["tensorrt"]["name"]
    assert [(i["image"], i["width"], i["height"]) for i in report["images"]] == [
        (name, 320, 320) for name in pictures
    ]
    assert report["saved"] == ["out/a.detected.png", "out/b.detected.png", "out/detections.json"]
    assert all(Path(file).is_file() for file in report["saved"])
    assert_found(report, expected)


@pytest.mark.parametrize("kind", ["weights", "weights-beside", "onnx", "engine"])
def test_models_of_every_kind_find_the_same(
    pictures: list[str], expected: list[Detections], kind: str
) -> None:
    network = Network.load(DIGITS / "digits.cfg")
    model = to_onnx(network, read_weights(DIGITS / "digits.weights", network))
    cfg = ["--cfg", str(DIGITS / "digits.cfg")]
    if kind == "weights":
        arguments = ["--model", str(DIGITS / "digits.weights"), *cfg]
    elif kind == "weights-beside":
        for suffix in ("weights", "cfg"):
            shutil.copy(DIGITS / f"digits.{suffix}", f"mine.{suffix}")
        Path("mine.names").write_text("\n".join(f"number {n}" for n in range(10)))
        report = facts(*pictures, "--model", "mine.weights")
        for image in report["images"]:
            for found in image["detections"]:
                assert found["name"] == f"number {found['class']}"
                found["name"] = str(found["class"])
        assert_found(report, expected)
        return
    elif kind == "onnx":
        onnx.save(model, "mine.onnx")
        arguments = ["--model", "mine.onnx"]
    else:
        with Engine.build(model, device="host") as engine:
            engine.save("mine.engine")
        arguments = ["--model", "mine.engine", *cfg]
    assert_found(facts(*pictures, *arguments), expected)


def test_decoding_in_the_graph_finds_the_same(
    pictures: list[str], expected: list[Detections]
) -> None:
    report = facts(*pictures, "--in-graph")
    for image, right in zip(report["images"], expected, strict=True):
        boxes = [found["box"] for found in image["detections"]]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), right.boxes, atol=0.5)


def test_a_higher_threshold_finds_less(pictures: list[str]) -> None:
    def count(threshold: str) -> int:
        report = facts(*pictures, "--threshold", threshold)
        return sum(len(image["detections"]) for image in report["images"])

    assert count("0.1") > count("0.7") > count("1") == 0


def test_images_of_one_name_do_not_overwrite_each_other(pictures: list[str]) -> None:
    Path("more").mkdir()
    shutil.copy("photos/a.png", "more/a.png")
    shutil.copy("photos/a.png", "more/A.png")
    report = facts("photos/a.png", "more")
    assert len({Path(image["annotated"]).name.lower() for image in report["images"]}) == 3
    assert all(Path(image["annotated"]).is_file() for image in report["images"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.jpg"], "there is no file or folder 'nothing.jpg'"),
        (["empty"], "has no images"),
        (["broken.jpg"], "'broken.jpg' cannot be read"),
        (["photos/a.png", "--model", "nothing.onnx"], "there is no file 'nothing.onnx'"),
        (["photos/a.png", "--model", "bare.weights"], "cfg="),
        (["photos/a.png", "--cfg", "x.cfg"], "cfg= describes a model"),
        (["photos/a.png", "--save", "broken.jpg"], "--save takes a folder"),
        (["photos/a.png", "--fit", "shrink"], "'letterbox' or 'stretch', not 'shrink'"),
        (["photos/a.png", "--threshold", "2"], "--threshold"),
        (["photos/a.png", "--precision", "float"], "precision"),
    ],
)
def test_what_does_not_fit_is_said_in_one_paragraph(
    pictures: list[str], arguments: list[str], expected: str
) -> None:
    Path("empty").mkdir()
    Path("broken.jpg").write_bytes(b"no picture")
    Path("bare.weights").write_bytes(b"")
    result = detect(*arguments, status=2)
    assert expected in result.stderr
    assert "Traceback" not in result.output
    report = facts(*arguments, status=2)
    assert expected in report["error"]["message"]


def test_the_demo_needs_nothing_but_the_package(own_machine: Path) -> None:
    result = invoke("demo", "--device", "host")
    assert result.exit_code == 0, result.output
    assert "the shipped detector of handwritten digits on host" in result.stdout
    assert "saved trt-runtime-demo.png" in result.stdout
    with Image.open("trt-runtime-demo.png") as picture, Image.open(SAMPLE) as sample:
        assert picture.size == sample.size
    report = json.loads(invoke("demo", "--device", "host", "--json", "--save", "found.jpg").stdout)
    assert report["saved"] == ["found.jpg"]
    names = [found["name"] for found in report["images"][0]["detections"]]
    assert sorted(names) == sorted(SAMPLE_DIGITS)
    with Image.open("found.jpg") as picture:
        assert picture.format == "JPEG"


def test_the_demo_says_what_is_missing_without_pillow(
    own_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = invoke("demo", "--device", "host")
    assert result.exit_code == 2
    assert "pip install 'trt-runtime[images]'" in result.stderr


def test_the_demo_does_not_start_when_its_picture_cannot_be_kept(own_machine: Path) -> None:
    result = invoke("demo", "--device", "host", "--save", "nowhere/found.png")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr
