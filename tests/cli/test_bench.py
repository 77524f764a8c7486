"""``trt-runtime bench`` and ``profile`` as a user meets them, on the host device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from .conftest import invoke


def bench(*arguments: str) -> Result:
    return invoke("bench", *arguments, "--device", "host", "--duration", "0.01", "--warm-up", "0")


def profile(*arguments: str) -> Result:
    return invoke("profile", *arguments, "--device", "host", "--runs", "2")


def facts(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_bench_speaks_trtexecs_words(doubling: str) -> None:
    result = bench(doubling, "--batch", "2", "--contexts", "2")
    assert result.exit_code == 0, result.output
    for word in ("latency", "H2D", "GPU compute", "D2H", "enqueue", "median", "p99", "floor F"):
        assert word in result.stdout
    assert "images 2x4" in result.stdout
    assert "inferences/s with 2 contexts, transfers included" in result.stdout
    assert "say nothing about a GPU" in result.stdout


def test_json_is_one_document(doubling: str) -> None:
    content = facts(bench(doubling, "--shapes", "images:3x4", "--json"))
    assert content["model"] == doubling
    assert content["shapes"] == {"images": [3, 4]}
    assert content["ms"]["infer"]["median"] > 0
    assert content["saved"] == []


def test_the_batch_chooses_within_a_profile(doubling: str) -> None:
    arguments = (doubling, "--profile", "images:1x4..2x4..8x4", "--json")
    assert facts(bench(*arguments))["shapes"] == {"images": [2, 4]}
    assert facts(bench(*arguments, "--batch", "8"))["shapes"] == {"images": [8, 4]}


def test_an_engine_runs_at_the_shapes_asked_for(doubling: str) -> None:
    built = invoke("build", doubling, "--profile", "images:1x4..2x4..8x4", "--device", "host")
    assert built.exit_code == 0, built.output
    content = facts(bench("doubling.engine", "--shapes", "images:5x4", "--json"))
    assert content["shapes"] == {"images": [5, 4]}
    result = bench("doubling.engine", "--precision", "fp16")
    assert result.exit_code == 2
    assert "built already" in result.output


def test_no_graphs_is_said(doubling: str) -> None:
    content = facts(bench(doubling, "--batch", "1", "--no-graphs", "--json"))
    assert content["graph_fallback"] == "graphs=False was given"


def test_plot_and_trace_are_written(doubling: str, own_machine: Path) -> None:
    result = bench(doubling, "--batch", "2", "--plot", "b.png", "--trace", "b.json")
    assert result.exit_code == 0, result.output
    assert "saved b.png, b.json" in result.stdout
    assert (own_machine / "b.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((own_machine / "b.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--shapes images:SIZEx4"),
        (["--shapes", "pictures:1x4"], "pictures"),
        (["--batch", "2", "--plot", "nowhere/b.png"], "no folder"),
        (["--batch", "2", "--duration", "0"], "duration"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    doubling: str, arguments: list[str], expected: str
) -> None:
    result = invoke("bench", doubling, "--device", "host", *arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert expected in result.output


def test_a_batch_for_fixed_shapes_is_refused() -> None:
    result = bench("squeezenet", "--batch", "2")
    assert result.exit_code == 2
    assert "no input" in result.output


def test_a_plot_without_matplotlib_is_refused_before_the_work(
    doubling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (bench, profile):
        result = command(doubling, "--plot", "b.png")  # and there are no shapes to build for
        assert result.exit_code == 2
        assert "trt-runtime[plot]" in result.output


def test_profile_shows_the_slowest_layers() -> None:
    result = profile("squeezenet", "--top", "3", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert "3 of 105 layers" in result.stdout
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_profile_as_json_has_every_layer(doubling: str) -> None:
    content = facts(profile(doubling, "--batch", "2", "--json"))
    assert len(content["layers"]) == 1
    assert content["layers"][0]["share"] == 1
    assert content["timings_are_of_a_gpu"] is False
