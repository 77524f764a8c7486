"""Reading the ONNX model that an engine is built from, and the files that its weights are in.

What is in the model is TensorRT's business, except for the paths of external data: TensorRT opens
whatever they name, so they are checked before it sees them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import InputError, ModelError


def read_model(model: str | os.PathLike[str] | bytes | Any) -> tuple[bytes, str | None]:
    """The serialised model, and the path it came from, for its external data.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto

    Raises
    ------
    ModelError
        The file is missing or cannot be read.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model), None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        try:
            return path.read_bytes(), str(path)
        except FileNotFoundError:
            raise ModelError(
                f"there is no ONNX model {str(path)!r} (in {os.getcwd()!r}); check the path"
            ) from None
        except OSError as error:
            raise ModelError(f"the ONNX model {str(path)!r} cannot be read: {error}") from error
    serialize = getattr(model, "SerializeToString", None)
    if serialize is None:
        raise InputError(
            f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}"
        )
    return bytes(serialize()), None


@dataclass(frozen=True)
class ExternalFile:
    """Where one tensor's data lies outside of the model.

    Attributes
    ----------
    tensor : str
        The tensor's name.
    location : str
        The path as the model gives it, relative to the model's folder.
    path : Path
        The file, absolute and without symbolic links.
    offset, length : int
        The part of the file that belongs to the tensor, in bytes.
    """

    tensor: str
    location: str
    path: Path
    offset: int
    length: int


def external_files(model: bytes, path: str | os.PathLike[str] | None) -> tuple[ExternalFile, ...]:
    """What a serialised model keeps in other files, in the model's order.

    Parameters
    ----------
    model : bytes
    path : path or None
        Where the model was read from; the files lie in that folder or below it.

    Raises
    ------
    ModelError
        A file is missing or too short, or its path leads out of the model's folder; or there is
        external data and no path. ``problems`` has a line for each tensor.
    """
    if b"location" not in model:  # the key that every external tensor has (onnx.proto)
        return ()
    import onnx

    try:
        proto = onnx.ModelProto.FromString(model)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(
            "cannot parse the ONNX model", problems=[f"its bytes are no ONNX: {error}"]
        ) from None
    tensors = [t for t in tensors_of(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    if tensors and path is None:
        raise ModelError(
            f"the model keeps the data of {len(tensors)} tensors in other files, first that of "
            f"{tensors[0].name!r}, and bytes do not say where these are; pass the model's path, or "
            "load it with onnx.load, which reads them"
        )
    files, problems = [], []
    for tensor in tensors:
        try:
            files.append(_external_file(tensor, Path(path or ".").parent))
        except ValueError as problem:
            problems.append(f"tensor {tensor.name!r}: {problem}")
    if problems:
        raise ModelError(
            f"the ONNX model {os.fspath(path or '')!r} has external data that cannot be used",
            problems=problems,
        )
    return tuple(files)


def _external_file(tensor: Any, folder: Path) -> ExternalFile:
    """Where that tensor's data is; raises ValueError, with the reason, unless it may be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise ValueError(f"its location {location!r} is no path")
    # Windows takes both separators, and a model is to mean the same wherever it is built.
    outside = PureWindowsPath(location).anchor or ".." in re.split(r"[\\/]", location)
    root = folder.resolve()
    try:
        file = (root / location).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"its location {location!r} cannot be followed: {error}") from None
    if outside or not file.is_relative_to(root):
        leads = "" if outside else f", a link to {str(file)!r},"
        raise ValueError(
            f"its location {location!r}{leads} leads out of the model's folder {str(root)!r}; move "
            "the file beside the model and save the model with a relative location"
        )
    try:
        offset = int(entries.get("offset") or 0)
        size = file.stat().st_size if file.is_file() else None
        length = int(entries["length"]) if entries.get("length") else max(0, (size or 0) - offset)
    except ValueError:
        raise ValueError(f"the offset or length of {location!r} is no number") from None
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    if size is None:
        raise ValueError(f"there is no file {str(file)!r}; it must lie beside the model")
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(
            f"it needs bytes {offset} to {offset + length} of {str(file)!r}, which has {size}; the "
            "file is of another model or was not copied whole"
        )
    return ExternalFile(tensor.name, location, file, offset, length)


def graphs_of(model: Any) -> Iterator[Any]:
    """The graph of an ``onnx.ModelProto`` and every graph within it."""
    yield from _with_inner_graphs(model.graph)


def tensors_of(model: Any) -> Iterator[Any]:
    """Every tensor of an ``onnx.ModelProto``: weights and attributes, graphs within included."""
    training = [graph for t in model.training_info for graph in (t.initialization, t.algorithm)]
    for outermost in (model.graph, *training):
        for graph in _with_inner_graphs(outermost):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            yield from _attribute_tensors(graph.node)
    for function in model.functions:
        yield from _attribute_tensors(function.node)
        for node in function.node:
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    for inner in _with_inner_graphs(graph):
                        yield from inner.initializer
                        yield from _attribute_tensors(inner.node)


def _with_inner_graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_inner_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _with_inner_graphs(inner)


def _attribute_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
