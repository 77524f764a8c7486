"""Darknet's ``.weights`` files: reading, writing, and random ones to try a network with.

A file is a header, then float32 values without names: for each convolution in the cfg's order its
biases, with batch normalisation then scales, means and variances, and last its kernel. Everything
is little-endian.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, WeightsError
from .cfg import Convolutional, Network, Shortcut

Floats = NDArray[np.float32]

#: What batch normalisation adds to the variance, below the root: so does Darknet on the GPU
#: (src/blas_kernels.cu, normalize_kernel) and where it folds the normalisation into the kernel
#: (src/convolutional_layer.c, denormalize_convolutional_layer), and so do NVIDIA's sample and
#: PyTorch. Darknet on the CPU adds 1e-6 to the root instead (src/blas.c, normalize_cpu).
EPSILON = 1e-5

_VERSION = struct.Struct("<3i")
#: How many images the network has seen in training: 8 bytes since version 0.2.
_SEEN_BEFORE_0_2 = struct.Struct("<i")
_SEEN = struct.Struct("<q")
_ITEM = 4
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class ConvolutionWeights:
    """The numbers of one convolution.

    Attributes
    ----------
    kernel : ndarray
        float32, (filters, channels, size, size).
    bias : ndarray
        float32, (filters,). With batch normalisation it is added after the scale.
    scale, mean, variance : ndarray or None
        float32, (filters,); None without batch normalisation.
    """

    kernel: Floats
    bias: Floats
    scale: Floats | None = None
    mean: Floats | None = None
    variance: Floats | None = None

    def folded(self) -> tuple[Floats, Floats]:
        """Kernel and bias of the one convolution that does the same, normalisation included."""
        if self.scale is None or self.mean is None or self.variance is None:
            return self.kernel, self.bias
        factor = self.scale / np.sqrt(self.variance.astype(np.float64) + EPSILON)
        with np.errstate(over="ignore"):  # who calls this looks for infinities
            kernel = (self.kernel * factor[:, None, None, None]).astype(np.float32)
            bias = (self.bias - self.mean * factor).astype(np.float32)
        return kernel, bias


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a network.

    Attributes
    ----------
    layers : mapping of int to ConvolutionWeights
        By the layer's index. Read from a file, the arrays are views of one block, read-only.
    version : tuple of int
        Major, minor and revision, as in the file's header.
    seen : int
        Images that the network was trained with.
    """

    layers: Mapping[int, ConvolutionWeights]
    version: tuple[int, int, int] = (0, 2, 0)
    seen: int = 0

    def __getitem__(self, index: int) -> ConvolutionWeights:
        return self.layers[index]


def read_weights(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview, network: Network
) -> Weights:
    """Read a ``.weights`` file.

    Parameters
    ----------
    source : path or bytes
    network : Network
        What its cfg describes. It alone says what the numbers in the file are.

    Raises
    ------
    WeightsError
        The file is missing or cannot be read, its length is not exactly what the network needs, or
        a value is no finite number or a variance negative; with the byte's offset.
    """
    with ExitStack() as stack:
        file: BinaryIO
        if isinstance(source, (bytes, bytearray, memoryview)):
            name = "the weights"
            file = BytesIO(source)
        else:
            name = os.fspath(source)
            try:
                file = stack.enter_context(open(source, "rb"))
            except FileNotFoundError:
                raise WeightsError(f"there is no such file (in {os.getcwd()!r})", name) from None
            except (OSError, ValueError) as error:  # ValueError: a null character in the path
                raise WeightsError(f"it cannot be read: {error}", name) from error
        try:
            version, seen, start = _read_header(file, name)
            # Its length first: neither the file nor the network may decide what is allocated.
            _check_length(network, name, start, file.seek(0, os.SEEK_END) - start)
            file.seek(start)
            data = file.read(network.parameters * _ITEM)
        except OSError as error:
            raise WeightsError(f"it cannot be read: {error}", name) from error
    _check_length(network, name, start, len(data))
    values = np.frombuffer(data, _FLOAT).astype(np.float32, copy=False)
    layers = {}
    position = 0
    for layer in network.convolutions:
        parts = {}
        for part, shape in _parts(layer):
            count = math.prod(shape)
            array = values[position : position + count]
            _check(array, part, layer, name, start + position * _ITEM)
            parts[part] = array.reshape(shape)
            position += count
        layers[layer.index] = ConvolutionWeights(**parts)
    return Weights(layers, version, seen)


def write_weights(path: str | os.PathLike[str], network: Network, weights: Weights) -> None:
    """Write a ``.weights`` file, which `read_weights` and Darknet read.

    Raises
    ------
    InputError
        The weights are not the network's: a layer is missing, or an array has another shape.
    WeightsError
        The file cannot be written.
    """
    blocks: list[bytes | memoryview] = [_header(weights)]
    for layer in network.convolutions:
        found = weights.layers.get(layer.index)
        if found is None:
            raise InputError(f"the weights have none for {layer.name} of {network.source}")
        check_shapes(layer, found)
        for part, _ in _parts(layer):
            blocks.append(np.ascontiguousarray(getattr(found, part), _FLOAT).data)
    try:
        with open(path, "wb") as file:
            for block in blocks:
                file.write(block)
    except (OSError, ValueError) as error:
        raise WeightsError(f"it cannot be written: {error}", os.fspath(path)) from error


def check_shapes(layer: Convolutional, weights: ConvolutionWeights) -> None:
    """Raise `InputError` unless the weights are that layer's, by presence and shape."""
    expected = dict(_parts(layer))
    for part in ("bias", "scale", "mean", "variance", "kernel"):
        array = getattr(weights, part)
        shape = None if array is None else np.shape(array)
        if shape != expected.get(part):
            wanted = f"must have shape {expected[part]}" if part in expected else "must be None"
            raise InputError(f"the {part} of {layer.name} {wanted}; it has shape {shape}")


def random_weights(network: Network, seed: int = 0) -> Weights:
    """Weights at random, as good as trained ones for speed and for comparing two computations.

    They are scaled so that the signal neither dies nor overflows float16 on its way, whatever the
    batch normalisation, and results depend on the input. The same seed gives the same weights.
    """
    rng = np.random.default_rng(seed)
    tenth = np.float32(0.1)
    layers = {}
    for layer, following in itertools.zip_longest(network.layers, network.layers[1:]):
        if not isinstance(layer, Convolutional):
            continue
        # What a residual adds is small, or 23 of them would make the signal explode.
        gain = 0.3 if isinstance(following, Shortcut) else 1.0
        power = 1 if layer.activation == "linear" else 2
        fan_in = layer.channels * layer.size**2
        shape = (layer.filters, layer.channels, layer.size, layer.size)
        kernel = rng.standard_normal(shape, np.float32)
        kernel *= np.float32(gain * np.sqrt(power / fan_in))
        bias = rng.standard_normal(layer.filters, np.float32) * tenth
        if not layer.batch_normalize:
            layers[layer.index] = ConvolutionWeights(kernel, bias)
            continue
        mean = rng.standard_normal(layer.filters, np.float32) * tenth
        variance = rng.uniform(0.5, 2, layer.filters).astype(np.float32)
        scale = (rng.uniform(0.8, 1.2, layer.filters) * np.sqrt(variance)).astype(np.float32)
        layers[layer.index] = ConvolutionWeights(kernel, bias, scale, mean, variance)
    return Weights(layers)


def _parts(layer: Convolutional) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the file has for a layer, in its order, by attribute of `ConvolutionWeights`."""
    names = ["bias", "scale", "mean", "variance"] if layer.batch_normalize else ["bias"]
    for name in names:
        yield name, (layer.filters,)
    yield "kernel", (layer.filters, layer.channels, layer.size, layer.size)


def _read_header(file: BinaryIO, name: str) -> tuple[tuple[int, int, int], int, int]:
    """Version, images seen, and the header's size in bytes."""
    header = file.read(_VERSION.size)
    if len(header) < _VERSION.size:
        raise WeightsError(
            f"it ends within the header of {_VERSION.size + _SEEN.size} bytes", name, len(header)
        )
    major, minor, revision = _VERSION.unpack(header)
    for offset, number in ((0, major), (_ITEM, minor)):
        if not 0 <= number < 1000:  # Darknet: above are the transposed weights of other networks
            raise WeightsError(
                f"it is no Darknet .weights file: version {major}.{minor}.{revision}", name, offset
            )
    seen = _SEEN if 10 * major + minor >= 2 else _SEEN_BEFORE_0_2
    rest = file.read(seen.size)
    size = _VERSION.size + seen.size
    if len(rest) < seen.size:
        raise WeightsError(
            f"it ends within the header of {size} bytes", name, _VERSION.size + len(rest)
        )
    return (major, minor, revision), seen.unpack(rest)[0], size


def _header(weights: Weights) -> bytes:
    major, minor, _ = weights.version
    seen = _SEEN if 10 * major + minor >= 2 else _SEEN_BEFORE_0_2
    try:
        return _VERSION.pack(*weights.version) + seen.pack(weights.seen)
    except struct.error as error:
        raise InputError(
            f"version {weights.version} and {weights.seen} images seen do not fit into a header: "
            f"{error}"
        ) from None


def _check_length(network: Network, name: str, start: int, length: int) -> None:
    """Raise `WeightsError` unless ``length`` bytes after the header are what the network needs."""
    expected = start + network.parameters * _ITEM
    rest = start + length - expected
    if rest == 0:
        return
    message = (
        f"{network.source} needs {expected} bytes, {start} of header and 4 for each of "
        f"{network.parameters} weights"
    )
    if rest > 0:
        raise WeightsError(
            f"{message}; the file goes on for {rest} more. It is of another network", name, expected
        )
    end = length // _ITEM
    for layer in network.convolutions:
        for part, shape in _parts(layer):
            end -= math.prod(shape)
            if end < 0:
                where = f"within the {part} of {layer.name} (line {layer.line} of the cfg)"
                raise WeightsError(
                    f"{message}; the file ends {where}, {-rest} bytes early. It is of another "
                    "network, or was not copied whole",
                    name,
                    start + length,
                )


def _check(array: Floats, part: str, layer: Convolutional, name: str, offset: int) -> None:
    if part == "variance":
        good = np.isfinite(array) & (array >= 0)
        wanted = "a finite number from 0"
    else:
        good = np.isfinite(array)
        wanted = "a finite number"
    if not good.all():
        index = int(np.argmin(good))
        raise WeightsError(
            f"the {part} of {layer.name} has {array[index]} here, where {wanted} is expected; the "
            f"file is of another network, or damaged",
            name,
            offset + index * _ITEM,
        )
