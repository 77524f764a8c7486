"""A model that runs: one onnxruntime session on the CPU, shared by every context of an engine.

The host computes in the model's own types, whatever precision flags the builder was given, with
two exceptions. onnxruntime's CPU kernels lack bfloat16, so such a model is computed in float32 and
its bfloat16 outputs are rounded at the border. And onnxruntime's Python does not pass float8, so
that crosses the border as float32, which holds every float8 exactly, and is cast inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....errors import NoTensorRTError
from .datatypes import ONNX_BFLOAT16, ONNX_FLOAT8, ONNX_FLOAT32, WIDENED, numpy_dtype
from .model import Tensor, all_graphs

Array = np.ndarray[Any, Any]

_NEWEST_PORTABLE_IR = 10
"""Later IR versions add element types only, and older releases of onnxruntime refuse them."""

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "precision", "stash_type"})


class Executable:
    """Runs a model; any number of threads may call it at once.

    Raises whatever onnxruntime raises for a model that it cannot take.
    """

    def __init__(self, model: Any, tensors: list[Tensor], *, optimise: bool = True) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise NoTensorRTError(
                "the host device executes with onnxruntime, which is not installed; "
                "pip install 'trt-runtime[host]'"
            ) from error
        self._inputs = {t.name: t for t in tensors if t.is_input}
        self._outputs = [t for t in tensors if not t.is_input]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; printing them as well helps nobody
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            for_onnxruntime(model).SerializeToString(),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in order; they and the inputs have the network's own types."""
        passed = {name: self._to_session(name, array) for name, array in feeds.items()}
        results = self._session.run([t.name for t in self._outputs], passed)
        return [
            np.asarray(result, numpy_dtype(t.data_type), order="C")
            for t, result in zip(self._outputs, results, strict=True)
        ]

    def _to_session(self, name: str, array: Array) -> Array:
        if self._inputs[name].data_type in WIDENED:
            return array.astype(np.float32)
        return np.require(array, requirements=["A", "C"])


def for_onnxruntime(model: Any) -> Any:
    """Return a copy of the model as onnxruntime is given it."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, _NEWEST_PORTABLE_IR)
    for graph in all_graphs(copy.graph):
        _widen_bfloat16(graph)
    _cast_float8_border(copy.graph)
    return copy


def _widen_bfloat16(graph: Any) -> None:
    for weight in graph.initializer:
        _widen_weight(weight)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == ONNX_BFLOAT16:
            value.type.tensor_type.elem_type = ONNX_FLOAT32
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_weight(attribute.t)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == ONNX_BFLOAT16:
                attribute.i = ONNX_FLOAT32


def _widen_weight(weight: Any) -> None:
    from onnx import numpy_helper

    if weight.data_type == ONNX_BFLOAT16:
        values = numpy_helper.to_array(weight).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def _cast_float8_border(graph: Any) -> None:
    from onnx import helper

    weights = {w.name for w in graph.initializer}
    renamed: dict[str, str] = {}
    inputs, outputs = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type == ONNX_FLOAT8 and value.name not in weights:
            renamed[value.name] = f"{value.name}/float8"
            inputs.append(
                helper.make_node("Cast", [value.name], [renamed[value.name]], to=ONNX_FLOAT8)
            )
            value.type.tensor_type.elem_type = ONNX_FLOAT32
    for value in graph.output:
        if value.type.tensor_type.elem_type == ONNX_FLOAT8:
            renamed[value.name] = f"{value.name}/float8"
            outputs.append(
                helper.make_node("Cast", [renamed[value.name]], [value.name], to=ONNX_FLOAT32)
            )
            value.type.tensor_type.elem_type = ONNX_FLOAT32
    if not renamed:
        return
    for inner in all_graphs(graph):
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes = [*inputs, *graph.node, *outputs]
    del graph.node[:]
    graph.node.extend(nodes)
