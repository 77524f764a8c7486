"""Greedy non-maximum suppression: of boxes that overlap too much, the best one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .preprocess import ZERO

#: Boxes that are compared at a time, which bounds the memory: half a million values.
_BLOCK = 256
#: Every two of them, worse and better: those of the first n boxes are the first n * (n - 1) / 2.
_PAIRS = np.stack(np.tril_indices(_BLOCK, -1))


def check_nms_threshold(nms_threshold: float) -> None:
    """Raise `InputError` unless it is an intersection over union."""
    if not 0 <= nms_threshold <= 1:
        raise InputError(f"nms_threshold is from 0 to 1, not {nms_threshold}")


def suppress(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.intp],
    threshold: float,
) -> NDArray[np.intp]:
    """The boxes that stay, best first.

    From the best score down, a box stays unless one of its class that stays overlaps it with an
    intersection over union above ``threshold``. Of equal scores the first comes first.

    Parameters
    ----------
    boxes : ndarray of float32, (n, 4)
        Left, top, right, bottom.
    scores, classes : ndarray, (n,)
    threshold : float
        1 keeps every box.

    Returns
    -------
    ndarray of intp
        Their indices.
    """
    order = (-scores).argsort(kind="stable")
    return order.take(staying(boxes.T.take(order, axis=1), classes.take(order), threshold))


def staying(
    boxes: NDArray[np.float32], classes: NDArray[Any], threshold: float
) -> NDArray[np.intp]:
    """As `suppress`, of boxes that are given best first, and as (4, n)."""
    count = len(classes)
    if count <= _BLOCK:
        return _stay(boxes, classes, threshold)
    kept: list[NDArray[np.intp]] = []
    for start in range(0, count, _BLOCK):
        left = np.arange(start, min(start + _BLOCK, count))
        for best in kept:
            hides = _hide(boxes[:, best, None], boxes[:, None, left], threshold)
            hides &= classes[best, None] == classes[left]
            left = left[~hides.any(axis=0)]
        kept.append(left[_stay(boxes[:, left], classes[left], threshold)])
    return np.concatenate(kept)


def _stay(boxes: NDArray[np.float32], classes: NDArray[Any], threshold: float) -> NDArray[np.intp]:
    """`staying` for at most `_BLOCK` boxes."""
    count = len(classes)
    pairs = _PAIRS[:, : count * (count - 1) // 2]
    kinds = classes.take(pairs)
    pairs = pairs.take((kinds[0] == kinds[1]).nonzero()[0], axis=1)
    both = boxes.take(pairs, axis=1)
    (close,) = _hide(both[:, 0], both[:, 1], threshold).nonzero()
    stays = bytearray(b"\1" * count)  # single ones are read and written faster than an array's
    # When a box's turn comes, it is known which of the better ones stay.
    for box, by in pairs.take(close, axis=1).T.tolist():
        if stays[by]:
            stays[box] = False
    return np.frombuffer(stays, np.bool_).nonzero()[0]


def overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of each box with each other one, (n, m); 0 where both are empty."""
    shared, union = _shared_and_union(boxes.T[:, :, None], others.T[:, None])
    union[union == 0] = 1
    return shared / union


def _hide(
    boxes: NDArray[np.float32], others: NDArray[np.float32], threshold: float
) -> NDArray[np.bool_]:
    """Whether boxes overlap others too much; (4, ...), which are broadcast."""
    shared, union = _shared_and_union(boxes, others)
    union *= threshold
    hides: NDArray[np.bool_] = shared > union  # without a quotient, which two empty boxes have not
    return hides


def _shared_and_union(
    boxes: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Areas of the intersections and the unions of boxes with others; (4, ...), broadcast."""
    last = np.minimum(boxes[2:], others[2:])
    shared = _areas(np.maximum(boxes[:2], others[:2]), last)
    union: NDArray[np.float32] = _areas(boxes[:2], boxes[2:]) + _areas(others[:2], others[2:])
    union -= shared
    return shared, union


def _areas(first: NDArray[np.float32], last: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the boxes between two corners; 0 where the last is not behind the first."""
    sides = last - first
    np.maximum(sides, ZERO, out=sides)
    areas: NDArray[np.float32] = sides[0] * sides[1]
    return areas
