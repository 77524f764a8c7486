"""`Detections`: what was found in one image, as arrays and as a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Detections(Sequence[Detection]):
    """The objects found in one image, best first.

    Attributes
    ----------
    boxes : ndarray of float32, (n, 4)
        Left, top, right, bottom, in pixels of the image and within it.
    scores : ndarray of float32, (n,)
        From 0 to 1.
    classes : ndarray of intp, (n,)
    names : tuple of str
        Of all classes that the detector knows.
    image_size : tuple of int
        The image's height and width.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.intp]
    names: tuple[str, ...] = field(repr=False)
    image_size: tuple[int, int]

    def __init__(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        classes: NDArray[np.intp],
        names: tuple[str, ...],
        image_size: tuple[int, int],
    ) -> None:
        # At once: what a frozen dataclass is given to set one after another takes 2 µs.
        self.__dict__.update(
            boxes=boxes, scores=scores, classes=classes, names=names, image_size=image_size
        )

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        if isinstance(index, slice):
            return Detections(
                self.boxes[index],
                self.scores[index],
                self.classes[index],
                self.names,
                self.image_size,
            )
        left, top, right, bottom = self.boxes[index].tolist()
        name = self.names[self.classes[index]]
        return Detection((left, top, right, bottom), float(self.scores[index]), name)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

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
