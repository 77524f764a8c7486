"""A network of two heads that is small enough to run a hundred times, and images for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx

from trt_runtime.yolov3 import Layout, Network, Weights, random_weights, to_onnx

CFG = """
[net]
width=96
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
size=1
filters=16
activation=linear

[yolo]
mask=0,1
anchors=8,10, 14,9, 20,30, 40,24
classes=3
num=4

[route]
layers=-4

[convolutional]
size=1
filters=16
activation=linear

[yolo]
mask=2,3
anchors=8,10, 14,9, 20,30, 40,24
classes=3
num=4
"""

NAMES = ("apple", "pear", "plum")


@cache
def network() -> Network:
    return Network.parse(CFG)


@cache
def layout() -> Layout:
    return Layout.of(network(), NAMES)


@cache
def model(batch: int | str = 1) -> onnx.ModelProto:
    """It finds a few dozen boxes in most images, and is sure of some of them."""
    weights = random_weights(network(), 3)
    layers = dict(weights.layers)
    for number, layer in layers.items():
        if layer.scale is None:  # a head
            kernel, bias = layer.kernel * 10, layer.bias.copy()
            kernel[2::8] /= 20  # boxes of about the anchors' size
            kernel[3::8] /= 20
            bias[4::8] -= 5  # objects are rare
            layers[number] = replace(layer, kernel=kernel, bias=bias)
    return to_onnx(network(), Weights(layers), batch=batch, names=NAMES)


def image(height: int = 60, width: int = 100, seed: int = 0) -> np.ndarray:
    """Smooth blots, as of something photographed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    rows, columns = np.arange(height) / 8, np.arange(width) / 8
    i, j = rows.astype(int), columns.astype(int)
    a, b = (rows - i)[:, None, None], (columns - j)[None, :, None]
    upper = coarse[i][:, j] * (1 - b) + coarse[i][:, j + 1] * b
    lower = coarse[i + 1][:, j] * (1 - b) + coarse[i + 1][:, j + 1] * b
    return np.ascontiguousarray((upper * (1 - a) + lower * a).round().astype(np.uint8))
