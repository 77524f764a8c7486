"""The numbers of a network's heads as boxes, before any suppression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ShapeError
from ..tensor import format_shape
from .cfg import Head
from .detections import BoxTable
from .layout import Layout
from .preprocess import Placement
from .suppress import staying

#: The largest exponent of a box's side: nine million times the anchor. An area stays finite.
LARGEST_EXPONENT = 16.0

#: Any score passes a threshold below this: it is 0 in float32, or as good as that.
_SMALLEST = float(np.finfo(np.float32).tiny)
#: A cell's x, y, width, height, objectness and likeliest class as exponents of e: a side is e^x,
#: and the others are 1 / (1 + e^-x). They are bounded so that a float32 holds the power, and what
#: is bounded is below any threshold that a score may miss.
_SIGNS = np.array([[-1], [-1], [1], [1], [-1], [-1]], np.float32)
_BOUNDS = np.where(_SIGNS < 0, np.float32(88), np.float32(LARGEST_EXPONENT))
#: As an array, as `ZERO` is one.
_ONE = np.ones((), np.float32)


class Candidates(BoxTable):
    """Boxes of one image that pass the threshold, best first; many of them are of one object.

    They may reach beyond the image. They are in pixels of the network's input, or of the image's
    where `score` was given places in it. A score is objectness times the probability of the class,
    which is the likeliest one.
    """

    __slots__ = ()

    def suppressed(self, threshold: float) -> Candidates:
        """Those that stay; ``threshold`` as `suppress` has it."""
        stay = staying(self.table[:4], self.table[5], threshold)
        if len(stay) == len(self.scores):
            return self
        return Candidates(self.table.take(stay, axis=1))


class CutOff(BoxTable):
    """Boxes that do not reach beyond the engine's input; something of each is within it."""

    __slots__ = ()


def decode(
    outputs: Mapping[str, NDArray[Any]], layout: Layout, *, threshold: float = 0.6
) -> list[Candidates]:
    """The boxes of each image whose score is at least ``threshold``.

    Parameters
    ----------
    outputs : mapping of str to ndarray of float
        The heads, each (images, anchors * (5 + classes), rows, columns); others are left alone.
    layout : Layout
    threshold : float
        From 0 to 1.

    Returns
    -------
    list of Candidates
        One for each image. Of equal scores the first one by head, anchor, row and column is first.

    Raises
    ------
    InputError, ShapeError
        A head is missing or has another shape; the threshold is out of its range.

    Notes
    -----
    A box that is not a number does not pass.
    """
    least = lowest_logit(threshold)
    heads = [_head(outputs, head) for head in layout.heads]
    counts = {len(head) for head in heads}
    if len(counts) != 1:
        raise ShapeError(f"the heads are of {' and '.join(map(str, sorted(counts)))} images")
    return [
        _decode_image([head[image] for head in heads], layout, least, threshold)
        for image in range(len(heads[0]))
    ]


def lowest_logit(threshold: float) -> float:
    """An objectness below this, before the sigmoid, cannot reach ``threshold``.

    A score is at most the objectness. Rounding is allowed for, generously: scores are compared too.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"a threshold is from 0 to 1, not {threshold}")
    if threshold < _SMALLEST:
        return -math.inf
    least = threshold * (1 - 2**-22)  # float32 has 24 bits
    return math.log(least / (1 - least)) - 1e-3


def _head(outputs: Mapping[str, NDArray[Any]], head: Head) -> NDArray[Any]:
    """A head's output as (images, anchors, 5 + classes, cells)."""
    array = outputs.get(head.output)
    if array is None:
        raise InputError(
            f"there is no output {head.output!r}; there are {', '.join(map(repr, outputs))}"
        )
    if array.ndim != 4 or array.shape[1:] != (head.channels, *head.grid):
        raise ShapeError(
            f"the output {head.output!r} must be {format_shape((-1, head.channels, *head.grid))}, "
            f"{len(head.anchors)} anchors of 5 + {head.classes} numbers, and is "
            f"{format_shape(array.shape)}"
        )
    return array.reshape(len(array), len(head.anchors), 5 + head.classes, -1)


def _decode_image(
    heads: list[NDArray[Any]], layout: Layout, least: float, threshold: float
) -> Candidates:
    """One image; each head is (anchors, 5 + classes, cells)."""
    found, where, start = [], [], 0
    for numbers in heads:
        # What can pass is seldom more than a few dozen of 22,743: look at the rest no further.
        anchors, cells = (numbers[:, 4] >= least).nonzero()
        found.append(numbers[anchors, :, cells].astype(np.float32, copy=False))
        count = numbers.shape[2]
        where.append(anchors * count + cells + start)
        start += len(numbers) * count
    return score(np.concatenate(found), np.concatenate(where), layout.places, threshold)


def score(
    numbers: NDArray[np.float32],
    where: NDArray[np.integer],
    places: NDArray[np.float32],
    threshold: float,
) -> Candidates:
    """The boxes that pass.

    Parameters
    ----------
    numbers : ndarray of float32, (n, 5 + classes)
        Of the heads.
    where : ndarray of int, (n,)
        Which of the network's boxes they are of.
    places : ndarray of float32, (boxes, 6)
        `Layout.places`, or `places_in_image`.
    threshold : float
    """
    count, width = numbers.shape
    classes = numbers[:, 5:].argmax(axis=1)
    # One row for each quantity: NumPy is several times as fast along rows as across pairs. A few
    # dozen boxes cost what the calls cost, so that there is one for all quantities where possible.
    powers = np.empty((6, count), np.float32)
    powers[:5] = numbers[:, :5].T
    powers[5] = numbers.take(classes + np.arange(5, count * width, width))
    powers *= _SIGNS
    np.minimum(powers, _BOUNDS, out=powers)
    np.exp(powers, out=powers)
    sigmoids = powers + _ONE
    np.reciprocal(sigmoids, out=sigmoids)
    place = places.take(where, axis=0).T
    centres, halves = sigmoids[:2], powers[2:4]
    centres += place[:2]
    centres *= place[2:4]
    halves *= place[4:]
    table = np.empty((6, count), np.float32)
    boxes, scores = table[:4], table[4]
    np.subtract(centres, halves, out=boxes[:2])
    np.add(centres, halves, out=boxes[2:])
    np.multiply(sigmoids[4], sigmoids[5], out=scores)
    table[5] = classes
    if math.isnan(np.add.reduce(boxes, axis=None)):
        scores[np.isnan(boxes).any(axis=0)] = math.nan
    # What is not a number comes last, and passes no threshold.
    best = np.lexsort((where, -scores))[: np.count_nonzero(scores >= threshold)]
    return Candidates(table.take(best, axis=1))


def places_in_image(places: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """`Layout.places` for boxes in an image's pixels, and not in those of the network's input."""
    start, ratio = np.array(placement.offset[::-1]), np.array(placement.ratio)
    parts = (
        places[:, :2] - start / places[:, 2:4],
        places[:, 2:4] * ratio,
        places[:, 4:] * ratio,
    )
    return np.concatenate(parts, axis=1, dtype=np.float32)
