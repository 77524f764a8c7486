"""Preprocessing and decoding in the graph: the same boxes as NumPy's, by onnxruntime."""

from __future__ import annotations

import logging
from functools import cache
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from trt_runtime import InputError
from trt_runtime.build.precision import reduced
from trt_runtime.platform.driver import Part
from trt_runtime.yolov3 import Layout, in_graph, surround
from trt_runtime.yolov3.decode import Candidates, CutOff, decode, score
from trt_runtime.yolov3.detections import BoxTable, table_of
from trt_runtime.yolov3.in_graph import (
    _STEPS,
    FLOAT32_LAYERS,
    INPUT,
    SELECTED,
    SUPPRESSED,
    _Graph,
    _group_size,
    _suppress,
    parts_read,
    read_selected,
    read_suppressed,
)
from trt_runtime.yolov3.preprocess import Fit, Placement, neighbours, preprocess, resize
from trt_runtime.yolov3.suppress import overlaps

from ..models import make_model, reference
from . import small

SIZE = (64, 96)


def by_numpy(image: np.ndarray, fit: Fit, threshold: float) -> Candidates:
    seen, _ = preprocess(image, SIZE, fit=fit)
    heads = reference(small.model(), {"000_net": seen[None]})
    (candidates,) = decode(heads, small.layout(), threshold=threshold)
    return candidates


def assert_same_boxes(got: BoxTable, want: Candidates, tolerance: float) -> Candidates:
    """Each box within ``tolerance`` pixels of the network's, best first; ``got`` in want's order.

    Those of nearly the same score may come in another order.
    """
    assert len(got.scores) == len(want.scores)
    assert (np.diff(got.scores) <= 0).all()
    order = np.abs(want.boxes[:, None] - got.boxes).max(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
    np.testing.assert_allclose(got.boxes[order], want.boxes, atol=tolerance)
    return Candidates(got.table[:, order])


def assert_same(got: BoxTable, want: Candidates, tolerance: float = 0.01) -> None:
    got = assert_same_boxes(got, want, tolerance)
    np.testing.assert_array_equal(got.classes, want.classes)
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-4)


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    return small.layout().places


# The whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("image", [(60, 100), (33, 47), (216, 384), (200, 61), (64, 96)])
def test_images_that_the_graph_resizes_give_the_same_boxes(
    fit: Fit, image: tuple[int, int], places: np.ndarray
) -> None:
    graph = surround(small.model(), small.layout(), image=image, fit=fit, candidates=300)
    pixels = small.image(*image)
    (got,) = read_selected(reference(graph, {INPUT: pixels[None]}), places, threshold=0.3)
    want = by_numpy(pixels, fit, 0.3)
    assert len(want.scores) > 5
    assert_same(got, want)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_images_of_the_networks_size_give_the_same_boxes(fit: Fit, places: np.ndarray) -> None:
    graph = surround(small.model(), small.layout(), fit=fit, candidates=300)
    pixels, _ = resize(small.image(200, 300), SIZE, fit=fit)
    (got,) = read_selected(reference(graph, {INPUT: pixels[None]}), places, threshold=0.3)
    assert_same(got, by_numpy(pixels, fit, 0.3))


def test_rounding_to_bytes_on_the_way_moves_a_box_by_a_fraction_of_a_pixel(
    places: np.ndarray,
) -> None:
    graph = surround(small.model(), small.layout(), candidates=300)
    image = small.image(200, 300)
    outputs = reference(graph, {INPUT: resize(image, SIZE)[0][None]})
    (got,) = read_selected(outputs, places, threshold=0.3)
    want = by_numpy(image, "letterbox", 0.3)
    assert_same_boxes(got, want, tolerance=0.25)


def test_a_batch_is_decoded_image_by_image(places: np.ndarray) -> None:
    graph = surround(small.model(3), small.layout(), image=(60, 100), candidates=300)
    images = np.stack([small.image(seed=seed) for seed in range(3)])
    found = read_selected(reference(graph, {INPUT: images}), places, threshold=0.3)
    assert len({len(candidates.scores) for candidates in found}) > 1
    for image, got in zip(images, found, strict=True):
        assert_same(got, by_numpy(image, "letterbox", 0.3))


@pytest.mark.parametrize("batch", [1, 2])
def test_suppression_in_the_graph_lets_the_same_boxes_stay(batch: int) -> None:
    graph = surround(
        small.model(batch),
        small.layout(),
        image=(60, 100),
        candidates=300,
        nms=True,
        nms_threshold=0.4,
    )
    images = np.stack([small.image(seed=seed) for seed in range(batch)])
    outputs = reference(graph, {INPUT: images})
    assert outputs["detections"].shape == (batch, 11, 302)
    found = read_suppressed(outputs, 10_000, threshold=0.3, nms_threshold=0.4)
    placement = Placement.of((60, 100), SIZE, "letterbox")
    assert len(found) == batch
    for image, got in zip(images, found, strict=True):
        every = by_numpy(image, "letterbox", 0.3)
        stay = every.suppressed(0.4)
        assert 0 < len(stay.scores) < len(every.scores)
        want = in_image(stay, placement)
        assert not np.array_equal(want.boxes, placement.to_image(stay.boxes)[: len(want.boxes)])
        assert_same(got, want)


def in_image(found: BoxTable, placement: Placement) -> Candidates:
    """In the image's pixels, cut off at its borders; without those of which nothing is left."""
    boxes = placement.to_image(found.boxes)
    (extended,) = (boxes[:, 2:] > boxes[:, :2]).all(axis=1).nonzero()
    return Candidates(table_of(boxes, found.scores, found.classes)[:, extended])


# Parts of an image -------------------------------------------------------------------------------


def bytes_of(parts: list[Part], nbytes: int) -> np.ndarray:
    """How often each byte is copied."""
    times = np.zeros(nbytes, np.intp)
    for part in parts:
        for begin in range(0, part.slices * part.slice_pitch, part.slice_pitch):
            for row in range(begin, begin + part.rows * part.pitch, part.pitch):
                times[part.offset + row : part.offset + row + part.width] += 1
    return times


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_the_rows_that_the_resize_reads_cross_once_and_no_others(
    unit: int, lines: int, points: int, batch: int
) -> None:
    placement = Placement((unit * lines, 5), (unit * points, 2), (0, 0))
    with mock.patch.object(in_graph, "_COPY_BYTES", 1):
        parts = parts_read(placement, batch)
    nbytes = unit * lines * 15
    if parts:
        first, second, _ = neighbours(unit * lines, unit * points)
        read = np.zeros((batch, unit * lines, 15), np.intp)
        read[:, np.concatenate([first, second])] = 1
        np.testing.assert_array_equal(bytes_of(parts, batch * nbytes), read.ravel())
        assert sum(part.nbytes for part in parts) < batch * nbytes
        assert all(part.slice_pitch % part.pitch == 0 for part in parts)


@pytest.mark.parametrize(
    ("image", "side", "copies", "share"),
    [
        ((1080, 1920), 608, 3, 19 / 30),
        ((2160, 3840), 608, 7, 19 / 60),
        ((1440, 2560), 608, 5, 19 / 40),
        ((1080, 1920), 416, 5, 13 / 30),
        ((1080, 1920), 320, 1, 1 / 3),
        ((720, 1280), 608, 0, 0),  # nearly all rows are read
        ((1536, 2048), 608, 0, 0),  # rows at distances that do not repeat
        ((480, 640), 608, 0, 0),
        ((100, 100), 608, 0, 0),
    ],
)
def test_how_much_of_a_cameras_image_crosses(
    image: tuple[int, int], side: int, copies: int, share: float
) -> None:
    parts = parts_read(Placement.of(image, (side, side), "letterbox"), 1)
    assert len(parts) == copies
    nbytes = image[0] * image[1] * 3
    assert sum(part.nbytes for part in parts) == pytest.approx(share * nbytes)


# Suppressing -------------------------------------------------------------------------------------

CLASSES = len(small.NAMES)


@cache
def suppression(batch: int, count: int, nms_threshold: float, opset: int = 17) -> onnx.ModelProto:
    """What makes boxes of chosen cells' numbers, alone."""
    graph = _Graph(opset)
    whole = Placement(SIZE, SIZE, (0, 0))
    _suppress(graph, small.layout(), whole, "numbers", "cells", batch, count, nms_threshold)
    inputs = {
        "numbers": (TensorProto.FLOAT, [batch, count, 5 + CLASSES]),
        "cells": (TensorProto.INT64, [batch, count]),
    }
    outputs = {SUPPRESSED[0]: (TensorProto.FLOAT, [batch, 11, count + 2])}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.constants}
    return make_model(graph.nodes, inputs, outputs, constants, opset=opset)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 0.3, 0.5, 0.9]),
    st.sampled_from([0.05, 0.3, 0.6]),
    st.sampled_from([0.0, 1.0, 3.0]),
)
@settings(max_examples=150, deadline=None)
def test_suppression_is_that_of_the_host(
    seed: int, nms_threshold: float, threshold: float, size: float
) -> None:
    rng = np.random.default_rng(seed)
    layout, count = small.layout(), 40
    places, ranks = layout.places, np.arange(count)
    numbers = rng.normal(size=(2, count, 5 + CLASSES)).astype(np.float32) * 2
    numbers[..., 2:4] += size
    numbers[..., 4] = -np.sort(-numbers[..., 4])
    numbers[:, 1::7, 4:] = numbers[:, ::7, 4:][:, : len(range(1, count, 7))]  # equal scores
    cells = np.stack([rng.choice(len(places), count, replace=False) for _ in range(2)])
    outputs = reference(suppression(2, count, nms_threshold), {"numbers": numbers, "cells": cells})
    found = read_suppressed(outputs, count, threshold=threshold, nms_threshold=nms_threshold)
    for got, rows, where in zip(found, numbers, cells, strict=True):
        # Of equal scores the graph goes by the candidates' order, and not by that of the cells.
        every = score(rows, ranks, places[where], threshold)
        want = every.suppressed(nms_threshold)
        if type(got) is CutOff:
            want = in_image(want, Placement(SIZE, SIZE, (0, 0)))
        if len(want.scores) == len(got.scores):
            # Scores that differ in the last bit only may come in another order.
            one, other = (np.lexsort((c.boxes[:, 0], -c.scores.round(5))) for c in (got, want))
            np.testing.assert_array_equal(got.classes[one], want.classes[other])
            np.testing.assert_allclose(got.scores[one], want.scores[other], atol=1e-5)
            np.testing.assert_allclose(got.boxes[one], want.boxes[other], rtol=1e-4, atol=1e-3)
        else:  # two that overlap by the threshold, to a float's last bit, or a score at it
            near = overlaps(every.boxes, every.boxes)
            close = np.abs(near - nms_threshold).min() < 1e-5
            scores = score(rows, ranks, places[where], 0).scores
            assert close or np.abs(scores - threshold).min() < 1e-6


def test_boxes_are_not_rounded_where_the_network_is() -> None:
    """Both graphs have the same rounded numbers; one of them makes the boxes itself."""
    options = {"image": (216, 384), "candidates": 300}
    feed = {INPUT: small.image(216, 384)[None]}
    selects, suppresses = (
        reduced(
            surround(small.model(), small.layout(), nms=nms, **options).SerializeToString(),  # type: ignore[arg-type]
            None,
            "float16",
            keep=FLOAT32_LAYERS if nms else (),
        )
        for nms in (False, True)
    )
    selected = reference(onnx.load_from_string(selects), feed)
    (want,) = read_selected(selected, small.layout().places, threshold=0.3)
    outputs = reference(onnx.load_from_string(suppresses), feed)
    (got,) = read_suppressed(outputs, 10_000, threshold=0.3)
    size = (216, 384)
    placement, whole = Placement.of(size, SIZE, "letterbox"), Placement(size, size, (0, 0))
    assert len(want.scores) > 5
    assert_same(in_image(got, whole), in_image(want.suppressed(0.5), placement), tolerance=1e-3)
    unrounded = in_image(by_numpy(feed[INPUT][0], "letterbox", 0.3).suppressed(0.5), placement)
    assert not np.array_equal(got.scores, unrounded.scores)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 20])
def test_boxes_in_a_row_hide_every_second_one(length: int, opset: int) -> None:
    """Each overlaps the next: as deep as suppression goes. Beyond `_settle` the host does it."""
    places = small.layout().places
    cells = np.full(length, 40)
    numbers = np.zeros((1, length, 5 + CLASSES), np.float32)
    numbers[..., 3:4] = 1
    numbers[..., 4] = np.linspace(4, 3, length)
    x = np.linspace(0.2, 0.8, length)  # all of them in one cell
    numbers[..., 0] = np.log(x / (1 - x))
    side = (x[1] - x[0]) * places[40, 2] * 4
    numbers[..., 2] = np.log(side / 2 / places[40, 4])
    graph = suppression(1, length, 0.55, opset)
    outputs = reference(graph, {"numbers": numbers, "cells": cells[None]})
    # An overlap of 3 in 5 hides, and one of 2 in 6 does not.
    (got,) = read_suppressed(outputs, length, threshold=0.1, nms_threshold=0.55)
    want = score(numbers[0], cells, places, 0.1).suppressed(0.55)
    assert len(want.scores) == -(-length // 2)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-6)
    np.testing.assert_allclose(got.boxes, want.boxes, atol=1e-3)
    undecided = outputs["detections"][0, 0, -1]
    if length <= _STEPS:
        assert undecided == 0
        return
    # From the first on that is hidden by so long a row of others.
    every = score(numbers[0], cells, places, 0.1)
    assert undecided == pytest.approx(every.scores[_STEPS], rel=1e-6)
    with mock.patch.object(Candidates, "suppressed", side_effect=AssertionError):
        threshold = (every.scores[_STEPS - 1] + every.scores[_STEPS]) / 2
        (better,) = read_suppressed(outputs, length, threshold=threshold, nms_threshold=0.55)
        assert len(better.scores) == -(-_STEPS // 2)
        with pytest.raises(AssertionError):
            read_suppressed(outputs, length, threshold=undecided, nms_threshold=0.55)


def test_what_is_not_a_number_is_no_box() -> None:
    count = 12
    numbers = np.random.default_rng(3).normal(size=(1, count, 5 + CLASSES)).astype(np.float32)
    numbers[0, :, 4:] += 3
    cells = np.arange(0, 12 * count, 12)[None]
    graph = suppression(1, count, 0.5)
    outputs = reference(graph, {"numbers": numbers, "cells": cells})
    (want,) = read_suppressed(outputs, count, threshold=0.3)
    assert len(want.scores) > 6
    # Of its classes all: a search may pass over one.
    for columns in (0, 3, 4, slice(5, None)):
        broken = numbers.copy()
        broken[0, 5, columns] = np.nan
        outputs = reference(graph, {"numbers": broken, "cells": cells})
        (got,) = read_suppressed(outputs, count, threshold=0.3)
        assert len(got.scores) == len(want.scores) - 1
        assert np.isfinite(got.boxes).all()
        assert np.isfinite(got.scores).all()
    key = np.array([np.nan, -0.9, 0.8, np.nan, -0.5, -0.7], np.float32)  # in whatever order
    rows = np.arange(11 * 8, dtype=np.float32).reshape(1, 11, 8)
    rows[0, 0] = [*key, 0.4, 0]
    (got,) = read_suppressed({"detections": rows}, count, threshold=0.6)
    np.testing.assert_array_equal(got.scores, rows[0, 5, [1, 5]])
    np.testing.assert_array_equal(got.boxes, rows[0, 1:5, [1, 5]])
    np.testing.assert_array_equal(got.classes, rows[0, 6, [1, 5]])


# Choosing ----------------------------------------------------------------------------------------


@cache
def heads_alone(batch: int = 1, opset: int = 17) -> onnx.ModelProto:
    """A network that gives three numbers of the image's and zeros as its heads."""
    layout = small.layout()
    sizes = [head.channels * head.grid[0] * head.grid[1] for head in layout.heads]
    nodes = [
        onnx.helper.make_node("Slice", ["pixels", "start", "end", "axis"], ["one"]),
        onnx.helper.make_node("Mul", ["one", "zero"], ["nothing"]),
    ]
    constants = {
        "start": np.array([0]),
        "end": np.array([1]),
        "axis": np.array([1]),
        "zero": np.zeros(1, np.float32),
        "flat": np.array([1, -1]),
    }
    nodes.insert(0, onnx.helper.make_node("Reshape", ["000_net", "flat"], ["pixels"]))
    outputs = {}
    rng = np.random.default_rng(0)
    for head, size in zip(layout.heads, sizes, strict=True):
        name, shape = head.output, [batch, head.channels, *head.grid]
        constants[f"numbers_{name}"] = (
            rng.standard_normal(batch * size).astype(np.float32).reshape(shape) * 3
        )
        constants[f"shape_{name}"] = np.array([1, 1, 1, 1])
        nodes.append(
            onnx.helper.make_node("Reshape", ["nothing", f"shape_{name}"], [f"none_{name}"])
        )
        nodes.append(onnx.helper.make_node("Add", [f"numbers_{name}", f"none_{name}"], [name]))
        outputs[name] = (TensorProto.FLOAT, shape)
    inputs = {"000_net": (TensorProto.FLOAT, [batch, 3, *SIZE])}
    model = make_model(nodes, inputs, outputs, constants)
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize("count", [1, 7, 20, 100, 3840])
@pytest.mark.parametrize(("batch", "opset"), [(1, 17), (3, 17), (1, 18)])
def test_the_cells_of_the_highest_objectness_are_chosen(count: int, batch: int, opset: int) -> None:
    model = heads_alone(batch, opset)
    graph = surround(model, small.layout(), candidates=count)
    outputs = reference(graph, {INPUT: np.zeros((batch, *SIZE, 3), np.uint8)})
    heads = reference(model, {"000_net": np.zeros((batch, 3, *SIZE), np.float32)})
    rows = np.concatenate(
        [
            heads[head.output].reshape(batch, 2, 8, -1).swapaxes(2, 3).reshape(batch, -1, 8)
            for head in small.layout().heads
        ],
        axis=1,
    )
    best = np.argsort(-rows[..., 4], kind="stable")[:, :count]
    np.testing.assert_array_equal(outputs["cells"], best)
    chosen = np.take_along_axis(rows, best[..., None], axis=1)
    np.testing.assert_array_equal(outputs["candidates"], chosen)
    assert outputs["cells"].dtype == np.int32
    assert outputs["candidates"].shape == (batch, min(count, rows.shape[1]), 8)


@pytest.mark.parametrize(
    ("length", "count", "size"), [(22743, 100, 21), (22743, 1, 171), (2535, 100, 5), (7, 3, 1)]
)
def test_groups_divide_what_is_searched(length: int, count: int, size: int) -> None:
    assert _group_size(length, count) == size
    assert length % size == 0


@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_what_was_selected_is_decoded_as_whole_heads_are(threshold: float, seed: int) -> None:
    layout = small.layout()
    rng = np.random.default_rng(seed)
    heads = {
        head.output: rng.standard_normal((1, head.channels, *head.grid), np.float32) * 2
        for head in layout.heads
    }
    rows = np.concatenate(
        [
            heads[head.output].reshape(2, 8, -1).transpose(0, 2, 1).reshape(-1, 8)
            for head in layout.heads
        ]
    )
    best = np.argsort(-rows[:, 4])
    outputs = {"candidates": rows[best][None], "cells": best[None].astype(np.int32)}
    (got,) = read_selected(outputs, layout.places, threshold=threshold)
    (want,) = decode(heads, layout, threshold=threshold)
    np.testing.assert_array_equal(got.table, want.table)


def test_too_few_candidates_are_reported(
    places: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {
        "candidates": np.full((1, 4, 8), 5, np.float32),
        "cells": np.array([[3, 0, 2, 1]], np.int32),
    }
    with caplog.at_level(logging.WARNING, "trt_runtime"):
        read_selected(outputs, places, threshold=0.5)
    assert "all of the 4 candidates" in caplog.text
    caplog.clear()
    outputs["candidates"][0, 3, 4] = -5
    read_selected(outputs, places, threshold=0.5)
    assert not caplog.text
    suppressed = {"detections": np.zeros((1, 11, 6), np.float32)}
    suppressed["detections"][0, 0, -2:] = 0.5, 0
    with caplog.at_level(logging.WARNING, "trt_runtime"):
        read_suppressed(suppressed, 5, threshold=0.5)
    assert "all of the 4 candidates" in caplog.text
    caplog.clear()
    read_suppressed(suppressed, 5, threshold=0.6)
    read_suppressed(suppressed, 4, threshold=0.5)  # there are no more
    assert not caplog.text


# The model ---------------------------------------------------------------------------------------


def test_the_model_is_not_changed_and_its_metadata_goes_along() -> None:
    model = small.model()
    before = model.SerializeToString()
    graph = surround(model, small.layout(), image=(60, 100))
    assert model.SerializeToString() == before
    assert Layout.from_onnx(graph) == small.layout()
    (given_input,) = graph.graph.input
    assert given_input.name == INPUT
    assert given_input.type.tensor_type.elem_type == TensorProto.UINT8
    assert [output.name for output in graph.graph.output] == list(SELECTED)


@pytest.mark.parametrize("nms", [False, True])
def test_every_shape_is_fixed(nms: bool) -> None:
    graph = surround(small.model(), small.layout(), image=(60, 100), nms=nms)
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in inferred.graph.node:
        for name in node.output:
            dims = known[name].type.tensor_type.shape.dim
            assert all(dim.HasField("dim_value") for dim in dims), name


def test_bytes_are_cast_first_as_tensorrt_8_asks_for() -> None:
    for image in (None, (60, 100)):
        graph = surround(small.model(), small.layout(), image=image).graph
        readers = [node.op_type for node in graph.node if INPUT in node.input]
        assert readers == ["Cast"]


@pytest.mark.parametrize("options", [{}, {"image": (1080, 1920)}, {"nms": True}])
@pytest.mark.parametrize("batch", [1, 2])
def test_tensorrt_builds_it(options: dict[str, tuple[int, int]], batch: int) -> None:
    tensorrt = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    graph = surround(small.model(batch), small.layout(), **options)
    parsed = parser.parse(graph.SerializeToString())
    assert parsed, [parser.get_error(n).desc() for n in range(parser.num_errors)]
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"candidates": 0}, "from 1 to 3840, not 0"),
        ({"candidates": 3841}, "from 1 to 3840"),
        ({"candidates": 1025, "nms": True}, "from 1 to 1024"),
        ({"fit": "crop"}, "'crop'"),
        ({"image": (0, 5)}, "no pixels"),
        ({"nms_threshold": 2}, "from 0 to 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        surround(small.model(), small.layout(), **options)  # type: ignore[arg-type]


def changed(change: object) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(small.model())
    change(model)  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: small.model("images"), "batch must be fixed"),
        (lambda: surround(small.model(), small.layout()), r"takes? .*uint8 \[1, 64, 96, 3\]"),
        (lambda: changed(lambda m: m.graph.output.pop()), "no output '00"),
        (lambda: changed(lambda m: setattr(m.opset_import[0], "version", 11)), "opset 11"),
        (
            lambda: changed(lambda m: m.graph.input.append(m.graph.output[0])),
            "one input, the image, and has 2",
        ),
    ],
)
def test_a_model_that_cannot_be_surrounded_is_refused(model: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        surround(model(), small.layout())  # type: ignore[operator]
