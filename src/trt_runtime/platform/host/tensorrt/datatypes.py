"""Element types: which ONNX type is which TensorRT type, and which NumPy type holds its bytes.

Network inputs and outputs have one of these types; inside a model any type that onnxruntime
computes with is fine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .enums import DataType

ONNX_TYPES: dict[int, DataType] = {
    1: DataType.FLOAT,
    2: DataType.UINT8,
    3: DataType.INT8,
    6: DataType.INT32,
    7: DataType.INT64,
    9: DataType.BOOL,
    10: DataType.HALF,
    16: DataType.BF16,
    17: DataType.FP8,
}
"""TensorRT's type of an ``onnx.TensorProto`` element type that may cross the network's border."""

ONNX_BFLOAT16 = 16
ONNX_FLOAT8 = 17
ONNX_FLOAT32 = 1

_NUMPY_NAMES = {
    DataType.FLOAT: "float32",
    DataType.HALF: "float16",
    DataType.INT8: "int8",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.UINT8: "uint8",
    DataType.BOOL: "bool",
}
_ML_DTYPES_NAMES = {DataType.BF16: "bfloat16", DataType.FP8: "float8_e4m3fn"}

WIDENED = frozenset(_ML_DTYPES_NAMES)
"""Types that onnxruntime's Python does not pass: they cross the border as float32, exactly."""


def numpy_dtype(data_type: DataType) -> np.dtype[Any]:
    """Return the NumPy type, from ``ml_dtypes`` for the types that NumPy lacks."""
    if data_type in _ML_DTYPES_NAMES:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES_NAMES[data_type]))
        return dtype
    return np.dtype(_NUMPY_NAMES[data_type])
