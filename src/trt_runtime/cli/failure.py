"""How every command ends: its exit status, and an error as one paragraph instead of a traceback.

stdout holds results only. With ``--json`` it holds exactly one document, whatever happens: an error
is ``{"error": {...}}``. Warnings, and what the library logs, are notes on stderr.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from trt_runtime.cli import output
from trt_runtime.errors import (
    BuildError,
    CacheWarning,
    CudaError,
    EngineError,
    HostDeviceWarning,
    MissingProfileError,
    ModelError,
    NoDeviceError,
    NoTensorRTError,
    PlanError,
    TrtRuntimeError,
)

DIFFERS = 1
USAGE = 2
BUILD_FAILED = 3
NO_DEVICE = 4
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells count

#: The end of the main help; a paragraph each, as rich folds single lines.
EXIT_STATUS = "\n\n".join(
    (
        "Exit status: 0 done; 1 it ran, but a comparison or a check failed; 2 wrong usage or "
        "input; 3 the build failed; 4 no device or TensorRT for it, or it failed; 70 internal "
        "error; 130 interrupted.",
        "Results go to stdout, everything else to stderr. With --json stdout is one JSON document, "
        "after an error too.",
    )
)

# typer keeps its own copy of click, or uses the installed one, and exports this class alone.
_ClickException: type[Exception] = next(
    parent for parent in typer.BadParameter.__mro__ if parent.__name__ == "ClickException"
)


class Group(TyperGroup):
    """The top command: runs the others, and turns whatever they raise into text and a status."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        as_json, debug = _asked_for("--json", arguments), _asked_for("--debug", arguments)
        extra["standalone_mode"] = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A tensor's name that the console's encoding lacks must not end the program.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with _notes_on_stderr(debug):
                status = super().main(arguments, *rest, **extra)
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except Exception as error:
            if debug and not isinstance(error, _ClickException):
                raise
            status = exit_status(error)
            _report(error, status, as_json=as_json)
        if status == INTERRUPTED:
            _report(KeyboardInterrupt("interrupted"), status, as_json=as_json)
        sys.exit(status if isinstance(status, int) else 0)


def exit_status(error: BaseException) -> int:
    """The exit status that an exception means."""
    if isinstance(error, _ClickException):
        return USAGE
    if isinstance(error, BuildError) and not isinstance(error, (ModelError, MissingProfileError)):
        return BUILD_FAILED
    if isinstance(error, (NoDeviceError, NoTensorRTError, CudaError)):
        return NO_DEVICE
    if isinstance(error, EngineError) and not isinstance(error, PlanError):
        return NO_DEVICE
    return USAGE if isinstance(error, TrtRuntimeError) else INTERNAL


def _report(error: BaseException, status: int, *, as_json: bool) -> None:
    message, lines = _told(error)
    if as_json:
        content: dict[str, Any] = {"type": type(error).__name__, "message": message}
        if isinstance(error, ModelError):
            content["problems"] = list(error.problems)
        content |= {"log_lines": list(lines), "exit_status": status}
        output.document({"error": content})
        return
    if isinstance(error, _ClickException) and type(error).__name__ == "NoArgsIsHelpError":
        return  # the help has been printed, and is the message
    text = "" if status == INTERRUPTED else "error: "
    output.complain(text + message)
    if lines:
        said = (part for line in lines for part in line.splitlines())
        output.complain("\n".join(("  TensorRT said:", *(f"    {part}" for part in said))))


def _told(error: BaseException) -> tuple[str, tuple[str, ...]]:
    """The message, and TensorRT's lines that explain it."""
    if isinstance(error, TrtRuntimeError):
        notes = [f"\n  {note}" for note in getattr(error, "__notes__", ())]
        return "".join((str(error.args[0]), *notes)), error.log_lines
    if isinstance(error, _ClickException):
        return str(error.format_message()), ()  # type: ignore[attr-defined]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", ()
    return (
        f"internal error, {type(error).__name__}: {error}. This is a bug of trt-runtime: run the "
        "command again with --debug, and report the traceback that it shows.",
        (),
    )


def _asked_for(option: str, arguments: Sequence[str]) -> bool:
    """Whether the option is there; what follows ``--`` are no options."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return option in options


@contextmanager
def _notes_on_stderr(debug: bool) -> Iterator[None]:
    """The package's warnings and log as notes, each said once."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            output.note(text)

    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, (HostDeviceWarning, CacheWarning)):
            say(str(message))
        else:
            show_others(message, category, *rest)

    ours, tensorrts = logging.getLogger("trt_runtime"), logging.getLogger("trt_runtime.tensorrt")
    levels = ours.level, tensorrts.level
    notes = _Notes(say)
    ours.addHandler(notes)
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
    tensorrts.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        with warnings.catch_warnings():
            for category in (HostDeviceWarning, CacheWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        ours.removeHandler(notes)
        ours.setLevel(levels[0])
        tensorrts.setLevel(levels[1])


class _Notes(logging.Handler):
    """Hands every record to ``say``."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        source = "TensorRT: " if record.name.endswith(".tensorrt") else ""
        self._say(source + record.getMessage())
