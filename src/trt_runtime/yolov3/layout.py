"""`Layout`: what decoding knows about a network, and where an ONNX model keeps it.

It is all that stands between the numbers of a network and boxes. A model made by `to_onnx` carries
it in its metadata, so that the ``.onnx`` file alone can be decoded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..build.model import read_model
from ..errors import InputError, ModelError
from .cfg import Head, Network
from .networks import COCO_NAMES

#: The key in ``ModelProto.metadata_props``.
METADATA_KEY = "trt_runtime.yolov3"


@dataclass(frozen=True)
class Layout:
    """The image that a network takes, and what each of its outputs means.

    Attributes
    ----------
    width, height : int
        Of the network's input, in pixels.
    heads : tuple of Head
        One for each output, in the cfg's order.
    names : tuple of str
        One for each class.
    """

    width: int
    height: int
    heads: tuple[Head, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, network: Network, names: Sequence[str] | None = None) -> Layout:
        """A network's layout.

        Parameters
        ----------
        network : Network
        names : sequence of str, optional
            One for each class. By default those of COCO where there are 80 classes, as Darknet's
            own ``detect`` has it, and numbers otherwise.

        Raises
        ------
        InputError
            There are more or fewer names than classes.
        """
        classes = network.heads[0].classes
        if names is None:
            names = COCO_NAMES if classes == len(COCO_NAMES) else [str(i) for i in range(classes)]
        elif isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError(f"names is a sequence of str, one for each class, not {names!r}")
        if len(names) != classes:
            raise InputError(
                f"{network.source} has {classes} classes, and there are {len(names)} names"
            )
        return cls(network.width, network.height, network.heads, tuple(names))

    @cached_property
    def places(self) -> NDArray[np.float32]:
        """Where each of the network's boxes is and what it is measured by, (boxes, 6).

        By head, anchor, row and column: the cell's column and row, its width and height in pixels
        of the network's input, and half the anchor's width and height.
        """
        every = []
        for head in self.heads:
            rows, columns = head.grid
            places = np.empty((len(head.anchors), rows, columns, 6), np.float32)
            places[..., 0] = np.arange(columns)
            places[..., 1] = np.arange(rows)[:, None]
            places[..., 2:4] = self.width / columns, self.height / rows
            places[..., 4:] = np.array(head.anchors)[:, None, None] / 2
            every.append(places.reshape(-1, 6))
        all_heads = np.concatenate(every)
        all_heads.flags.writeable = False  # everybody gets the same
        return all_heads

    @classmethod
    def from_onnx(cls, model: str | os.PathLike[str] | bytes | Any) -> Layout:
        """The layout in the metadata of an ONNX model.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto

        Raises
        ------
        ModelError
            The file cannot be read, or is no ONNX.
        InputError
            There is no layout in it, or one that this package did not write.
        """
        if not hasattr(model, "metadata_props"):
            import onnx

            data, _ = read_model(model)
            try:
                model = onnx.ModelProto.FromString(data)
            except Exception as error:  # protobuf's exceptions differ between its implementations
                raise ModelError(f"the model is no ONNX: {error}") from None
        for prop in model.metadata_props:
            if prop.key == METADATA_KEY:
                return cls.from_json(prop.value)
        raise InputError(
            f"the model says nothing about its boxes: its metadata has no {METADATA_KEY!r}, which "
            "to_onnx writes; give the .cfg that it was made from as well"
        )

    def to_json(self) -> str:
        """What the metadata holds; `from_json` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            It is something else.
        """
        try:
            values = json.loads(text)
            names = values["names"]
            heads = tuple(_head(head) for head in values["heads"])
            layout = cls(_count(values["width"]), _count(values["height"]), heads, tuple(names))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names are no list of strings")
            if not heads or any(head.classes != len(names) for head in heads):
                raise ValueError("it needs a head, and a name for each class")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(
                f"the model's metadata {METADATA_KEY!r} is not as to_onnx writes it: {error!r}; "
                "make the model again, or give its .cfg as well"
            ) from None
        return layout


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes' names in a ``.names`` file: one on each line, UTF-8.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as error:
        raise InputError(f"the names {os.fspath(path)!r} cannot be read: {error}") from error
    return tuple(line for line in lines if line)


def _head(values: Any) -> Head:
    anchors = tuple((_length(width), _length(height)) for width, height in values["anchors"])
    rows, columns = values["grid"]
    if not isinstance(values["output"], str) or not anchors:
        raise ValueError("a head needs an output and anchors")
    return Head(
        values["output"], anchors, _count(values["classes"]), (_count(rows), _count(columns))
    )


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is no positive integer")
    return value


def _length(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)
