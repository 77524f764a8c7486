"""The ONNX parser: turns a model into a network, or into errors that say which node is to blame."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ....errors import NoTensorRTError
from .enums import ErrorCode, OnnxParserFlag
from .executable import Executable
from .interfaces import ILogger
from .model import (
    ModelRefused,
    Problem,
    Tensor,
    all_graphs,
    border_tensors,
    layer_name,
    read_model,
)
from .network import INetworkDefinition
from .seam import Platform, TensorRTObject, frameless, refuse_construction
from .shapes import with_inferred_outputs


class ParserError:
    """One reason why a model was refused."""

    def __init__(self, problem: Problem, function: str) -> None:
        self._problem = problem
        self._function = function

    def code(self) -> ErrorCode:
        return self._problem.code

    def desc(self) -> str:
        return self._problem.description

    def node(self) -> int:
        """Return the index of the node in the graph, or -1."""
        return self._problem.node

    def node_name(self) -> str:
        return self._problem.node_name

    def node_operator(self) -> str:
        return self._problem.operator

    def file(self) -> str:
        return Path(__file__).name

    def func(self) -> str:
        return self._function

    def line(self) -> int:
        return 0

    def local_function_stack(self) -> list[str]:
        return []

    def local_function_stack_size(self) -> int:
        return 0

    def __str__(self) -> str:
        where = f"In node {self.node()} with name: {self.node_name()} and operator: "
        where += f"{self.node_operator()} ({self.func()}): "
        return f"{where if self.node() >= 0 else ''}{self.code().name}: {self.desc()}"

    __repr__ = __str__


class OnnxParser(TensorRTObject):
    """Fills one network from one model."""

    def __init__(self, trt: Platform, network: INetworkDefinition, logger: ILogger) -> None:
        refuse_construction(trt, logger, "OnnxParser")
        super().__init__(trt, logger, "parser", parent=network)
        self._network = network
        self._errors: list[ParserError] = []
        self.flags = 1 << OnnxParserFlag.NATIVE_INSTANCENORM

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def set_flag(self, flag: OnnxParserFlag) -> None:
        self.flags |= 1 << flag

    def clear_flag(self, flag: OnnxParserFlag) -> None:
        self.flags &= ~(1 << flag)

    def get_flag(self, flag: OnnxParserFlag) -> bool:
        return bool(self.flags >> flag & 1)

    @frameless
    def parse(self, model: bytes, path: str | None = None) -> bool:
        """Parse serialised ONNX; `path` says where external weights are to be found beside."""
        return not self._fails("OnnxParser.parse") and self._parse(bytes(model), path)

    @frameless
    def parse_from_file(self, model: str) -> bool:
        """Parse an ONNX file."""
        if self._fails("OnnxParser.parse_from_file"):
            return False
        try:
            data = Path(model).read_bytes()
        except OSError as error:
            reason = f"Could not open file {model}: {error}"
            self._refuse([Problem(ErrorCode.MODEL_DESERIALIZE_FAILED, reason)])
            return False
        return self._parse(data, str(model))

    def _parse(self, data: bytes, path: str | None) -> bool:
        if self._network._model is not None:
            self._refuse([Problem(ErrorCode.INVALID_GRAPH, "The network already has a model")])
            return False
        try:
            model = read_model(data, path)
            tensors = border_tensors(with_inferred_outputs(model))
            _try_to_run(model, tensors)
        except ModelRefused as refused:
            self._refuse(list(refused.problems))
            return False
        except (ValueError, TypeError) as error:  # of onnx, where text is no UTF-8, say
            self._refuse([Problem(ErrorCode.MODEL_DESERIALIZE_FAILED, f"Not ONNX: {error}")])
            return False
        _warn_about_unused_inputs(self, model, tensors)
        self._network._fill(model)
        return True

    def _refuse(self, problems: list[Problem]) -> None:
        for problem in problems:
            error = ParserError(problem, "parseModel")
            self._errors.append(error)
            self._error(str(error))


def _try_to_run(model: Any, tensors: list[Tensor]) -> None:
    try:
        Executable(model, tensors, optimise=False)
    except NoTensorRTError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base
        raise ModelRefused(_blame(model, str(error))) from error


def _blame(model: Any, message: str) -> Problem:
    """Return a problem for onnxruntime's `message`, with the node that it mentions."""
    words = set(re.findall(r"[^\s()\"',]+", message))
    for index, node in enumerate(model.graph.node):
        if node.name and node.name in words:
            return Problem(ErrorCode.INVALID_NODE, message, index, layer_name(node), node.op_type)
    return Problem(ErrorCode.INVALID_GRAPH, message)


def _warn_about_unused_inputs(parser: OnnxParser, model: Any, tensors: list[Tensor]) -> None:
    used = {name for graph in all_graphs(model.graph) for node in graph.node for name in node.input}
    for tensor in tensors:
        if tensor.is_input and tensor.name not in used:
            parser._warning(f"Unused Input: {tensor.name}")
