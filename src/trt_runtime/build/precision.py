"""Making an ONNX model's own types what a strongly typed TensorRT is to compute in.

A weakly typed TensorRT (8.6, 10) is told which types it may choose; a strongly typed one (11, RTX)
follows the model, so the model is rewritten: `reduced` computes in float16 or bfloat16, and
`with_io_types` changes what goes in and comes out. `quantisation` says what a model quantises to.

Everything here maps a serialised model to another; nothing knows TensorRT.

onnxconverter-common 1.16 was tried first. It leaves a model invalid where two unnamed nodes share
an input, where an ``If`` reads from outside, and for three of four of the onnx package's light
networks; and it knows no bfloat16.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from ..errors import InputError, ModelError
from .model import external_files, graphs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("trt_runtime")

Reduced = Literal["float16", "bfloat16"]

#: ``onnx.TensorProto`` element types, by NumPy's names.
_ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "bfloat16": 16,
    "float8_e4m3fn": 17,
}
_FLOAT = _ELEMENT_TYPES["float32"]
_FLOAT8 = range(17, 21)  # FLOAT8E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ
_INT8 = (2, 3)

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895314e38}

#: Operators that stay in float32: their results overflow, cancel or lose small terms in 16 bits, or
#: they draw random numbers, decide by the last bit, or quantise.
_KEPT = frozenset(
    {
        "Bernoulli", "Cast", "CastLike", "CumSum", "DequantizeLinear", "DynamicQuantizeLinear",
        "Exp", "Log", "LpNormalization", "MeanVarianceNormalization", "Multinomial",
        "NonMaxSuppression", "Pow", "QuantizeLinear", "RandomNormal", "RandomNormalLike",
        "RandomUniform", "RandomUniformLike", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "RoiAlign",
        "Softplus",
    }
)  # fmt: skip

#: Inputs that stay in float32 although ONNX allows another type: coordinates, not data.
_KEPT_INPUTS = frozenset({("Resize", 1), ("Resize", 2), ("Upsample", 1)})

#: float16 stands for both: ONNX admits bfloat16 later, operator by operator (Conv in opset 22), and
#: TensorRT takes it wherever it takes float16 (built with RTX 1.7.1: Conv of opset 17).
_SMALL_TYPE = "tensor(float16)"


def reduced(
    model: bytes,
    path: str | os.PathLike[str] | None,
    to: Reduced,
    *,
    reduced_io: bool = False,
    keep: Sequence[str] = (),
) -> bytes:
    """The model with its float32 arithmetic in ``to``; everything else stays as it is.

    Weights that only converted nodes use are converted under their own names; finite values beyond
    the type's range become its largest. These stay in float32: operators that 16 bits are known to
    spoil, shape arithmetic, nodes with graphs of their own (``If``, ``Loop``, ``Scan``) and all in
    them, operators that ONNX does not define, and what multiplies or adds a number so small that it
    would become zero.

    Parameters
    ----------
    model : bytes
    path : path or None
        Where external data is beside; it is read into the result.
    to : "float16" or "bfloat16"
    reduced_io : bool
        Give float32 inputs and outputs that type too.
    keep : sequence of str
        Nodes that stay in float32 as well, by patterns of their names.

    Raises
    ------
    ModelError
        It is no ONNX model, or the result is larger than the 2 GiB that one can have.
    """
    proto = _load(model, path)
    _Reduction(proto, to, reduced_io, matching(keep)).run()
    return _serialize(proto)


def with_io_types(
    model: bytes, path: str | os.PathLike[str] | None, types: Mapping[str, str]
) -> bytes:
    """The model with inputs and outputs of those dtypes, cast from and to its own.

    Raises
    ------
    InputError
        A name is neither an input nor an output.
    ModelError
        As `reduced`.
    """
    from onnx import helper

    proto = _load(model, path)
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    outputs = {value.name: value for value in graph.output}
    unknown = sorted(set(types) - set(inputs) - set(outputs))
    if unknown:
        raise InputError(
            f"io_types names {', '.join(map(repr, unknown))}, but the model's inputs and outputs "
            f"are {', '.join(map(repr, [*inputs, *outputs]))}"
        )
    names = _Names(proto)
    before, after = [], []
    for name, dtype in types.items():
        value = inputs.get(name) or outputs[name]
        own, wanted = value.type.tensor_type.elem_type, _ELEMENT_TYPES[dtype]
        if own == wanted:
            continue
        value.type.tensor_type.elem_type = wanted
        inner = names.new(f"{name}/own")
        _rename(graph, {name: inner}, outputs=name not in inputs)
        cast = {"name": names.new(f"{name}/cast")}
        if name in inputs:
            before.append(helper.make_node("Cast", [name], [inner], to=own, **cast))
        else:
            after.append(helper.make_node("Cast", [inner], [name], to=wanted, **cast))
    _replace_nodes(graph, [*before, *graph.node, *after])
    return _serialize(proto)


def matching(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is one of those that the patterns, of `fnmatch`, are for."""
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def check_names(model: bytes, patterns: Sequence[str]) -> None:
    """Raise unless each pattern is for a node.

    Raises
    ------
    InputError
        One is for none.
    """
    import onnx

    try:
        graphs = list(graphs_of(onnx.ModelProto.FromString(model)))
    except Exception:  # the parser will say what is wrong with it
        return
    names = [node.name for graph in graphs for node in graph.node if node.name]
    idle = [p for p in patterns if not any(map(matching([p]), names))]
    if idle:
        shown = ", ".join(map(repr, names[:3])) + ("" if len(names) <= 3 else " and others")
        raise InputError(
            f"float32_layers: no node of the model is called {' or '.join(map(repr, idle))}; its "
            f"{len(names)} named nodes are {shown}"
            if names
            else "float32_layers: the model's nodes have no names"
        )


def quantisation(model: bytes) -> frozenset[str]:
    """What QuantizeLinear and DequantizeLinear nodes make of numbers: ``"int8"``, ``"fp8"``."""
    if b"uantizeLinear" not in model:
        return frozenset()
    import onnx

    try:
        graphs = list(graphs_of(onnx.ModelProto.FromString(model)))
    except Exception:  # the parser will say what is wrong with it
        return frozenset()
    types = {t.name: t.data_type for graph in graphs for t in graph.initializer}
    types |= {
        node.output[0]: attribute.t.data_type
        for graph in graphs
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    found = set()
    for node in (node for graph in graphs for node in graph.node):
        if node.op_type in ("TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear"):
            found.add("fp8")
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            stated = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
            zero = types.get(node.input[2]) if len(node.input) > 2 else None
            element = stated[0] if node.op_type == "QuantizeLinear" and stated else zero
            found.add("fp8" if element in _FLOAT8 else "int8" if element in _INT8 else "other")
            if element is None:  # without a zero point: unsigned 8 bits (onnx, QuantizeLinear)
                found.add("int8")
    return frozenset(found - {"other"})


# Reading and writing ----------------------------------------------------------------------------


def _load(model: bytes, path: str | os.PathLike[str] | None) -> Any:
    import onnx

    outside = external_files(model, path)
    try:
        proto = onnx.ModelProto.FromString(model)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(
            "cannot parse the ONNX model", problems=[f"its bytes are no ONNX: {error}"]
        ) from None
    if outside:
        from onnx.external_data_helper import load_external_data_for_model

        load_external_data_for_model(proto, str(Path(path or ".").parent.resolve()))
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    proto.ir_version = max(proto.ir_version, 4)  # below, weights have to be inputs as well
    return proto


def _serialize(proto: Any) -> bytes:
    try:
        data: bytes = proto.SerializeToString()
        return data
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(
            "the converted model is larger than the 2 GiB that a serialised ONNX model can have; "
            "convert it yourself, save it with external data, and build it with "
            f"precision='as-typed' ({error})"
        ) from None


def _replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _rename(graph: Any, names: Mapping[str, str], *, outputs: bool) -> None:
    """Rename tensors where nodes read them, in graphs within too, and where they are made."""
    for node in graph.node:
        _rename_inputs(node, names)
        if outputs:
            node.output[:] = [names.get(name, name) for name in node.output]


def _rename_inputs(node: Any, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    for inner in _inner(node):
        for value in inner.output:  # an outer tensor may be handed out as it is
            value.name = names.get(value.name, value.name)
        for within in inner.node:
            _rename_inputs(within, names)


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _read_by(node: Any) -> set[str]:
    """Names of outer tensors that the graphs within a node read."""
    names: set[str] = set()
    for graph in _inner(node):
        made = {value.name for value in graph.input} | {t.name for t in graph.initializer}
        read = {value.name for value in graph.output}
        for within in graph.node:
            read |= set(within.input) | _read_by(within)
            made |= set(within.output)
        names |= read - made
    return names - {""}


class _Names:
    """Names that no tensor or node of a model has."""

    def __init__(self, proto: Any) -> None:
        self._taken = {""}
        for graph in graphs_of(proto):
            self._taken |= {v.name for v in (*graph.input, *graph.output, *graph.value_info)}
            self._taken |= {tensor.name for tensor in graph.initializer}
            for node in graph.node:
                self._taken |= {node.name, *node.input, *node.output}

    def new(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}.{number}"
        self._taken.add(name)
        return name


# Converting to 16 bits --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which inputs and outputs of a node, by position, are of the smaller type."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


class _Reduction:
    """One conversion: decide for each node, then write nodes, weights and casts anew.

    Every float32 tensor of the model may come to exist in two types. ``self._versions[name]`` says
    under which name it has which.
    """

    def __init__(
        self, proto: Any, to: Reduced, reduced_io: bool, keeps: Callable[[str], bool]
    ) -> None:
        self._keeps = keeps
        self._proto = proto
        self._graph = proto.graph
        self._to = to
        self._small = _ELEMENT_TYPES[to]
        self._dtype = np.dtype(np.float16 if to == "float16" else ml_dtypes.bfloat16)
        self._border = self._small if reduced_io else _FLOAT
        self._names = _Names(proto)
        self._versions: dict[str, dict[int, str]] = {}
        self._nodes: list[Any] = []

    def run(self) -> None:
        graph = self._graph
        self._constants_to_weights()
        self._types = self._element_types()
        self._of_shapes = self._tensors_of_shapes()
        weights = {tensor.name: tensor for tensor in graph.initializer}
        self._too_small = {
            name
            for name, tensor in weights.items()
            if tensor.data_type == _FLOAT and self._vanishes(tensor)
        }
        plans = []
        for node in graph.node:
            self._deduce_types(node)
            plans.append(self._plan(node))
        for value in graph.input:
            if value.name not in weights and value.type.tensor_type.elem_type == _FLOAT:
                value.type.tensor_type.elem_type = self._border
                self._versions[value.name] = {self._border: value.name}
        self._convert_weights(weights, plans)
        outputs = {value.name for value in graph.output}
        for node, plan in zip(list(graph.node), plans, strict=True):
            self._rewrite(node, plan, outputs)
        for value in graph.output:
            if value.type.tensor_type.elem_type == _FLOAT and value.name in self._versions:
                value.type.tensor_type.elem_type = self._border
        inputs = [value for value in graph.input if value.name not in weights]
        del graph.input[:]
        graph.input.extend(inputs)
        del graph.value_info[:]  # the types in it are the old ones, and it is optional
        _replace_nodes(graph, self._nodes)

    def _constants_to_weights(self) -> None:
        """Constant nodes of float32 as weights, so that they can be converted as these are."""
        from onnx import numpy_helper

        kept = []
        for node in self._graph.node:
            attribute = node.attribute[0] if node.op_type == "Constant" else None
            if attribute is None or attribute.name not in ("value", "value_float", "value_floats"):
                kept.append(node)
            elif attribute.name == "value":
                if attribute.t.data_type != _FLOAT:
                    kept.append(node)
                    continue
                tensor = self._graph.initializer.add()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
            else:
                value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                array = np.asarray(value, np.float32)
                self._graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        _replace_nodes(self._graph, kept)

    def _element_types(self) -> dict[str, int]:
        """The element type of every tensor that is known to have one."""
        from onnx import shape_inference

        try:
            graph = shape_inference.infer_shapes(self._proto).graph
        except Exception as error:  # unknown operators, or more than 2 GiB
            logger.debug("ONNX shape inference failed: %s", error)
            graph = self._graph
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        types |= {tensor.name: tensor.data_type for tensor in self._graph.initializer}
        return types

    def _deduce_types(self, node: Any) -> None:
        """Add the types of outputs that must have an input's, where inference gave up."""
        schema = self._schema(node)
        if schema is None or all(name in self._types for name in node.output if name):
            return
        variables = {}
        for position, name in enumerate(node.input):
            formal = _formal(schema.inputs, position)
            if name in self._types and formal is not None:
                variables[formal.type_str] = self._types[name]
        for position, name in enumerate(node.output):
            formal = _formal(schema.outputs, position)
            if name and formal is not None and formal.type_str in variables:
                self._types.setdefault(name, variables[formal.type_str])

    def _tensors_of_shapes(self) -> set[str]:
        """Tensors computed from nothing but shapes and constants; rounding them would be wrong."""
        constant = {tensor.name for tensor in self._graph.initializer} | {""}
        found: set[str] = set()
        for node in self._graph.node:
            read = {*node.input, *_read_by(node)} - constant
            if node.op_type in ("Shape", "Size") or (read and read <= found):
                found |= set(node.output)
            elif not read and not list(_inner(node)):
                constant |= set(node.output)
        return found

    def _vanishes(self, tensor: Any) -> bool:
        """Whether a weight is one number that becomes zero, as an epsilon of 1e-12 in float16."""
        if int(np.prod(tensor.dims)) != 1:
            return False
        array = _array(tensor)
        return bool(np.any((array != 0) & (array.astype(self._dtype).astype(np.float32) == 0)))

    def _plan(self, node: Any) -> _Plan:
        """What of the node is computed in the smaller type; nothing, where that would be wrong."""
        if (
            node.op_type in _KEPT
            or self._keeps(node.name)
            or any(True for _ in _inner(node))
            or self._of_shapes.intersection(node.output)
            or self._too_small.intersection(node.input)
        ):
            return _Plan()
        schema = self._schema(node)
        if schema is None:
            return _Plan()
        inputs, variables = set(), set()
        for position, name in enumerate(node.input):
            formal = _formal(schema.inputs, position)
            if not name or formal is None:
                continue
            if name not in self._types and "tensor(float)" in formal.types:
                return _Plan()  # it may be float32 or not
            takes = _SMALL_TYPE in formal.types and (node.op_type, position) not in _KEPT_INPUTS
            if self._types.get(name) == _FLOAT and takes:
                inputs.add(position)
                variables.add(formal.type_str)
        outputs = set()
        for position, name in enumerate(node.output):
            formal = _formal(schema.outputs, position)
            if name and formal is not None and formal.type_str in variables:
                outputs.add(position)
        return _Plan(frozenset(inputs), frozenset(outputs))

    def _schema(self, node: Any) -> Any:
        """What ONNX says of the operator; None for one that it does not define."""
        import onnx

        if node.domain not in ("", "ai.onnx"):
            return None
        opset = next(
            (o.version for o in self._proto.opset_import if o.domain in ("", "ai.onnx")), 1
        )
        try:
            return onnx.defs.get_schema(node.op_type, opset, "")
        except Exception:  # onnx.defs.SchemaError: an operator of a plugin
            return None

    def _convert_weights(self, weights: Mapping[str, Any], plans: Sequence[_Plan]) -> None:
        wanted: dict[str, set[int]] = {name: set() for name in weights}
        for node, plan in zip(self._graph.node, plans, strict=True):
            for position, name in enumerate(node.input):
                if name in wanted:
                    wanted[name].add(self._small if position in plan.inputs else _FLOAT)
            for name in _read_by(node):
                if name in wanted:
                    wanted[name].add(_FLOAT)
        handed_out = {value.name for value in self._graph.output}
        for name, tensor in weights.items():
            if tensor.data_type != _FLOAT or self._small not in wanted[name]:
                continue
            both = _FLOAT in wanted[name] or name in handed_out
            target = self._graph.initializer.add() if both else tensor
            small = self._names.new(f"{name}/{self._to}") if both else name
            self._store(self._clamped(_array(tensor), name), list(tensor.dims), target, small)
            self._versions[name] = {self._small: small} | ({_FLOAT: name} if both else {})

    def _clamped(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        limit = np.float32(_LARGEST[self._to])
        outside = np.isfinite(array) & (np.abs(array) > limit)
        if outside.any():
            logger.warning(
                "%d of %d values of %r are beyond the range of %s and were set to its largest, %g",
                int(outside.sum()), array.size, name, self._to, float(limit),
            )  # fmt: skip
            array = np.where(outside, np.copysign(limit, array), array)
        return array.astype(self._dtype)

    def _store(self, array: NDArray[Any], dims: list[int], tensor: Any, name: str) -> None:
        tensor.Clear()
        tensor.name = name
        tensor.data_type = self._small
        tensor.dims.extend(dims)
        tensor.raw_data = array.view(np.uint16).astype("<u2").tobytes()

    def _rewrite(self, node: Any, plan: _Plan, handed_out: set[str]) -> None:
        """Append the node, with casts before it for what it reads and after it for the border."""
        captured = {name: self._version(name, _FLOAT) for name in _read_by(node)}
        if any(name != now for name, now in captured.items()):
            for inner in _inner(node):
                _rename(inner, captured, outputs=False)
                for value in inner.output:
                    value.name = captured.get(value.name, value.name)
        node.input[:] = [
            self._version(name, self._small if position in plan.inputs else _FLOAT)
            for position, name in enumerate(node.input)
        ]
        self._nodes.append(node)
        for position, name in enumerate(node.output):
            made = self._small if position in plan.outputs else _FLOAT
            if not name or self._types.get(name) != _FLOAT:
                continue
            self._versions[name] = {made: name}
            if name in handed_out and made != self._border:
                inner_name = self._names.new(f"{name}/{self._type_name(made)}")
                node.output[position] = inner_name
                self._versions[name] = {made: inner_name}
                self._cast(inner_name, name, self._border)
                self._versions[name][self._border] = name

    def _version(self, name: str, element: int) -> str:
        """The tensor's name in that type, cast now if it has only the other."""
        versions = self._versions.get(name)
        if versions is None:  # not a float32 tensor, or one that nothing reads in another type
            return name
        if element not in versions:
            (other,) = versions.values()
            versions[element] = self._names.new(f"{name}/{self._type_name(element)}")
            self._cast(other, versions[element], element)
        return versions[element]

    def _type_name(self, element: int) -> str:
        return "float32" if element == _FLOAT else self._to

    def _cast(self, source: str, target: str, to: int) -> None:
        from onnx import helper

        name = self._names.new(f"{target}/cast")
        self._nodes.append(helper.make_node("Cast", [source], [target], name=name, to=to))


def _array(tensor: Any) -> NDArray[Any]:
    from onnx import numpy_helper

    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array


def _formal(formals: Sequence[Any], position: int) -> Any:
    """The schema's parameter at a position; the last one may stand for several."""
    if position < len(formals):
        return formals[position]
    variadic = formals and str(formals[-1].option).endswith("Variadic")
    return formals[-1] if variadic else None
