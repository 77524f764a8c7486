"""Boxes and names drawn onto an image, by Pillow, which the extra ``images`` installs."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

from .detections import Detections
from .images import load_image, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]

#: Steps around the colour wheel between one class and the next: far apart, and never the same.
_GOLDEN_RATIO = 0.618034


def draw(image: Any, detections: Detections) -> Image:
    """A copy of the image with a box, a name and a score for each detection, the best on top.

    Parameters
    ----------
    image : path, ndarray of uint8 or PIL.Image.Image
        The one that was searched.
    detections : Detections

    Raises
    ------
    InputError
        The image cannot be read, or Pillow is not installed.
    """
    picture: Image = pillow().fromarray(load_image(image))
    from PIL import ImageDraw, ImageFont

    canvas = ImageDraw.Draw(picture)
    # Legible on a photograph of any size.
    size = max(12, round(max(picture.size) / 60))
    letters = "utf-8"
    try:
        font: Any = ImageFont.load_default(size)
    except ImportError:  # Pillow was built without FreeType: its bitmap font has one size
        font, letters = ImageFont.load_default(), "latin-1"
    line = max(2, size // 8)
    for found, number in reversed(list(zip(detections, detections.classes.tolist(), strict=True))):
        left, top, right, bottom = found.box
        colour, ink = _colours(number)
        canvas.rectangle((left, top, right, bottom), outline=colour, width=line)
        name = " ".join(found.name.split()).encode(letters, "replace").decode(letters)
        text = f"{name} {found.score:.2f}"
        *_, wide, high = canvas.textbbox((0, 0), text, font=font)
        # Above the box; at the image's edge, inside of it.
        x = max(0.0, min(left, picture.width - wide - 2 * line))
        y = top - high - line if top - high - line >= 0 else top
        canvas.rectangle((x, y, x + wide + 2 * line, y + high + line), fill=colour)
        canvas.text((x + line, y), text, fill=ink, font=font)
    return picture


def _colours(number: int) -> tuple[Colour, Colour]:
    """A class's colour, and black or white, whichever is legible on it."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.85, 0.95)
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    ink = (0, 0, 0) if light else (255, 255, 255)
    return (round(255 * red), round(255 * green), round(255 * blue)), ink
