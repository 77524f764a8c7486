"""The command ``trt-runtime``: one module for each subcommand, gathered here.

Nothing outside this package imports typer or rich.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from trt_runtime.cli.run import run

app = typer.Typer(
    name="trt-runtime",
    help="Run ONNX models and TensorRT engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"trt-runtime {version('trt-runtime')}")
        raise typer.Exit


@app.callback()
def _trt_runtime(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run ONNX models and TensorRT engines."""


app.command("run")(run)
