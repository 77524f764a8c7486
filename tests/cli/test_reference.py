"""The figures of a comparison, and what passes."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trt_runtime import InputError
from trt_runtime.cli.reference import Comparison, compare


def of(output: Any, reference: Any, rtol: float = 1e-3, atol: float = 0.0) -> Comparison:
    outputs = {"y": np.asarray(output), "unasked": np.zeros(1)}
    (only,) = compare(outputs, {"y": np.asarray(reference)}, rtol=rtol, atol=atol)
    return only


def test_the_figures_are_what_they_are_called() -> None:
    told = of([1.0, 2.0, 5.0], [1.0, 4.0, 4.0])
    assert told.max_absolute_error == 2
    assert told.max_relative_error == 0.5
    assert told.mean_absolute_error == 1
    assert told.cosine_similarity == pytest.approx(29 / math.sqrt(30 * 33))
    assert told.outside == 2
    assert not told.matches


def test_an_element_passes_within_both_tolerances_together() -> None:
    assert of([10.5], [10.0], rtol=0.03, atol=0.2).matches
    assert not of([10.5], [10.0], rtol=0.03, atol=0.1).matches


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.1])
def test_one_wrong_value_does_not_match(value: float) -> None:
    reference = np.full((1, 4), 0.001, np.float32)
    output = reference.copy()
    output[0, 2] = value
    assert of(reference, reference).matches
    told = of(output, reference, atol=1e-6)
    assert told.outside == 1
    assert not told.matches
    assert told.max_absolute_error == (pytest.approx(0.099) if value == 0.1 else math.inf)


def test_what_is_not_a_number_on_both_sides_matches() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert of(values, values).matches
    assert not of(values, -values).matches


def test_a_reference_of_infinity_is_not_matched_by_a_number() -> None:
    told = of([1.0], [np.inf])
    assert not told.matches
    assert told.max_relative_error == math.inf


def test_another_shape_does_not_match_and_says_so() -> None:
    told = of(np.zeros((2, 2)), np.zeros(4))
    assert not told.matches
    assert told.problem == "shape [2, 2], and the reference has [4]"


def test_integers_must_be_equal_whatever_the_tolerance() -> None:
    assert of(np.array([1000, 7]), np.array([1000, 7])).matches
    assert not of(np.array([1001, 7]), np.array([1000, 7]), rtol=0.1, atol=5).matches


def test_an_empty_output_matches_an_empty_reference() -> None:
    assert of(np.zeros((0, 4)), np.zeros((0, 4))).matches


def test_bfloat16_is_read_from_the_bytes_that_numpy_writes() -> None:
    output = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    assert of(output, output.view("V2")).matches
    assert not of(output, (output * 2).view("V2")).matches


def test_a_reference_for_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="'z'"):
        compare({"y": np.zeros(1)}, {"z": np.zeros(1)}, rtol=0, atol=0)
