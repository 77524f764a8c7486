"""`TensorSpec`: what an engine says of one of its inputs or outputs; and the dtypes it can have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from .errors import UnsupportedError

Shape = tuple[int, ...]

#: NumPy's dtype for each ``DataType`` of TensorRT that has one; ml_dtypes carries what NumPy lacks.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP8": np.dtype(ml_dtypes.float8_e4m3fn),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def numpy_dtype(name: str, tensor: str) -> np.dtype[Any]:
    """The NumPy dtype of TensorRT's ``DataType.name``.

    Raises
    ------
    UnsupportedError
        The type packs several elements into a byte, or is unknown.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedError(
            f"tensor {tensor!r} has TensorRT type {name}, which has no array type of one element "
            f"each (supported: {', '.join(DTYPES)}); cast it inside the model"
        ) from None


class Range(NamedTuple):
    """What one optimisation profile allows: shapes, or values of a shape tensor."""

    min: Shape
    opt: Shape
    max: Shape

    def contains(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.min) and all(
            low <= n <= high for low, n, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return " .. ".join(format_shape(shape) for shape in self)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple of int
        -1 where it depends on the inputs.
    mode : "input" or "output"
    location : "device" or "host"
        Shape tensors are read and written on the host.
    profiles : tuple of Range
        For an input, the shapes that each optimisation profile allows.
    values : tuple of Range
        For an input shape tensor, the values that each profile allows; empty if unknown.
    layout : str
        TensorRT's description of a layout that is not linear; empty for a linear one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    mode: Literal["input", "output"]
    location: Literal["device", "host"] = "device"
    profiles: tuple[Range, ...] = ()
    values: tuple[Range, ...] = ()
    layout: str = ""

    @property
    def is_input(self) -> bool:
        return self.mode == "input"

    @property
    def is_shape_tensor(self) -> bool:
        """Whether its values, not only its shape, must be known on the host."""
        return self.location == "host"

    @property
    def is_dynamic(self) -> bool:
        return -1 in self.shape

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a tensor of that shape."""
        return math.prod(shape) * self.dtype.itemsize

    def __str__(self) -> str:
        where = ", on the host" if self.location == "host" else ""
        return f"{self.name!r}: {self.dtype.name}{format_shape(self.shape)}{where}"


def format_shape(shape: Sequence[int]) -> str:
    """``(1, 3, -1)`` as ``[1, 3, ?]``."""
    return "[" + ", ".join("?" if n < 0 else str(n) for n in shape) + "]"


def format_bytes(nbytes: int) -> str:
    """``4435968`` as ``4.2 MiB``."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
