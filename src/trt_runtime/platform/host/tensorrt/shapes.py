"""Output shapes from input shapes, and from the values of shape tensors.

ONNX's own inference does it on a copy of the model without its weights. Where that leaves a
dimension open although data does not decide it, the model itself is run once, on zeros. So it is
where shape tensors decide, since ONNX believes values that contradict the rest of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....locks import Lock
from .datatypes import ONNX_TYPES, numpy_dtype
from .dependence import DATA_DEPENDENT, Dependence
from .enums import DataType
from .model import Tensor, known_dims

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_LARGEST_KEPT_WEIGHT = 1024
"""Elements; what decides shapes is smaller."""

_CACHED_SHAPES = 256


class ShapeError(ValueError):
    """Inputs of these shapes do not go together."""


class OutputShapes:
    """The output shapes of one network, remembered for the input shapes that were asked for.

    `run` executes the network: arrays by input name in, outputs in order out.
    """

    def __init__(
        self,
        model: Any,
        tensors: list[Tensor],
        dependence: Dependence,
        run: Callable[[Mapping[str, Array]], list[Array]],
    ) -> None:
        self._inputs = [t for t in tensors if t.is_input]
        self._outputs = [t for t in tensors if not t.is_input]
        self._data_dependent = dependence.data_dependent
        self._skeleton = skeleton(model)
        self._run = run
        self._lock = Lock()
        self._cache: dict[Any, dict[str, Shape]] = {}

    def __call__(
        self, shapes: Mapping[str, Shape], values: Mapping[str, Array]
    ) -> dict[str, Shape]:
        """Return the shape of each output, with -1 where only the data can tell.

        Raises
        ------
        ShapeError
            The model cannot take these shapes and values.
        """
        key = (
            tuple(shapes[t.name] for t in self._inputs),
            tuple((name, value.tobytes()) for name, value in sorted(values.items())),
        )
        with self._lock:
            known = self._cache.get(key)
        if known is None:
            known = self._infer(shapes, values)
            with self._lock:
                if len(self._cache) >= _CACHED_SHAPES:
                    self._cache.clear()
                self._cache[key] = known
        return known

    def upper_bounds(
        self, shapes: Mapping[str, Shape], values: Mapping[str, Array]
    ) -> dict[str, Shape]:
        """Return the output shapes with every data-dependent dimension at its largest.

        Such a dimension counts elements that were selected, so it is at most the number there
        were to select from. A model that repeats or joins what it selected can exceed this.
        """
        known = self(shapes, values)
        if not any(-1 in shape for shape in known.values()):
            return known
        inferred = inferred_dims(_specialised(self._skeleton, shapes, values))
        known_dims = [dims for dims in inferred.values() if dims is not None and -1 not in dims]
        sizes = [math.prod(dims) for dims in known_dims]
        selected_from = sum(
            max((_elements(inferred.get(name), sizes) for name in node.input), default=0)
            for node in self._skeleton.graph.node
            if node.op_type in DATA_DEPENDENT
        )
        return {
            name: tuple(selected_from if dim == -1 else dim for dim in shape)
            for name, shape in known.items()
        }

    def _infer(self, shapes: Mapping[str, Shape], values: Mapping[str, Array]) -> dict[str, Shape]:
        inferred = inferred_dims(_specialised(self._skeleton, shapes, values))
        result: dict[str, Shape] = {}
        for tensor in self._outputs:
            dims = inferred.get(tensor.name)
            data_dependent = tensor.name in self._data_dependent
            if dims is None and data_dependent:
                dims = (-1,) * len(tensor.dims)
            if values or dims is None or (-1 in dims and not data_dependent):
                return self._measured(shapes, values, inferred)
            result[tensor.name] = dims
        return result

    def _measured(
        self,
        shapes: Mapping[str, Shape],
        values: Mapping[str, Array],
        inferred: Mapping[str, Shape | None],
    ) -> dict[str, Shape]:
        zeros = {
            t.name: np.zeros(shapes[t.name], numpy_dtype(t.data_type))
            for t in self._inputs
            if t.name not in values
        }
        try:
            results = self._run({**zeros, **values})
        except Exception as error:  # onnxruntime's exceptions share no base
            raise ShapeError(str(error)) from error
        measured: dict[str, Shape] = {}
        for tensor, result in zip(self._outputs, results, strict=True):
            if tensor.name in self._data_dependent:
                measured[tensor.name] = inferred.get(tensor.name) or (-1,) * result.ndim
            else:
                measured[tensor.name] = result.shape
        return measured


def skeleton(model: Any) -> Any:
    """Return the model without large weights and without the shapes that it claims to have.

    A claim may be out of date, or name a batch size that the inputs no longer have.
    """
    import onnx
    from onnx import helper

    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    graph = bare.graph
    graph.name = model.graph.name or "network"
    graph.input.extend(model.graph.input)
    named = {value.name for value in graph.input}
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= _LARGEST_KEPT_WEIGHT:
            graph.initializer.append(weight)
        elif weight.name not in named:
            graph.input.append(
                helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            )
    for sparse in model.graph.sparse_initializer:
        element = sparse.values.data_type
        graph.input.append(
            helper.make_tensor_value_info(sparse.values.name, element, list(sparse.dims))
        )
    for node in model.graph.node:
        weight = _constant(node)
        if weight is not None and math.prod(weight.dims) > _LARGEST_KEPT_WEIGHT:
            graph.input.append(
                helper.make_tensor_value_info(node.output[0], weight.data_type, list(weight.dims))
            )
        else:
            graph.node.append(node)
    for value in model.graph.output:
        element = value.type.tensor_type.elem_type
        graph.output.append(helper.make_tensor_value_info(value.name, element, None))
    return bare


def _inferred(model: Any) -> Any:
    """The graph with what ONNX infers, or as it is if that fails."""
    import onnx.shape_inference

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # the model is then run instead, and says what is wrong
        return model.graph


def inferred_types(model: Any) -> dict[str, DataType]:
    """Return the type of each tensor that TensorRT has a type for."""
    graph = _inferred(skeleton(model))
    found = {weight.name: weight.data_type for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return {name: ONNX_TYPES[kind] for name, kind in found.items() if kind in ONNX_TYPES}


def inferred_dims(model: Any) -> dict[str, Shape | None]:
    """Return what ONNX infers for each tensor: -1 for an open dimension, None without a rank."""
    graph = _inferred(model)
    result: dict[str, Shape | None] = {w.name: tuple(w.dims) for w in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        result[value.name] = known_dims(tensor.shape.dim) if tensor.HasField("shape") else None
    return result


def with_inferred_outputs(model: Any) -> Any:
    """Return the model's border with the output shapes that ONNX infers, not those it claims."""
    import onnx

    border = onnx.ModelProto()
    border.graph.input.extend(model.graph.input)
    border.graph.initializer.extend(
        onnx.TensorProto(name=weight.name) for weight in model.graph.initializer
    )
    border.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    border.graph.output.extend(model.graph.output)
    inferred = inferred_dims(skeleton(model))
    for value in border.graph.output:
        dims = inferred.get(value.name)
        if dims is not None and value.type.WhichOneof("value") == "tensor_type":
            claimed = value.type.tensor_type.shape.dim
            names = [d.dim_param for d in claimed] if len(claimed) == len(dims) else []
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.SetInParent()
            for index, size in enumerate(dims):
                dim = value.type.tensor_type.shape.dim.add()
                if size >= 0:
                    dim.dim_value = size
                elif names and names[index]:
                    dim.dim_param = names[index]
    return border


def _specialised(bare: Any, shapes: Mapping[str, Shape], values: Mapping[str, Array]) -> Any:
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(bare)
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        if value.name in values:
            model.graph.initializer.append(numpy_helper.from_array(values[value.name], value.name))
        elif value.name in shapes:
            element = value.type.tensor_type.elem_type
            dims = list(shapes[value.name])
            model.graph.input.append(helper.make_tensor_value_info(value.name, element, dims))
        else:
            model.graph.input.append(value)
    return model


def _constant(node: Any) -> Any:
    if node.op_type != "Constant":
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _elements(dims: Shape | None, sizes: list[int]) -> int:
    """Number of elements of a tensor, or of the largest one when it is not known either."""
    if dims is None or -1 in dims:
        return max(sizes, default=0)
    return math.prod(dims)
