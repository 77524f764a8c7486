"""Darknet's arithmetic a second time, from the files: text and bytes in, heads out.

It shares nothing with the package, neither the reading of the cfg nor the order of the weights, and
normalises the convolution's result instead of the kernel. Once in NumPy, once as PyTorch modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Heads = dict[str, np.ndarray]

#: Version 0.2: three int32, then an int64.
HEADER_BYTES = 20


def sections(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for block in text.split("[")[1:]:
        name, _, lines = block.partition("]")
        pairs = (line.split("=") for line in lines.splitlines() if "=" in line)
        yield name, {key.strip(): value.strip() for key, value in pairs}


class _Values:
    """The numbers of a ``.weights`` file, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._values = np.frombuffer(data, "<f4", offset=HEADER_BYTES)

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        taken, self._values = self._values[:count], self._values[count:]
        return taken.reshape(shape)

    def assert_all_taken(self) -> None:
        assert self._values.size == 0


def _sources(option: str, position: int) -> list[int]:
    numbers = [int(number) for number in option.split(",")]
    return [position + number if number < 0 else number for number in numbers]


def _total_padding(options: dict[str, str]) -> int:
    return int(options.get("padding", int(options["size"]) - 1))


# NumPy ------------------------------------------------------------------------------------------


def numpy_heads(text: str, data: bytes, images: np.ndarray, dtype: Any = np.float64) -> Heads:
    """Every head's raw result for ``images`` (batch, channels, height, width)."""
    values = _Values(data)
    (_, *layers) = sections(text)
    results: list[np.ndarray] = []
    heads = {}
    x = images.astype(dtype)
    for position, (kind, options) in enumerate(layers):
        if kind == "convolutional":
            x = _convolutional(x, options, values)
        elif kind == "maxpool":
            x = _maxpool(x, int(options["size"]), int(options["stride"]), _total_padding(options))
        elif kind == "shortcut":
            (other,) = _sources(options["from"], position)
            x = x + results[other]
        elif kind == "route":
            x = np.concatenate([results[i] for i in _sources(options["layers"], position)], axis=1)
        elif kind == "upsample":
            stride = int(options["stride"])
            x = x.repeat(stride, axis=2).repeat(stride, axis=3)
        elif kind == "yolo":
            name = f"{position:03d}_convolutional"  # the layer before, counted from 1
            heads[name] = x.astype(np.float32)
        else:
            raise AssertionError(kind)
        results.append(x)
    values.assert_all_taken()
    return heads


def _convolutional(x: np.ndarray, options: dict[str, str], values: _Values) -> np.ndarray:
    filters, size = int(options["filters"]), int(options["size"])
    stride = int(options.get("stride", 1))
    padding = size // 2 if options.get("pad") == "1" else int(options.get("padding", 0))
    normalize = options.get("batch_normalize") == "1"
    bias = values.take(filters, 1, 1)
    statistics = [values.take(filters, 1, 1) for _ in range(3)] if normalize else []
    kernel = values.take(filters, x.shape[1], size, size).astype(x.dtype)
    sides = [(0, 0), (0, 0), (padding, padding), (padding, padding)]
    windows = _windows(np.pad(x, sides), size, stride)
    batch, _, rows, columns = windows.shape[:4]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, -1)
    y = (patches @ kernel.reshape(filters, -1).T).transpose(0, 2, 1)
    y = y.reshape(batch, filters, rows, columns)
    if statistics:
        scale, mean, variance = statistics
        y = (y - mean) / np.sqrt(variance.astype(x.dtype) + 1e-5) * scale
    y = y + bias
    if options["activation"] == "leaky":
        np.multiply(y, 0.1, out=y, where=y < 0)
    return y


def _maxpool(x: np.ndarray, size: int, stride: int, padding: int) -> np.ndarray:
    sides = (padding // 2, padding - padding // 2)
    padded = np.pad(x, [(0, 0), (0, 0), sides, sides], constant_values=-np.inf)
    return np.asarray(_windows(padded, size, stride).max(axis=(4, 5)))


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(batch, channels, rows, columns, size, size), without a copy."""
    every: np.ndarray = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return every[:, :, ::stride, ::stride]


# PyTorch ----------------------------------------------------------------------------------------


def torch_heads(text: str, data: bytes, images: np.ndarray) -> Heads:
    """As `numpy_heads`, of modules that PyTorch has: Conv2d, BatchNorm2d, LeakyReLU, MaxPool2d."""
    import torch
    from torch import nn

    def parameter(array: np.ndarray) -> Any:
        return nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False)

    def convolutional(channels: int, options: dict[str, str]) -> Any:
        filters, size = int(options["filters"]), int(options["size"])
        normalize = options.get("batch_normalize") == "1"
        padding = size // 2 if options.get("pad") == "1" else int(options.get("padding", 0))
        stride = int(options.get("stride", 1))
        convolution = nn.Conv2d(channels, filters, size, stride, padding, bias=not normalize)
        modules: list[Any] = [convolution]
        bias = parameter(values.take(filters))
        if normalize:
            norm = nn.BatchNorm2d(filters)
            norm.bias, norm.weight = bias, parameter(values.take(filters))
            norm.running_mean = parameter(values.take(filters)).data
            norm.running_var = parameter(values.take(filters)).data
            modules.append(norm)
        else:
            convolution.bias = bias
        convolution.weight = parameter(values.take(filters, channels, size, size))
        if options["activation"] == "leaky":
            modules.append(nn.LeakyReLU(0.1))
        return nn.Sequential(*modules)

    def maxpool(options: dict[str, str]) -> Any:
        total = _total_padding(options)
        before, after = total // 2, total - total // 2
        pad = nn.ConstantPad2d((before, after, before, after), -torch.inf)
        return nn.Sequential(pad, nn.MaxPool2d(int(options["size"]), int(options["stride"])))

    values = _Values(data)
    (_, *layers) = sections(text)
    results: list[Any] = []
    heads = {}
    x = torch.from_numpy(images)
    with torch.inference_mode():
        for position, (kind, options) in enumerate(layers):
            if kind == "convolutional":
                x = convolutional(x.shape[1], options).eval()(x)
            elif kind == "maxpool":
                x = maxpool(options)(x)
            elif kind == "shortcut":
                (other,) = _sources(options["from"], position)
                x = x + results[other]
            elif kind == "route":
                x = torch.cat([results[i] for i in _sources(options["layers"], position)], 1)
            elif kind == "upsample":
                x = nn.Upsample(scale_factor=int(options["stride"]), mode="nearest")(x)
            elif kind == "yolo":
                heads[f"{position:03d}_convolutional"] = x.numpy()
            results.append(x)
    values.assert_all_taken()
    return heads
