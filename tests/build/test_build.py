"""A build from outside: progress, cancelling, Ctrl-C, types, plugins, one at a time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    BuildConfig,
    BuildError,
    BuildProgress,
    Device,
    Engine,
    InputError,
    Session,
    UnsupportedError,
    build_plan,
)
from trt_runtime.build.progress import Reporter

from ..models import several, static

# Progress ---------------------------------------------------------------------------------------


def test_the_phases_are_parse_build_and_load_around_tensorrts_own(host: Device) -> None:
    seen: list[BuildProgress] = []
    Engine.build(static().model, device=host, on_progress=seen.append).close()
    ours = [(told.phase, told.step) for told in seen if not told.parent]
    assert ours == [(phase, step) for phase in ("parse", "build", "load") for step in (0, 1)]
    own = [told for told in seen if told.parent]
    assert own[0].parent == "build"
    assert {told.parent for told in own} <= {"build", *(told.phase for told in own)}
    times = [told.elapsed_s for told in seen]
    assert times == sorted(times)
    assert times[0] >= 0


@pytest.mark.parametrize("phase", ["parse", "build", "load", "Tactic Selection"])
def test_false_cancels_in_every_phase(host: Device, phase: str) -> None:
    with pytest.raises(BuildError, match="cancelled by on_progress"):
        Engine.build(static().model, device=host, on_progress=lambda told: told.phase != phase)


@pytest.mark.parametrize("phase", ["parse", "build", "load", "Tactic Selection"])
@pytest.mark.parametrize("kind", [LookupError, TypeError, KeyboardInterrupt])
def test_an_exception_comes_out_of_every_phase(
    host: Device, phase: str, kind: type[BaseException]
) -> None:
    def on_progress(told: BuildProgress) -> None:
        if told.phase == phase:
            raise kind(phase)

    with pytest.raises(kind, match=rf"^{phase}$"):
        Engine.build(static().model, device=host, on_progress=on_progress)


def test_none_goes_on() -> None:
    reporter = Reporter(lambda told: None)
    assert reporter.report("build", 1, 2)
    reporter.raise_if_stopped()
    reporter.cancel()
    assert not reporter.report("build", 2, 2)


# Ctrl-C -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "host",
        pytest.param(
            "rtx",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx"
            ),
        ),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_reaches_a_build_and_leaves_no_file(tmp_path: Path, target: str) -> None:
    out = tmp_path / "net.engine"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.build.interrupted", target, str(out)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)  # closes its input, which the host waits for
    assert told == "interrupted\n", errors
    assert "KeyboardInterrupt" in errors
    assert process.returncode in (-signal.SIGINT, 130)
    assert list(tmp_path.iterdir()) == []


def test_a_build_in_another_thread_needs_no_thread_of_its_own(host: Device) -> None:
    seen: list[threading.Thread] = []
    results: list[bytes] = []

    def work() -> None:
        results.append(
            build_plan(
                static().model,
                device=host,
                on_progress=lambda told: seen.append(threading.current_thread()),
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].startswith(b"TRTHOST")
    assert set(seen) == {thread}


def test_one_build_runs_at_a_time_and_a_waiting_one_can_be_cancelled(host: Device) -> None:
    building, go_on = threading.Event(), threading.Event()

    def first(told: BuildProgress) -> None:
        building.set()
        assert go_on.wait(30)

    thread = threading.Thread(
        target=lambda: build_plan(static().model, device=host, on_progress=first)
    )
    thread.start()
    assert building.wait(30)
    library, waiting = host.platform.tensorrt(), Reporter()
    data = static().model.SerializeToString()
    threading.Timer(0.05, waiting.cancel).start()
    with pytest.raises(BuildError, match="cancelled"):
        library.build(data, None, BuildConfig(), waiting)
    go_on.set()
    thread.join()


# Types of inputs and outputs --------------------------------------------------------------------


def test_inputs_and_outputs_have_the_types_asked_for(host: Device) -> None:
    config = BuildConfig(io_types={"first": "float16", "minus": "int32"})
    with Engine.build(several().model, config, device=host) as engine:
        types = {name: spec.dtype.name for name, spec in engine.tensors.items()}
    assert types == {
        "second": "float32",
        "first": "float16",
        "sum": "float32",
        "product": "float32",
        "minus": "int32",
    }


@pytest.mark.parametrize(("precision", "name"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_reduced_io_gives_every_float_the_smaller_type(
    host: Device, precision: Any, name: str
) -> None:
    config = BuildConfig(precision=precision, reduced_io=True, io_types={"sum": "float32"})
    with Engine.build(several().model, config, device=host) as engine:
        types = {n: spec.dtype.name for n, spec in engine.tensors.items()}
    assert types.pop("sum") == "float32"
    assert set(types.values()) == {name}


@pytest.mark.parametrize("precision", ["tf32", "as-typed"])
def test_an_unknown_tensor_is_refused_with_the_known_ones(host: Device, precision: Any) -> None:
    config = BuildConfig(precision=precision, io_types={"z": "float16"})
    with pytest.raises(InputError, match=r"io_types names 'z', but .* are 'x', 'y'"):
        build_plan(static().model, config, device=host)
    config = BuildConfig(precision=precision, io_formats={"z": "linear"})
    with pytest.raises(InputError, match=r"io_formats names 'z', but .* are 'x', 'y'"):
        build_plan(static().model, config, device=host)


def test_a_layout_that_the_device_lacks_fails_with_its_reason(host: Device) -> None:
    assert build_plan(static().model, BuildConfig(io_formats={"x": "linear"}), device=host)
    with pytest.raises(BuildError, match="could not build") as caught:
        build_plan(static().model, BuildConfig(io_formats={"x": "hwc8"}), device=host)
    assert any("TensorFormats" in line for line in caught.value.log_lines)


def test_an_accelerator_that_is_not_there_is_refused(host: Device) -> None:
    with pytest.raises(UnsupportedError, match="finds no DLA core on this device, and dla_core=0"):
        build_plan(static().model, BuildConfig(dla_core=0), device=host)


# Plugins ----------------------------------------------------------------------------------------


def test_a_missing_plugin_library_is_refused_before_the_build(host: Device, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    config = BuildConfig(plugin_libraries=(tmp_path / "libmine.so",))
    with pytest.raises(InputError, match=r"there is no plugin library .*libmine\.so"):
        build_plan(static().model, config, device=host, on_progress=seen.append)
    assert [told.phase for told in seen] == ["parse"]


def test_a_library_without_plugins_is_refused_with_the_reason(host: Device, tmp_path: Path) -> None:
    (tmp_path / "libmine.so").write_bytes(b"no library")
    config = BuildConfig(plugin_libraries=(tmp_path / "libmine.so",))
    with pytest.raises(BuildError, match="cannot load") as caught:
        build_plan(static().model, config, device=host)
    assert any("Unable to load library" in line for line in caught.value.log_lines)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_plugin_library_is_loaded_once(host: Device, tmp_path: Path) -> None:
    source, library = tmp_path / "mine.c", tmp_path / "libmine.so"
    source.write_text("void *getCreators(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    config = BuildConfig(plugin_libraries=(library,))
    build_plan(static().model, config, device=host)
    os.replace(library, tmp_path / "kept.so")
    library.write_bytes(b"now it is none, and is not looked at again")
    build_plan(static().model, config, device=host)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_plan_is_loaded_after_its_plugins(host: Device, tmp_path: Path) -> None:
    source, library = tmp_path / "mine.c", tmp_path / "libmine.so"
    source.write_text("void *getCreators(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    plan = build_plan(static().model, device=host)
    with Session(plan, device=host, plugin_libraries=[library]) as session:
        loaded = host.platform.tensorrt()._plugins
        assert str(library.resolve()) in loaded
    with Session(static().model, device=host, plugin_libraries=[library]) as session:
        config = session.engine.metadata["config"]
        assert config["plugin_libraries"] == [str(library)]
    with pytest.raises(InputError, match=r"there is no plugin library .*libother\.so"):
        Engine.load(plan, device=host, plugin_libraries=[tmp_path / "libother.so"])
    with (
        Engine.load(plan, device=host) as engine,
        pytest.raises(InputError, match="plugin_libraries cannot be given with an Engine"),
    ):
        Session(engine, plugin_libraries=[library])


def test_a_build_leaves_the_callers_array_alone(host: Device) -> None:
    data = np.ones((1, 3, 8, 8), np.float32)
    data.flags.writeable = False
    config = BuildConfig(precision="int8")
    assert build_plan(static().model, config, calibration=[data], device=host)
    assert (data == 1).all()
