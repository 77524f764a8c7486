"""Every target with a few hundred inputs; ``python -m tests.fuzz`` tries as many as there is time.

``EXAMPLES`` are shares of a few seconds for each target.
"""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .choices import Choices
from .promise import keeps
from .targets import TARGETS

EXAMPLES = {
    "cache": 15,
    "cfg": 200,
    "detector": 60,
    "external": 40,
    "image": 200,
    "infer": 150,
    "memo": 150,
    "model": 40,
    "names": 200,
    "plan": 150,
    "shapes": 400,
    "sidecar": 300,
    "weights": 150,
}


#: Few bytes, which are simple inputs, and as many as any target reads, which seldom are.
_INPUTS = st.one_of(
    st.binary(max_size=200), st.integers(0, 2**32).map(lambda seed: Random(seed).randbytes(256))
)


def test_every_target_is_tried() -> None:
    assert EXAMPLES.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_any_input_gives_a_result_or_an_error_of_ours(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "trt_runtime")

    @given(_INPUTS)
    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def holds(data: bytes) -> None:
        keeps(TARGETS[name], data, tmp_path)

    holds()


@given(st.binary(max_size=40), st.binary(max_size=60))
@settings(deadline=None)
def test_the_same_bytes_are_the_same_input(data: bytes, seed: bytes) -> None:
    assert Choices(data).mutated(seed) == Choices(data).mutated(seed)
    assert Choices(b"").mutated(seed) == seed


@given(st.binary(max_size=12), st.integers(-5, 5), st.integers(0, 70_000))
def test_numbers_are_within_their_bounds(data: bytes, low: int, span: int) -> None:
    assert low <= Choices(data).number(low, low + span) <= low + span
