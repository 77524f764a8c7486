"""``trt-runtime build``: a file, from the cache when there is one, for GPUs elsewhere too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import BuildError, Engine
from trt_runtime.cli import build as build_module

from .conftest import invoke

SHAPES = ["--shapes", "images:2x4"]


def build(*arguments: str, status: int = 0) -> Any:
    result = invoke("build", *arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def host(*arguments: str, status: int = 0) -> Any:
    return build(*arguments, "--device", "host", status=status)


def test_the_file_runs(doubling: str) -> None:
    told = host(doubling, *SHAPES)
    assert told["output"] == "doubling.engine"
    assert told["bytes"] == Path("doubling.engine").stat().st_size
    assert told["config"]["profiles"] == [{"images": [[2, 4]] * 3}]
    result = invoke(*told["next"].split()[1:])
    assert result.exit_code == 0, result.output


def test_the_second_time_it_comes_from_the_cache(doubling: str, tmp_path: Path) -> None:
    first = host(doubling, *SHAPES)
    second = host(doubling, *SHAPES, "-o", "again.engine")
    assert (first["cache"]["hit"], second["cache"]["hit"]) == (False, True)
    assert second["cache"]["directory"] == str(tmp_path / "cache")
    assert Path("again.engine").read_bytes() == Path("doubling.engine").read_bytes()


def test_without_the_cache_nothing_is_kept(doubling: str, tmp_path: Path) -> None:
    assert host(doubling, *SHAPES, "--no-cache")["cache"] is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_ones_own(doubling: str, tmp_path: Path) -> None:
    told = host(doubling, *SHAPES, "--cache-dir", str(tmp_path / "mine"))
    assert told["cache"]["directory"] == str(tmp_path / "mine")
    assert list((tmp_path / "mine").glob("*.plan"))


def test_a_file_that_is_there_stays_unless_forced(doubling: str) -> None:
    Path("doubling.engine").write_text("precious")
    told = host(doubling, *SHAPES, status=2)
    assert "--force" in told["error"]["message"]
    assert Path("doubling.engine").read_text() == "precious"
    host(doubling, *SHAPES, "--force")
    assert Path("doubling.engine").read_bytes() != b"precious"


def test_where_it_cannot_be_written_it_is_not_built(
    doubling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_built_here", lambda *_, **__: pytest.fail("it was built"))
    told = host(doubling, *SHAPES, "-o", "missing/doubling.engine", status=2)
    assert "no folder" in told["error"]["message"]


def test_the_text_tells_the_tensors_and_the_next_command(doubling: str) -> None:
    result = invoke("build", doubling, "--profile", "images:1x4..2x4..8x4", "--device", "host")
    assert result.exit_code == 0, result.output
    assert "1x4..2x4..8x4" in result.stdout
    assert "built in" in result.stdout
    assert "next: trt-runtime run doubling.engine --device host" in result.stdout
    assert result.stderr == ""  # no progress where nobody looks


def test_a_dynamic_input_without_a_profile_is_a_usage_error(doubling: str) -> None:
    told = host(doubling, status=2)
    assert told["error"]["type"] == "MissingProfileError"
    assert "--shapes images:SIZEx4" in told["error"]["message"]


def test_an_engine_is_not_built_again(doubling: str) -> None:
    host(doubling, *SHAPES)
    assert "already" in host("doubling.engine", status=2)["error"]["message"]


def test_a_failed_build_is_3_and_shows_what_tensorrt_said(
    doubling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BuildError("TensorRT could not build the engine", log_lines=["no kernel\nfits"])

    monkeypatch.setattr(build_module, "_built_here", fail)
    told = host(doubling, *SHAPES, status=3)
    assert told["error"]["log_lines"] == ["no kernel\nfits"]
    result = invoke("build", doubling, *SHAPES)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        "error: TensorRT could not build the engine\n  TensorRT said:\n    no kernel\n    fits\n"
    )


def test_calibration_data_comes_from_files_in_order(doubling: str) -> None:
    folder = Path("samples")
    folder.mkdir()
    for number in (2, 1):
        np.save(folder / f"{number}.npy", np.full((2, 4), number, np.float32))
    np.savez("last.npz", images=np.full((2, 4), 3, np.float32))
    samples = build_module.Samples.of([folder, Path("last.npz")])
    assert samples is not None
    for _ in range(2):  # every build reads them anew
        first, second, third = samples
        assert (first == 1).all()
        assert (second == 2).all()
        assert (third["images"] == 3).all()  # type: ignore[call-overload]


def test_calibration_reaches_the_build(doubling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def load(*arguments: Any, calibration: Any, **_: Any) -> None:
        given.extend(calibration)
        raise BuildError("enough")

    monkeypatch.setattr(Engine, "build", load)
    np.save("sample.npy", np.ones((2, 4), np.float32))
    arguments = (*SHAPES, "--precision", "int8", "--calibrate", "sample.npy", "--no-cache")
    host(doubling, *arguments, status=3)
    assert len(given) == 1


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
@pytest.mark.parametrize("named", [[], ["--tensorrt", "tensorrt_rtx"]])
def test_tensorrt_for_rtx_builds_for_a_gpu_that_is_elsewhere(named: list[str]) -> None:
    told = build("squeezenet", *named, "--compute-capability", "8.6", "-o", "squeezenet.plan")
    assert told["tensorrt"]["name"] == "tensorrt_rtx"
    assert told["device"] is None
    assert Path("squeezenet.plan").read_bytes()[:4] in (b"ftrt", b"rtrt", b"ptrt", b"vtrt")
    result = invoke("build", "squeezenet", *named, "--compute-capability", "5.0")
    assert result.exit_code == 2
    assert "5.0" in result.stderr
