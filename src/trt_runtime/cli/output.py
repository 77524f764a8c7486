"""Where the command line writes: results to stdout, everything else to stderr.

On a terminal results are rich tables. In a pipe they are plain columns, the same on every machine
and never folded, so that no data is lost; or one JSON document.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Columns of these titles hold numbers, and are aligned to the right.
_NUMBERS = frozenset({"size", "min", "max", "mean", "count", "memory", "max abs", "max rel"}) | {
    "mean abs",
    "cosine",
    "median",
    "p90",
    "p95",
    "p99",
    "ms",
    "share",
    "score",
    "left",
    "top",
    "right",
    "bottom",
}


def line(text: str = "") -> None:
    """Print a line of the result, however long."""
    typer.echo(text)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, if_any: Sequence[str] = ()
) -> None:
    """Print a table: rich on a terminal, plain columns elsewhere.

    Columns named in ``if_any`` are left out when nothing is in them.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    shown = [
        number
        for number, column in enumerate(columns)
        if column not in if_any or any(row[number] for row in cells)
    ]
    columns = [columns[number] for number in shown]
    cells = [[row[number] for number in shown] for row in cells]
    if _is_terminal(sys.stdout):
        _rich_table(columns, cells)
    else:
        _plain_table(columns, cells)


def document(content: dict[str, Any]) -> None:
    """Print the one JSON document; what is not finite is null."""
    typer.echo(json.dumps(_finite(content), indent=2, allow_nan=False))


def note(text: str) -> None:
    """Tell the user something that is no result."""
    typer.echo(_wrapped(f"note: {text}"), err=True)


def complain(text: str) -> None:
    """Print a paragraph on stderr, wrapped to the terminal's width if it is one."""
    typer.echo(_wrapped(text), err=True)


def has_progress() -> bool:
    """Whether somebody sees a display that moves."""
    return _is_terminal(sys.stderr)


def readable_size(count: int) -> str:
    """``602112`` as ``602.1 kB``."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000 or unit == "GB":
            return f"{size:.1f} {unit}"
    raise AssertionError


def readable_number(value: float | None) -> str:
    """Six significant digits; ``-`` for what is not known."""
    return "-" if value is None else f"{value:.6g}"


def readable_seconds(seconds: float) -> str:
    """``75.2`` as ``1 min 15 s``, and ``0.21`` as ``0.21 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    shown = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        shown.add_column(
            column,
            overflow="fold",
            no_wrap=number > 0 and column in _NUMBERS,
            justify="right" if column in _NUMBERS else "left",
        )
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(shown)


def _plain_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    rows = [list(columns), *([" ".join(cell.split()) for cell in row] for row in cells)]
    widths = [max(len(row[number]) for row in rows) for number in range(len(columns))]
    typer.echo()
    for row in rows:
        aligned = (
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        typer.echo("  ".join(aligned).rstrip())
    typer.echo()


def _is_terminal(stream: Any) -> bool:
    return bool(stream.isatty())


def _wrapped(text: str) -> str:
    """``text`` folded at the terminal's width; its own line breaks and indents stay."""
    if not _is_terminal(sys.stderr):
        return text
    width = max(40, Console(stderr=True).width)
    lines = []
    for paragraph in text.split("\n"):
        indent = " " * (len(paragraph) - len(paragraph.lstrip()))
        lines += textwrap.wrap(
            paragraph,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
