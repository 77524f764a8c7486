"""From Darknet to ONNX: `to_onnx`.

The model ends before the ``[yolo]`` layers, as in NVIDIA's sample: each head's convolution is an
output, and what its numbers mean is in the metadata (see `layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import InputError, WeightsError
from .cfg import Convolutional, Layer, MaxPool, Network, Route, Shortcut, Upsample, Yolo
from .layout import METADATA_KEY, Layout
from .weights import Weights, check_shapes

#: Of Darknet's leaky activation, below zero.
_SLOPE = 0.1
#: TensorRT 8.6 and everything after it parse these.
_OPSET, _IR_VERSION = 17, 8


def to_onnx(
    network: Network,
    weights: Weights,
    *,
    batch: int | str = 1,
    names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """The network as an ONNX model, batch normalisation folded into the convolutions.

    Its input ``000_net`` is float32 (batch, channels, height, width), RGB from 0 to 1. Its outputs
    are the heads' convolutions, float32 (batch, anchors * (5 + classes), rows, columns), named with
    Darknet's number of the layer plus one: ``082_convolutional``, ``094_convolutional`` and
    ``106_convolutional`` of YOLOv3.

    Parameters
    ----------
    network : Network
    weights : Weights
    batch : int or str
        How many images; a name makes it dynamic.
    names : sequence of str, optional
        One for each class, as `Layout.of`; they are kept in the metadata.

    Returns
    -------
    onnx.ModelProto
        Checked, opset 17. Hundreds of megabytes for the large networks; ``onnx.save`` writes it.

    Raises
    ------
    InputError
        ``batch`` or ``names`` do not fit, or the weights are not the network's.
    WeightsError
        A weight leaves float32 when batch normalisation is folded in.
    """
    named = isinstance(batch, str) and batch.isidentifier()
    if not named and not (type(batch) is int and 0 < batch < 2**31):
        raise InputError(f"batch is a positive integer or the name of a dimension, not {batch!r}")
    layout = Layout.of(network, names)
    shape = (batch, network.channels, network.height, network.width)
    model = helper.make_model(
        helper.make_graph(
            [],
            "yolov3",
            [helper.make_tensor_value_info(Network.INPUT, TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(
                    head.output, TensorProto.FLOAT, (batch, head.channels, *head.grid)
                )
                for head in layout.heads
            ],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="trt_runtime",
    )
    helper.set_model_props(model, {METADATA_KEY: layout.to_json()})
    # Straight into the model: the functions that make one copy all that they are given.
    _Graph(model.graph).add_all(network, weights)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """A graph that grows layer by layer."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        #: The tensor that holds a layer's result, by the layer's index.
        self._results = {0: Network.INPUT}

    def add_all(self, network: Network, weights: Weights) -> None:
        for layer in network.layers:
            inputs = [self._results[source] for source in layer.sources]
            if isinstance(layer, Convolutional):
                self._results[layer.index] = self._convolution(layer, inputs, weights, network)
            elif isinstance(layer, Yolo):
                continue  # nothing reads it
            elif isinstance(layer, Route) and len(inputs) == 1:
                self._results[layer.index] = inputs[0]
            else:
                self._results[layer.index] = self._other(layer, inputs)

    def _convolution(
        self, layer: Convolutional, inputs: list[str], weights: Weights, network: Network
    ) -> str:
        found = weights.layers.get(layer.index)
        if found is None:
            raise InputError(f"the weights have none for {layer.name} of {network.source}")
        check_shapes(layer, found)
        kernel, bias = found.folded()
        for array in (kernel, bias):
            if not np.isfinite(array).all():
                raise WeightsError(
                    f"those of {layer.name} leave float32 when its batch normalisation is folded "
                    "into the kernel; a scale is too large or no number",
                    "the weights",
                )
        return self._activated(
            layer,
            layer.activation,
            "Conv",
            [
                *inputs,
                self._weight(f"{layer.name}_kernel", kernel),
                self._weight(f"{layer.name}_bias", bias),
            ],
            kernel_shape=[layer.size] * 2,
            pads=[layer.padding] * 4,
            strides=[layer.stride] * 2,
        )

    def _other(self, layer: Layer, inputs: list[str]) -> str:
        match layer:
            case Shortcut():
                return self._activated(layer, layer.activation, "Add", inputs)
            case Route():
                return self._node("Concat", inputs, layer.name, axis=1)
            case Upsample():
                scales = np.array([1, 1, layer.stride, layer.stride], np.float32)
                return self._node(
                    "Resize",
                    [*inputs, "", self._weight(f"{layer.name}_scales", scales)],
                    layer.name,
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
            case MaxPool():
                return self._node(
                    "MaxPool",
                    inputs,
                    layer.name,
                    kernel_shape=[layer.size] * 2,
                    pads=layer.padding,
                    strides=[layer.stride] * 2,
                )
        raise AssertionError(layer)

    def _activated(
        self, layer: Layer, activation: str, operator: str, inputs: list[str], **attributes: Any
    ) -> str:
        if activation == "linear":
            return self._node(operator, inputs, layer.name, **attributes)
        linear = self._node(operator, inputs, f"{layer.name}_linear", **attributes)
        return self._node("LeakyRelu", [linear], layer.name, alpha=_SLOPE)

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        self._graph.node.append(node)
        return output

    def _weight(self, name: str, values: np.ndarray) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name
