"""What every subcommand does with an error: one paragraph on stderr and exit status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trt_runtime.errors import TrtRuntimeError


@contextmanager
def errors_as_text(*, traceback: bool) -> Iterator[None]:
    """End the process with status 2 and the error's text, unless a traceback is wanted."""
    try:
        yield
    except TrtRuntimeError as error:
        if traceback:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
