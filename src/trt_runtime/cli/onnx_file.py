"""What an ONNX file says of itself, read without its weights: for ``inspect``, and for inputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from trt_runtime import ModelError, TensorSpec
from trt_runtime.build.model import external_files


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph; a dimension is a size, a name, or ``?``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def is_dynamic(self) -> bool:
        return any(isinstance(size, str) for size in self.shape)


@dataclass(frozen=True)
class OnnxReport:
    """An ONNX model, without its weights' values.

    Attributes
    ----------
    opsets : dict of str to int
        By domain; the standard one is ``ai.onnx``.
    operators : dict of str to int
        How often each is used, the most frequent first.
    parameters : int
        Elements of all weights.
    external_bytes : int
        Of the files beside the model that hold weights, the parts that belong to it.
    dynamic : dict of str to list of int
        For each dynamic input the axes that vary.
    problem : str
        What is wrong with the external data; empty if nothing is.
    """

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    ir_version: int
    opsets: dict[str, int]
    producer: str
    nodes: int
    operators: dict[str, int]
    parameters: int
    parameter_bytes: int
    external_files: tuple[str, ...]
    external_bytes: int
    dynamic: dict[str, list[int]]
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_onnx(path: Path) -> Any:
    """The ``onnx.ModelProto``, without external data; `ModelError` if it is none."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(f"{str(path)!r} is no ONNX model: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{str(path)!r} is no ONNX model: it has no graph")
    return model


def inspect_onnx(path: Path) -> OnnxReport:
    """Read the facts off a file."""
    model = read_onnx(path)
    inputs, outputs = graph_inputs(model), tuple(map(_tensor, model.graph.output))
    problem = ""
    try:
        files = external_files(path.read_bytes(), path)
    except ModelError as error:
        files, problem = (), "; ".join(error.problems) or error.message
    operators = Counter(_text(node.op_type) for node in model.graph.node)
    weights = list(model.graph.initializer)
    return OnnxReport(
        inputs=inputs,
        outputs=outputs,
        ir_version=model.ir_version,
        opsets={_text(opset.domain) or "ai.onnx": opset.version for opset in model.opset_import},
        producer=f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
        nodes=len(model.graph.node),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(prod(weight.dims) for weight in weights),
        parameter_bytes=sum(_nbytes(weight) for weight in weights),
        external_files=tuple(sorted({file.location for file in files})),
        external_bytes=sum(file.length for file in files),
        dynamic={
            tensor.name: [axis for axis, size in enumerate(tensor.shape) if isinstance(size, str)]
            for tensor in inputs
            if tensor.is_dynamic
        },
        problem=problem,
    )


def graph_inputs(model: Any) -> tuple[OnnxTensor, ...]:
    """The inputs that a caller gives; old models list their weights as inputs too."""
    weights = {weight.name for weight in model.graph.initializer}
    return tuple(_tensor(value) for value in model.graph.input if value.name not in weights)


def input_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The inputs as an engine would describe them, before there is one."""
    return tuple(
        TensorSpec(
            tensor.name,
            _numpy_dtype(tensor),
            tuple(size if isinstance(size, int) else -1 for size in tensor.shape),
            "input",
        )
        for tensor in graph_inputs(read_onnx(path))
    )


def _tensor(value: Any) -> OnnxTensor:
    import onnx

    tensor = value.type.tensor_type
    shape: list[int | str] = []
    for dim in tensor.shape.dim:
        known = dim.HasField("dim_value") and dim.dim_value >= 0
        shape.append(dim.dim_value if known else _text(dim.dim_param) or "?")
    try:
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    except ValueError:  # a type that this onnx does not know
        dtype = f"type {tensor.elem_type}"
    return OnnxTensor(_text(value.name), dtype, tuple(shape))


def _text(value: str | bytes) -> str:
    """A string of the model, which protobuf gives as bytes if it is not in UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _numpy_dtype(tensor: OnnxTensor) -> np.dtype[Any]:
    import onnx

    try:
        number = onnx.TensorProto.DataType.Value(tensor.dtype.upper())
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"input {tensor.name!r} has the type {tensor.dtype!r}, of which there are no arrays"
        ) from None


def _nbytes(weight: Any) -> int:
    import onnx

    try:
        itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
    except (KeyError, TypeError, ValueError):  # a type that this onnx does not know
        return 0
    return int(prod(weight.dims)) * itemsize
