"""New weights for an engine: TensorRT's refitter, by way of its ONNX parser where there is one.

Everything that can be refused is refused before the first weight changes. The engine must not be
in use meanwhile, which is the business of `trt_runtime.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, RefitError
from ...tensor import DTYPES
from ..driver import address_of

if TYPE_CHECKING:
    from .runtime import PlanEngine

Arrays = Mapping[str, NDArray[Any]]

#: What TensorRT's ONNX parser makes of types that a release does not have.
_NARROWED = {"float64": "float32", "int64": "int32"}


class Refit:
    """One refit of one engine, and TensorRT's objects that it takes."""

    def __init__(self, plan: PlanEngine, lines: list[str]) -> None:
        self._plan = plan
        self._library = plan._library
        self._lines = lines
        self._release = f"TensorRT {self._library.version}"
        self._refitter: Any = None
        self._parser: Any = None
        self._kept: list[NDArray[Any]] = []  # TensorRT has their addresses until the refit

    def run(self, model: bytes, path: str | None, weights_of: Callable[[], Arrays]) -> None:
        """Give the engine the weights of a serialised ONNX model.

        Parameters
        ----------
        path : str or None
            Where the model was read from, for its external data.
        weights_of : callable
            The model's weights by name, for releases whose parser cannot refit.

        Raises
        ------
        RefitError
            The weights do not fit; nothing was changed.
        EngineError
            TensorRT failed while it changed them, and some may be changed.
        """
        try:
            self._begin()
            if self._parser is not None:
                self._set_by_parser(model, path)
            else:
                self._set_by_name(weights_of())
            missing = [str(name) for name in self._refitter.get_missing_weights()]
            if missing:
                raise RefitError(
                    f"the model lacks weights that {self._release} needs to refit",
                    problems=[f"weights {_called(name)}" for name in missing],
                    log_lines=self._lines,
                )
            if not self._refitter.refit_cuda_engine():
                raise EngineError(
                    f"{self._release} failed while it changed the weights", log_lines=self._lines
                )
        finally:
            # In this order, and not left to a traceback, which would keep the engine too.
            self._parser = None
            self._refitter = None
            self._kept = []

    def _begin(self) -> None:
        module, logger = self._library.module, self._library.log.logger
        try:
            self._refitter = module.Refitter(self._plan._engine, logger)
            if hasattr(module, "OnnxParserRefitter"):  # not in 8.6, nor in lean and dispatch
                self._parser = module.OnnxParserRefitter(self._refitter, logger)
        except (TypeError, RuntimeError) as error:  # a null pointer to the bindings
            raise RefitError(
                f"{self._release} could not make a refitter: {error}", log_lines=self._lines
            ) from None

    def _set_by_parser(self, model: bytes, path: str | None) -> None:
        """Let TensorRT's ONNX parser find the weights: it knows what it folded together."""
        parser = self._parser
        try:
            if path is not None:
                done = parser.refit_from_bytes(model, path)
            else:
                done = parser.refit_from_bytes(model)
            errors = range(0 if done else parser.num_errors)
            problems = [str(parser.get_error(index).desc()) for index in errors]
        finally:
            parser = None
        if not done:
            raise RefitError(
                f"{self._release} cannot refit the engine from this model",
                problems=problems,
                log_lines=() if problems else self._lines,
            )

    def _set_by_name(self, given: Arrays) -> None:
        """Set every weight that TensorRT lists."""
        problems = []
        for name in [str(name) for name in self._refitter.get_all_weights()]:
            if name not in given:
                problems.append(f"the model has no weights {_called(name)}; they would stay old")
                continue
            array, problem = self._fitted(name, np.ascontiguousarray(given[name]))
            if problem:
                problems.append(f"weights {name!r} {problem}")
                continue
            self._kept.append(array)
            if not self._refitter.set_named_weights(name, self._weights(array)):
                problems.append(
                    f"weights {name!r}: TensorRT refused {array.size} values of type "
                    f"{array.dtype.name}; the engine has another type or count"
                )
        if problems:
            raise RefitError(
                f"the model's weights do not fit the engine ({self._release})",
                problems=problems,
                log_lines=self._lines,
            )

    def _fitted(self, name: str, array: NDArray[Any]) -> tuple[NDArray[Any], str]:
        """The array in the engine's type, and why it does not fit, if it does not."""
        if self._plan.generation < 10:  # which does not tell what it has
            narrowed = _NARROWED.get(array.dtype.name)
            return _cast(array, np.dtype(narrowed)) if narrowed else (array, "")
        prototype = self._refitter.get_weights_prototype(name)
        dtype, size = DTYPES.get(str(prototype.dtype.name)), int(prototype.size)
        if array.size != size:
            return array, f"have {array.size} values; the engine has {size}"
        if dtype is None or array.dtype == dtype:
            return array, ""
        if _NARROWED.get(array.dtype.name) != dtype.name:
            return array, f"have type {array.dtype.name}; the engine has {dtype.name}"
        return _cast(array, dtype)

    def _weights(self, array: NDArray[Any]) -> Any:
        module = self._library.module
        if array.dtype.isbuiltin == 1:
            return module.Weights(array)
        # The bindings know NumPy's own types alone; for ml_dtypes' they take an address.
        names = {dtype: name for name, dtype in DTYPES.items()}
        kind = getattr(module.DataType, names[array.dtype])
        return module.Weights(kind, address_of(array), array.size)


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], str]:
    if dtype.kind == "i" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            return array, f"have values that {dtype.name}, the engine's type, cannot hold"
    return array.astype(dtype), ""


def _called(name: str) -> str:
    return repr(name) if name else "that have no name (TensorRT computed them from several)"
