"""Images into the network's input and boxes back, against loops, OpenCV and onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trt_runtime import DtypeError, InputError, ShapeError
from trt_runtime.yolov3.preprocess import Fit, Placement, preprocess, resize

from ..models import make_model, reference
from .small import image as photograph

fits = st.sampled_from(["letterbox", "stretch"])
sides = st.integers(1, 40)


def expected(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Float64 (rows, columns, 3) from 0 to 255, pixel by pixel."""
    placement = Placement.of(image.shape[:2], size, fit)
    out = np.full((*size, 3), 127.5)
    for row in range(placement.size[0]):
        for column in range(placement.size[1]):
            y = (row + 0.5) * image.shape[0] / placement.size[0] - 0.5
            x = (column + 0.5) * image.shape[1] / placement.size[1] - 0.5
            y, x = min(max(y, 0), image.shape[0] - 1), min(max(x, 0), image.shape[1] - 1)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            down, across = y - top, x - left
            out[row + placement.offset[0], column + placement.offset[1]] = (
                image[top, left] * (1 - down) * (1 - across)
                + image[top, right] * (1 - down) * across
                + image[bottom, left] * down * (1 - across)
                + image[bottom, right] * down * across
            )
    return out


# Pixels ------------------------------------------------------------------------------------------


@given(sides, sides, sides, sides, fits, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_what_a_loop_makes_of_its_four_neighbours(
    height: int, width: int, rows: int, columns: int, fit: Fit, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    want = expected(image, (rows, columns), fit)
    got, _ = preprocess(image, (rows, columns), fit=fit)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.transpose(1, 2, 0), want / 255, atol=1e-6)
    rounded, _ = resize(image, (rows, columns), fit=fit)
    assert rounded.dtype == np.uint8
    assert np.abs(rounded - want).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(60, 100), (61, 130), (17, 23), (120, 40)])
def test_pixels_are_those_of_onnx_resize(size: tuple[int, int]) -> None:
    image = photograph()
    node = helper.make_node(
        "Resize",
        ["x", "", "", "sizes"],
        ["y"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    model = make_model(
        [node],
        {"x": (TensorProto.FLOAT, [1, 3, 60, 100])},
        {"y": (TensorProto.FLOAT, [1, 3, *size])},
        {"sizes": np.array([1, 3, *size])},
    )
    want = reference(model, {"x": image.transpose(2, 0, 1)[None].astype(np.float32)})["y"][0]
    got, _ = preprocess(image, size, fit="stretch")
    np.testing.assert_allclose(got * 255, want, atol=0.01)


@pytest.mark.parametrize("size", [(60, 100), (61, 130), (17, 23), (120, 40)])
def test_pixels_are_those_of_opencv(size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = photograph()
    want = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    got, _ = preprocess(image, size, fit="stretch")
    np.testing.assert_allclose(got.transpose(1, 2, 0) * 255, want, atol=0.05)


def test_the_result_is_written_into_out_whatever_was_there() -> None:
    image, out = photograph(), np.full((2, 3, 64, 96), np.nan, np.float32)
    want, _ = preprocess(image, (64, 96))
    got, _ = preprocess(image, (64, 96), out=out[1])
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(out[1], want)
    assert np.isnan(out[0]).all()
    bytes_out = np.full((64, 96, 3), 7, np.uint8)
    resize(image, (64, 96), out=bytes_out)
    np.testing.assert_array_equal(bytes_out, resize(image, (64, 96))[0])


@pytest.mark.parametrize("size", [(64, 96), (60, 100)])
def test_the_layout_of_the_image_does_not_matter(size: tuple[int, int]) -> None:
    image = photograph()
    want, _ = preprocess(image, size)
    blue_first = np.ascontiguousarray(image[..., ::-1])
    columns_first = np.asfortranarray(image)
    inside = np.zeros((70, 110, 3), np.uint8)[5:65, 5:105]
    inside[...] = image
    for same in (blue_first[..., ::-1], columns_first, inside):
        np.testing.assert_array_equal(preprocess(same, size)[0], want)


def test_an_image_of_the_networks_size_keeps_its_values() -> None:
    image = photograph(64, 96)
    got, placement = preprocess(image, (64, 96))
    np.testing.assert_array_equal(got, image.transpose(2, 0, 1) * np.float32(1 / 255))
    np.testing.assert_array_equal(resize(image, (64, 96))[0], image)
    assert placement == Placement((64, 96), (64, 96), (0, 0))


# Coordinates -------------------------------------------------------------------------------------

lengths = st.integers(1, 5000)


@given(lengths, lengths, st.integers(32, 800), st.integers(32, 800), fits, st.data())
@settings(max_examples=200, deadline=None)
def test_coordinates_come_back_within_half_a_pixel(
    height: int, width: int, rows: int, columns: int, fit: Fit, data: st.DataObject
) -> None:
    placement = Placement.of((height, width), (rows, columns), fit)
    x = st.floats(0, width, width=32)
    y = st.floats(0, height, width=32)
    box = np.array([data.draw(st.tuples(x, y, x, y))], np.float32)
    there = placement.to_network(box)
    assert (there >= -1e-3).all()
    assert (there <= np.tile([columns, rows], 2) + 1e-3).all()
    # float32 holds 24 bits, and a letterboxed side may be one pixel of the network's.
    np.testing.assert_allclose(placement.to_image(there), box, atol=0.5)


@given(st.integers(2, 250), st.integers(2, 250), st.integers(8, 300), st.integers(8, 300), fits)
@settings(max_examples=60, deadline=None)
def test_what_is_seen_in_a_pixel_is_where_its_coordinates_say(
    height: int, width: int, rows: int, columns: int, fit: Fit
) -> None:
    """Red says in which column of the image a pixel is and green in which row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    seen, placement = preprocess(image, (rows, columns), fit=fit)
    (top, left), (high, wide) = placement.offset, placement.size
    y, x = np.mgrid[top : top + high, left : left + wide] + 0.5
    points = np.stack([x, y, x, y], axis=-1).reshape(-1, 4)
    centres = placement.to_image(points)[:, :2].reshape(high, wide, 2)
    inside = seen[:, top : top + high, left : left + wide] * 255 + 0.5
    assert np.abs(inside[0] - centres[..., 0]).max() < 0.5 + 1e-3
    assert np.abs(inside[1] - centres[..., 1]).max() < 0.5 + 1e-3


@given(lengths, lengths, st.integers(1, 800), st.integers(1, 800))
@settings(deadline=None)
def test_a_letterbox_keeps_the_aspect_ratio_and_lies_in_the_middle(
    height: int, width: int, rows: int, columns: int
) -> None:
    placement = Placement.of((height, width), (rows, columns), "letterbox")
    ratio = min(rows / height, columns / width)
    for side, length in zip(placement.size, (height, width), strict=True):
        assert side == 1 or abs(side - length * ratio) <= 0.5 + 1e-9
        assert side >= 1
    for side, offset, room in zip(placement.size, placement.offset, (rows, columns), strict=True):
        before, after = offset, room - side - offset
        assert 0 <= after - before <= 1
        assert before >= 0
    assert rows - placement.size[0] == 0 or columns - placement.size[1] == 0


def test_a_full_hd_image_in_608() -> None:
    placement = Placement.of((1080, 1920), (608, 608), "letterbox")
    assert placement == Placement((1080, 1920), (342, 608), (133, 0))
    whole = np.array([[0, 133, 608, 475], [-50, 0, 700, 608]], np.float32)
    np.testing.assert_array_equal(placement.to_image(whole), [[0, 0, 1920, 1080]] * 2)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "kind", "says"),
    [
        (np.zeros((4, 4, 3)), DtypeError, "uint8"),
        (np.zeros((4, 4), np.uint8), ShapeError, "RGB, not"),
        (np.zeros((4, 4, 4), np.uint8), ShapeError, r"\[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), ShapeError, r"\[0, 4, 3\]"),
        ([[[0, 0, 0]]], InputError, "not list"),
    ],
)
def test_what_is_no_image_is_refused(image: object, kind: type[InputError], says: str) -> None:
    with pytest.raises(kind, match=says):
        preprocess(image, (8, 8))  # type: ignore[arg-type]
    with pytest.raises(kind, match=says):
        resize(image, (8, 8))  # type: ignore[arg-type]


def test_an_out_that_does_not_fit_is_refused() -> None:
    image = photograph()
    with pytest.raises(ShapeError, match=r"out is \[3, 8, 8\], not \[8, 8, 3\]"):
        preprocess(image, (8, 8), out=np.zeros((8, 8, 3), np.float32))
    with pytest.raises(DtypeError, match="float32"):
        preprocess(image, (8, 8), out=np.zeros((3, 8, 8)))  # type: ignore[arg-type]
    fixed = np.zeros((3, 8, 8), np.float32)
    fixed.flags.writeable = False
    with pytest.raises(DtypeError, match="writeable"):
        preprocess(image, (8, 8), out=fixed)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(InputError, match="'letterbox' or 'stretch', not 'crop'"):
        preprocess(photograph(), (8, 8), fit="crop")  # type: ignore[arg-type]
