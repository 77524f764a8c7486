"""Darknet's ``.cfg`` files: the layers that they describe, and their shapes.

`Network.parse` reads every option that changes what a network computes and refuses what YOLOv3,
YOLOv3-tiny and YOLOv3-SPP do not have, so that nothing is left out silently. The text is read in
`sections`; weights are in `weights`, the ONNX model in `export`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import CfgError
from .sections import Activation, Section, read_sections

#: Channels, rows, columns.
Shape = tuple[int, int, int]

#: A file of this size is no cfg: the largest of the three networks has 9 kB.
_MAX_TEXT_BYTES = 1 << 20
#: TensorRT's tensors have no more elements.
_MAX_ELEMENTS = 2**31 - 1
#: An ONNX file is one protobuf message of less than 2 GiB; 64 MiB are for all but the weights.
_MAX_WEIGHTS = (2**31 - 2**26) // 4


@dataclass(frozen=True)
class Layer:
    """One layer; the subclasses are what it can be.

    Attributes
    ----------
    index : int
        Darknet's number of the layer plus one, as NVIDIA's sample counts: 0 is ``[net]``.
    sources : tuple of int
        The layers that it reads, by `index`; 0 is the image.
    shape : tuple of int
        Channels, rows and columns of its result.
    line : int
        Where its section begins; it does not take part in comparisons.
    """

    index: int
    sources: tuple[int, ...]
    shape: Shape
    line: int = field(compare=False)

    @property
    def name(self) -> str:
        """Of its result in the ONNX model, such as ``082_convolutional``."""
        return f"{self.index:03d}_{type(self).__name__.lower()}"


@dataclass(frozen=True)
class Convolutional(Layer):
    """A convolution, then batch normalisation or a bias, then the activation.

    Attributes
    ----------
    channels, filters : int
        Of its input, and of its result.
    size, stride, padding : int
        In both directions; ``padding`` on every side.
    batch_normalize : bool
    activation : {"leaky", "linear"}
        Leaky is slope 0.1 below zero.
    """

    channels: int
    filters: int
    size: int
    stride: int
    padding: int
    batch_normalize: bool
    activation: Activation

    @property
    def parameters(self) -> int:
        """How many numbers a ``.weights`` file has for it."""
        vectors = 4 if self.batch_normalize else 1
        return self.filters * (vectors + self.channels * self.size * self.size)


@dataclass(frozen=True)
class Shortcut(Layer):
    """The sum of two layers of one shape, then the activation."""

    activation: Activation


@dataclass(frozen=True)
class Route(Layer):
    """One or more layers, joined along the channels."""


@dataclass(frozen=True)
class Upsample(Layer):
    """Each pixel ``stride`` times in both directions."""

    stride: int


@dataclass(frozen=True)
class MaxPool(Layer):
    """The largest value of each window; outside of the image there is none.

    Attributes
    ----------
    size, stride : int
    padding : tuple of int
        Pixels above, on the left, below and on the right, as far as windows reach. Darknet pads
        ``size - 1`` pixels in all, of which a half, rounded down, above and on the left: a window
        of 2 with stride 1 is padded below and on the right only.
    """

    size: int
    stride: int
    padding: tuple[int, int, int, int]


@dataclass(frozen=True)
class Yolo(Layer):
    """What a head's numbers mean. It computes nothing: decoding is not the network's.

    Attributes
    ----------
    anchors : tuple of (float, float)
        Width and height of the anchors that its mask selects, in pixels of the network's input.
    classes : int
    """

    anchors: tuple[tuple[float, float], ...]
    classes: int


@dataclass(frozen=True)
class Head:
    """One output of the network and how its numbers are boxes.

    Its tensor is (batch, ``len(anchors) * (5 + classes)``, rows, columns); an anchor's channels are
    x, y, width, height, objectness and one for each class, all before any sigmoid.

    Attributes
    ----------
    output : str
        The tensor's name.
    anchors : tuple of (float, float)
        Width and height, in pixels of the network's input.
    classes : int
    grid : tuple of int
        Rows and columns.
    """

    output: str
    anchors: tuple[tuple[float, float], ...]
    classes: int
    grid: tuple[int, int]

    @property
    def channels(self) -> int:
        return len(self.anchors) * (5 + self.classes)


@dataclass(frozen=True)
class Network:
    """A network as its ``.cfg`` describes it, checked: every layer's sources and shape are known.

    Attributes
    ----------
    width, height, channels : int
        Of the image.
    layers : tuple of Layer
        In the file's order; the layer of index ``i`` is ``layers[i - 1]``.
    source : str
        What error messages call the file; it does not take part in comparisons.
    """

    width: int
    height: int
    channels: int
    layers: tuple[Layer, ...]
    source: str = field(default="the cfg", compare=False)

    #: The image's name in the ONNX model, as in NVIDIA's sample.
    INPUT = "000_net"

    @classmethod
    def parse(cls, text: str, source: str = "the cfg") -> Network:
        """Read a cfg's text.

        Parameters
        ----------
        text : str
        source : str
            What errors call it, such as the file's name.

        Raises
        ------
        CfgError
            It is no network that this package knows; with line and section.
        """
        if len(text) > _MAX_TEXT_BYTES:
            raise CfgError(f"it is no cfg: it has more than {_MAX_TEXT_BYTES} bytes", source)
        sections = list(read_sections(text, source))
        if not sections or sections[0].kind != "net":
            first = f"[{sections[0].name}]" if sections else "no section at all"
            line = sections[0].line if sections else None
            raise CfgError(f"a cfg begins with [net]; here there is {first}", source, line)
        return _resolve(sections[0], sections[1:], source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Read a ``.cfg`` file (UTF-8).

        Raises
        ------
        CfgError
            As `parse`; and the file is missing, cannot be read, or is no text.
        """
        name = os.fspath(path)
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_TEXT_BYTES + 1)
        except FileNotFoundError:
            raise CfgError(f"there is no such file (in {os.getcwd()!r})", name) from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise CfgError(f"it cannot be read: {error}", name) from error
        if len(data) > _MAX_TEXT_BYTES:
            raise CfgError(f"it is no cfg: it has more than {_MAX_TEXT_BYTES} bytes", name)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise CfgError(
                f"it is no text: byte {error.start} is no UTF-8; a cfg is the text that describes "
                "the layers, and not the .weights file",
                name,
                line,
            ) from None
        return cls.parse(text, name)

    @property
    def convolutions(self) -> tuple[Convolutional, ...]:
        """The layers that have weights, in the order of the ``.weights`` file."""
        return tuple(layer for layer in self.layers if isinstance(layer, Convolutional))

    @property
    def parameters(self) -> int:
        """How many numbers its ``.weights`` file has after the header."""
        return sum(layer.parameters for layer in self.convolutions)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The outputs, in the file's order."""
        return tuple(
            Head(
                output=self.layers[layer.sources[0] - 1].name,
                anchors=layer.anchors,
                classes=layer.classes,
                grid=layer.shape[1:],
            )
            for layer in self.layers
            if isinstance(layer, Yolo)
        )


# Layers ----------------------------------------------------------------------------------------


@dataclass
class _Place:
    """A section among the layers before it: what it may read, and what shape that has."""

    section: Section
    layers: list[Layer]
    image: Shape

    @property
    def index(self) -> int:
        return len(self.layers) + 1

    def previous(self) -> tuple[int, Shape]:
        """The layer right before, or the image."""
        return self._readable(self.index - 1, "the layer before it")

    def layer(self, number: int, key: str) -> tuple[int, Shape]:
        """The layer that Darknet calls ``number``: from here if negative, else from the first."""
        index = self.index + number if number < 0 else number + 1
        if not 1 <= index < self.index:
            count = len(self.layers)
            known = f": from -{count} to -1, or from 0 to {count - 1}" if count else ""
            raise self.section.error(
                f"{key}= names layer {number}, and there are {count} layers before this one{known}",
                key,
            )
        return self._readable(index, f"layer {number}", key)

    def _readable(self, index: int, what: str, key: str | None = None) -> tuple[int, Shape]:
        if index == 0:
            return 0, self.image
        layer = self.layers[index - 1]
        if isinstance(layer, Yolo):
            raise self.section.error(
                f"{what} is the [yolo] of line {layer.line}, which nothing can read; name another "
                "layer with [route]",
                key,
            )
        return index, layer.shape


def _windows(place: _Place, pixels: int, padding: int, size: int, stride: int) -> int:
    room = pixels + padding - size
    if room < 0:
        raise place.section.error(
            f"a window of {size} does not fit into {pixels} pixels and {padding} of padding"
        )
    return room // stride + 1


def _convolutional(place: _Place) -> Layer:
    section = place.section
    source, (channels, rows, columns) = place.previous()
    filters, size = section.integer("filters"), section.integer("size")
    stride = section.integer("stride", 1)
    explicit = section.integer("padding", 0, least=0)
    padding = size // 2 if section.flag("pad") else explicit
    shape = (
        filters,
        _windows(place, rows, 2 * padding, size, stride),
        _windows(place, columns, 2 * padding, size, stride),
    )
    return Convolutional(
        place.index,
        (source,),
        shape,
        section.line,
        channels=channels,
        filters=filters,
        size=size,
        stride=stride,
        padding=padding,
        batch_normalize=section.flag("batch_normalize"),
        activation=section.activation(),
    )


def _shortcut(place: _Place) -> Layer:
    section = place.section
    numbers = section.integers("from")
    if len(numbers) != 1:
        raise section.error(f"from= names one layer, not {len(numbers)}", "from")
    before, shape = place.previous()
    other, other_shape = place.layer(numbers[0], "from")
    if shape != other_shape:
        raise section.error(
            f"the layer before it is {_times(shape)} and layer {numbers[0]} is "
            f"{_times(other_shape)}; a sum needs one shape",
            "from",
        )
    return Shortcut(place.index, (before, other), shape, section.line, section.activation("linear"))


def _route(place: _Place) -> Layer:
    section = place.section
    found = [place.layer(number, "layers") for number in section.integers("layers")]
    (_, (_, rows, columns)) = found[0]
    for _, shape in found[1:]:
        if shape[1:] != (rows, columns):
            shapes = ", ".join(_times(shape) for _, shape in found)
            raise section.error(
                f"its layers are {shapes}; to be joined, rows and columns must agree", "layers"
            )
    channels = sum(shape[0] for _, shape in found)
    sources = tuple(index for index, _ in found)
    return Route(place.index, sources, (channels, rows, columns), section.line)


def _upsample(place: _Place) -> Layer:
    source, (channels, rows, columns) = place.previous()
    stride = place.section.integer("stride", 2)
    shape = (channels, rows * stride, columns * stride)
    return Upsample(place.index, (source,), shape, place.section.line, stride)


def _maxpool(place: _Place) -> Layer:
    section = place.section
    source, (channels, rows, columns) = place.previous()
    stride = section.integer("stride", 1)
    size = section.integer("size", stride)
    padding = section.integer("padding", size - 1, least=0)
    if padding >= size:
        raise section.error(
            f"padding={padding} gives windows of {size} that see nothing of the image", "padding"
        )
    before = padding // 2
    down = _windows(place, rows, padding, size, stride)
    across = _windows(place, columns, padding, size, stride)
    below = max(0, (down - 1) * stride + size - before - rows)
    right = max(0, (across - 1) * stride + size - before - columns)
    return MaxPool(
        place.index,
        (source,),
        (channels, down, across),
        section.line,
        size=size,
        stride=stride,
        padding=(before, before, below, right),
    )


def _yolo(place: _Place) -> Layer:
    section = place.section
    numbers, classes = section.numbers("anchors"), section.integer("classes")
    count = section.integer("num", len(numbers) // 2)
    if len(numbers) != 2 * count or min(numbers) <= 0:
        raise section.error(
            f"anchors= takes the widths and heights of num={count} anchors, {2 * count} positive "
            f"numbers; there are {len(numbers)}, the least of them {min(numbers):g}",
            "anchors",
        )
    anchors = list(zip(numbers[::2], numbers[1::2], strict=True))
    mask = section.integers("mask") if "mask" in section.options else list(range(count))
    for number in mask:
        if not 0 <= number < count:
            raise section.error(f"mask= takes anchors from 0 to {count - 1}, not {number}", "mask")
    source, shape = place.previous()
    if not place.layers or not isinstance(place.layers[-1], Convolutional):
        raise section.error("the layer before a [yolo] must be a [convolutional], its output")
    channels = len(mask) * (5 + classes)
    if shape[0] != channels:
        raise section.error(
            f"{len(mask)} anchors of 5 + {classes} numbers need {channels} channels; the "
            f"[convolutional] of line {place.layers[-1].line} has filters={shape[0]}"
        )
    section.asked.add("mask")
    return Yolo(
        place.index, (source,), shape, section.line, tuple(anchors[i] for i in mask), classes
    )


_LAYERS: dict[str, Callable[[_Place], Layer]] = {
    "convolutional": _convolutional,
    "shortcut": _shortcut,
    "route": _route,
    "upsample": _upsample,
    "maxpool": _maxpool,
    "yolo": _yolo,
}


def _resolve(net: Section, sections: Sequence[Section], source: str) -> Network:
    image = (net.integer("channels", 3), net.integer("height"), net.integer("width"))
    layers: list[Layer] = []
    parameters = 0
    _check_size(net, image)
    for section in sections:
        if section.kind == "net":
            raise section.error(f"there is a [net] in line {net.line} already")
        layer = _LAYERS[section.kind](_Place(section, layers, image))
        section.finish()
        _check_size(section, layer.shape)
        if isinstance(layer, Convolutional):
            parameters += layer.parameters
            if parameters > _MAX_WEIGHTS:
                raise section.error(
                    f"the network has {parameters} weights up to here; an ONNX file holds at most "
                    f"{_MAX_WEIGHTS}"
                )
        layers.append(layer)
    heads = [layer for layer in layers if isinstance(layer, Yolo)]
    if not heads:
        raise CfgError("there is no [yolo], so the network has no output", source)
    for head in heads:
        if head.classes != heads[0].classes:
            raise CfgError(
                f"classes={head.classes} here and classes={heads[0].classes} in the [yolo] of line "
                f"{heads[0].line}; all heads of a network tell the same classes",
                source,
                head.line,
                "yolo",
            )
    channels, height, width = image
    return Network(width, height, channels, tuple(layers), source)


def _check_size(section: Section, shape: Shape) -> None:
    if math.prod(shape) > _MAX_ELEMENTS:
        raise section.error(
            f"its result would be {_times(shape)}, {math.prod(shape)} elements; a tensor has at "
            f"most {_MAX_ELEMENTS}"
        )


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
