"""Weights that can be refitted: which a model has, taking them out of it, putting others in.

TensorRT's weights are the model's initialisers by name. Integer ones are left out here: they are
mostly shapes and indices, which TensorRT folds away.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ....errors import MisuseError
from .datatypes import ONNX_TYPES, numpy_dtype
from .enums import DataType

_REFITTABLE = frozenset({DataType.FLOAT, DataType.HALF, DataType.BF16})

Array = np.ndarray[Any, Any]


class Weights:
    """A type, a count and an address; the memory belongs to somebody else.

    Takes a type alone, a type with an address and a count, or a NumPy array.
    """

    def __init__(
        self, type: DataType | Array = DataType.FLOAT, ptr: int = 0, count: int = 0
    ) -> None:
        self._array: weakref.ref[Array] | None = None
        if isinstance(type, np.ndarray):
            self.dtype = _data_type(type.dtype)
            self.size = type.size
            self._pointer = type.ctypes.data
            self._array = weakref.ref(type)
        else:
            self.dtype, self.size, self._pointer = DataType(type), int(count), int(ptr)

    @property
    def nbytes(self) -> int:
        return self.size * numpy_dtype(self.dtype).itemsize

    def numpy(self) -> Array:
        """Return a copy of what is there now; TensorRT's is a view."""
        if not self._pointer or not self.size:
            return np.empty(0, numpy_dtype(self.dtype))
        if self._array is not None and self._array() is None:
            raise MisuseError(
                "Weights: the array that they were made of is gone, which on a GPU is undefined"
            )
        data = ctypes.string_at(self._pointer, self.nbytes)
        return np.frombuffer(data, numpy_dtype(self.dtype))


def _data_type(dtype: np.dtype[Any]) -> DataType:
    for data_type in ONNX_TYPES.values():
        if numpy_dtype(data_type) == dtype and dtype.kind != "V":  # ml_dtypes' own
            return data_type
    raise TypeError(f"Could not implicitly convert NumPy data type: {dtype} to TensorRT.")


def refittable_weights(model: Any) -> dict[str, Any]:
    """Return the ``onnx.TensorProto`` of all weights that can be refitted, by name."""
    return {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if ONNX_TYPES.get(tensor.data_type) in _REFITTABLE
    }


def count(tensor: Any) -> int:
    """Return how many elements a tensor's shape has."""
    return math.prod(tensor.dims)


def with_weights(model: Any, arrays: Mapping[str, Array]) -> Any:
    """Return a copy of the model with these weights, which keep their shape and type."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, tensor in refittable_weights(copy).items():
        if name in arrays:
            _clear(tensor)
            array = arrays[name]
            little = array.dtype.newbyteorder("<") if array.dtype.kind == "f" else array.dtype
            tensor.raw_data = array.astype(little).tobytes()
    return copy


def without_weights(model: bytes) -> tuple[bytes, int]:
    """Return a serialised model whose refittable weights have no data, and the bytes saved."""
    import onnx

    stripped = onnx.ModelProto.FromString(model)
    saved = weights_bytes(stripped)
    for tensor in refittable_weights(stripped).values():
        _clear(tensor)
    return stripped.SerializeToString(), saved


def with_zeros(model: Any) -> Any:
    """Return a copy of a model that was stripped, zeros in the place of its weights."""
    return with_weights(
        model,
        {
            name: np.zeros(count(tensor), numpy_dtype(ONNX_TYPES[tensor.data_type]))
            for name, tensor in refittable_weights(model).items()
        },
    )


def weights_bytes(model: Any) -> int:
    """Return the size of all refittable weights, in bytes."""
    return sum(
        count(tensor) * numpy_dtype(ONNX_TYPES[tensor.data_type]).itemsize
        for tensor in refittable_weights(model).values()
    )


def _clear(tensor: Any) -> None:
    for field in ("raw_data", "float_data", "int32_data"):
        tensor.ClearField(field)
