"""The command ``trt-runtime``: one module for each subcommand, gathered here.

Nothing outside this package imports typer or rich.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from trt_runtime.cli import bench as bench_command
from trt_runtime.cli import build as build_command
from trt_runtime.cli import cache as cache_command
from trt_runtime.cli import demo as demo_command
from trt_runtime.cli import detect as detect_command
from trt_runtime.cli import doctor as doctor_command
from trt_runtime.cli import inspect as inspect_command
from trt_runtime.cli import profile as profile_command
from trt_runtime.cli import run as run_command
from trt_runtime.cli.failure import EXIT_STATUS, Group
from trt_runtime.cli.options import help_of, spelling

app = typer.Typer(
    name="trt-runtime",
    cls=Group,
    help="Build, run and look into ONNX models and TensorRT engines.",
    epilog=EXIT_STATUS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": spelling, "help_option_names": ["-h", "--help"]},
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
    """Build, run and look into ONNX models and TensorRT engines."""


app.command(help=help_of(demo_command.demo), epilog=demo_command.EXAMPLES)(demo_command.demo)
app.command(help=help_of(detect_command.detect), epilog=detect_command.EXAMPLES)(
    detect_command.detect
)
app.command(help=help_of(build_command.build), epilog=build_command.EXAMPLES)(build_command.build)
app.command(help=help_of(run_command.run), epilog=run_command.EXAMPLES)(run_command.run)
app.command(help=help_of(bench_command.bench), epilog=bench_command.EXAMPLES)(bench_command.bench)
app.command(help=help_of(profile_command.profile), epilog=profile_command.EXAMPLES)(
    profile_command.profile
)
app.command(help=help_of(inspect_command.inspect), epilog=inspect_command.EXAMPLES)(
    inspect_command.inspect
)
app.add_typer(cache_command.app, name="cache")
app.command(help=help_of(doctor_command.doctor), epilog=doctor_command.EXAMPLES)(
    doctor_command.doctor
)
