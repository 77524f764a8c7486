"""What a person at a terminal sees, and a pipe does not: tables with rules, a build's progress."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trt_runtime import BuildProgress
from trt_runtime.cli import output
from trt_runtime.cli.progress import build_display

pty = pytest.importorskip("pty")

BUILD = ["build", "squeezenet", "--device", "host", "--no-cache"]


@contextmanager
def terminal() -> Iterator[tuple[int, list[str]]]:
    """The program's end of a terminal, and what has been written to it once this is left."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []
    shown: list[str] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not piece:
                break
            written.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, shown
    finally:
        os.close(theirs)
        reader.join(timeout=30)
        os.close(ours)
        shown.append(b"".join(written).decode())


def command(*arguments: str, stdout: int, stderr: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trt_runtime", *arguments],
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )


def test_a_terminal_shows_the_phases_of_a_build_and_is_left_clean() -> None:
    with terminal() as (end, shown):
        done = command(*BUILD, stdout=subprocess.PIPE, stderr=end)
    assert "\x1b[" in shown[0]
    assert "parse" in shown[0]
    assert shown[0].rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
    assert "\x1b" not in done.stdout


def test_a_pipe_sees_no_progress() -> None:
    done = command(*BUILD, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stderr == ""
    assert "built in" in done.stdout


def test_tables_have_rules_on_a_terminal_and_none_in_a_pipe() -> None:
    with terminal() as (end, shown):
        command("inspect", "squeezenet", stdout=end, stderr=subprocess.PIPE)
    piped = command("inspect", "squeezenet", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "─" in shown[0]
    assert "─" not in piped.stdout
    assert "\x1b" not in piped.stdout


def test_a_wide_table_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    name = "layer/" * 40
    output.table(("layer", "size"), [(name, "1"), ("two\nlines", "22")])
    lines = capsys.readouterr().out.splitlines()
    assert f"{name}     1" in lines
    assert any(line.startswith("two lines ") and line.endswith(" 22") for line in lines)


def test_progress_may_come_from_any_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases within phases, unknown lengths, ends without beginnings: none of it stops a build."""
    monkeypatch.setattr(output, "has_progress", lambda: True)
    reports = [
        BuildProgress("parse"),
        BuildProgress("build", 0, 3),
        BuildProgress("tactics", 0, 2, parent="build"),
        BuildProgress("tactics", 1, 2, parent="build"),
        BuildProgress("inner", 1, 1, parent="tactics"),
        BuildProgress("tactics", 2, 2, parent="build"),
        BuildProgress("tactics", 2, 2, parent="build"),
        BuildProgress("orphan", 5, 0, parent="nobody"),
        BuildProgress("[bold]markup[/nothing]", 1, 4, parent="build"),
        BuildProgress("build", 3, 3),
        BuildProgress("load"),
    ]
    with build_display() as display:
        assert not display.heard
        for report in reports:
            assert display(report) is None
    assert display.heard
