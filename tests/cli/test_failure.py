"""Exit status, streams and wording when something goes wrong, whatever it is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from typing import Any

import onnx
import pytest

from trt_runtime import (
    BuildError,
    BusyError,
    CacheWarning,
    ClosedError,
    CudaError,
    EngineError,
    HostDeviceWarning,
    InputError,
    MissingProfileError,
    ModelError,
    NoDeviceError,
    NotAPlanError,
    NoTensorRTError,
    UnsupportedError,
)
from trt_runtime.cli import output
from trt_runtime.cli.failure import exit_status

from .conftest import invoke


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command that raises, or does, what the test wants: ``cache path``."""

    def install(action: Any) -> None:
        def act(_: Any) -> Any:
            if isinstance(action, BaseException):
                raise action
            return action()

        monkeypatch.setattr("trt_runtime.cli.options.cache_of", act)

    return install


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("x"), 2),
        (ModelError("x"), 2),
        (MissingProfileError("x", {}), 2),
        (NotAPlanError("x"), 2),
        (UnsupportedError("x"), 2),
        (ClosedError("x"), 2),
        (BusyError("x"), 2),
        (BuildError("x"), 3),
        (NoDeviceError("x"), 4),
        (NoTensorRTError("x"), 4),
        (CudaError(1, "CUDA_ERROR_INVALID_VALUE", "cuMemAlloc"), 4),
        (EngineError("x"), 4),
        (ZeroDivisionError("x"), 70),
    ],
)
def test_the_exit_status_tells_what_kind_of_failure_it_was(
    raising: Any, error: Exception, status: int
) -> None:
    assert exit_status(error) == status
    raising(error)
    text, document = invoke("cache", "path"), invoke("cache", "path", "--json")
    assert (text.exit_code, document.exit_code) == (status, status)
    assert text.stdout == ""
    assert text.stderr.startswith("error: ")
    told = json.loads(document.stdout)["error"]
    assert told["type"] == type(error).__name__
    assert told["exit_status"] == status


def test_the_help_lists_every_exit_status() -> None:
    help_text = " ".join(invoke("--help").stdout.split())
    for status in (0, 1, 2, 3, 4, 70, 130):
        assert f" {status} " in help_text


def test_a_bug_is_one_paragraph_and_its_traceback_comes_with_debug(raising: Any) -> None:
    raising(ZeroDivisionError("by nothing"))
    result = invoke("cache", "path")
    assert result.exit_code == 70
    assert "internal error, ZeroDivisionError: by nothing" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    with pytest.raises(ZeroDivisionError):
        invoke("cache", "path", "--debug")


def test_an_interrupt_is_130(raising: Any) -> None:
    raising(KeyboardInterrupt())
    result = invoke("cache", "path")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "interrupted\n"
    document = json.loads(invoke("cache", "path", "--json").stdout)
    assert document["error"]["exit_status"] == 130


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "x", "--nothing"], ["nothing"], ["run", "x", "--seed", "y"]]
)
def test_a_usage_error_is_2_in_text_and_in_json(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["exit_status"] == 2


@pytest.mark.parametrize("arguments", [[], ["cache"]])
def test_without_a_command_there_is_help_and_status_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: trt-runtime" in result.output
    assert "error" not in result.stderr


def test_problems_and_notes_are_in_the_paragraph(raising: Any) -> None:
    error = ModelError("cannot parse the model", problems=["node 1", "node 2"], log_lines=["why"])
    error.__notes__ = ["also this"]
    raising(error)
    assert invoke("cache", "path").stderr == (
        "error: cannot parse the model\n  - node 1\n  - node 2\n  also this\n"
        "  TensorRT said:\n    why\n"
    )
    told = json.loads(invoke("cache", "path", "--json").stdout)["error"]
    assert told["problems"] == ["node 1", "node 2"]
    assert told["log_lines"] == ["why"]


def test_warnings_and_the_log_are_notes_said_once(raising: Any) -> None:
    def warn() -> None:
        for _ in range(2):
            warnings.warn("no GPU here", HostDeviceWarning, stacklevel=1)
            warnings.warn("no cache here", CacheWarning, stacklevel=1)
            logging.getLogger("trt_runtime").info("waiting for another build")
            logging.getLogger("trt_runtime.tensorrt").warning("slow")
        logging.getLogger("trt_runtime.tensorrt").info("chatter")
        raise InputError("enough")

    raising(warn)
    assert invoke("cache", "path").stderr.splitlines() == [
        "note: no GPU here",
        "note: no cache here",
        "note: waiting for another build",
        "note: TensorRT: slow",
        "error: enough",
    ]


def test_the_log_is_as_it_was_afterwards(raising: Any) -> None:
    loggers = [logging.getLogger(name) for name in ("trt_runtime", "trt_runtime.tensorrt")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    raising(InputError("x"))
    invoke("cache", "path")
    with pytest.raises(InputError):
        invoke("cache", "path", "--debug")
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


def test_long_errors_are_wrapped_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, raising: Any
) -> None:
    long = "word " * 100
    raising(InputError(long))
    assert len(invoke("cache", "path").stderr.splitlines()) == 1
    monkeypatch.setattr(output, "_is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = invoke("cache", "path").stderr.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 60


def test_the_help_is_quick_and_imports_nothing_heavy() -> None:
    command = (
        "import sys; from trt_runtime.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'onnx', 'onnxruntime', 'PIL', 'tensorrt', 'tensorrt_rtx', 'cuda.bindings'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_a_name_that_the_console_cannot_show_is_shown_all_the_same(doubling: str) -> None:
    model = onnx.load(doubling)
    model.graph.input[0].name = model.graph.node[0].input[0] = "\N{SNOWMAN}"
    model.graph.node[0].input[1] = "\N{SNOWMAN}"
    onnx.save(model, "snow.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "trt_runtime", "inspect", "snow.onnx"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u2603" in done.stdout


def test_a_reader_that_leaves_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trt_runtime", "cache", "path"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    complaint = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
    assert "Traceback" not in complaint
    assert "Exception ignored" not in complaint
