"""Images as inputs: layout, size and values follow the input, and a sentence says what was done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import InputError, TensorSpec
from trt_runtime.cli.inputs import Given, read_inputs

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def picture(own_machine: Path) -> str:
    """A picture, 6 wide and 4 high: red on the left, blue on the right."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0] = 255
    pixels[:, 3:, 2] = 255
    Image.fromarray(pixels).save("picture.png")
    return "picture.png"


def given(picture: str, shape: tuple[int, ...], dtype: Any = np.float32, **shapes: Any) -> Given:
    spec = TensorSpec("x", np.dtype(dtype), shape, "input")
    return read_inputs([picture], [spec], shapes)


def test_channels_first(picture: str) -> None:
    read = given(picture, (1, 3, 4, 6))
    array = read.arrays["x"]
    assert array.shape == (1, 3, 4, 6)
    assert array.dtype == np.float32
    assert (array[0, 0, :, :3] == 1).all()
    assert (array[0, 2, :, 3:] == 1).all()
    assert array.sum() == 4 * 6
    assert read.remarks == ["x: picture.png, 6x4, RGB, NCHW, values / 255"]


def test_channels_last_and_bytes(picture: str) -> None:
    read = given(picture, (4, 6, 3), np.uint8)
    assert (read.arrays["x"][:, :3] == [255, 0, 0]).all()
    assert read.remarks == ["x: picture.png, 6x4, RGB, HWC, values 0 to 255"]


def test_a_picture_is_resized_and_repeated(picture: str) -> None:
    read = given(picture, (2, 3, 8, 8))
    assert read.arrays["x"].shape == (2, 3, 8, 8)
    assert "6x4, resized to 8x8" in read.remarks[0]
    assert "repeated 2 times" in read.remarks[0]


def test_one_channel_is_grey(picture: str) -> None:
    read = given(picture, (1, 1, 4, 6), np.float16)
    assert read.arrays["x"].dtype == np.float16
    assert 0 < read.arrays["x"].mean() < 1
    assert ", L, NCHW" in read.remarks[0]


def test_a_dynamic_size_is_the_pictures_own_unless_one_is_chosen(picture: str) -> None:
    assert given(picture, (-1, 3, -1, -1)).arrays["x"].shape == (1, 3, 4, 6)
    assert given(picture, (-1, 3, -1, -1), x=(2, 3, 5, 7)).arrays["x"].shape == (2, 3, 5, 7)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [((1, 1000), np.float32, "takes no image"), ((1, 3, 4, 6), np.int8, "0 to 255")],
)
def test_an_input_that_takes_no_image_says_so(
    picture: str, shape: Any, dtype: Any, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        given(picture, shape, dtype)


def test_without_pillow_the_error_says_how_to_install_it(
    picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="pip install pillow"):
        given(picture, (1, 3, 4, 6))
