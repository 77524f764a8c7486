"""An ONNX model as a network: what it needs and offers, and what is wrong with it.

Reading, external weights, unknown operators, and the tensors at the border. Shapes that follow
from other shapes are in `shapes`, execution is in `executable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .datatypes import ONNX_TYPES
from .enums import DataType, ErrorCode

ONNX_DOMAINS = ("", "ai.onnx")
ONNXRUNTIME_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


@dataclass(frozen=True)
class Tensor:
    """One network input or output; an unknown dimension is -1."""

    name: str
    is_input: bool
    data_type: DataType
    dims: tuple[int, ...]
    dim_names: tuple[str, ...] = ()
    is_shape_tensor: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether some dimension is unknown until run time."""
        return -1 in self.dims

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tensor:
        """Rebuild a tensor from a plan's header."""
        return cls(
            name=values["name"],
            is_input=values["is_input"],
            data_type=DataType(values["data_type"]),
            dims=tuple(values["dims"]),
            dim_names=tuple(values["dim_names"]),
            is_shape_tensor=values["is_shape_tensor"],
        )

    def check(self) -> None:
        """Raise unless everything is of its type, as it may not be in a forged plan."""
        sizes = all(type(n) is int and -1 <= n < 2**63 for n in self.dims)
        if not sizes or not isinstance(self.name, str):
            raise ValueError(f"no tensor: {self}")


@dataclass(frozen=True)
class Problem:
    """One reason why a model is refused; the node index is -1 when no node is to blame."""

    code: ErrorCode
    description: str
    node: int = -1
    node_name: str = ""
    operator: str = ""


class ModelRefused(ValueError):
    """A model that cannot become a network."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.description for problem in problems))
        self.problems = problems


def read_model(data: bytes, path: str | None) -> Any:
    """Return the model, with functions inlined and the weights loaded that lie beside `path`.

    Raises
    ------
    ModelRefused
        With every problem that was found.
    """
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's, which has no public name in onnx
        raise ModelRefused(
            Problem(ErrorCode.MODEL_DESERIALIZE_FAILED, f"Failed to parse ONNX model: {error}")
        ) from None
    if not model.HasField("graph") or not model.opset_import:
        raise ModelRefused(
            Problem(
                ErrorCode.MODEL_DESERIALIZE_FAILED,
                f"Failed to parse ONNX model: {len(data)} bytes hold no graph with an opset",
            )
        )
    _load_external_weights(model, path)
    if problems := list(unknown_operators(model)):
        raise ModelRefused(*problems)
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    return model


def layer_name(node: Any) -> str:
    """Return the node's name, or one made from its first output as TensorRT's parser does."""
    name: str = node.name
    return name or f"node_of_{next(iter(node.output), '')}"


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs that a control-flow node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: Any) -> Iterator[Any]:
    """Yield `graph` and every graph nested in it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def opset_version(model: Any) -> int:
    """Return the version of the ONNX operator set that the model imports."""
    versions = [o.version for o in model.opset_import if o.domain in ONNX_DOMAINS]
    return max(versions, default=1)


def unknown_operators(model: Any) -> Iterator[Problem]:
    """Yield a problem for each node whose operator nothing here implements."""
    import onnx

    opsets = {o.domain: o.version for o in model.opset_import}
    functions = {(f.domain, f.name) for f in model.functions}

    def is_known(node: Any) -> bool:
        if node.domain in ONNXRUNTIME_DOMAINS or (node.domain, node.op_type) in functions:
            return True
        domain = "" if node.domain in ONNX_DOMAINS else node.domain
        version = opset_version(model) if domain == "" else opsets.get(domain, 1)
        return bool(onnx.defs.has(node.op_type, version, domain))

    bodies = [g.node for g in all_graphs(model.graph)]
    for function in model.functions:
        bodies.append(function.node)
        bodies += [g.node for node in function.node for s in subgraphs(node) for g in all_graphs(s)]
    for nodes in bodies:
        for index, node in enumerate(nodes):
            if not is_known(node):
                domain = node.domain or "ai.onnx"
                yield Problem(
                    ErrorCode.UNSUPPORTED_NODE,
                    f"No importer registered for op: {node.op_type} (domain {domain})",
                    index,
                    layer_name(node),
                    node.op_type,
                )


def border_tensors(model: Any) -> list[Tensor]:
    """Return the network's inputs, then its outputs, in the model's order.

    Raises
    ------
    ModelRefused
        An input or output is no tensor, has no rank, or has a type that TensorRT does not take.
    """
    graph = model.graph
    weights = {w.name for w in graph.initializer} | {
        w.values.name for w in graph.sparse_initializer
    }
    inputs = [value for value in graph.input if value.name not in weights]
    names = {value.name for value in inputs}
    tensors: list[Tensor] = []
    problems: list[Problem] = []
    for value, is_input in [(v, True) for v in inputs] + [(v, False) for v in graph.output]:
        twice = not is_input and value.name in names
        reason = "is an input or another output as well" if twice else _border_problem(value)
        if reason is None:
            tensors.append(_border_tensor(value, is_input))
        else:
            kind = "input" if is_input else "output"
            description = f"Network {kind} {value.name!r} {reason}"
            problems.append(Problem(ErrorCode.UNSUPPORTED_NODE_DATATYPE, description))
        names.add(value.name)
    if not graph.output:
        problems.append(Problem(ErrorCode.INVALID_GRAPH, "The network has no outputs"))
    if problems:
        raise ModelRefused(*problems)
    return tensors


def _border_problem(value: Any) -> str | None:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"is not a tensor but {kind or 'untyped'}"
    element = value.type.tensor_type.elem_type
    if element not in ONNX_TYPES:
        known = element in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(element) if known else element
        return f"has the unsupported type {name}"
    if not value.type.tensor_type.HasField("shape"):
        return "has no rank"
    return None


def _border_tensor(value: Any, is_input: bool) -> Tensor:
    dims = value.type.tensor_type.shape.dim
    return Tensor(
        name=value.name,
        is_input=is_input,
        data_type=ONNX_TYPES[value.type.tensor_type.elem_type],
        dims=known_dims(dims),
        dim_names=tuple(d.dim_param for d in dims),
    )


def known_dims(dims: Any) -> tuple[int, ...]:
    """Return the sizes of ONNX dimensions, -1 for those that have only a name or nothing."""
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in dims)


def _load_external_weights(model: Any, path: str | None) -> None:
    import onnx.external_data_helper as external

    # onnx names its walk over every tensor of a model, attributes included, with an underscore.
    tensors = [t for t in external._get_all_tensors(model) if external.uses_external_data(t)]
    if not tensors:
        return
    if path is None:
        raise ModelRefused(
            Problem(
                ErrorCode.MODEL_DESERIALIZE_FAILED,
                f"Weights {tensors[0].name!r} are in another file, and the model's path is unknown",
            )
        )
    folder = Path(path).parent.resolve()
    for tensor in tensors:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if not (folder / location).resolve().is_relative_to(folder):
            raise ModelRefused(
                Problem(
                    ErrorCode.INVALID_VALUE,
                    f"Weights {tensor.name!r} are at {location!r}, outside of the folder {folder}",
                )
            )
        try:
            external.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # onnx raises OSError, ValueError and its checker's own
            raise ModelRefused(
                Problem(
                    ErrorCode.MODEL_DESERIALIZE_FAILED,
                    f"Failed to load the weights {tensor.name!r} from {folder / location}: {error}",
                )
            ) from error
        tensor.ClearField("data_location")
        del tensor.external_data[:]
