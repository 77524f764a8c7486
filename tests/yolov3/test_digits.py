"""The detector that comes with the package: its scenes, its files, and how good it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trt_runtime.yolov3 import Detector, Network
from trt_runtime.yolov3.digits import MEAN_AVERAGE_PRECISION, SAMPLE, scenes
from trt_runtime.yolov3.digits import __file__ as package
from trt_runtime.yolov3.digits.scenes import (
    MOST_DIGITS,
    SIDE,
    draw_scene,
    held_out_scenes,
    load_digits,
)
from trt_runtime.yolov3.preprocess import preprocess
from trt_runtime.yolov3.suppress import overlaps

from .digits import SAMPLE_DIGITS, measure

FOLDER = Path(package).parent


@pytest.mark.filterwarnings("ignore::trt_runtime.HostDeviceWarning")
def test_the_shipped_detector_has_the_precision_that_is_stated() -> None:
    with Detector(threshold=0.01) as detector:  # on the default device
        result = measure(detector)
    print(f"mAP@0.5 {result.mean_average_precision:.4f} of {result.objects} digits")
    assert result.mean_average_precision == pytest.approx(MEAN_AVERAGE_PRECISION, abs=0.005)
    assert min(result.precisions) > MEAN_AVERAGE_PRECISION - 0.1


def test_every_digit_of_the_sample_is_found_and_nothing_else() -> None:
    pytest.importorskip("PIL")
    with Detector(device="host") as detector:
        found = detector.detect(SAMPLE)
    assert sorted(name for _, _, name in found) == sorted(SAMPLE_DIGITS)


def test_the_network_has_three_heads_and_at_most_two_megabytes_of_weights() -> None:
    network = Network.load(FOLDER / "digits.cfg")
    assert len(network.heads) == 3
    assert network.parameters < 500_000
    assert (FOLDER / "digits.weights").stat().st_size <= 2_000_000
    assert (network.width, network.height) == (SIDE, SIDE)


def test_the_seed_alone_decides_what_is_drawn() -> None:
    digits = load_digits("training")
    first, again, other = (draw_scene(np.random.default_rng(s), digits) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.classes, again.classes)
    assert (first.image != other.image).any()


def test_held_out_digits_are_other_digits() -> None:
    training, held_out = load_digits("training"), load_digits("held-out")
    assert len(training) + len(held_out) == 1797
    known = {field.tobytes() for field in training.fields}
    assert not any(field.tobytes() in known for field in held_out.fields)
    for part in (training, held_out):
        assert np.bincount(part.labels, minlength=10).min() >= 35


def test_the_digits_are_those_that_scikit_learn_distributes() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    parts = [load_digits("training"), load_digits("held-out")]
    np.testing.assert_array_equal(np.concatenate([p.fields for p in parts]) * 16, original.images)
    np.testing.assert_array_equal(np.concatenate([p.labels for p in parts]), original.target)


@pytest.mark.parametrize(("width", "height"), [(SIDE, SIDE), (200, 320), (640, 448), (33, 57)])
def test_digits_lie_within_a_scene_and_hardly_cover_each_other(width: int, height: int) -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        scene = draw_scene(generator, load_digits("training"), width=width, height=height)
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.boxes) == len(scene.classes) <= MOST_DIGITS
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= (width, height, width, height)).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        among = overlaps(scene.boxes, scene.boxes) - np.eye(len(scene.boxes), dtype=np.float32)
        assert (among < 0.4).all()


def test_boxes_are_around_the_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of the same numbers with and without a digit differ where its box is."""
    monkeypatch.setattr(scenes, "_developed", lambda _, canvas: canvas.copy())  # no noise
    for seed in range(40):
        drawn, empty = (
            draw_scene(np.random.default_rng(seed), load_digits("training"), count=count)
            for count in (1, 0)
        )
        ((left, top, right, bottom),) = drawn.boxes.astype(int)
        ink = np.abs(drawn.image - empty.image).max(axis=0) > 0.02
        inside = ink[top:bottom, left:right]
        assert inside[[0, -1]].any(axis=1).all()
        assert inside[:, [0, -1]].any(axis=0).all()
        margin = (bottom - top) // 4 + 1  # for an outline, and for ink of less than a half
        ink[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
        assert not ink.any()


def test_a_scene_is_preprocessed_to_what_was_trained_on() -> None:
    (scene,) = held_out_scenes(1)
    array, placement = preprocess(scene.image, (SIDE, SIDE))
    np.testing.assert_allclose(array, scene.image.transpose(2, 0, 1) / np.float32(255), atol=1e-6)
    np.testing.assert_array_equal(placement.to_image(scene.boxes), scene.boxes)
