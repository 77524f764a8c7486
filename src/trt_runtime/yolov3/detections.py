"""`Detections`: what was found in one image, as arrays and as a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


class Detection(NamedTuple):
    """One object.

    Attributes
    ----------
    box : tuple of float
        Left, top, right, bottom, in pixels of the image.
    score : float
        From 0 to 1.
    name : str
        Of its class.
    """

    box: tuple[float, float, float, float]
    score: float
    name: str


class BoxTable:
    """Boxes, best first, in one array, of which the others are made when they are asked for.

    Attributes
    ----------
    table : ndarray of float32, (6, n)
        Left, top, right and bottom, the score and the class of each.
    boxes : ndarray of float32, (n, 4)
    scores : ndarray of float32, (n,)
    classes : ndarray of intp, (n,)
        A new array each time; the others are views.
    """

    __slots__ = ("table",)

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table

    @property
    def boxes(self) -> NDArray[np.float32]:
        return self.table[:4].T

    @property
    def scores(self) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self.table[4]
        return scores

    @property
    def classes(self) -> NDArray[np.intp]:
        classes: NDArray[np.intp] = self.table[5].astype(np.intp)
        return classes


def table_of(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """A table of these arrays, which are copied; all as `BoxTable` has them."""
    table = np.empty((6, len(scores)), np.float32)
    table[:4], table[4], table[5] = boxes.T, scores, classes
    return table


class Detections(BoxTable, Sequence[Detection]):
    """The objects found in one image, best first.

    Parameters
    ----------
    boxes, scores, classes, names, image_size
        As the attributes; copied.

    Attributes
    ----------
    boxes : ndarray of float32, (n, 4)
        Left, top, right, bottom, in pixels of the image and within it.
    scores : ndarray of float32, (n,)
        From 0 to 1.
    classes : ndarray of intp, (n,)
        A new array each time; the other two show `table`.
    table : ndarray of float32, (6, n)
        A column for each: left, top, right, bottom, score, class.
    names : tuple of str
        Of all classes that the detector knows.
    image_size : tuple of int
        The image's height and width.
    """

    __slots__ = ("__weakref__", "image_size", "names")

    def __init__(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        classes: NDArray[np.integer[Any]],
        names: tuple[str, ...],
        image_size: tuple[int, int],
    ) -> None:
        self.table = table_of(boxes, scores, classes)
        self.names, self.image_size = names, image_size

    @classmethod
    def _of(
        cls, table: NDArray[np.float32], names: tuple[str, ...], image_size: tuple[int, int]
    ) -> Detections:
        """Of a table, which is not copied."""
        self = cls.__new__(cls)
        self.table, self.names, self.image_size = table, names, image_size
        return self

    def __len__(self) -> int:
        return len(self.table[0])

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        if isinstance(index, slice):
            return self._of(self.table[:, index], self.names, self.image_size)
        return self._detection(*self.table[:, index].tolist())

    def __iter__(self) -> Iterator[Detection]:
        return (self._detection(*column) for column in self.table.T.tolist())

    def _detection(self, *column: float) -> Detection:
        left, top, right, bottom, score, number = column
        return Detection((left, top, right, bottom), score, self.names[int(number)])

    def __repr__(self) -> str:
        shown = [f"{found.name} {found.score:.2f}" for found in self[:5]]
        if len(self) > len(shown):
            shown.append(f"and {len(self) - len(shown)} more")
        return f"<Detections {', '.join(shown) or 'of nothing'}>"

    def to_json(self) -> list[dict[str, Any]]:
        """A list of objects for `json.dumps`: name, class, score, box."""
        return [
            {"name": found.name, "class": number, "score": found.score, "box": list(found.box)}
            for found, number in zip(self, self.classes.tolist(), strict=True)
        ]

    def draw(self, image: Any) -> Image:
        """The image with the boxes drawn onto a copy of it; as `yolov3.draw.draw`."""
        from .draw import draw

        return draw(image, self)
