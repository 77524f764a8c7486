"""The networks that are measured: generated, with random weights, so that nothing is downloaded.

Speed depends on a network's shape and not on what it has learnt. Weights are scaled so that the
signal neither dies nor overflows float16 on its way, and results depend on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import Profile

Batch = int | str


@dataclass(frozen=True)
class Network:
    """A model to measure.

    Attributes
    ----------
    make : callable
        Gives the ONNX model.
    shape : tuple of int
        Of its one input, when measured.
    profile : Profile or None
        Where the batch is dynamic.
    """

    make: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]
    profile: Profile | None = None


class _Builder:
    """A graph that grows layer by layer, as Darknet's configuration files describe one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(
        self,
        source: str,
        name: str,
        channels: tuple[int, int],
        size: int,
        *,
        stride: int = 1,
        gain: float = 1.0,
        linear: bool = False,
    ) -> str:
        """A convolution with bias, as one whose batch normalisation is folded in; and LeakyRelu."""
        fan_in, width = channels[0] * size * size, channels[1]
        scale = np.float32(gain * np.sqrt((1 if linear else 2) / fan_in))
        values = self._rng.standard_normal((width, channels[0], size, size), np.float32) * scale
        bias = self._rng.standard_normal(width, np.float32) / 10
        inputs = [
            source,
            self.weight(f"{name}_weights", values),
            self.weight(f"{name}_bias", bias),
        ]
        output = name if linear else f"{name}_linear"
        self.node(
            "Conv",
            inputs,
            output,
            kernel_shape=[size, size],
            pads=[size // 2] * 4,
            strides=[stride, stride],
        )
        return output if linear else self.node("LeakyRelu", [output], name, alpha=0.1)

    def model(self, name: str, shape: Sequence[Batch]) -> onnx.ModelProto:
        image = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, self.name, [image], self.outputs, self.weights)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def yolov3(batch: Batch = 1, side: int = 608) -> onnx.ModelProto:
    """YOLOv3: Darknet-53 and three heads, 62 million weights (Redmon and Farhadi, 2018).

    Layers are numbered as in Darknet's configuration, tensors named as NVIDIA's sample names them.
    ``side`` is a multiple of 32.
    """
    b = _Builder("yolov3")
    number, layers = 0, {0: ("000_net", 3)}

    def convolve(width: int, size: int, stride: int = 1, gain: float = 1.0) -> None:
        nonlocal number
        source, channels = layers[number]
        number += 1
        name = f"{number:03d}_convolutional"
        output = b.convolution(source, name, (channels, width), size, stride=stride, gain=gain)
        layers[number] = (output, width)

    def join(operator: str, name: str, sources: Sequence[int], **attributes: object) -> None:
        nonlocal number
        number += 1
        inputs = [layers[source][0] for source in sources]
        widths = [layers[source][1] for source in sources]
        output = b.node(operator, inputs, f"{number:03d}_{name}", **attributes)
        layers[number] = (output, sum(widths) if operator == "Concat" else widths[0])

    def stage(width: int, blocks: int) -> None:
        convolve(width, 3, stride=2)
        for _ in range(blocks):
            start = number
            convolve(width // 2, 1)
            # What a residual adds is small, or 23 of them would make the signal explode.
            convolve(width, 3, gain=0.3)
            join("Add", "shortcut", [number, start])

    def head(width: int) -> None:
        nonlocal number
        for _ in range(3):
            convolve(width, 1)
            convolve(2 * width, 3)
        source, channels = layers[number]
        number += 1
        name = f"{number:03d}_convolutional"
        b.convolution(source, name, (channels, 255), 1, linear=True)
        cells = side >> {82: 5, 94: 4, 106: 3}[number]
        shape = [batch, 255, cells, cells]
        b.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        number += 1  # Darknet's "yolo" layer: decoding, not the network's

    def rise(width: int, beside: int) -> None:
        """From before the last head's two final layers to the next finer grid."""
        nonlocal number
        number += 1
        layers[number] = layers[number - 4]  # "route"
        convolve(width, 1)
        source, channels = layers[number]
        number += 1
        output = b.node(
            "Resize",
            [source, "", "scales"],
            f"{number:03d}_upsample",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        layers[number] = (output, channels)
        join("Concat", "route", [number, beside], axis=1)

    b.weight("scales", np.array([1, 1, 2, 2], np.float32))
    convolve(32, 3)
    for width, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        stage(width, blocks)
    head(512)
    rise(256, beside=62)
    head(256)
    rise(128, beside=37)
    head(128)
    return b.model("000_net", [batch, 3, side, side])


def detector_like() -> onnx.ModelProto:
    """YOLOv3-608's inputs and outputs (4.4 MB in, 7.7 MB out) around a small backbone."""
    b = _Builder("detector_like")
    source, channels = "images", 3
    for index, width in enumerate((32, 64, 128, 256, 512)):
        source = b.convolution(source, f"c{index}", (channels, width), 3, stride=2)
        channels, side = width, 608 >> (index + 1)
        if side <= 76:
            b.convolution(source, f"head_{side}", (channels, 255), 1, linear=True)
            shape = [1, 255, side, side]
            b.outputs.append(
                helper.make_tensor_value_info(f"head_{side}", TensorProto.FLOAT, shape)
            )
    return b.model("images", [1, 3, 608, 608])


def identity() -> onnx.ModelProto:
    """16 floats in, 16 floats out: what a call costs when there is nothing to do."""
    b = _Builder("identity")
    b.node("Identity", ["x"], "y")
    b.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [16]))
    return b.model("x", [16])


def resnet50() -> onnx.ModelProto:
    """The onnx package's ResNet-50, with random weights."""
    from tests.models import varied

    return varied("resnet50").model


def _images(batch: int) -> tuple[int, ...]:
    return (batch, 3, 608, 608)


#: By the name that ``--models`` takes.
NETWORKS = {
    "yolov3": Network(yolov3, _images(1)),
    "yolov3_batch8": Network(
        lambda: yolov3("batch"),
        _images(8),
        Profile({"000_net": (_images(1), _images(8), _images(8))}),
    ),
    "detector_like": Network(detector_like, _images(1)),
    "resnet50": Network(resnet50, (1, 3, 224, 224)),
    "identity": Network(identity, (16,)),
}
