"""What ``trt-runtime run`` found, and its two forms: tables for a person, JSON for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_runtime.cli import output
from trt_runtime.cli.grammar import format_dimensions
from trt_runtime.cli.output import readable_number, readable_size
from trt_runtime.cli.reference import RELATIVE, Comparison


@dataclass(frozen=True)
class Timings:
    """Wall times in milliseconds, as the caller sees them."""

    open: float
    first: float
    median: float
    iterations: int


@dataclass(frozen=True)
class Reference:
    """What the outputs were compared with, and how far they are from it.

    ``is_expected`` says that it is what the onnx package expects of a network of its own.
    """

    source: str
    comparisons: tuple[Comparison, ...]
    is_expected: bool = False

    @property
    def matches(self) -> bool:
        return all(comparison.matches for comparison in self.comparisons)


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
    reference: Reference | None = None
    remarks: Sequence[str] = ()
    saved: Sequence[str] = field(default_factory=tuple)

    @property
    def on_gpu(self) -> bool:
        """Whether the timings say something about a GPU."""
        return self.device_kind == "cuda"


def print_text(report: Report) -> None:
    """Print the report as tables."""
    output.line(f"{report.model} on {report.device_name}")
    output.line(f"{report.tensorrt_name} {report.tensorrt_version}")
    _tensor_table("input", report.inputs)
    for remark in report.remarks:
        output.line(remark)
    _tensor_table("output", report.outputs, with_values=True)
    timings = report.timings
    output.line(
        f"open {timings.open:.1f} ms, first {timings.first:.2f} ms, "
        f"median of {timings.iterations} {timings.median:.2f} ms"
    )
    if not report.on_gpu:
        output.line("These timings are of the host device; they say nothing about a GPU.")
    if report.saved:
        output.line(f"saved {', '.join(report.saved)}")
    if report.reference is not None:
        _print_reference(report.reference, report.on_gpu)


def print_json(report: Report) -> None:
    """Print the report as one JSON object; what is not finite is null."""
    reference = report.reference
    output.document(
        {
            "model": report.model,
            "device": {"name": report.device_name, "kind": report.device_kind},
            "tensorrt": {"name": report.tensorrt_name, "version": report.tensorrt_version},
            "inputs": [_tensor_facts(name, array) for name, array in report.inputs.items()],
            "outputs": [
                _tensor_facts(name, array) | _value_facts(array)
                for name, array in report.outputs.items()
            ],
            "remarks": list(report.remarks),
            "timings_ms": asdict(report.timings),
            "timings_are_of_a_gpu": report.on_gpu,
            "saved": list(report.saved),
            "reference": {
                "source": reference.source,
                "matches": reference.matches,
                "outputs": [comparison.to_json() for comparison in reference.comparisons],
            }
            if reference
            else None,
        }
    )


def _print_reference(reference: Reference, on_gpu: bool) -> None:
    verdict = "matches" if reference.matches else "does not match"
    if reference.is_expected:
        (only,) = reference.comparisons
        output.line(
            f"{verdict} the reference: max relative error {only.max_relative_error:.1e} "
            f"(limit {only.rtol:.0e})"
        )
        output.line(
            "This network's weights are constants, so its output does not depend on its input."
        )
        return
    output.table(
        ("output", "max abs", "max rel", "mean abs", "cosine", "tolerance", "result"),
        [
            (
                comparison.name,
                f"{comparison.max_absolute_error:.2e}",
                f"{comparison.max_relative_error:.2e}",
                f"{comparison.mean_absolute_error:.2e}",
                readable_number(comparison.cosine_similarity),
                f"{comparison.atol:g} + {comparison.rtol:g} * |ref|"
                if comparison.rtol or comparison.atol
                else "equal",
                "matches"
                if comparison.matches
                else comparison.problem or f"{comparison.outside} elements outside",
            )
            for comparison in reference.comparisons
        ],
    )
    output.line(f"{verdict} {reference.source}; {RELATIVE}")
    if not on_gpu and reference.source == "onnxruntime":
        output.line("The host device computes with onnxruntime itself: this says nothing of a GPU.")


def _tensor_table(
    title: str, tensors: Mapping[str, npt.NDArray[Any]], *, with_values: bool = False
) -> None:
    rows = []
    for name, array in tensors.items():
        cells = [name, array.dtype.name, format_dimensions(array.shape)]
        cells.append(readable_size(array.nbytes))
        if with_values:
            cells += [readable_number(value) for value in _value_facts(array).values()]
        rows.append(cells)
    values = ("min", "max", "mean") if with_values else ()
    output.table((title, "dtype", "shape", "size", *values), rows)


def _tensor_facts(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": array.dtype.name,
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
