"""The numbers of a network's heads as boxes, before any suppression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ShapeError
from ..tensor import format_shape
from .cfg import Head
from .layout import Layout
from .suppress import suppress

#: The largest exponent of a box's side: nine million times the anchor. An area stays finite.
LARGEST_EXPONENT = 16.0

#: Any score passes a threshold below this: it is 0 in float32, or as good as that.
_SMALLEST = float(np.finfo(np.float32).tiny)
#: A cell's x, y, width, height, objectness and likeliest class as exponents of e: a side is e^x,
#: and the others are 1 / (1 + e^-x). They are bounded so that a float32 holds the power, and what
#: is bounded is below any threshold that a score may miss.
_SIGNS = np.array([[-1], [-1], [1], [1], [-1], [-1]], np.float32)
_BOUNDS = np.where(_SIGNS < 0, np.float32(88), np.float32(LARGEST_EXPONENT))


class Candidates(NamedTuple):
    """Boxes of one image that pass the threshold; many of them are of one object.

    Attributes
    ----------
    boxes : ndarray of float32, (n, 4)
        Left, top, right, bottom, in pixels of the network's input; they may reach beyond it.
    scores : ndarray of float32, (n,)
        Objectness times the probability of the class, from 0 to 1.
    classes : ndarray of intp, (n,)
        The likeliest class of each.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.intp]

    def suppressed(self, threshold: float) -> Candidates:
        """Those that stay, best first; ``threshold`` as `suppress` has it."""
        best = suppress(*self, threshold)
        return Candidates(
            self.boxes.take(best, axis=0), self.scores.take(best), self.classes.take(best)
        )


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
        One for each image: by head, then anchor, row and column.

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
    found, places = [], []
    for numbers, head in zip(heads, layout.heads, strict=True):
        # What can pass is seldom more than a few dozen of 22,743: look at the rest no further.
        anchors, cells = np.nonzero(numbers[:, 4] >= least)
        found.append(numbers[anchors, :, cells].astype(np.float32, copy=False))
        places.append(_places(layout, head, anchors, cells))
    return score(np.concatenate(found), np.concatenate(places), threshold)


def score(
    numbers: NDArray[np.float32], places: NDArray[np.float32], threshold: float
) -> Candidates:
    """The boxes that pass.

    Parameters
    ----------
    numbers : ndarray of float32, (n, 5 + classes)
        Of the heads.
    places : ndarray of float32, (n, 6)
        As `places_of` has them.
    threshold : float
    """
    count, width = numbers.shape
    classes = numbers[:, 5:].argmax(axis=1)
    # One row for each quantity: NumPy is several times as fast along rows as across pairs. A few
    # dozen boxes cost what the calls cost, so that there is one for all quantities where possible.
    powers = np.empty((6, count), np.float32)
    powers[:5] = numbers[:, :5].T
    powers[5] = numbers.ravel().take(classes + np.arange(5, count * width, width))
    powers *= _SIGNS
    np.minimum(powers, _BOUNDS, out=powers)
    np.exp(powers, out=powers)
    sigmoids = powers + 1
    np.reciprocal(sigmoids, out=sigmoids)
    place = places.T.copy()
    centres, halves = sigmoids[:2], powers[2:4]
    centres += place[:2]
    centres *= place[2:4]
    halves *= place[4:]
    halves *= 0.5
    boxes = np.concatenate([centres - halves, centres + halves])
    scores = sigmoids[4] * sigmoids[5]
    passing = scores >= threshold
    passing &= ~np.isnan(boxes[2] + boxes[3])
    (kept,) = passing.nonzero()
    return Candidates(boxes.take(kept, axis=1).T, scores.take(kept), classes.take(kept))


def places_of(layout: Layout) -> NDArray[np.float32]:
    """Where each of a network's boxes is and what it is measured by.

    Returns
    -------
    ndarray of float32, (boxes, 6)
        By head, anchor, row and column: the cell's column and row, its width and height in pixels
        of the network's input, the anchor's width and height.
    """
    return np.concatenate(
        [
            _places(layout, head, *np.divmod(np.arange(_boxes(head)), head.grid[0] * head.grid[1]))
            for head in layout.heads
        ]
    )


def _places(
    layout: Layout, head: Head, anchors: NDArray[np.integer], cells: NDArray[np.integer]
) -> NDArray[np.float32]:
    """`places_of` some of one head's boxes."""
    rows, columns = head.grid
    places = np.empty((len(cells), 6), np.float32)
    places[:, 1], places[:, 0] = np.divmod(cells, columns)
    places[:, 2:4] = layout.width / columns, layout.height / rows
    places[:, 4:] = np.array(head.anchors, np.float32)[anchors]
    return places


def _boxes(head: Head) -> int:
    return len(head.anchors) * head.grid[0] * head.grid[1]
