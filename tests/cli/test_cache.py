"""``trt-runtime cache``: what is kept, why something is not, and what goes."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from trt_runtime import EngineCache, Profile

from .conftest import invoke

ENGINE = ["--shapes", "images:2x4", "--device", "host"]


def cache(*arguments: str, status: int = 0) -> Any:
    result = invoke("cache", *arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def text(*arguments: str) -> str:
    result = invoke("cache", *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture
def kept(doubling: str) -> str:
    """The model, of which an engine for 2x4 is in the cache."""
    EngineCache().load_or_build(
        doubling, profiles=[Profile({"images": (2, 4)})], device="host"
    ).close()
    return doubling


def test_path_is_the_folder() -> None:
    assert text("path") == f"{EngineCache().directory}\n"
    assert cache("path") == {"directory": str(EngineCache().directory), "exists": False}
    assert cache("path", "--cache-dir", "/elsewhere")["directory"] == "/elsewhere"


def test_list_shows_what_each_engine_is(kept: str) -> None:
    (entry,) = cache("list")["entries"]
    assert entry["model"] == "doubling.onnx"
    assert entry["parts"]["precision"] == "tf32"
    shown = text("list")
    assert entry["key"][:12] in shown
    assert "1 engine, " in shown


def test_an_empty_cache_is_no_error() -> None:
    assert cache("list")["entries"] == []
    assert "0 engines" in text("list")
    assert cache("prune")["removed"] == []
    assert cache("clear", "--yes")["removed"] == []


def test_verify_finds_damage_that_the_size_does_not_show(kept: str) -> None:
    (entry,) = EngineCache().entries()
    damaged = bytearray(entry.path.read_bytes())
    damaged[-1] ^= 1
    entry.path.write_bytes(damaged)
    assert not cache("list")["entries"][0]["damage"]
    assert "SHA-256" in cache("list", "--verify", status=1)["entries"][0]["damage"]
    result = invoke("cache", "list", "--verify")
    assert result.exit_code == 1
    assert "damaged" in result.stdout


def test_explain_names_exactly_what_differs(kept: str) -> None:
    assert cache("explain", kept, *ENGINE)["hit"]
    told = cache("explain", kept, *ENGINE, "--optimization-level", "2")
    assert not told["hit"]
    assert told["differences"] == [{"part": "optimization_level", "ours": 2, "theirs": None}]
    assert told["nearest"]["model"] == "doubling.onnx"
    assert "optimization_level: 2 here" in text(
        "explain", kept, *ENGINE, "--optimization-level", "2"
    )


def test_explain_says_what_build_would_do(doubling: str) -> None:
    assert not cache("explain", doubling, *ENGINE)["hit"]
    assert invoke("build", doubling, *ENGINE).exit_code == 0
    assert cache("explain", doubling, *ENGINE)["hit"]


def test_explain_says_that_engines_for_other_machines_are_not_kept(doubling: str) -> None:
    told = cache("explain", doubling, *ENGINE, "--compute-capability", "8.6", status=2)
    assert "not kept" in told["error"]["message"]


def test_prune_removes_what_is_too_much(kept: str) -> None:
    assert cache("prune", "--max-size", "1GiB")["removed"] == []
    told = cache("prune", "--max-size", "1B")
    assert len(told["removed"]) == 1
    assert told["bytes"] == 0
    assert told["bytes_freed"] > 0


def test_prune_removes_what_is_too_old(kept: str) -> None:
    directory = EngineCache().directory
    assert cache("prune", "--older-than", "30d")["removed"] == []
    long_ago = time.time() - 40 * 86400
    for file in directory.iterdir():
        os.utime(file, (long_ago, long_ago))
    assert len(cache("prune", "--older-than", "30d")["removed"]) == 1


def test_clear_asks_to_be_told_twice(kept: str) -> None:
    told = cache("clear", status=2)
    assert "1 engines" in told["error"]["message"]
    assert "--yes" in told["error"]["message"]
    assert len(cache("list")["entries"]) == 1
    assert len(cache("clear", "--yes")["removed"]) == 1
    assert cache("list")["entries"] == []


@pytest.mark.parametrize(
    "arguments", [["prune", "--max-size", "10"], ["prune", "--older-than", "soon"]]
)
def test_a_bound_that_is_no_bound_removes_nothing(kept: str, arguments: list[str]) -> None:
    assert arguments[1] in cache(*arguments, status=2)["error"]["message"]
    assert len(cache("list")["entries"]) == 1
