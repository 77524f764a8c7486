"""The little languages: what is printed can be read, and garbage is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import InputError, Profile
from trt_runtime.cli import grammar

from .conftest import invoke

names = st.text(min_size=1, max_size=12)
shapes = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    sizes = draw(st.lists(st.lists(st.integers(0, 999), min_size=3, max_size=3), max_size=4))
    return tuple(zip(*map(sorted, sizes), strict=True)) if sizes else ((), (), ())


@given(st.dictionaries(names, shapes, min_size=1, max_size=4))
@settings(deadline=None)
def test_shapes_read_back_as_they_were_written(given_shapes: dict[str, Any]) -> None:
    text = grammar.format_shapes(given_shapes)
    assert grammar.parse_shapes("--shapes", [text]) == given_shapes


@given(st.dictionaries(names, ranges(), min_size=1, max_size=4))
def test_a_profile_reads_back_as_it_was_written(given_ranges: dict[str, Any]) -> None:
    profile = Profile({name: triple for name, triple in given_ranges.items()})
    assert grammar.parse_profile("--profile", grammar.format_profile(profile)) == profile


def _pairs(option: str, text: str) -> Any:
    return grammar.parse_pairs(option, [text], "NAME:TYPE", "x:float16")


def _shapes(option: str, text: str) -> Any:
    return grammar.parse_shapes(option, [text])


PARSERS: list[Callable[[str, str], Any]] = [
    _shapes,
    _pairs,
    grammar.parse_profile,
    grammar.parse_size,
    grammar.parse_age,
]


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.one_of(st.text(), st.text("ab:x.,'0123456789-GiBd ")))
@settings(deadline=None)
def test_garbage_is_read_or_refused(parse: Callable[[str, str], Any], text: str) -> None:
    with suppress(InputError):
        parse("--option", text)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", ["a:b:c", "1x1", "'"])
def test_a_refusal_names_the_option(parse: Callable[[str, str], Any], text: str) -> None:
    with pytest.raises(InputError, match="--option"):
        parse("--option", text + ",")


@given(st.text("ab:x.,'0123456789-é² \x00", min_size=1))
@settings(deadline=None)
def test_garbage_on_the_command_line_is_a_usage_error(text: str) -> None:
    result = invoke("run", "squeezenet", f"--shape={text}:", "--device", "host")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("images:1x3x224x224", {"images": (1, 3, 224, 224)}),
        ("a:1,b:2x3", {"a": (1,), "b": (2, 3)}),
        ("scope/name:0:7", {"scope/name:0": (7,)}),
        ("'a,b':7", {"a,b": (7,)}),
        ("'it''s':7", {"it's": (7,)}),
        ("alone:scalar", {"alone": ()}),
        ("target:-1x4", {"target": (-1, 4)}),
    ],
)
def test_shapes_are_written_as_trtexec_writes_them(text: str, shape: Any) -> None:
    assert grammar.parse_shapes("--shapes", [text]) == shape


@pytest.mark.parametrize(
    "text",
    [
        *("", "images", "images:", ":1x3", "a:1,", ",a:1", "a:1,,b:2", "a:1xx3", "a:1x3,a:2"),
        *("a:1.5", "a:99999999999999999999", "'a:1", "a:\N{ARABIC-INDIC DIGIT ONE}"),
    ],
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shapes"):
        grammar.parse_shapes("--shapes", [text])


def test_a_profile_has_one_shape_or_three() -> None:
    assert grammar.parse_profile("-p", "a:1..2..4,b:3") == Profile(
        {"a": ((1,), (2,), (4,)), "b": (3,)}
    )
    for text in ("a:1..2", "a:1..2..3..4", "a:1....3"):
        with pytest.raises(InputError, match=r"MIN\.\.OPT\.\.MAX"):
            grammar.parse_profile("-p", text)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * 2**30),
        ("512 mib", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1kB", 1000),
        ("4096B", 4096),
    ],
)
def test_a_size_has_a_unit(text: str, nbytes: int) -> None:
    assert grammar.parse_size("--workspace", text) == nbytes


@pytest.mark.parametrize("text", ["4096", "4G", "GiB", "-1GiB", "1e3B", ""])
def test_a_size_without_a_unit_is_refused_because_tools_differ(text: str) -> None:
    with pytest.raises(InputError, match="4GiB"):
        grammar.parse_size("--workspace", text)


def test_an_age_has_a_unit() -> None:
    assert grammar.parse_age("--older-than", "30d") == timedelta(days=30)
    assert grammar.parse_age("--older-than", "45m") == timedelta(minutes=45)
    for text in ("30", "d", "1y", "-1d", "99999999d"):
        with pytest.raises(InputError, match="--older-than"):
            grammar.parse_age("--older-than", text)
