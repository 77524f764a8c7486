"""What ``trt-runtime run`` found, and its two forms: tables for a person, JSON for a program."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

RELATIVE_ERROR_LIMIT = 1e-3
"""The tolerance of the onnx package's own tests of these networks."""


@dataclass(frozen=True)
class Timings:
    """Wall times in milliseconds, as the caller sees them."""

    open: float
    first: float
    median: float
    iterations: int


@dataclass(frozen=True)
class Comparison:
    """How far an output is from its reference."""

    max_relative_error: float
    limit: float
    matches: bool


@dataclass(frozen=True)
class Report:
    """Everything that one run showed."""

    model: str
    device_name: str
    device_kind: str
    tensorrt_name: str
    tensorrt_version: str
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[Any]]
    timings: Timings
    comparison: Comparison | None

    @property
    def on_gpu(self) -> bool:
        """Whether the timings say something about a GPU."""
        return self.device_kind == "cuda"


def compare(outputs: Mapping[str, npt.NDArray[Any]], reference: npt.NDArray[Any]) -> Comparison:
    """Compare the only output with its reference; another shape is an infinite error."""
    (output,) = outputs.values()
    error = math.inf
    if output.shape == reference.shape:
        expected = reference.astype(np.float64)
        floor = np.finfo(np.float32).tiny
        difference = np.abs(output.astype(np.float64) - expected)
        error = float(np.max(difference / np.maximum(np.abs(expected), floor)))
    # A NaN compares false, so it does not match.
    return Comparison(error, RELATIVE_ERROR_LIMIT, matches=error <= RELATIVE_ERROR_LIMIT)


def print_text(report: Report) -> None:
    """Print the report as tables."""
    console = Console(highlight=False)

    def line(text: str = "") -> None:
        console.print(Text(text), soft_wrap=True)

    line(f"{report.model} on {report.device_name}")
    line(f"{report.tensorrt_name} {report.tensorrt_version}")
    console.print(_tensor_table("input", report.inputs))
    console.print(_tensor_table("output", report.outputs, with_values=True))
    timings = report.timings
    line(
        f"open {timings.open:.1f} ms, first {timings.first:.2f} ms, "
        f"median of {timings.iterations} {timings.median:.2f} ms"
    )
    if not report.on_gpu:
        line("These timings are of the host device; they say nothing about a GPU.")
    if report.comparison is not None:
        verdict = "matches" if report.comparison.matches else "does not match"
        line(
            f"{verdict} the reference: max relative error "
            f"{report.comparison.max_relative_error:.1e} (limit {report.comparison.limit:.0e})"
        )
        line("This network's weights are constants, so its output does not depend on its input.")


def print_json(report: Report) -> None:
    """Print the report as one JSON object; what is not finite is null."""
    content = {
        "model": report.model,
        "device": {"name": report.device_name, "kind": report.device_kind},
        "tensorrt": {"name": report.tensorrt_name, "version": report.tensorrt_version},
        "inputs": [_tensor_facts(name, array) for name, array in report.inputs.items()],
        "outputs": [
            _tensor_facts(name, array) | _value_facts(array)
            for name, array in report.outputs.items()
        ],
        "timings_ms": asdict(report.timings),
        "timings_are_of_a_gpu": report.on_gpu,
        "reference": asdict(report.comparison) if report.comparison else None,
    }
    typer.echo(json.dumps(_finite(content), indent=2, allow_nan=False))


def _tensor_table(
    title: str, tensors: Mapping[str, npt.NDArray[Any]], *, with_values: bool = False
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(title, overflow="fold")
    table.add_column("dtype")
    table.add_column("shape")
    table.add_column("size", justify="right")
    for column in ("min", "max", "mean") if with_values else ():
        table.add_column(column, justify="right")
    for name, array in tensors.items():
        shape = "x".join(str(size) for size in array.shape) or "scalar"
        cells = [name, str(array.dtype), shape, _readable_size(array.nbytes)]
        if with_values:
            cells += [_readable_number(value) for value in _value_facts(array).values()]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _tensor_facts(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "bytes": array.nbytes,
    }


def _value_facts(array: npt.NDArray[Any]) -> dict[str, float | None]:
    if array.size == 0:
        return {"min": None, "max": None, "mean": None}
    values = array.astype(np.float64)
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
    }


def _readable_size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    if count < 1_000_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1_000_000:.1f} MB"


def _readable_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
