"""Images as arrays: from files, Pillow images, folders and videos.

An image is a uint8 array of (height, width, 3), RGB, upright as its EXIF orientation says. Pillow
reads files, which the extra ``images`` installs, and OpenCV videos, of the extra ``video``.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .preprocess import check_image

#: What `find_images` takes for an image file, by its suffix.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: What `read_images` takes for a video.
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

#: What Pillow may take a file for, whatever its name; others call programs, as EPS does.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

#: Pixels of an image file at most: a quarter of a gigabyte in memory. A file of a few kilobytes may
#: claim any number. The limit is Pillow's own, which only warns of it.
MAX_PIXELS = 89_478_485


def load_image(image: Any) -> NDArray[np.uint8]:
    """One image as an array.

    Parameters
    ----------
    image : path, ndarray of uint8 or PIL.Image.Image
        An array is (height, width, 3), RGB, and is returned as it is.

    Raises
    ------
    InputError
        The file is missing, is no image, is damaged or has more than 89 million pixels; or Pillow
        is not installed.
    ShapeError, DtypeError
        The array is not as above.
    """
    if isinstance(image, np.ndarray):
        check_image(image)
        return image
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fspath(image))
    if _is_pillow(image):
        return _upright(image, "the Pillow image")
    raise InputError(
        f"an image is a path, a uint8 array or a Pillow image, not {type(image).__name__}"
    )


def read_images(source: Any) -> Generator[NDArray[np.uint8], None, None]:
    """Images, one after the other.

    Parameters
    ----------
    source : path or iterable
        A folder, for the images in it in the order of their names; a video, for its frames; an
        image file; or an iterable of what `load_image` takes.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            source = find_images(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield from read_video(path)
            return
        else:
            source = (path,)
    elif isinstance(source, np.ndarray) or _is_pillow(source) or not isinstance(source, Iterable):
        raise InputError(
            "images are a folder, a video or an iterable of images, such as a list, not one "
            f"{type(source).__name__}"
        )
    for image in source:
        yield load_image(image)


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder, by their suffix, in the order of their names.

    Raises
    ------
    InputError
        The folder cannot be read, or there is none in it.
    """
    try:
        found = sorted(
            path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
        )
    except (OSError, ValueError) as error:
        raise InputError(f"the folder {os.fspath(folder)!r} cannot be read: {error}") from error
    if not found:
        raise InputError(
            f"the folder {os.fspath(folder)!r} has no images ({', '.join(IMAGE_SUFFIXES)})"
        )
    return found


def read_video(path: str | os.PathLike[str]) -> Generator[NDArray[np.uint8], None, None]:
    """The frames of a video, read as they are asked for.

    Raises
    ------
    InputError
        OpenCV is not installed, or cannot read the file.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "videos take OpenCV: pip install 'trt-runtime[video]', or pip install "
            "opencv-python-headless"
        ) from error
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise InputError(f"there is no video {name!r} (in {os.getcwd()!r})")
    with closing(_Capture(cv2.VideoCapture(name))) as capture:
        frames = capture.frames()
        try:
            first = next(frames, None)
            if first is None:
                raise InputError(f"OpenCV reads no frame of {name!r}: it is damaged or no video")
            for frame in chain([first], frames):
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        except cv2.error as error:
            raise InputError(f"OpenCV cannot read {name!r}: {error}") from error


class _Capture:
    """A ``cv2.VideoCapture`` that can be closed."""

    def __init__(self, capture: Any) -> None:
        self._capture = capture

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The frames, BGR, each in memory of its own."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield frame

    def close(self) -> None:
        self._capture.release()


def pillow() -> Any:
    """Pillow's module ``PIL.Image``.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "image files and drawing take Pillow: pip install 'trt-runtime[images]', or pip "
            "install pillow"
        ) from error
    return Image


def _is_pillow(image: Any) -> bool:
    """Whether it is a Pillow image, without importing Pillow."""
    return any(kind.__module__ == "PIL.Image" for kind in type(image).__mro__)


def _read(path: str) -> NDArray[np.uint8]:
    opener = pillow()
    try:
        opened = opener.open(path, formats=_FORMATS)
    except FileNotFoundError:
        raise InputError(f"there is no image {path!r} (in {os.getcwd()!r})") from None
    except Exception as error:  # each of Pillow's formats has exceptions of its own
        raise InputError(f"the image {path!r} cannot be read: {_because(error)}") from error
    with opened:
        return _upright(opened, f"the image {path!r}")


def _upright(image: Any, what: str) -> NDArray[np.uint8]:
    """Pixels of a Pillow image, whose file may not have been read yet."""
    from PIL import ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{what} says that it is {width}x{height}, more than {MAX_PIXELS:,} pixels; "
            "make it smaller"
        )
    try:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would cut off at 255
            grey = (np.asarray(turned) >> 8).astype(np.uint8)
            pixels: NDArray[np.uint8] = np.repeat(grey[..., None], 3, axis=-1)
        else:
            pixels = np.asarray(turned.convert("RGB"))
    except Exception as error:
        raise InputError(f"{what} cannot be read: {_because(error)}") from error
    check_image(pixels)
    return pixels


def _because(error: Exception) -> str:
    return str(error) or type(error).__name__
