"""Images from wherever they come: files good and bad, Pillow, folders, videos; and drawing."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import tempfile
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import DtypeError, InputError, ShapeError
from trt_runtime.yolov3 import Detection, Detections
from trt_runtime.yolov3.draw import draw
from trt_runtime.yolov3.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    find_images,
    load_image,
    read_images,
    read_video,
)

from .small import image as photograph

Image = pytest.importorskip("PIL.Image")


@cache
def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photograph(24, 32)).save(stream, kind)
    return stream.getvalue()


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_gives_its_pixels(tmp_path: Path, suffix: str, as_text: bool) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(photograph()).save(path)
    got = load_image(str(path) if as_text else path)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, photograph())


def test_an_array_is_taken_as_it_is() -> None:
    array = photograph()
    assert load_image(array) is array


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        grey = np.asarray(Image.fromarray(photograph()).convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16) << 8)
        assert picture.mode == "I;16"
        want = np.repeat(grey[..., None], 3, axis=-1)
    else:
        picture = Image.fromarray(photograph()).convert(mode)
        want = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load_image(picture), want)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    sideways = Image.fromarray(np.rot90(photograph()))
    exif = sideways.getexif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    sideways.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), photograph())


KINDS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_is_an_image_or_an_input_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(kind))
    length = len(content)
    for _ in range(data.draw(st.integers(0, 4))):
        # Most of what a format says of itself is at its beginning.
        at = data.draw(st.one_of(st.integers(0, min(64, length - 1)), st.integers(0, length - 1)))
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.one_of(st.just(length), st.integers(0, length)))]
    _load_or_refuse(bytes(content))


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_noise_is_an_input_error(noise: bytes, kind: str, kept: int) -> None:
    _load_or_refuse(encoded(kind)[:kept] + noise)


def _load_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            array = load_image(path)
        except InputError as error:
            message = str(error)
        else:
            assert array.dtype == np.uint8
            assert array.shape[2] == 3
            return
        assert str(path) in message


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 50_000, 2**31 - 1])
@pytest.mark.parametrize("filtering", ["error", "ignore"])
def test_a_decompression_bomb_is_refused_before_it_goes_off(
    tmp_path: Path, side: int, filtering: str
) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter(filtering)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"bomb\.png") as caught:
            load_image(path)
    if filtering == "ignore" and side == 10_000:  # Pillow itself would only have warned
        assert "says that it is 10000x10000" in str(caught.value)


def test_a_file_that_pillow_would_hand_to_a_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(photograph()).save(path, "EPS")
    with Image.open(path) as opened:
        assert opened.format == "EPS"
    with pytest.raises(InputError, match="cannot be read"):
        load_image(path)


def test_a_text_bomb_is_refused(tmp_path: Path) -> None:
    content = encoded("PNG")
    text = b"x\0\0" + zlib.compress(bytes(200 << 20), 1)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path = tmp_path / "text.png"
    path.write_bytes(content[:33] + chunk + content[33:])
    with pytest.raises(InputError, match=r"text\.png"):
        load_image(path)


def test_what_is_not_there_or_no_image_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image '.*gone\.png' \(in "):
        load_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_image("nul\0l.png")
    with pytest.raises(InputError, match="not int"):
        load_image(3)
    with pytest.raises(DtypeError, match="uint8"):
        load_image(np.zeros((3, 3, 3)))
    with pytest.raises(ShapeError, match="RGB"):
        load_image(np.zeros((3, 3), np.uint8))


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"trt-runtime\[images\]"):
        load_image("image.png")
    with pytest.raises(InputError, match=r"trt-runtime\[images\]"):
        draw(photograph(), nothing())


# Many --------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    for number, name in enumerate(["b.png", "a.PNG", "c.bmp"]):
        Image.fromarray(photograph(seed=number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in find_images(tmp_path)] == ["a.PNG", "b.png", "c.bmp"]
    got = list(read_images(str(tmp_path)))
    for array, seed in zip(got, (1, 0, 2), strict=True):
        np.testing.assert_array_equal(array, photograph(seed=seed))


def test_a_folder_without_images_says_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images \(\.bmp"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        find_images(tmp_path / "gone")


def test_an_iterable_may_mix_what_one_image_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.fromarray(photograph())
    picture.save(path)
    for array in read_images(iter([path, photograph(), picture])):
        np.testing.assert_array_equal(array, photograph())
    assert len(list(read_images(path))) == 1


def test_one_image_is_no_stream() -> None:
    for one in (photograph(), Image.fromarray(photograph()), 3):
        with pytest.raises(InputError, match="such as a list"):
            list(read_images(one))


def test_images_are_read_one_at_a_time() -> None:
    asked = []

    def images() -> object:
        for number in range(3):
            asked.append(number)
            yield photograph()

    stream = read_images(images())
    next(stream)
    assert asked == [0]


# Videos ------------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path: Path) -> Path:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (100, 60))
    for seed in range(3):
        writer.write(np.ascontiguousarray(photograph(seed=seed)[..., ::-1]))
    writer.release()
    return path


def test_a_video_gives_its_frames_as_rgb(video: Path) -> None:
    frames = list(read_images(video))
    assert len(frames) == 3
    for seed, frame in enumerate(frames):
        assert frame.dtype == np.uint8
        # JPEG loses a little; swapped channels would differ by far more.
        assert np.abs(frame.astype(int) - photograph(seed=seed)).mean() < 6


def test_a_video_may_be_left_early(video: Path) -> None:
    frames = read_video(video)
    next(frames)
    frames.close()


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"no\.mp4"):
        list(read_images(path))
    with pytest.raises(InputError, match="there is no video"):
        list(read_images(tmp_path / "gone.mp4"))


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"trt-runtime\[video\]"):
        list(read_images("video.mp4"))


# Detections --------------------------------------------------------------------------------------


def some() -> Detections:
    return Detections(
        np.array([[10, 10, 40, 30], [0, 0, 100, 60], [90.5, 50, 100, 60]], np.float32),
        np.array([0.9, 0.8, 0.75], np.float32),
        np.array([1, 0, 1]),
        ("apple", "pëar"),
        (60, 100),
    )


def nothing() -> Detections:
    return some()[:0]


def test_detections_are_a_sequence_of_what_was_found() -> None:
    found = some()
    assert len(found) == 3
    assert found[0] == Detection((10, 10, 40, 30), pytest.approx(0.9), "pëar")
    assert [one.name for one in found] == ["pëar", "apple", "pëar"]
    assert found[-1].box == (90.5, 50, 100, 60)
    assert isinstance(found[1:], Detections)
    assert [one.name for one in found[1:]] == ["apple", "pëar"]
    assert not nothing()
    with pytest.raises(IndexError):
        found[3]


def test_they_are_one_table() -> None:
    given = np.array([[10, 10, 40, 30], [0, 0, 100, 60]]), np.array([0.9, 0.8]), np.array([1, 0])
    found = Detections(*given, ("apple", "pëar"), (60, 100))
    assert (found.table.shape, found.table.dtype) == ((6, 2), np.float32)
    for array in given:  # copied
        array[...] = 0
    assert [one.score for one in found] == found.scores.tolist()
    for part in (found, found[1:], found[::-1], found[:0], pickle.loads(pickle.dumps(found))):
        assert part.boxes.shape == (len(part), 4)
        assert (part.boxes.dtype, part.scores.dtype) == (np.float32, np.float32)
        assert part.classes.dtype == np.intp
        assert list(part) == [part[number] for number in range(len(part))]
        assert [one.box for one in part] == [tuple(box) for box in part.boxes.tolist()]
        assert [one.name for one in part] == [part.names[kind] for kind in part.classes]
    assert np.shares_memory(found[1:].boxes, found.table)


def test_they_say_what_they_are() -> None:
    assert repr(some()) == "<Detections pëar 0.90, apple 0.80, pëar 0.75>"
    assert repr(nothing()) == "<Detections of nothing>"
    many = Detections(
        np.zeros((9, 4), np.float32),
        np.ones(9, np.float32),
        np.zeros(9, np.intp),
        ("apple",),
        (60, 100),
    )
    assert repr(many).endswith("apple 1.00, and 4 more>")


def test_they_go_through_json() -> None:
    again = json.loads(json.dumps(some().to_json()))
    assert again[0] == {
        "name": "pëar",
        "class": 1,
        "score": pytest.approx(0.9),
        "box": [10, 10, 40, 30],
    }
    assert len(again) == 3


def test_drawing_marks_the_boxes_and_leaves_the_image_alone() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    picture = some().draw(image)
    assert picture.size == (100, 60)
    assert not image.any()
    drawn = np.asarray(picture)
    for x, y in ((10, 20), (40, 20), (25, 30), (0, 50), (99, 20)):  # on the boxes' sides
        assert drawn[y, x].any(), (x, y)
    assert not drawn[54, 60].any()
    np.testing.assert_array_equal(np.asarray(draw(photograph(), nothing())), photograph())


def test_classes_are_told_apart_by_colour() -> None:
    picture = np.asarray(some().draw(np.zeros((60, 100, 3), np.uint8)))
    assert (picture[20, 40] != picture[40, 0]).any()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.tuples(*[st.floats(0, 40, width=16)] * 4), max_size=5),
    st.text(max_size=10),
)
@settings(max_examples=50, deadline=None)
def test_any_boxes_with_any_names_can_be_drawn(
    height: int, width: int, boxes: list[tuple[float, float, float, float]], name: str
) -> None:
    ends = np.array(boxes, np.float32).reshape(-1, 2, 2)
    sides = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    found = Detections(
        sides,
        np.ones(len(sides), np.float32),
        np.arange(len(sides)),
        (name,) * len(sides),
        (height, width),
    )
    assert draw(np.zeros((height, width, 3), np.uint8), found).size == (width, height)


def test_the_suffixes_are_those_that_pillow_reads() -> None:
    assert set(IMAGE_SUFFIXES) <= set(Image.registered_extensions())
