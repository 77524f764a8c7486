"""Greedy non-maximum suppression: of boxes that overlap too much, the best one stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Boxes that are compared at a time, which bounds the memory: a million values for each 1,000 kept.
_BLOCK = 256


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
    order = np.argsort(-scores, kind="stable")
    boxes, classes = boxes[order], classes[order]
    stays = np.ones(len(order), np.bool_)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, start + _BLOCK)
        here, of = boxes[block], classes[block]
        left = stays[block]
        if start:
            kept = np.flatnonzero(stays[:start])
            left &= ~_hide(boxes[kept], classes[kept], here, of, threshold).any(axis=0)
        hides = _hide(here, of, here, of, threshold)
        # Only a box that hides more than itself decides anything.
        for index in np.flatnonzero(hides.sum(axis=1) > 1):
            if left[index]:
                left[index + 1 :] &= ~hides[index, index + 1 :]
    return order[stays]


def overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of each box with each other one, (n, m); 0 where both are empty."""
    shared, union = _shared_and_union(boxes, others)
    union[union == 0] = 1
    return shared / union


def _hide(
    boxes: NDArray[np.float32],
    classes: NDArray[np.intp],
    others: NDArray[np.float32],
    their_classes: NDArray[np.intp],
    threshold: float,
) -> NDArray[np.bool_]:
    """Whether each box hides each of the others, (n, m)."""
    shared, union = _shared_and_union(boxes, others)
    union *= threshold
    hides: NDArray[np.bool_] = shared > union  # without a quotient, which two empty boxes have not
    hides &= classes[:, None] == their_classes
    return hides


def _shared_and_union(
    boxes: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Areas of the intersection and the union of each box with each other one, (n, m)."""
    mine, theirs = boxes.T.copy(), others.T.copy()
    sides = np.minimum(mine[2:, :, None], theirs[2:, None])
    sides -= np.maximum(mine[:2, :, None], theirs[:2, None])
    np.maximum(sides, 0, out=sides)
    shared: NDArray[np.float32] = sides[0] * sides[1]
    union: NDArray[np.float32] = _areas(mine)[:, None] + _areas(theirs)
    union -= shared
    return shared, union


def _areas(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.maximum(columns[2:] - columns[:2], 0)
    areas: NDArray[np.float32] = sides[0] * sides[1]
    return areas
