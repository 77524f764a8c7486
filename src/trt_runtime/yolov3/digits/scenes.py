"""Scenes that the digit detector learns from and is measured on: drawn, seeded, never downloaded.

A scene shows a few handwritten digits among things that are none: gradients, texture, shapes,
strokes and letters. Everything is NumPy, and a scene takes a few milliseconds, so that drawing new
ones keeps up with training on them. Training is in `training`; what is shipped is in `__init__`.

The digits, ``digits.npz``, are the 1,797 of 8 x 8 pixels of "Optical Recognition of Handwritten
Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0,
doi:10.24432/C50P49), as distributed with scikit-learn. Values are from 0 to 16.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Width and height of the network's input, in pixels.
SIDE = 320

#: The last digits of the file are never trained on.
HELD_OUT_DIGITS = 397

#: How many scenes the stated mean average precision is measured on, and their seed.
HELD_OUT_SCENES = 300
HELD_OUT_SEED = 20_231_123

#: The most digits in one scene.
MOST_DIGITS = 12

Part = Literal["training", "held-out"]


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, as fields whose contour at one half is the edge of the ink.

    Attributes
    ----------
    fields : numpy.ndarray
        float32 of shape (digits, 8, 8), in [0, 1].
    labels : numpy.ndarray
        int64 of shape (digits,): 0 to 9.
    """

    fields: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Attributes
    ----------
    image : numpy.ndarray
        uint8 of shape (height, width, 3), RGB.
    boxes : numpy.ndarray
        float32 of shape (digits, 4): left, top, right and bottom edge of each digit's ink, in
        pixels.
    classes : numpy.ndarray
        int64 of shape (digits,): 0 to 9.
    """

    image: NDArray[np.uint8]
    boxes: Floats
    classes: NDArray[np.int64]


@functools.cache
def load_digits(part: Part) -> Digits:
    """The digits to train on, or those that are held out; no digit is in both."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        fields = file["images"].astype(np.float32) / 16
        labels = file["labels"].astype(np.int64)
    chosen = slice(None, -HELD_OUT_DIGITS) if part == "training" else slice(-HELD_OUT_DIGITS, None)
    return Digits(fields[chosen], labels[chosen])


def held_out_scenes(count: int = HELD_OUT_SCENES, seed: int = HELD_OUT_SEED) -> Iterator[Scene]:
    """Draw the scenes to measure on: always the same ones, of digits that no training saw."""
    digits = load_digits("held-out")
    for number in range(count):
        yield draw_scene(np.random.default_rng([seed, number]), digits)


def draw_scene(
    generator: np.random.Generator,
    digits: Digits,
    *,
    width: int = SIDE,
    height: int = SIDE,
    count: int | None = None,
) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    generator : numpy.random.Generator
        Everything random comes from it: the same state draws the same scene.
    digits : Digits
        What to choose from.
    width, height : int
        Of the image, in pixels; things are as large as they are in an image of `SIDE` pixels,
        relative to the longer one.
    count : int, optional
        How many digits to place; fewer if there is no room for all. From 1 to `MOST_DIGITS` at
        random by default.
    """
    scale = max(width, height) / SIDE
    canvas = _background(generator, width, height, scale)
    for _ in range(generator.integers(2, 14)):
        _draw_clutter(generator, canvas, scale)
    if count is None:
        count = int(generator.integers(1, MOST_DIGITS + 1))
    largest = 150 if count <= 4 else 90  # or many would find no room
    sizes = np.exp(generator.uniform(np.log(22), np.log(largest), count))
    boxes: list[Floats] = []
    classes: list[int] = []
    for size in np.sort(sizes)[::-1] * scale:
        chosen = int(generator.integers(len(digits)))
        box = _place_digit(generator, canvas, digits.fields[chosen], float(size), boxes)
        if box is not None:
            boxes.append(box)
            classes.append(int(digits.labels[chosen]))
    return Scene(
        _developed(generator, canvas),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
    )


# Backgrounds -------------------------------------------------------------------------------------


def _background(generator: np.random.Generator, width: int, height: int, scale: float) -> Floats:
    """A texture of several octaves over a gradient: float32 of shape (3, height, width)."""
    cell = 8
    rows, columns = -(-height // cell) + 1, -(-width // cell) + 1
    texture = _color(generator)[:, None, None] + np.zeros((3, rows, columns), np.float32)
    strength, decay = generator.uniform(0.05, 0.3), generator.uniform(0.35, 0.85)
    step = 32 * scale
    for _ in range(5):
        size = [max(2, round(n / step)) for n in (rows, columns)]
        gray = generator.standard_normal((1, *size), np.float32)
        tint = generator.standard_normal((3, *size), np.float32)
        waves = np.float32(strength) * (gray + np.float32(generator.uniform(0, 0.4)) * tint)
        texture += _stretched(waves, rows, columns)
        strength *= decay
        step /= 2
    canvas = _magnified(texture, cell)[:, :height, :width]
    if generator.random() < 0.2:
        _add_grating(generator, canvas, scale)
    return canvas


def _stretched(grid: Floats, rows: int, columns: int) -> Floats:
    """Bilinear interpolation of (channels, h, w), corners on corners."""
    for axis, count in ((1, rows), (2, columns)):
        at = np.linspace(0, grid.shape[axis] - 1, count, dtype=np.float32)
        lower = np.minimum(at.astype(np.intp), grid.shape[axis] - 2)
        share = (at - lower).reshape((-1, 1) if axis == 1 else (-1,))
        low, high = np.take(grid, lower, axis), np.take(grid, lower + 1, axis)
        grid = low + (high - low) * share
    return grid


def _magnified(grid: Floats, factor: int) -> Floats:
    """Bilinear interpolation between grid points that come to lie ``factor`` pixels apart."""
    share = ((np.arange(factor) + 0.5) / factor).astype(np.float32)
    channels, rows, columns = grid.shape
    steps = np.diff(grid, axis=2)[..., None] * share
    steps += grid[:, :, :-1, None]
    wide = steps.reshape(channels, rows, (columns - 1) * factor)
    result: Floats = np.diff(wide, axis=1)[:, :, None] * share[:, None]
    result += wide[:, :-1, None]
    return result.reshape(channels, (rows - 1) * factor, (columns - 1) * factor)


def _add_grating(generator: np.random.Generator, canvas: Floats, scale: float) -> None:
    """Parallel waves across the whole image, as of cloth, blinds or a fence."""
    angle, period = generator.uniform(0, np.pi), generator.uniform(4, 40) * scale
    x = np.arange(canvas.shape[2], dtype=np.float32) * np.float32(
        np.cos(angle) * 2 * np.pi / period
    )
    y = np.arange(canvas.shape[1], dtype=np.float32) * np.float32(
        np.sin(angle) * 2 * np.pi / period
    )
    # sin(x + y), of two vectors instead of an image.
    wave = np.sin(x) * np.cos(y)[:, None] + np.cos(x) * np.sin(y)[:, None]
    canvas += wave * (generator.standard_normal((3, 1, 1), np.float32) * np.float32(0.08))


# Clutter -----------------------------------------------------------------------------------------

#: Letters as strokes in a square from 0 to 1, none of which looks like a digit.
_LETTERS: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.6), (0.8, 0.6))),  # A
    (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),  # E
    (((1, 0), (0, 0), (0, 1)), ((0, 0.5), (0.8, 0.5))),  # F
    (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),  # H
    (((0, 0), (0, 1)), ((1, 0), (0, 0.5), (1, 1))),  # K
    (((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),),  # M
    (((0, 1), (0, 0), (1, 1), (1, 0)),),  # N
    (((0, 0), (0.5, 1), (1, 0)),),  # V
    (((0, 0), (0.25, 1), (0.5, 0.3), (0.75, 1), (1, 0)),),  # W
    (((0, 0), (1, 1)), ((1, 0), (0, 1))),  # X
    (((0, 0), (0.5, 0.5), (1, 0)), ((0.5, 0.5), (0.5, 1))),  # Y
    (((0.5, 0), (0.5, 1)), ((0, 0.5), (1, 0.5))),  # +
    (((0, 0.5), (1, 0.5)), ((0.6, 0.1), (1, 0.5), (0.6, 0.9))),  # an arrow
    (((0, 0.3), (1, 0.3)), ((0, 0.7), (1, 0.7))),  # =
    (((0.3, 0), (0.2, 1)), ((0.8, 0), (0.7, 1)), ((0, 0.3), (1, 0.3)), ((0, 0.7), (1, 0.7))),  # #
)


def _draw_clutter(generator: np.random.Generator, canvas: Floats, scale: float) -> None:
    """Something that is no digit, anywhere."""
    height, width = canvas.shape[1:]
    center = generator.uniform((0, 0), (width, height))
    kind = generator.random()
    if kind < 0.3:
        _draw_blob(generator, canvas, center, scale)
    elif kind < 0.5:
        _draw_rectangle(generator, canvas, center, scale)
    elif kind < 0.65:
        reach = generator.uniform(20, 200) * scale
        ends = center + generator.standard_normal((2, 2)) * reach
        _draw_strokes(generator, canvas, [ends], generator.uniform(1, 6) * scale)
    elif kind < 0.75:  # an open, winding line
        steps = generator.standard_normal((int(generator.integers(3, 7)), 2)) * 22 * scale
        path = center + np.cumsum(steps, 0)
        _draw_strokes(generator, canvas, [path], generator.uniform(1, 5) * scale)
    else:
        size = np.exp(generator.uniform(np.log(18), np.log(100))) * scale
        turn = _turn(generator, 0.6) * (size * generator.uniform((0.6, 0.8), (1.0, 1.1)))
        letter = _LETTERS[generator.integers(len(_LETTERS))]
        strokes = [
            center + (np.array(stroke) - 0.5 + generator.normal(0, 0.03, (len(stroke), 2))) @ turn.T
            for stroke in letter
        ]
        _draw_strokes(generator, canvas, strokes, size * generator.uniform(0.06, 0.2))


def _draw_blob(
    generator: np.random.Generator, canvas: Floats, center: NDArray[Any], scale: float
) -> None:
    """An ellipse, hard or soft at its edge."""
    radii = np.exp(generator.uniform(np.log(6), np.log(90), 2)) * scale
    window = _window(canvas, center, float(radii.max()) + 2)
    if window is None:
        return
    u, v = _turned(window, center, generator.uniform(0, np.pi))
    distance = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
    softness = 1 / float(radii.min()) if generator.random() < 0.6 else generator.uniform(0.2, 1)
    _paint(canvas, window, _clipped((1 - distance) / softness), _color(generator), generator)


def _draw_rectangle(
    generator: np.random.Generator, canvas: Floats, center: NDArray[Any], scale: float
) -> None:
    """Filled, or a frame, which is no zero: its corners are square."""
    half = np.exp(generator.uniform(np.log(6), np.log(80), 2)) * scale
    window = _window(canvas, center, float(np.hypot(*half)) + 2)
    if window is None:
        return
    u, v = _turned(window, center, generator.uniform(0, np.pi))
    inside = np.minimum(half[0] - np.abs(u), half[1] - np.abs(v))
    alpha = _clipped(inside + 0.5)
    if generator.random() < 0.2:
        alpha -= _clipped(inside - generator.uniform(1, 5) * scale)
    _paint(canvas, window, alpha, _color(generator), generator)


def _draw_strokes(
    generator: np.random.Generator, canvas: Floats, strokes: list[NDArray[Any]], thickness: float
) -> None:
    """Lines through the points of each stroke, with round ends."""
    points = np.concatenate(strokes)
    low, high = points.min(0) - thickness, points.max(0) + thickness
    window = _window(canvas, (low + high) / 2, (high - low) / 2)
    if window is None:
        return
    x, y = _grid(window)
    nearest = np.full((y.size, x.size), np.inf, np.float32)
    for stroke in strokes:
        for start, end in itertools.pairwise(stroke.astype(np.float32)):
            along = end - start
            length = max(float(along @ along), 1e-6)
            dx, dy = x - start[0], y - start[1]
            share = np.clip((dx * along[0] + dy * along[1]) / length, 0, 1)
            distance = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2
            np.minimum(nearest, distance, out=nearest)
    alpha = _clipped(np.float32(thickness / 2 + 0.5) - np.sqrt(nearest))
    _paint(canvas, window, alpha, _color(generator), generator)


# Digits ------------------------------------------------------------------------------------------


def _place_digit(
    generator: np.random.Generator,
    canvas: Floats,
    field: Floats,
    size: float,
    others: list[Floats],
) -> Floats | None:
    """Draw the digit where it covers little of the others, and return its box if there is room."""
    height, width = canvas.shape[1:]
    turn = _turn(generator, 0.35)
    turn = turn @ np.array([[1, generator.uniform(-0.25, 0.25)], [0, 1]])
    turn = turn * (size / 8 * generator.uniform((0.75, 0.9), (1.15, 1.1)))
    reach = np.abs(turn).sum(1) * 4.5
    if (2 * reach > (width, height)).any():
        reach = np.minimum(reach, (width / 2 - 1, height / 2 - 1))
    for _ in range(12):
        center = generator.uniform(reach, (width, height) - reach)
        window = _window(canvas, center, reach)
        assert window is not None
        rough = np.concatenate([center - reach * 0.8, center + reach * 0.8]).astype(np.float32)
        if all(_covered(rough, other) < 0.12 for other in others):
            break
    else:
        return None
    ink = _sampled(field, window, center, turn)
    sharpness = np.float32(max(1.0, size / 8 * generator.uniform(0.7, 1.3)))
    edge = np.float32(generator.uniform(0.4, 0.57))
    alpha = _clipped((ink - edge) * sharpness + 0.5)
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    if len(rows) < 4 or len(columns) < 2:
        return None
    color = _contrasting(generator, canvas, window, alpha)
    if generator.random() < 0.15:  # an outline in another colour
        rim = _clipped((ink - edge * np.float32(0.45)) * sharpness + 0.5)
        _paint(canvas, window, rim, _away_from(color, generator))
    _paint(canvas, window, alpha, color, generator)
    left, top = window[1].start, window[0].start
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return np.array(box, np.float32)


def _sampled(field: Floats, window: _Window, center: NDArray[Any], turn: NDArray[Any]) -> Floats:
    """The digit's ink at every pixel of the window, by bilinear look-up in a smooth enlargement."""
    fine = _SMOOTH @ field @ _SMOOTH.T
    x, y = _grid(window)
    inverse = np.linalg.inv(turn).astype(np.float32)
    dx, dy = x - np.float32(center[0]), y - np.float32(center[1])
    # Where a pixel lies in `fine`, which reaches one cell beyond the digit's own 8.
    u = (inverse[0, 0] * dx + inverse[0, 1] * dy + 5) * _FINENESS - np.float32(0.5)
    v = (inverse[1, 0] * dx + inverse[1, 1] * dy + 5) * _FINENESS - np.float32(0.5)
    last = len(fine) - 1
    np.clip(u, 0, last - 0.001, out=u)
    np.clip(v, 0, last - 0.001, out=v)
    column, row = u.astype(np.int32), v.astype(np.int32)
    u -= column
    v -= row
    index = row * len(fine) + column
    flat = fine.ravel()
    upper = flat[index]
    upper += (flat[index + 1] - upper) * u
    index += len(fine)
    lower = flat[index]
    lower += (flat[index + 1] - lower) * u
    result: Floats = upper + (lower - upper) * v
    return result


_FINENESS = 6


def _smooth_enlargement() -> Floats:
    """From 8 cells to `_FINENESS` samples of each, and of an empty cell on either side.

    Catmull-Rom, softened by a cubic B-spline: contours are smooth, thin strokes stay closed.
    """
    at = (np.arange(10 * _FINENESS) + 0.5) / _FINENESS - 1.5
    distance = np.abs(at[:, None] - np.arange(8))
    near, far = distance < 1, (distance >= 1) & (distance < 2)
    d = distance
    sharp = near * (1.5 * d**3 - 2.5 * d**2 + 1) + far * (-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)
    soft = near * (0.5 * d**3 - d**2 + 2 / 3) + far * ((2 - d) ** 3 / 6)
    result: Floats = (0.85 * sharp + 0.15 * soft).astype(np.float32)
    return result


_SMOOTH = _smooth_enlargement()


def _covered(box: Floats, other: Floats) -> float:
    """The part of the smaller box that the other one covers."""
    extent = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    areas = [float(np.prod(b[2:] - b[:2])) for b in (box, other)]
    return float(np.prod(np.maximum(extent, 0))) / max(min(areas), 1e-6)


# Colours and painting ----------------------------------------------------------------------------


def _color(generator: np.random.Generator) -> Floats:
    """Any colour, mostly subdued."""
    color = generator.random(3, np.float32)
    gray = np.float32(generator.choice((0.0, 0.5, 0.8)))
    result: Floats = color + (color[1] - color) * gray
    return result


def _luminance(color: Floats) -> float:
    return float(color @ np.array([0.3, 0.59, 0.11], np.float32))


def _away_from(color: Floats, generator: np.random.Generator) -> Floats:
    """A colour that is lighter where the other is dark, and darker where it is light."""
    far = np.float32(0.0 if _luminance(color) > 0.5 else 1.0)
    return far + (_color(generator) - far) * np.float32(generator.uniform(0, 0.4))


def _contrasting(
    generator: np.random.Generator, canvas: Floats, window: _Window, alpha: Floats
) -> Floats:
    """A colour that can be told from what the digit will cover."""
    below = (canvas[:, window[0], window[1]] * alpha).sum((1, 2)) / alpha.sum()
    for _ in range(4):
        color = _color(generator)
        if abs(_luminance(color) - _luminance(below)) > 0.25:
            return color
    return _away_from(below, generator)


_Window = tuple[slice, slice]


def _window(canvas: Floats, center: NDArray[Any], reach: Any) -> _Window | None:
    """Rows and columns of the canvas within ``reach`` of the center; None if there are none."""
    height, width = canvas.shape[1:]
    low = np.floor(center - reach).astype(int)
    high = np.ceil(center + reach).astype(int) + 1
    left, right = max(int(low[0]), 0), min(int(high[0]), width)
    top, bottom = max(int(low[1]), 0), min(int(high[1]), height)
    if right <= left or bottom <= top:
        return None
    return slice(top, bottom), slice(left, right)


def _grid(window: _Window) -> tuple[Floats, Floats]:
    """Centers of the window's pixels: x as a row, y as a column."""
    y = np.arange(window[0].start, window[0].stop, dtype=np.float32) + np.float32(0.5)
    x = np.arange(window[1].start, window[1].stop, dtype=np.float32) + np.float32(0.5)
    return x, y[:, None]


def _turned(window: _Window, center: NDArray[Any], angle: float) -> tuple[Floats, Floats]:
    x, y = _grid(window)
    dx, dy = x - np.float32(center[0]), y - np.float32(center[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * dx + sin * dy, cos * dy - sin * dx


def _turn(generator: np.random.Generator, most: float) -> NDArray[np.float64]:
    """A rotation by up to ``most`` radians either way."""
    angle = generator.uniform(-most, most)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _clipped(alpha: Any) -> Floats:
    result: Floats = np.clip(alpha, 0, 1, dtype=np.float32)
    return result


def _paint(
    canvas: Floats,
    window: _Window,
    alpha: Floats,
    color: Floats,
    generator: np.random.Generator | None = None,
) -> None:
    """Lay a colour over the window; with a generator it may fade from one side to the other."""
    region = canvas[:, window[0], window[1]]
    paint: Floats = color[:, None, None]
    if generator is not None and generator.random() < 0.25:
        across = np.linspace(-0.5, 0.5, region.shape[1], dtype=np.float32)[None, :, None]
        change = generator.normal(0, 0.2, (3, 1, 1)).astype(np.float32)
        paint = np.clip(paint + across * change, 0, 1)
    region += alpha * (paint - region)


def _developed(generator: np.random.Generator, canvas: Floats) -> NDArray[np.uint8]:
    """The canvas as a camera gives it: perhaps unsharp, with noise, in 8 bits, channels last."""
    if generator.random() < 0.2:
        for axis in (1, 2):
            canvas = np.moveaxis(canvas, axis, 0)
            canvas[1:-1] += (canvas[2:] + canvas[:-2] - 2 * canvas[1:-1]) / np.float32(4)
            canvas = np.moveaxis(canvas, 0, axis)
    height, width = canvas.shape[1:]
    strength = np.float32(generator.uniform(0, 0.06) ** 1.3 * 255)
    grain = _grain()
    top, left = generator.integers(0, len(grain), 2)
    rows = np.arange(top, top + height) % len(grain)
    columns = np.arange(left, left + width) % len(grain)
    noise = grain[rows[:, None], columns] * strength
    gray = generator.random() < 0.5
    image = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        values = canvas[channel] * np.float32(255)
        values += noise if gray or channel == 1 else noise[::-1] if channel == 0 else noise[:, ::-1]
        np.clip(values, 0, 255, out=values)
        image[..., channel] = values
    return image


@functools.cache
def _grain() -> Floats:
    """White noise, drawn once: fresh noise for every scene would take half of its time."""
    return np.random.default_rng(0).standard_normal((509, 509), np.float32)
