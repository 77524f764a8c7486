"""The refitter: new weights for an engine that was built to take them, by name or from ONNX."""

from __future__ import annotations

from typing import Any

from ....errors import MisuseError
from .datatypes import ONNX_TYPES
from .engine import ICudaEngine
from .enums import DataType, ErrorCode, TensorLocation
from .interfaces import ILogger
from .model import ModelRefused, Problem, read_model
from .parser import ParserError
from .seam import Platform, TensorRTObject, frameless, refuse_construction
from .weights import Weights, count, refittable_weights


class Refitter(TensorRTObject):
    """Collects weights for one engine, and puts them in all at once."""

    @frameless
    def __init__(self, trt: Platform, engine: ICudaEngine, logger: ILogger) -> None:
        refuse_construction(trt, logger, "Refitter")
        super().__init__(trt, logger, "refitter", engine.name, engine)
        if not engine.refittable:
            self._error(
                "createInferRefitter: Error Code 3: API Usage Error (Parameter check failed, "
                "condition: engine.isRefittable())"
            )
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._engine = engine
        self._given: dict[str, Weights] = {}
        self.max_threads = 1
        self.weights_validation = True

    @property
    def logger(self) -> ILogger:
        return self._logger

    def get_all_weights(self) -> list[str]:
        """Return the names of all weights that can be refitted."""
        return list(self._weights)

    def get_missing_weights(self) -> list[str]:
        """Return what the weights given so far cannot do without.

        A stripped engine has nothing to fall back on; any other keeps what it is not given.
        """
        if not self._engine._network.stripped:
            return []
        return [name for name in self._weights if name not in self._given]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        """Return type and count that weights of this name must have; a count of -1 for none."""
        tensor = self._weights.get(weights_name)
        if tensor is None:
            self._error(f"IRefitter::getWeightsPrototype: there are no weights {weights_name}")
            return Weights(DataType.FLOAT, 0, -1)
        return Weights(ONNX_TYPES[tensor.data_type], 0, count(tensor))

    def get_named_weights(self, weights_name: str) -> Weights:
        """Return what was given for this name, empty if nothing was."""
        return self._given.get(weights_name, Weights())

    def get_weights_location(self, weights_name: str) -> TensorLocation:
        return TensorLocation.HOST

    def set_named_weights(
        self, name: str, weights: Weights, location: TensorLocation = TensorLocation.HOST
    ) -> bool:
        """Give new weights; False if there are none of that name, or of another type or count."""
        if self._fails("set_named_weights"):
            return False
        tensor = self._weights.get(name)
        if tensor is None:
            return self._no(f"there are no refittable weights {name}")
        expected = ONNX_TYPES[tensor.data_type]
        if weights.dtype != expected or weights.size != count(tensor):
            return self._no(
                f"{name} has {count(tensor)} values of type {expected.name}; given were "
                f"{weights.size} of type {weights.dtype.name}"
            )
        self._given[name] = weights
        return True

    def unset_named_weights(self, weights_name: str) -> bool:
        """Take back what was given."""
        return self._given.pop(weights_name, None) is not None

    @frameless
    def refit_cuda_engine(self) -> bool:
        """Change the engine; False, after logging why, if something is missing."""
        call = "refit_cuda_engine"
        if self._fails(call):
            return False
        self._require_current_context(call)
        entry = self._engine._entry
        if entry is not None and entry.busy:
            raise MisuseError(
                f"{call}: the {entry} has work enqueued at {entry.used_at} that has not run"
            )
        if missing := self.get_missing_weights():
            self._error(f"IRefitter::refitCudaEngine: missing weights: {', '.join(missing)}")
            return False
        self._engine._network.refit({n: w.numpy() for n, w in self._given.items()})
        return True

    @property
    def _weights(self) -> dict[str, Any]:
        return refittable_weights(self._engine._network.model)

    def _no(self, reason: str) -> bool:
        self._error(f"IRefitter::setNamedWeights: Error Code 3: API Usage Error ({reason})")
        return False


class OnnxParserRefitter(TensorRTObject):
    """Gives a refitter the weights of a model; every one that the engine has must be there."""

    @frameless
    def __init__(self, trt: Platform, refitter: Refitter, logger: ILogger) -> None:
        refuse_construction(trt, logger, "OnnxParserRefitter")
        super().__init__(trt, logger, "parser refitter", parent=refitter)
        self._refitter = refitter
        self._errors: list[ParserError] = []
        self._arrays: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    @frameless
    def refit_from_bytes(self, model: bytes, path: str | None = None) -> bool:
        """Return whether the model has all the weights; `path` says where external ones are."""
        if self._fails("OnnxParserRefitter.refit_from_bytes"):
            return False
        from onnx import numpy_helper

        try:
            tensors = refittable_weights(read_model(bytes(model), path))
        except ModelRefused as refused:
            return self._refuse(*refused.problems)
        problems = []
        for name in self._refitter.get_all_weights():
            if name not in tensors:
                problems.append(f"the model has no weights {name!r} that the engine has")
                continue
            # Its own memory, which outlives the refit: the model does not.
            array = numpy_helper.to_array(tensors[name]).copy()
            self._arrays.append(array)
            weights = Weights(ONNX_TYPES[tensors[name].data_type], array.ctypes.data, array.size)
            if not self._refitter.set_named_weights(name, weights):
                problems.append(f"weights {name!r} do not fit the engine's")
        return self._refuse(*(Problem(ErrorCode.REFIT_FAILED, text) for text in problems))

    def _refuse(self, *problems: Problem) -> bool:
        for problem in problems:
            error = ParserError(problem, "refitFromBytes")
            self._errors.append(error)
            self._error(str(error))
        return not problems
