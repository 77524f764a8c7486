"""What shapes depend on: which inputs decide them by value, and which only computed data can tell.

Every tensor has two sets of sources: those of its value and those of its shape. A source is the
name of a network input small enough to be a shape tensor, or `DATA`, which stands for anything
computed on the device. ``Shape`` turns the sources of a shape into sources of a value; an operand
such as the second of ``Reshape`` turns the sources of its value into sources of a shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .enums import DataType
from .model import Tensor, opset_version, subgraphs

DATA = "<computed on the device>"

SHAPE_TENSOR_TYPES = frozenset({DataType.INT32, DataType.INT64, DataType.BOOL})

DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})
"""Operators whose output shape is known only after they ran."""

_SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}


@dataclass(frozen=True)
class Sources:
    """Where the value and the shape of one tensor come from."""

    value: frozenset[str] = frozenset()
    shape: frozenset[str] = frozenset()

    def __or__(self, other: Sources) -> Sources:
        return Sources(self.value | other.value, self.shape | other.shape)


CONSTANT = Sources()


@dataclass(frozen=True)
class Dependence:
    """What the shapes of a network depend on."""

    shape_tensors: frozenset[str]
    """Inputs whose values decide shapes."""

    data_dependent: frozenset[str]
    """Outputs whose shape may be known only after execution."""


def analyse(model: Any, tensors: Iterable[Tensor]) -> Dependence:
    """Trace values and shapes through the model, once, in its topological order."""
    tensors = list(tensors)
    walk = _Walk(opset_version(model))
    known = {t.name: Sources(value=frozenset({_source(t)})) for t in tensors if t.is_input}
    results = walk.graph(model.graph, known)
    outputs = [value.name for value in model.graph.output]
    data_dependent = {n for n, s in zip(outputs, results, strict=True) if DATA in s.shape}
    return Dependence(frozenset(walk.shape_tensors), frozenset(data_dependent))


def _source(tensor: Tensor) -> str:
    small = len(tensor.dims) <= 1 and not tensor.is_dynamic
    return tensor.name if small and tensor.data_type in SHAPE_TENSOR_TYPES else DATA


def _shape_operands(operator: str, opset: int) -> tuple[int, ...]:
    if operator.startswith("Reduce"):
        return (1,)
    if operator == "Resize" and opset < 11:
        return (1,)
    return _SHAPE_OPERANDS.get(operator, ())


class _Walk:
    def __init__(self, opset: int) -> None:
        self._opset = opset
        self.shape_tensors: set[str] = set()

    def graph(self, graph: Any, known: Mapping[str, Sources]) -> list[Sources]:
        """Return the sources of a graph's outputs; `known` has its inputs and the outer scopes."""
        scope = dict(known)
        for node in graph.node:
            for name, sources in zip(node.output, self._node(node, scope), strict=True):
                scope[name] = sources
        return [scope.get(value.name, CONSTANT) for value in graph.output]

    def _node(self, node: Any, scope: Mapping[str, Sources]) -> list[Sources]:
        operands = [scope.get(name, CONSTANT) for name in node.input]
        shape = frozenset[str]().union(
            *(o.shape for o in operands), self._operands_that_decide_shape(node, operands)
        )
        if any(True for _ in subgraphs(node)):
            return [
                Sources(s.value, s.shape | shape) for s in self._control_flow(node, operands, scope)
            ]
        if node.op_type in ("Shape", "Size"):
            return [Sources(value=shape)] * len(node.output)
        if node.op_type in DATA_DEPENDENT:
            data = frozenset({DATA})
            return [Sources(data, shape | data)] * len(node.output)
        value = frozenset[str]().union(*(o.value for o in operands))
        return [Sources(value, shape)] * len(node.output)

    def _operands_that_decide_shape(self, node: Any, operands: list[Sources]) -> frozenset[str]:
        deciding = frozenset[str]()
        for slot in _shape_operands(node.op_type, self._opset):
            if slot < len(operands):
                sources = operands[slot].value
                # A value that also depends on computed data cannot be had on the host.
                if DATA not in sources:
                    self.shape_tensors |= sources
                deciding |= sources
        return deciding

    def _control_flow(
        self, node: Any, operands: list[Sources], scope: Mapping[str, Sources]
    ) -> list[Sources]:
        results = [CONSTANT] * len(node.output)
        for body in subgraphs(node):
            carried = dict(zip((value.name for value in body.input), operands, strict=False))
            if node.op_type == "Loop":
                carried[body.input[0].name] = CONSTANT
            # What a loop carries round can only gain sources, so this ends.
            while True:
                outputs = self.graph(body, {**scope, **carried})
                if node.op_type not in ("Loop", "Scan"):
                    break
                first = 1 if node.op_type == "Loop" else 0
                names = [value.name for value in body.input][first:]
                grown = {
                    name: carried.get(name, CONSTANT) | sources
                    for name, sources in zip(names, outputs, strict=False)
                }
                if all(carried.get(name) == sources for name, sources in grown.items()):
                    break
                carried.update(grown)
            produced = outputs[1:] if node.op_type == "Loop" else outputs
            results = [result | sources for result, sources in zip(results, produced, strict=False)]
        condition = operands[0] if node.op_type == "If" else CONSTANT
        return [Sources(r.value | condition.value, r.shape) for r in results]


def with_shape_tensors(tensors: Iterable[Tensor], shape_tensors: frozenset[str]) -> list[Tensor]:
    """Return the tensors with those marked whose values decide shapes."""
    return [
        Tensor(t.name, t.is_input, t.data_type, t.dims, t.dim_names, t.name in shape_tensors)
        for t in tensors
    ]
