"""Decoding and suppression against loops that do what the words say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import InputError, ShapeError
from trt_runtime.yolov3 import Head, Layout
from trt_runtime.yolov3.decode import decode, lowest_logit, places_in_image, score
from trt_runtime.yolov3.preprocess import Placement
from trt_runtime.yolov3.suppress import overlaps, suppress

Box = tuple[float, float, float, float]
Found = tuple[Box, float, int]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def decode_by_loops(
    outputs: dict[str, np.ndarray], layout: Layout, threshold: float, image: int
) -> list[Found]:
    found = []
    for head in layout.heads:
        rows, columns = head.grid
        numbers = outputs[head.output][image].astype(np.float64)
        for anchor, (anchor_width, anchor_height) in enumerate(head.anchors):
            for row in range(rows):
                for column in range(columns):
                    start = anchor * (5 + head.classes)
                    cell = numbers[start : start + 5 + head.classes, row, column]
                    probabilities = [logistic(x) for x in cell[5:]]
                    number = max(range(head.classes), key=probabilities.__getitem__)
                    score = logistic(cell[4]) * probabilities[number]
                    if score < threshold:
                        continue
                    x = (column + logistic(cell[0])) / columns * layout.width
                    y = (row + logistic(cell[1])) / rows * layout.height
                    width, height = (
                        math.exp(cell[2]) * anchor_width,
                        math.exp(cell[3]) * anchor_height,
                    )
                    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                    found.append((box, score, number))
    return found


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def suppress_by_loops(found: list[Found], threshold: float) -> list[int]:
    left = sorted(range(len(found)), key=lambda index: -found[index][1])
    kept = []
    while left:
        best, *rest = left
        kept.append(best)
        left = [
            other
            for other in rest
            if found[other][2] != found[best][2]
            or overlap(found[other][0], found[best][0]) <= threshold
        ]
    return kept


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    classes = draw(st.integers(1, 4))
    side = st.floats(1, 300, width=16)
    heads = tuple(
        Head(
            f"{number:03d}_convolutional",
            tuple(draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))),
            classes,
            draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        )
        for number in range(draw(st.integers(1, 3)))
    )
    width, height = draw(st.integers(1, 20)) * 32, draw(st.integers(1, 20)) * 32
    return Layout(width, height, heads, tuple(map(str, range(classes))))


def random_outputs(
    layout: Layout, seed: int, images: int = 1, dtype: type = np.float32
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        head.output: (rng.standard_normal((images, head.channels, *head.grid)) * 3).astype(dtype)
        for head in layout.heads
    }


seeds = st.integers(0, 2**32 - 1)


# Decoding ----------------------------------------------------------------------------------------


@given(layouts(), seeds, st.integers(1, 3), st.floats(0.001, 0.999))
@settings(max_examples=100, deadline=None)
def test_boxes_are_those_of_a_loop_over_the_cells(
    layout: Layout, seed: int, images: int, threshold: float
) -> None:
    outputs = random_outputs(layout, seed, images)
    every = [decode_by_loops(outputs, layout, 0, image) for image in range(images)]
    # A score that is the threshold but for rounding may go either way.
    while any(abs(score - threshold) < 1e-6 for found in every for _, score, _ in found):
        threshold += 1e-5
    got = decode(outputs, layout, threshold=threshold)
    assert len(got) == images
    for candidates, found in zip(got, every, strict=True):
        want = [one for one in found if one[1] >= threshold]
        assert len(candidates.scores) == len(want)
        assert (np.diff(candidates.scores) <= 0).all()
        if want:
            boxes, scores, classes = zip(*sorted(want, key=lambda one: -one[1]), strict=True)
            np.testing.assert_allclose(candidates.boxes, boxes, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(candidates.scores, scores, rtol=1e-5)
            np.testing.assert_array_equal(candidates.classes, classes)
        assert candidates.boxes.dtype == candidates.scores.dtype == np.float32
        assert candidates.boxes.shape == (len(want), 4)


@given(layouts(), seeds)
@settings(max_examples=20, deadline=None)
def test_float16_heads_are_decoded_in_float32(layout: Layout, seed: int) -> None:
    outputs = random_outputs(layout, seed, dtype=np.float16)
    (want,) = decode({name: a.astype(np.float32) for name, a in outputs.items()}, layout)
    (got,) = decode(outputs, layout)
    np.testing.assert_array_equal(got.table, want.table)


def one_cell(**logits: float) -> dict[str, np.ndarray]:
    """A network of one cell, whose numbers are 0 unless given."""
    names = ("x", "y", "width", "height", "objectness", "first", "second")
    values = [logits.get(name, 0.0) for name in names]
    return {"out": np.array(values, np.float32).reshape(1, 7, 1, 1)}


ONE_CELL = Layout(32, 32, (Head("out", ((10.0, 20.0),), 2, (1, 1)),), ("a", "b"))


def test_a_cell_by_hand() -> None:
    outputs = one_cell(objectness=4, first=-9, second=5, width=math.log(2))
    (found,) = decode(outputs, ONE_CELL)
    np.testing.assert_allclose(found.boxes, [[6, 6, 26, 26]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [logistic(4) * logistic(5)], rtol=1e-6)
    assert found.classes.tolist() == [1]


@pytest.mark.parametrize("where", ["x", "y", "width", "height", "objectness", "first", "second"])
def test_what_is_not_a_number_is_no_box(where: str) -> None:
    outputs = one_cell(**{"objectness": 5, "first": 5, where: math.nan})
    (found,) = decode(outputs, ONE_CELL)
    assert len(found.boxes) == 0


@pytest.mark.parametrize("where", ["x", "y", "width", "height", "objectness", "first", "second"])
@pytest.mark.parametrize("value", [1e4, -1e4, math.inf, -math.inf])
def test_numbers_of_any_size_give_finite_boxes(where: str, value: float) -> None:
    outputs = one_cell(**{"objectness": 5, "first": 5, where: value})
    (found,) = decode(outputs, ONE_CELL, threshold=0)
    boxes, scores = found.boxes, found.scores
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert np.isfinite(areas).all()
    assert np.isfinite(boxes).all()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_the_thresholds_ends_are_everything_and_certainty() -> None:
    layout = ONE_CELL
    assert len(decode(one_cell(objectness=-80, first=-80), layout, threshold=0)[0].scores) == 1
    assert len(decode(one_cell(objectness=30, first=30), layout, threshold=1)[0].scores) == 1
    assert len(decode(one_cell(objectness=9, first=30), layout, threshold=1)[0].scores) == 0


@given(st.floats(0, 1), st.floats(0, 1e-3))
@settings(deadline=None)
def test_no_objectness_below_the_lowest_can_pass(threshold: float, below: float) -> None:
    logit = np.float32(lowest_logit(threshold) - below)
    if logit < lowest_logit(threshold):
        (head,) = one_cell(objectness=float(logit), first=100).values()
        numbers, where = head.reshape(1, 7), np.zeros(1, np.intp)
        assert not len(score(numbers, where, ONE_CELL.places, threshold).scores)


def test_of_equal_scores_the_first_by_head_anchor_row_and_column_comes_first() -> None:
    heads = (
        Head("a", ((10.0, 10.0), (20.0, 20.0)), 1, (1, 2)),
        Head("b", ((30.0, 30.0),), 1, (2, 1)),
    )
    layout = Layout(64, 32, heads, ("x",))
    outputs = {
        head.output: np.ones((1, head.channels, *head.grid), np.float32) for head in layout.heads
    }
    outputs["b"][0, 4, 1, 0] = 2
    (found,) = decode(outputs, layout, threshold=0.1)
    sides = np.exp(1) * np.array([30, 10, 10, 20, 20, 30])
    np.testing.assert_allclose(found.boxes[:, 2] - found.boxes[:, 0], sides, rtol=1e-5)
    assert found.boxes[1, 0] < found.boxes[2, 0]


@given(layouts(), seeds, st.tuples(st.integers(1, 900), st.integers(1, 900)))
@settings(max_examples=30, deadline=None)
def test_boxes_made_in_an_images_pixels_are_those_brought_there(
    layout: Layout, seed: int, image: tuple[int, int]
) -> None:
    placement = Placement.of(image, (layout.height, layout.width), "letterbox")
    rng = np.random.default_rng(seed)
    where = rng.integers(0, len(layout.places), 20)
    numbers = rng.standard_normal((20, 5 + len(layout.names)), np.float32)
    want = score(numbers, where, layout.places, 0)
    got = score(numbers, where, places_in_image(layout.places, placement), 0)
    start, ratio = np.tile(placement.offset[::-1], 2), np.tile(placement.ratio, 2)
    np.testing.assert_allclose(got.boxes, (want.boxes - start) * ratio, rtol=1e-5, atol=1e-2)
    np.testing.assert_array_equal(got.scores, want.scores)


def test_places_are_counted_by_head_anchor_row_and_column() -> None:
    heads = (
        Head("a", ((10.0, 13.0), (16.0, 30.0)), 1, (2, 3)),
        Head("b", ((33.0, 23.0),), 1, (4, 6)),
    )
    places = Layout(96, 64, heads, ("x",)).places
    assert places.shape == (36, 6)
    np.testing.assert_array_equal(places[0], [0, 0, 32, 32, 5, 6.5])
    np.testing.assert_array_equal(places[11], [2, 1, 32, 32, 8, 15])
    np.testing.assert_array_equal(places[12 + 7], [1, 1, 16, 16, 16.5, 11.5])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        decode(one_cell(), ONE_CELL, threshold=threshold)


def test_outputs_of_another_network_are_refused() -> None:
    with pytest.raises(InputError, match="no output 'out'; there are 'other'"):
        decode({"other": np.zeros((1, 7, 1, 1))}, ONE_CELL)
    with pytest.raises(ShapeError, match=r"\[\?, 7, 1, 1\].*is \[1, 8, 1, 1\]"):
        decode({"out": np.zeros((1, 8, 1, 1))}, ONE_CELL)
    two = Layout(32, 32, (*ONE_CELL.heads, Head("b", ((1.0, 1.0),), 2, (1, 1))), ("a", "b"))
    with pytest.raises(ShapeError, match="of 1 and 2 images"):
        decode({**one_cell(), "b": np.zeros((2, 7, 1, 1), np.float32)}, two)


# Suppression -------------------------------------------------------------------------------------


def crowd(seed: int, count: int, classes: int, ties: bool) -> list[Found]:
    """Boxes in heaps, as a detector gives them; with ties, many have the same score."""
    rng = np.random.default_rng(seed)
    heaps = rng.uniform(0, 100, (max(1, count // 6), 2))
    found = []
    for _ in range(count):
        x, y = heaps[rng.integers(len(heaps))] + rng.normal(0, 4, 2)
        width, height = rng.uniform(5, 40, 2)
        box = tuple(np.array([x, y, x + width, y + height], np.float32).tolist())
        score = float(np.float32(rng.integers(1, 5) / 8 if ties else rng.random()))
        found.append((box, score, int(rng.integers(classes))))
    return found


def arrays(found: list[Found]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.array([box for box, _, _ in found], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in found], np.float32)
    return boxes, scores, np.array([number for _, _, number in found], np.intp)


@given(seeds, st.integers(0, 60), st.integers(1, 3), st.booleans(), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_what_stays_is_what_a_loop_lets_stay(
    seed: int, count: int, classes: int, ties: bool, threshold: float
) -> None:
    found = crowd(seed, count, classes, ties)
    assert suppress(*arrays(found), threshold).tolist() == suppress_by_loops(found, threshold)


@pytest.mark.parametrize("classes", [1, 5])
def test_more_boxes_than_are_compared_at_a_time_fare_the_same(classes: int) -> None:
    found = crowd(7, 1100, classes, ties=False)
    got = suppress(*arrays(found), 0.4).tolist()
    assert got == suppress_by_loops(found, 0.4)
    assert 100 < len(got) < 1000


@given(seeds, st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_overlaps_are_those_of_each_pair(seed: int, count: int, others: int) -> None:
    found, rest = crowd(seed, count, 1, ties=False), crowd(seed + 1, others, 1, ties=False)
    got = overlaps(arrays(found)[0], arrays(rest)[0])
    want = [[overlap(a, b) for b, _, _ in rest] for a, _, _ in found]
    np.testing.assert_allclose(got, np.array(want).reshape(count, others), atol=1e-5)


def test_boxes_of_two_classes_do_not_hide_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores = np.array([0.7, 0.9, 0.8], np.float32)
    assert suppress(boxes, scores, np.array([0, 0, 1]), 0.5).tolist() == [1, 2]


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 5, 10]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    classes = np.zeros(2, np.intp)
    assert suppress(boxes, scores, classes, 0.5).tolist() == [0, 1]
    assert suppress(boxes, scores, classes, 0.49).tolist() == [0]


def test_empty_boxes_overlap_nothing() -> None:
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert suppress(boxes, scores, np.zeros(3, np.intp), 0).tolist() == [0, 1, 2]
    assert overlaps(boxes, boxes).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_threshold_of_one_keeps_every_box() -> None:
    boxes = np.array([[0.1, 0.2, 10.3, 10.7]] * 3, np.float32)
    scores = np.array([0.7, 0.9, 0.8], np.float32)
    assert suppress(boxes, scores, np.zeros(3, np.intp), 1).tolist() == [1, 2, 0]
