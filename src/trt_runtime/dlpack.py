"""DLPack: capsules made of memory, and memory described by capsules. Knows no CUDA.

The structures are those of ``dlpack.h`` 1.1. Capsules are made by NumPy and then corrected in
place, because what frees a capsule must be C: a consumer may call the deleter from any thread,
without the interpreter's lock, while an exception is on its way, or after the interpreter ended.
NumPy's deleter and destructor handle all of these, and a function made by `ctypes` none of the last
two. Capsules of others are only read: one that was never consumed frees what it holds when it goes.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import DtypeError, ExportError, InputError
from .tensor import Shape, format_shape

#: ``DLDeviceType``.
CPU = 1
CUDA = 2
CUDA_HOST = 3
CUDA_MANAGED = 13

#: The newest version of the structures that `read` knows.
MAX_VERSION = (1, 1)

_DEVICE_NAMES = {4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 14: "oneapi", 15: "webgpu"}
_DEVICE_NAMES |= {CPU: "cpu", CUDA: "cuda", CUDA_HOST: "cuda_host", CUDA_MANAGED: "cuda_managed"}

#: ``DLDataTypeCode`` by NumPy's kind, and by the name of what ml_dtypes adds.
_KIND_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_NAMED_CODES = {
    "bfloat16": 4,
    "float8_e3m4": 7,
    "float8_e4m3": 8,
    "float8_e4m3b11fnuz": 9,
    "float8_e4m3fn": 10,
    "float8_e4m3fnuz": 11,
    "float8_e5m2": 12,
    "float8_e5m2fnuz": 13,
    "float8_e8m0fnu": 14,
}
_IS_COPIED = 1 << 1  # DLPACK_FLAG_BITMASK_IS_COPIED

#: Whether NumPy makes capsules of DLPack 1.0; a consumer takes an older one as well.
NUMPY_IS_VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"

_LEGACY_NAME = b"dltensor"
_VERSIONED_NAME = b"dltensor_versioned"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """``DLManagedTensor``, for consumers older than DLPack 1.0."""

    _fields_ = (
        ("tensor", _Tensor),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: the attributes of ``ctypes.pythonapi`` are everybody's.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def device_name(device: tuple[int, int]) -> str:
    """``(2, 0)`` as ``cuda:0``."""
    kind, ordinal = device
    return f"{_DEVICE_NAMES.get(kind, f'device type {kind}')}:{ordinal}"


def _code(dtype: np.dtype[Any]) -> int:
    code = _NAMED_CODES.get(dtype.name, _KIND_CODES.get(dtype.kind))
    if code is None:
        raise ExportError(f"DLPack has no type for {dtype.name}")
    return code


def _dtype(code: int, bits: int, lanes: int, what: str) -> np.dtype[Any]:
    if lanes == 1:
        for kind, known in _KIND_CODES.items():
            if known == code and (kind != "b" or bits == 8):
                try:
                    return np.dtype(f"{kind}{bits // 8}")
                except TypeError:
                    break
        for name, known in _NAMED_CODES.items():
            if known == code and hasattr(ml_dtypes, name):
                dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
                return dtype
    raise DtypeError(
        f"{what} has DLPack type code {code} with {bits} bits and {lanes} lanes, which has no "
        "array type of one element each; cast it where it lives"
    )


def _located(capsule: Any) -> tuple[_Managed | _Versioned, bytes]:
    """The structure in a capsule that nobody consumed, and the capsule's name."""
    if _is_valid(capsule, _VERSIONED_NAME):
        name: bytes = _VERSIONED_NAME
        return _Versioned.from_address(_get_pointer(capsule, name)), name
    if _is_valid(capsule, _LEGACY_NAME):
        name = _LEGACY_NAME
        return _Managed.from_address(_get_pointer(capsule, name)), name
    raise InputError(f"{capsule!r} is no DLPack capsule, or was consumed already")


def make(
    raw: NDArray[np.uint8],
    shape: Shape,
    dtype: np.dtype[Any],
    device: tuple[int, int],
    max_version: tuple[int, int] | None,
    *,
    copied: bool = False,
) -> Any:
    """A capsule of C-contiguous memory that keeps ``raw`` alive until its consumer is done.

    Parameters
    ----------
    raw : ndarray of uint8
        The memory; at an address of ``device``, so that only a consumer may look into it.
    shape, dtype
        What it is.
    device : tuple of int
        ``DLDeviceType`` and ordinal.
    max_version : tuple of int or None
        The newest DLPack that the consumer knows; None is older than 1.0.
    copied : bool
        Whether nobody else shows this memory.

    Raises
    ------
    ExportError
        DLPack has no such type.
    """
    code = _code(dtype)
    # NumPy knows neither bfloat16 nor the float8s: it is given unsigned integers, corrected below.
    carrier = dtype if dtype.kind in "iufc" and code < 6 else np.dtype(f"u{dtype.itemsize}")
    array = raw[: math.prod(shape) * dtype.itemsize].view(carrier).reshape(shape)
    versioned = max_version is not None and max_version >= (1, 0) and NUMPY_IS_VERSIONED
    export: Callable[..., Any] = array.__dlpack__
    capsule = export(max_version=max_version) if versioned else export()
    managed, _ = _located(capsule)
    tensor = managed.tensor
    tensor.device.type, tensor.device.id = device
    tensor.dtype.code, tensor.dtype.bits = code, dtype.itemsize * 8
    if not array.size:
        tensor.data = None  # dlpack.h: "if the tensor is of size zero"
    if copied and isinstance(managed, _Versioned):
        managed.flags |= _IS_COPIED
    return capsule


@dataclass(frozen=True)
class Described:
    """What a capsule says of its memory; strides in bytes, None for C-contiguous."""

    address: int
    shape: Shape
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    device: tuple[int, int]


def read(capsule: Any, what: str) -> Described:
    """Describe the memory of a capsule, which stays unconsumed: hold it while the memory is used.

    Raises
    ------
    InputError
        It is no capsule, was consumed, or is of a version whose layout is unknown.
    DtypeError
        Its type has no NumPy dtype.
    """
    managed, _ = _located(capsule)
    if isinstance(managed, _Versioned) and managed.major > MAX_VERSION[0]:
        raise InputError(
            f"{what} comes as DLPack {managed.major}.{managed.minor}, and versions up to "
            f"{MAX_VERSION[0]}.x were asked for"
        )
    tensor = managed.tensor
    rank = range(tensor.ndim)
    dtype = _dtype(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes, what)
    return Described(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[n] for n in rank),
        strides=tuple(tensor.strides[n] * dtype.itemsize for n in rank) if tensor.strides else None,
        dtype=dtype,
        device=(tensor.device.type, tensor.device.id),
    )


def require_contiguous(
    shape: Shape, strides: tuple[int, ...] | None, itemsize: int, what: str
) -> None:
    """Raise `InputError` unless memory of these strides (bytes) is dense and in C order."""
    if strides is None or 0 in shape:
        return
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                f"{what} must be C-contiguous; it has shape {format_shape(shape)} and strides of "
                f"{strides} bytes. Device memory is never copied behind your back: pass "
                "x.contiguous() (PyTorch) or cupy.ascontiguousarray(x)"
            )
        expected *= size
