"""How good a detector is: mean average precision over images whose objects are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .suppress import overlaps


class Found(Protocol):
    """What was found in one image, such as a `BoxTable`."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def classes(self) -> NDArray[np.integer[Any]]: ...


class Truth(Protocol):
    """What is in one image, such as a `Scene`."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...
    @property
    def classes(self) -> NDArray[np.integer[Any]]: ...


@dataclass(frozen=True)
class Evaluation:
    """How well detections agree with what is there.

    Attributes
    ----------
    precisions : tuple of float
        Average precision of each class; not a number where no image has an object of it.
    objects : int
        How many there are in all images.
    """

    precisions: tuple[float, ...]
    objects: int

    @property
    def mean_average_precision(self) -> float:
        """Over the classes that some image has."""
        return float(np.nanmean(self.precisions))


def evaluate(
    found: Sequence[Found], truth: Sequence[Truth], *, classes: int, iou: float = 0.5
) -> Evaluation:
    """Measure detections against the truth.

    Boxes are left, top, right and bottom, in one unit. Let a low threshold of the score pass, such
    as 0.01: average precision weighs what is unlikely as little as it should.

    Parameters
    ----------
    found, truth : sequence
        One of each for every image, in one order.
    classes : int
        How many there are.
    iou : float
        A detection is right from this intersection over union on.

    Raises
    ------
    InputError
        ``found`` and ``truth`` are not of as many images, or there is no object in any.

    Notes
    -----
    As in the PASCAL VOC challenge since 2010: from the best score down, a detection is right if the
    object of its class and image that it overlaps most is overlapped enough, and no better one has
    taken it. Average precision is the area below precision over recall, where precision is the best
    at that recall or a higher one, at every point (no interpolation between eleven).
    """
    if len(found) != len(truth):
        raise InputError(f"there are detections of {len(found)} images and {len(truth)} truths")
    counts = np.zeros(classes, np.int64)
    matches = []
    start = 0
    for seen, there in zip(found, truth, strict=True):
        counts += np.bincount(there.classes, minlength=classes)
        matches.append(_matches(seen, there, iou, start))
        start += len(there.classes)
    if start == 0:
        raise InputError("no image has an object; there is nothing to measure against")
    scores = np.concatenate([seen.scores for seen in found])
    kinds = np.concatenate([seen.classes for seen in found])
    order = np.argsort(-scores, kind="stable")
    right = _first_of_each(np.concatenate(matches)[order])
    precisions = tuple(
        _average_precision(right[kinds[order] == number], int(count))
        for number, count in enumerate(counts)
    )
    return Evaluation(precisions, start)


def _matches(found: Found, truth: Truth, iou: float, start: int) -> NDArray[np.intp]:
    """The number of the object that each detection would be right about, counted from ``start``.

    It is -1 where there is none.
    """
    if not len(truth.classes):
        return np.full(len(found.classes), -1, np.intp)
    shared = overlaps(found.boxes, truth.boxes)
    shared[found.classes[:, None] != truth.classes] = -1
    best = shared.argmax(axis=1)
    enough = np.take_along_axis(shared, best[:, None], axis=1)[:, 0] >= iou
    return np.where(enough, best + start, -1)


def _first_of_each(objects: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether a detection is the first of its object."""
    first = np.zeros(len(objects), np.bool_)
    first[np.unique(objects, return_index=True)[1]] = True
    return first & (objects >= 0)


def _average_precision(right: NDArray[np.bool_], count: int) -> float:
    """Of detections, best first, of a class that has ``count`` objects."""
    if count == 0:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[right].sum() / count)
