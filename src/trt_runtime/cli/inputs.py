"""Inputs of ``trt-runtime run``: from files, from images, or random.

A file is given as ``NAME=FILE``, or as ``FILE`` alone for the next input in order. An image becomes
what the input's shape and dtype say, and a sentence tells what was done to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_runtime import InputError, TensorSpec
from trt_runtime.cli.grammar import Shape, format_dimensions

Arrays = dict[str, NDArray[Any]]

#: Pillow's mode for a number of channels, the likeliest first: 4 may well be a height.
_MODES = {3: "RGB", 1: "L", 4: "RGBA"}


@dataclass
class Given:
    """Arrays by input name, and a sentence for each that was changed on its way."""

    arrays: Arrays = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_inputs(
    options: Sequence[str], specs: Sequence[TensorSpec], shapes: Mapping[str, Shape]
) -> Given:
    """Read every ``--input`` for the inputs that ``specs`` describe.

    Parameters
    ----------
    options : sequence of str
    specs : sequence of TensorSpec
        -1 where a size varies: an image then keeps its own.
    shapes : mapping of str to shape
        Sizes that were chosen for dynamic inputs.
    """
    given = Given()
    split = [_split(option) for option in options]
    named = [name for name, _ in split if name]
    known = {spec.name: spec for spec in specs}
    for name in named:
        _require(name, known)
    waiting = [spec.name for spec in specs if spec.name not in named]
    for name, path in split:
        if not path.is_file():
            raise InputError(f"--input: there is no file {str(path)!r}.")
        for target, value in _read(path, name, known, waiting).items():
            if target in given.arrays:
                raise InputError(f"--input gives {target!r} twice.")
            if target in waiting:
                waiting.remove(target)
            spec = known[target]
            if isinstance(value, _Image):
                array, remark = value.array(spec, shapes.get(target, spec.shape))
                given.remarks.append(remark)
            else:
                array = as_dtype(value, spec.dtype)
            given.arrays[target] = array
    return given


def read_arrays(path: Path) -> Arrays:
    """The arrays of an ``.npz`` file."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        raise InputError(f"{str(path)!r} holds one array without a name; an .npz names each.")
    return loaded


def read_sample(path: Path) -> Arrays | NDArray[Any]:
    """One input set: the arrays of an ``.npz`` by name, or the only one of an ``.npy``."""
    return _load(path)


def as_dtype(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """NumPy writes bfloat16 and float8 as bytes without a type: give them theirs again."""
    if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
        return array.view(dtype)
    return array


def random_input(
    generator: np.random.Generator, dtype: np.dtype[Any], shape: Shape
) -> NDArray[Any]:
    """Fractions of 1 for floating-point types; 0 and 1 for the others, which are valid indices."""
    if dtype.kind in "biu":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.random(shape, np.float32).astype(dtype)


def _split(option: str) -> tuple[str, Path]:
    """``NAME=FILE``, unless all of it is a file."""
    name, equals, file = option.partition("=")
    if not equals or Path(option).is_file():
        return "", Path(option)
    if not name or not file:
        raise InputError(
            f"--input takes NAME=FILE or FILE, such as images=cat.jpg; got {option!r}."
        )
    # A name may hold "=" too: take the first split that leaves a file.
    while not Path(file).is_file() and "=" in file:
        more, _, file = file.partition("=")
        name = f"{name}={more}"
    if not Path(file).is_file():
        name, _, file = option.partition("=")
    return name, Path(file)


def _require(name: str, known: Mapping[str, TensorSpec]) -> None:
    if name not in known:
        raise InputError(f"--input names {name!r}, but the inputs are {', '.join(known)}.")


def _read(
    path: Path, name: str, known: Mapping[str, TensorSpec], waiting: Sequence[str]
) -> Mapping[str, NDArray[Any] | _Image]:
    """What the file gives, by input."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = read_arrays(path)
        if not name:
            for key in arrays:
                _require(key, known)
            return arrays
        if name not in arrays and len(arrays) != 1:
            raise InputError(f"{str(path)!r} has no array {name!r}; it has {', '.join(arrays)}.")
        return {name: arrays[name] if name in arrays else next(iter(arrays.values()))}
    value: NDArray[Any] | _Image
    if suffix == ".npy":
        loaded = _load(path)
        assert isinstance(loaded, np.ndarray)
        value = loaded
    elif suffix == ".pb":
        own_name, value = _read_tensor(path)
        name = name or (own_name if own_name in waiting else "")
    else:
        value = _Image(path)
    if not name:
        if not waiting:
            raise InputError(f"--input {path}: all {len(known)} inputs have been given already.")
        name = waiting[0]
    return {name: value}


def _load(path: Path) -> Arrays | NDArray[Any]:
    import zipfile

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"{str(path)!r} cannot be read as NumPy arrays: {error}") from error


def _read_tensor(path: Path) -> tuple[str, NDArray[Any]]:
    import onnx
    import onnx.numpy_helper

    try:
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        if not tensor.data_type:
            raise ValueError("it has no type")
        return tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise InputError(f"{str(path)!r} holds no ONNX tensor: {error}") from error


class _Image:
    """An image file, to be made what an input takes."""

    def __init__(self, path: Path) -> None:
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError as error:
            raise InputError(
                f"reading {str(path)!r} as an image takes Pillow: pip install pillow. Inputs can "
                "also be .npy, .npz or .pb (ONNX tensor) files."
            ) from error
        self._path = path
        try:
            with Image.open(path) as opened:
                self._image = ImageOps.exif_transpose(opened)
                self._image.load()
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{str(path)!r} is no .npy, .npz or .pb file, and no image that Pillow reads: "
                f"{error}"
            ) from error

    def array(self, spec: TensorSpec, wanted: Shape) -> tuple[NDArray[Any], str]:
        """The image in the input's shape and dtype, and what was done to it."""
        from PIL import Image

        layout, channels, height, width = _layout(spec, wanted)
        before = self._image.size
        size = (width if width > 0 else before[0], height if height > 0 else before[1])
        image = self._image.convert(_MODES[channels])
        if size != before:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image).reshape(size[1], size[0], channels)
        done = [f"{before[0]}x{before[1]}"]
        if size != before:
            done.append(f"resized to {size[0]}x{size[1]} (width x height, bilinear)")
        done += [_MODES[channels], layout]
        if spec.dtype.kind in "iub":
            if spec.dtype.kind == "b" or np.iinfo(spec.dtype).max < 255:
                raise InputError(
                    f"input {spec.name!r} takes {spec.dtype.name}, which cannot hold the 0 to 255 "
                    "of an image; prepare an .npy file."
                )
            array = pixels.astype(spec.dtype)
            done.append("values 0 to 255")
        else:
            array = (pixels.astype(np.float32) / 255).astype(spec.dtype)
            done.append("values / 255")
        if layout.endswith("CHW"):
            array = array.transpose(2, 0, 1)
        if len(wanted) == 4:
            batch = max(1, wanted[0])
            array = np.broadcast_to(array[None], (batch, *array.shape))
            if batch > 1:
                done.append(f"repeated {batch} times")
        return np.ascontiguousarray(array), f"{spec.name}: {self._path.name}, {', '.join(done)}"


def _layout(spec: TensorSpec, shape: Shape) -> tuple[str, int, int, int]:
    """Layout, channels, height and width, as the shape shows them."""
    batch = "N" if len(shape) == 4 else ""
    for channels in _MODES if len(shape) in (3, 4) else ():
        if shape[-3] == channels:
            return f"{batch}CHW", channels, shape[-2], shape[-1]
        if shape[-1] == channels:
            return f"{batch}HWC", channels, shape[-3], shape[-2]
    raise InputError(
        f"input {spec.name!r} of shape {format_dimensions(shape, unknown='?')} takes no image: it "
        "has no axis of 1, 3 or 4 channels, first or last after the batch; prepare an .npy file."
    )
