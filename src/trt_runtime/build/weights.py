"""The weights of an ONNX model by the names that TensorRT's parser gives them.

For refitting an engine with a model of the same structure; which model that is, is not checked
beyond its inputs and outputs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, RefitError
from ..tensor import TensorSpec, format_shape
from .model import external_files

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_proto(model: bytes) -> Any:
    """The ``onnx.ModelProto`` of a serialised model, external data left where it is.

    Raises
    ------
    ModelError
        The bytes are no ONNX.
    """
    import onnx

    try:
        proto = onnx.ModelProto.FromString(model)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(
            "cannot parse the ONNX model", problems=[f"its bytes are no ONNX: {error}"]
        ) from None
    if not proto.graph.output:
        raise ModelError(
            "cannot parse the ONNX model",
            problems=[f"its {len(model)} bytes hold no network with an output"],
        )
    return proto


def check_same_border(proto: Any, tensors: Iterable[TensorSpec]) -> None:
    """Raise `RefitError` unless the model has the engine's inputs and outputs.

    Names and dimensions that both fix are compared; types may have been changed by the build.
    """
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    borders = {
        "input": {value.name: value for value in graph.input if value.name not in weights},
        "output": {value.name: value for value in graph.output},
    }
    problems = []
    for spec in tensors:
        value = borders[spec.mode].get(spec.name)
        if value is None:
            problems.append(f"it has no {spec.mode} {spec.name!r}")
            continue
        shape = value.type.tensor_type.shape
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in shape.dim)
        known = value.type.tensor_type.HasField("shape")
        if known and not _agree(dims, spec.shape):
            problems.append(
                f"{spec.mode} {spec.name!r} has shape {format_shape(dims)}, and the engine's "
                f"{format_shape(spec.shape)}"
            )
    if problems:
        raise RefitError("the model is another network than the engine's", problems=problems)


def _agree(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    return len(ours) == len(theirs) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(ours, theirs, strict=True)
    )


def weights_of(
    proto: Any, model: bytes, path: str | os.PathLike[str] | None
) -> dict[str, NDArray[Any]]:
    """Every initialiser, and the value of every ``Constant``, by name.

    Raises
    ------
    ModelError
        External data is missing or leads out of the model's folder.
    """
    from onnx import external_data_helper, numpy_helper

    if external_files(model, path):
        external_data_helper.load_external_data_for_model(proto, str(Path(path or ".").parent))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    arrays[node.output[0]] = numpy_helper.to_array(attribute.t)
    return arrays
