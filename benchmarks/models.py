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
from trt_runtime import yolov3 as darknet

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
    """A graph that grows layer by layer."""

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
        linear: bool = False,
    ) -> str:
        """A convolution with bias, as one whose batch normalisation is folded in; and LeakyRelu."""
        fan_in, width = channels[0] * size * size, channels[1]
        scale = np.float32(np.sqrt((1 if linear else 2) / fan_in))
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
    """YOLOv3: Darknet-53 and three heads, 62 million weights; ``side`` is a multiple of 32."""
    network = darknet.Network.parse(darknet.yolov3(side))
    return darknet.to_onnx(network, darknet.random_weights(network), batch=batch)


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
