"""Reading the ONNX model that an engine is built from, and the files that its weights are in.

What is in the model is TensorRT's business, except for the paths of external data: TensorRT opens
whatever they name, so they are checked before it sees them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import InputError, ModelError

#: The key that the location of every external tensor has (onnx.proto).
_LOCATION = re.compile(b"location")

#: What every reader of ONNX takes for a number, and no more than fits an int64.
_NUMBER = re.compile("[0-9]{1,18}", re.ASCII)

#: Fields of onnx.proto, by number.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9

#: Weights of fewer bytes are searched as well: finding where they end takes longer.
_FEW_BYTES = 4096


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
        with reading(path):
            return path.read_bytes(), str(path)
    serialize = getattr(model, "SerializeToString", None)
    if serialize is None:
        raise InputError(
            f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}"
        )
    return bytes(serialize()), None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises `ModelError` for what goes wrong in reading the model at that path."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(
            f"there is no ONNX model {str(path)!r} (in {os.getcwd()!r}); check the path"
        ) from None
    except (OSError, ValueError) as error:  # the latter of a path with a zero byte
        raise ModelError(f"the ONNX model {str(path)!r} cannot be read: {error}") from error


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


def external_files(
    model: bytes | memoryview, path: str | os.PathLike[str] | None
) -> tuple[ExternalFile, ...]:
    """What a serialised model keeps in other files, in the model's order.

    Parameters
    ----------
    model : bytes or memoryview
    path : path or None
        Where the model was read from; the files lie in that folder or below it.

    Raises
    ------
    ModelError
        A file is missing or too short, or its path leads out of the model's folder; or there is
        external data and no path. ``problems`` has a line for each tensor.
    """
    if not _may_have_external_data(model):
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


def resolved(location: str, folder: Path) -> Path:
    """The file at that location of a model in that folder, absolute and without links."""
    return (folder / location).resolve()


def _external_file(tensor: Any, folder: Path) -> ExternalFile:
    """Where that tensor's data is; raises ValueError, with the reason, unless it may be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(value, str) for value in entries.values()):
        raise ValueError(f"its external data {entries} is not in UTF-8")  # protobuf shows bytes
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise ValueError(f"its location {location!r} is no path")
    # Windows takes both separators, and a model is to mean the same wherever it is built.
    outside = PureWindowsPath(location).anchor or ".." in re.split(r"[\\/]", location)
    root = folder.resolve()
    try:
        file = resolved(location, root)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"its location {location!r} cannot be followed: {error}") from None
    if outside or not file.is_relative_to(root):
        leads = "" if outside else f", a link to {str(file)!r},"
        raise ValueError(
            f"its location {location!r}{leads} leads out of the model's folder {str(root)!r}; move "
            "the file beside the model and save the model with a relative location"
        )
    try:
        offset = _bytes(entries.get("offset", "0"))
        size = file.stat().st_size if file.is_file() else None
        length = _bytes(entries["length"]) if "length" in entries else max(0, (size or 0) - offset)
    except ValueError:
        raise ValueError(f"the offset or length of {location!r} is no number") from None
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    if size is None:
        raise ValueError(f"there is no file {str(file)!r}; it must lie beside the model")
    if offset + length > size:
        raise ValueError(
            f"it needs bytes {offset} to {offset + length} of {str(file)!r}, which has {size}; the "
            "file is of another model or was not copied whole"
        )
    return ExternalFile(tensor.name, location, file, offset, length)


def _bytes(text: str) -> int:
    """A number of bytes; raises ValueError for what only Python takes for one, such as "1_0"."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _may_have_external_data(model: bytes | memoryview) -> bool:
    """Whether a serialised model may have external data; sure when it says no.

    Not parsed, which takes seconds for a large one: the key of every location is looked for
    wherever there are no weights.
    """
    start = 0
    try:
        for weights in _weights(model):
            if _LOCATION.search(model, start, weights.start):
                return True
            start = weights.stop
    except ValueError:  # of what does not look as it should, the rest is searched
        pass
    return _LOCATION.search(model, start) is not None


def _weights(model: bytes | memoryview) -> Iterator[range]:
    """Where the outermost graph's initializers have their raw data, in order.

    Raises
    ------
    ValueError
        Not serialised as protobuf does it.
    """
    for number, graph in _fields(model, range(len(model))):
        if number != _MODEL_GRAPH:
            continue
        for number, tensor in _fields(model, graph):
            if number != _GRAPH_INITIALIZER or len(tensor) < _FEW_BYTES:
                continue
            for number, data in _fields(model, tensor):
                if number == _TENSOR_RAW_DATA:
                    yield data


def _fields(data: bytes | memoryview, within: range) -> Iterator[tuple[int, range]]:
    """The length-delimited fields of a serialised message: their numbers, and where they are.

    See protobuf.dev/programming-guides/encoding. Raises ValueError for what is not encoded so, and
    for groups, which ONNX does not use.
    """
    at, end = within.start, within.stop
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError("a field is longer than its message")
            yield number, range(at, at + size)
            at += size
        elif wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("a field is longer than its message")


def _varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


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
