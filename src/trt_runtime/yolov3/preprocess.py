"""An image to what the network takes: resized, in [0, 1], channels first; and the way back.

Interpolation is bilinear between the four pixels around a point, with half-pixel centres and
without antialiasing: OpenCV's ``INTER_LINEAR``, ONNX's ``Resize`` in mode ``linear``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DtypeError, InputError, ShapeError
from ..tensor import format_shape

#: ``letterbox`` keeps the aspect ratio and pads with grey, as Darknet; ``stretch`` does not, as
#: NVIDIA's sample.
Fit = Literal["letterbox", "stretch"]

#: What surrounds a letterboxed image, in [0, 1] (Darknet's ``letterbox_image``).
PADDING = 0.5

#: As an array, which NumPy takes half a microsecond sooner than a Python number.
ZERO = np.zeros((), np.float32)

#: Rows of the result that are made at a time, so that what they are made of stays in the cache:
#: 2.1 ms for 1920x1080 to 608 on one core, against 6.2 ms all at once.
_BAND = 16


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    Attributes
    ----------
    image : tuple of int
        The image's height and width.
    size : tuple of int
        Height and width of its copy in the network's input.
    offset : tuple of int
        Rows above the copy and columns left of it.
    """

    image: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], network: tuple[int, int], fit: Fit) -> Placement:
        """Place an image in a network's input; both are height and width.

        Raises
        ------
        InputError
            There is no such ``fit``, or the image has no pixels.
        """
        if fit not in get_args(Fit):
            raise InputError(f"fit is {' or '.join(map(repr, get_args(Fit)))}, not {fit!r}")
        if min(image) < 1:
            raise InputError(f"the image has no pixels: it is {image[0]} high and {image[1]} wide")
        if fit == "stretch":
            return cls(image, network, (0, 0))
        ratio = min(network[0] / image[0], network[1] / image[1])
        rows, columns = (
            min(max(round(length * ratio), 1), limit)
            for length, limit in zip(image, network, strict=True)
        )
        return cls(image, (rows, columns), ((network[0] - rows) // 2, (network[1] - columns) // 2))

    @cached_property
    def is_whole(self) -> bool:
        """Whether the image is the network's input as it is."""
        return (self.size, self.offset) == (self.image, (0, 0))

    @property
    def ratio(self) -> tuple[float, float]:
        """The image's pixels for each of the network's, across and down."""
        return self.image[1] / self.size[1], self.image[0] / self.size[0]

    @cached_property
    def _way_back(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Where the image begins, its pixels for each of the network's, and where it ends."""
        (height, width), (top, left) = self.image, self.offset
        each = ((left, top), self.ratio, (width, height))
        start, ratio, limits = (np.array(pair * 2, np.float32) for pair in each)
        return start, ratio, limits

    def to_image(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in the network's pixels as boxes in the image's, cut off at its borders.

        Parameters
        ----------
        boxes : ndarray of float, (n, 4)
            Left, top, right, bottom.
        """
        start, ratio, limits = self._way_back
        moved: NDArray[np.floating] = boxes if self.is_whole else (boxes - start) * ratio
        moved = np.maximum(moved, ZERO)
        np.minimum(moved, limits, out=moved)
        return moved.astype(np.float32, copy=False)

    def to_network(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes in the image's pixels as boxes in the network's."""
        (height, width), (rows, columns), (top, left) = self.image, self.size, self.offset
        across, down = columns / width, rows / height
        moved = boxes * np.array((across, down, across, down)) + np.array((left, top, left, top))
        result: NDArray[np.float32] = moved.astype(np.float32)
        return result


def preprocess(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    fit: Fit = "letterbox",
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], Placement]:
    """The image as the network's input.

    Parameters
    ----------
    image : ndarray of uint8, (height, width, 3)
        RGB; any layout.
    size : tuple of int
        The network's height and width.
    fit : {"letterbox", "stretch"}
    out : ndarray of float32, (3, *size), optional
        Where to write it, such as a part of `Session.input_buffers`; a new array by default.

    Returns
    -------
    ndarray of float32, (3, *size)
        ``out``, if it was given; from 0 to 1.
    Placement
        Brings boxes back.

    Raises
    ------
    InputError, ShapeError, DtypeError
        The image or ``out`` is none of these.
    """
    check_image(image)
    placement = Placement.of(_extent(image), size, fit)
    if out is None:
        out = np.empty((3, *size), np.float32)
    else:
        _check_out(out, (3, *size), np.float32)
    _write(image, placement, out.transpose(1, 2, 0), np.float32(1 / 255), PADDING)
    return out, placement


def resize(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    fit: Fit = "letterbox",
    out: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], Placement]:
    """As `preprocess`, for a network that does the rest itself: uint8, (*size, 3), rounded."""
    check_image(image)
    placement = Placement.of(_extent(image), size, fit)
    if out is None:
        out = np.empty((*size, 3), np.uint8)
    else:
        _check_out(out, (*size, 3), np.uint8)
    _write(image, placement, out, None, round(PADDING * 255))
    return out, placement


def check_image(image: NDArray[np.uint8]) -> None:
    """Raise unless this is a uint8 array of (height, width, 3)."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a NumPy array here, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise DtypeError(
            f"an image is uint8, from 0 to 255, not {image.dtype.name}; for an image in [0, 1]: "
            "(image * 255).round().astype(np.uint8)"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ShapeError(
            f"an image is (height, width, 3), RGB, not {format_shape(image.shape)}; a grey one: "
            "np.stack([grey] * 3, axis=-1)"
        )


def _extent(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _check_out(out: NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != dtype or not out.flags.writeable:
        what = f"{out.dtype} array" if isinstance(out, np.ndarray) else type(out).__name__
        raise DtypeError(f"out is a writeable {np.dtype(dtype).name} array, not a {what}")
    if out.shape != shape:
        raise ShapeError(f"out is {format_shape(shape)}, not {format_shape(out.shape)}")


def _write(
    image: NDArray[np.uint8],
    placement: Placement,
    target: NDArray[np.float32] | NDArray[np.uint8],
    factor: np.float32 | None,
    padding: float,
) -> None:
    """Fill the network's input, given as (rows, columns, 3); without a factor: rounded."""
    (top, left), (rows, columns) = placement.offset, placement.size
    inner = target[top : top + rows, left : left + columns]
    for border in (
        target[:top],
        target[top + rows :],
        target[top : top + rows, :left],
        target[top : top + rows, left + columns :],
    ):
        border[...] = padding
    if placement.image != placement.size:
        _interpolate(image, inner, factor)
    elif factor is None:
        inner[...] = image
    else:
        for channel in range(3):
            np.multiply(image[..., channel], factor, out=inner[..., channel])


def _interpolate(
    image: NDArray[np.uint8],
    target: NDArray[np.float32] | NDArray[np.uint8],
    factor: np.float32 | None,
) -> None:
    rows, columns = target.shape[:2]
    lines = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    above, below, down = neighbours(image.shape[0], rows)
    left, right, across = neighbours(image.shape[1], columns)
    # The values in the target's order in memory: its channels may be first.
    channels_first = target.strides[2] > target.strides[1]
    order = (slice(None), None) if not channels_first else (None, slice(None))
    channel = np.arange(3)[:, None] if channels_first else np.arange(3)
    shape = (3, columns) if channels_first else (columns, 3)
    if channels_first:
        target = target.transpose(0, 2, 1)
    left, right = ((3 * at[order] + channel).ravel() for at in (left, right))
    of_right = np.broadcast_to(across[order], shape).ravel() * (factor or np.float32(1))
    of_left = (factor or np.float32(1)) - of_right

    line = np.empty((_BAND, lines.shape[1]), np.uint8)
    upper, lower = np.empty((2, *line.shape), np.float32)
    first, second = np.empty((2, _BAND, 3 * columns), np.float32)
    for start in range(0, rows, _BAND):
        band = slice(start, min(start + _BAND, rows))
        if band.stop - start < _BAND:
            count = band.stop - start
            line, upper, lower = line[:count], upper[:count], lower[:count]
            first, second = first[:count], second[:count]
        # mode="clip" because NumPy copies ``out`` for the other one; no index is outside.
        upper[...] = lines.take(above[band], axis=0, mode="clip", out=line)
        lower[...] = lines.take(below[band], axis=0, mode="clip", out=line)
        lower -= upper
        lower *= down[band, None]
        upper += lower
        upper.take(left, axis=1, mode="clip", out=first)
        upper.take(right, axis=1, mode="clip", out=second)
        first *= of_left
        second *= of_right
        if factor is None:
            first += second
            np.rint(first, out=first)
            target[band] = first.reshape(-1, *shape)
        else:
            np.add(first.reshape(-1, *shape), second.reshape(-1, *shape), out=target[band])


def neighbours(
    length: int, count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The pixels before and after each of ``count`` points, and how near each is to the second."""
    at = np.clip((np.arange(count) + 0.5) * (length / count) - 0.5, 0, length - 1)
    before = at.astype(np.intp)
    return before, np.minimum(before + 1, length - 1), (at - before).astype(np.float32)
