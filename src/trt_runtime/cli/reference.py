"""How far outputs are from a reference: onnxruntime on the CPU, or arrays in a file.

An element passes if ``|output - reference| <= atol + rtol * |reference|``, NumPy's rule; where both
are NaN, or the same infinity, there is no difference. Integers and booleans must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_runtime import InputError, ModelError, NoTensorRTError
from trt_runtime.cli.inputs import Arrays, as_dtype, read_arrays

RELATIVE = "max rel is |output - reference| / |reference|, where the reference is not 0"


@dataclass(frozen=True)
class Comparison:
    """How far one output is from its reference.

    Attributes
    ----------
    name : str
    max_absolute_error, mean_absolute_error : float
    max_relative_error : float
        Of ``|output - reference| / |reference|``, over elements whose reference is not 0.
    cosine_similarity : float
        Of all elements as one vector; NaN where one of the two is zero.
    rtol, atol : float
    outside : int
        How many elements are outside of the tolerances.
    matches : bool
    problem : str
        Why there are no figures; empty if there are.
    """

    name: str
    max_absolute_error: float
    max_relative_error: float
    mean_absolute_error: float
    cosine_similarity: float
    rtol: float
    atol: float
    outside: int
    matches: bool
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    outputs: Mapping[str, NDArray[Any]],
    reference: Mapping[str, NDArray[Any]],
    *,
    rtol: float,
    atol: float,
) -> tuple[Comparison, ...]:
    """Compare every output that the reference has."""
    unknown = [name for name in reference if name not in outputs]
    if unknown:
        raise InputError(
            f"the reference has {', '.join(map(repr, unknown))}, which is no output; the outputs "
            f"are {', '.join(outputs)}."
        )
    return tuple(
        _compare(name, output, as_dtype(reference[name], output.dtype), rtol, atol)
        for name, output in outputs.items()
        if name in reference
    )


def _compare(
    name: str, output: NDArray[Any], reference: NDArray[Any], rtol: float, atol: float
) -> Comparison:
    if output.shape != reference.shape:
        inf = math.inf
        problem = f"shape {list(output.shape)}, and the reference has {list(reference.shape)}"
        return Comparison(
            name, inf, inf, inf, math.nan, rtol, atol, output.size, matches=False, problem=problem
        )
    if output.dtype.kind in "iub" and reference.dtype.kind in "iub":
        rtol = atol = 0.0
    if output.size == 0:
        return Comparison(name, 0.0, 0.0, 0.0, math.nan, rtol, atol, 0, matches=True)
    # float64 keeps the figures of every type but of integers above 2**53.
    ours, theirs = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(ours - theirs))
        error[np.isnan(error)] = np.inf
        inside = same | (np.isfinite(error) & (error <= atol + rtol * np.abs(theirs)))
        relative = np.where(theirs != 0, error / np.abs(theirs), 0.0)
        relative[np.isnan(relative)] = np.inf
        scale = np.linalg.norm(ours) * np.linalg.norm(theirs)
        cosine = float(np.dot(ours, theirs) / scale) if scale > 0 else math.nan
    outside = int(inside.size - np.count_nonzero(inside))
    return Comparison(
        name,
        float(error.max()),
        float(relative.max()),
        float(error.mean()),
        cosine,
        rtol,
        atol,
        outside,
        matches=outside == 0,
    )


def from_file(path: Path) -> Arrays:
    """The arrays of an ``.npz`` file, by output name."""
    if not path.is_file():
        raise InputError(
            f"--compare takes onnxruntime or an .npz file; there is no file {str(path)!r}."
        )
    arrays = read_arrays(path)
    if not arrays:
        raise InputError(f"{str(path)!r} holds no arrays to compare with.")
    return arrays


def from_onnxruntime(model: Path, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What onnxruntime computes of the same inputs on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise NoTensorRTError(
            "--compare onnxruntime needs onnxruntime: pip install onnxruntime; or compare with an "
            ".npz file."
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        dtypes = {value.name: _DTYPES.get(value.type) for value in session.get_inputs()}
        missing = [name for name in dtypes if name not in inputs]
        unknown = [name for name in inputs if name not in dtypes]
        if missing or unknown:
            raise InputError(
                f"{str(model)!r} is not what was run: its inputs are {', '.join(dtypes)}, and "
                f"those of the run {', '.join(inputs)}."
            )
        feed = {name: inputs[name].astype(dtypes[name] or inputs[name].dtype) for name in dtypes}
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, map(np.asarray, session.run(names, feed)), strict=True))
    except InputError:
        raise
    except Exception as error:  # onnxruntime raises a class for each of its status codes
        raise ModelError(f"onnxruntime cannot run {str(model)!r}: {error}") from error


#: onnxruntime's names of the types that NumPy has.
_DTYPES = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {
        "float": "float32",
        "float16": "float16",
        "double": "float64",
        "int8": "int8",
        "uint8": "uint8",
        "int16": "int16",
        "uint16": "uint16",
        "int32": "int32",
        "uint32": "uint32",
        "int64": "int64",
        "uint64": "uint64",
        "bool": "bool",
    }.items()
}
