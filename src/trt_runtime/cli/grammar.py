"""The little languages of the command line: shapes, profiles, sizes, ages, and pairs of names.

A shape is written as trtexec writes it: ``images:1x3x224x224``, several with commas between them. A
name that holds a comma or begins with a quote is put in single quotes, and a quote inside is
doubled. Every parser raises `InputError`, which names the option and shows what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TypeVar

from trt_runtime import InputError, Profile

Shape = tuple[int, ...]
_Value = TypeVar("_Value")

#: TensorRT keeps a dimension, and the value of a shape tensor, in an int32 or an int64.
_LARGEST = 2**63 - 1

_ITEM = re.compile(r"(?:'(?P<quoted>(?:[^']|'')*)'|(?P<bare>[^',][^,]*)):(?P<value>[^,:]*)(?:,|\Z)")
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_SCALAR = "scalar"

_BYTES = {
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)", re.ASCII)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"([0-9]{1,7})\s*([smhdw])", re.ASCII)


def parse_shapes(option: str, texts: Sequence[str]) -> dict[str, Shape]:
    """Read ``name:1x3x224x224,other:1x8``; ``name:scalar`` has no dimensions.

    Negative numbers are let through: they are values of shape tensors, or refused later.
    """
    shapes: dict[str, Shape] = {}
    for name, value in _items(option, texts, "NAME:SIZExSIZEx...", "images:1x3x224x224"):
        shape = _shape(value)
        if shape is None:
            raise InputError(
                f"{option} takes NAME:SIZExSIZEx..., such as images:1x3x224x224; "
                f"{value!r} is no shape, for {name!r}."
            )
        _add(shapes, name, shape, option)
    return shapes


def parse_profile(option: str, text: str) -> Profile:
    """Read ``name:1x8..4x8..16x8,other:1x8``: min, opt and max, or one shape for all three."""
    ranges: dict[str, tuple[Shape, ...]] = {}
    example = "images:1x3x224x224..8x3x224x224..32x3x224x224"
    for name, value in _items(option, [text], "NAME:MIN..OPT..MAX", example):
        shapes = [_shape(part) for part in value.split("..")]
        read = tuple(shape for shape in shapes if shape is not None)
        if len(shapes) not in (1, 3) or len(read) != len(shapes):
            raise InputError(
                f"{option} takes NAME:MIN..OPT..MAX or NAME:SHAPE, such as {example}; "
                f"{value!r} is neither, for {name!r}."
            )
        _add(ranges, name, read if len(read) == 3 else read * 3, option)
    return Profile(ranges)


def format_shapes(shapes: Mapping[str, Shape]) -> str:
    """What `parse_shapes` reads."""
    return ",".join(f"{_quoted(name)}:{format_dimensions(s)}" for name, s in shapes.items())


def format_profile(profile: Profile) -> str:
    """What `parse_profile` reads; the short form where min, opt and max are the same."""
    items = []
    for name, allowed in profile.items():
        shapes = allowed[:1] if allowed.min == allowed.max else allowed
        items.append(f"{_quoted(name)}:{'..'.join(map(format_dimensions, shapes))}")
    return ",".join(items)


def format_dimensions(shape: Sequence[int], *, unknown: str | None = None) -> str:
    """``(1, 3, 8)`` as ``1x3x8``; ``unknown`` stands for negative sizes if it is given."""
    return "x".join(unknown if n < 0 and unknown is not None else str(n) for n in shape) or _SCALAR


def parse_pairs(option: str, texts: Sequence[str], takes: str, example: str) -> dict[str, str]:
    """Read ``name:value,other:value``."""
    pairs: dict[str, str] = {}
    for name, value in _items(option, texts, takes, example):
        if not value:
            raise InputError(f"{option} takes {takes}, such as {example}; {name!r} has no value.")
        _add(pairs, name, value, option)
    return pairs


def parse_size(option: str, text: str) -> int:
    """Read ``4GiB``, ``512MiB``, ``1.5GB`` or ``4096B`` as bytes.

    A bare number is refused: trtexec takes it as MiB for some options, and others as bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match and _BYTES.get(match[2].lower())
    if not match or not unit:
        raise InputError(
            f"{option} takes a size with its unit, such as 4GiB, 512MiB, 1.5GB or 4096B; "
            f"got {text!r}."
        )
    return int(Decimal(match[1]) * unit)


def parse_age(option: str, text: str) -> timedelta:
    """Read ``30d``, ``12h``, ``45m``, ``2w`` or ``90s``."""
    match = _AGE.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"{option} takes an age with its unit, such as 30d, 12h, 45m or 2w; got {text!r}."
        )
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _items(option: str, texts: Iterable[str], takes: str, example: str) -> list[tuple[str, str]]:
    """The names and values of ``name:value,name:value``; names may hold colons."""
    items = []
    for text in texts:
        position = 0
        while position < len(text) or not text:
            match = _ITEM.match(text, position)
            if match is None or (match.end() == len(text) and text.endswith(",")):
                raise InputError(f"{option} takes {takes}, such as {example}; got {text!r}.")
            quoted = match["quoted"]
            name = match["bare"] if quoted is None else quoted.replace("''", "'")
            if not name:
                raise InputError(f"{option} takes {takes}; a name is missing in {text!r}.")
            items.append((name, match["value"]))
            position = match.end()
    return items


def _shape(text: str) -> Shape | None:
    if text == _SCALAR:
        return ()
    sizes = text.split("x")
    if not all(_NUMBER.fullmatch(size) for size in sizes):
        return None
    shape = tuple(int(size) for size in sizes)
    return shape if all(abs(size) <= _LARGEST for size in shape) else None


def _add(found: dict[str, _Value], name: str, value: _Value, option: str) -> None:
    if name in found:
        raise InputError(f"{option} gives {name!r} twice.")
    found[name] = value


def _quoted(name: str) -> str:
    if "," in name or name.startswith("'"):
        doubled = name.replace("'", "''")
        return f"'{doubled}'"
    return name
