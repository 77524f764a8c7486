"""Mean average precision against a version that a reader can check by eye."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import InputError
from trt_runtime.yolov3.detections import BoxTable, table_of
from trt_runtime.yolov3.evaluation import evaluate

CLASSES = 3


class Truth(NamedTuple):
    boxes: np.ndarray
    classes: np.ndarray


def boxes_of(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> BoxTable:
    return BoxTable(table_of(boxes, scores, classes))


def _iou(a: list[float], b: list[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _average_precision(found: list[BoxTable], truth: list[Truth], kind: int, iou: float) -> float:
    """As the definition reads: one detection after the other, one recall after the other."""
    count = sum(int(c == kind) for there in truth for c in there.classes)
    if count == 0:
        return float("nan")
    ranked = sorted(
        (
            (-float(score), image, number)
            for image, seen in enumerate(found)
            for number, score in enumerate(seen.scores)
            if seen.classes[number] == kind
        ),
    )
    taken = set()
    points = []
    right = 0
    for position, (_, image, number) in enumerate(ranked, 1):
        best, most = None, -1.0
        for thing, other in enumerate(truth[image].boxes):
            if truth[image].classes[thing] != kind:
                continue
            overlap = _iou(found[image].boxes[number].tolist(), other.tolist())
            if overlap > most:
                best, most = thing, overlap
        if best is not None and most >= iou and (image, best) not in taken:
            taken.add((image, best))
            right += 1
        points.append((right / count, right / position))
    area, before = 0.0, 0.0
    for recall, _ in points:
        if recall > before:
            area += (recall - before) * max(p for r, p in points if r >= recall)
            before = recall
    return area


# On a coarse grid, so that overlaps of exactly one half and equal scores do occur.
_boxes = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
_things = st.lists(st.tuples(_boxes, st.integers(0, CLASSES - 1)), max_size=6)
_seen = st.lists(st.tuples(_boxes, st.integers(0, CLASSES - 1), st.integers(0, 8)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_things, _seen), min_size=1, max_size=5))
def test_average_precision_is_that_of_the_definition(
    images: list[tuple[list[tuple], list[tuple]]],
) -> None:
    truth = [
        Truth(
            np.array([box for box, _ in things], np.float32).reshape(-1, 4),
            np.array([kind for _, kind in things], np.int64),
        )
        for things, _ in images
    ]
    found = [
        boxes_of(
            np.array([box for box, _, _ in seen], np.float32).reshape(-1, 4),
            np.array([score / 8 for _, _, score in seen], np.float32),
            np.array([kind for _, kind, _ in seen], np.intp),
        )
        for _, seen in images
    ]
    if not any(len(there.classes) for there in truth):
        with pytest.raises(InputError, match="nothing to measure"):
            evaluate(found, truth, classes=CLASSES)
        return
    result = evaluate(found, truth, classes=CLASSES, iou=0.5)
    expected = [_average_precision(found, truth, kind, 0.5) for kind in range(CLASSES)]
    np.testing.assert_allclose(result.precisions, expected, rtol=1e-12)
    assert result.mean_average_precision == pytest.approx(np.nanmean(expected))
    assert result.objects == sum(len(there.classes) for there in truth)


def test_perfect_detections_have_a_precision_of_one() -> None:
    boxes = np.array([[0, 0, 4, 4], [5, 5, 9, 9]], np.float32)
    classes = np.array([0, 2])
    found = [boxes_of(boxes, np.array([0.9, 0.3], np.float32), classes)]
    result = evaluate(found, [Truth(boxes, classes)], classes=CLASSES)
    assert result.precisions[0] == result.precisions[2] == 1
    assert np.isnan(result.precisions[1])
    assert result.mean_average_precision == 1


def test_a_second_detection_of_one_object_is_wrong() -> None:
    box = np.array([[0, 0, 4, 4]], np.float32)
    truth = [Truth(np.concatenate([box, box + 20]), np.array([0, 0]))]
    boxes = np.concatenate([box, box, box + 20])
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    result = evaluate([boxes_of(boxes, scores, np.zeros(3, np.intp))], truth, classes=1)
    assert result.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_detections_of_other_images_are_no_match() -> None:
    box = np.array([[0, 0, 4, 4]], np.float32)
    one = boxes_of(box, np.ones(1, np.float32), np.zeros(1, np.intp))
    none = boxes_of(box[:0], np.ones(0, np.float32), np.zeros(0, np.intp))
    there = [Truth(box, np.zeros(1, np.int64)), Truth(box[:0], np.zeros(0, np.int64))]
    assert evaluate([one, none], there, classes=1).mean_average_precision == 1
    assert evaluate([none, one], there, classes=1).mean_average_precision == 0
    with pytest.raises(InputError, match="1 images and 2 truths"):
        evaluate([one], there, classes=1)
