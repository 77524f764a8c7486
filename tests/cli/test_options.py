"""Everything that a `BuildConfig` holds can be said on the command line, in trtexec's words too."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from trt_runtime import BuildConfig, Profile
from trt_runtime.cli import build as build_module
from trt_runtime.cli.options import spelling

from .conftest import invoke

#: For each field a command line, and what becomes of it. What needs another option has it here.
SAID: dict[str, tuple[list[str], Any]] = {
    "profiles": (["--shapes", "x:1x8"], (Profile({"x": (1, 8)}),)),
    "precision": (["--precision", "fp16"], "fp16"),
    "float32_layers": (
        ["--float32-layer", "decode/*", "--float32-layer", "a"],
        ("a", "decode/*"),
    ),
    "reduced_io": (["--reduced-io", "--precision", "fp16"], True),
    "optimization_level": (["--optimization-level", "0"], 0),
    "workspace_bytes": (["--workspace", "4GiB"], 4 * 2**30),
    "memory_pools": (
        ["--memory-pool", "tactic_dram:1MiB", "--memory-pool", "DLA_LOCAL_DRAM:2B"],
        (("dla_local_dram", 2), ("tactic_dram", 2**20)),
    ),
    "timing_cache": (["--timing-cache", "kernels.cache"], "kernels.cache"),
    "tactic_sources": (["--tactic-source", "cublas"], ("cublas",)),
    "sparse_weights": (["--sparse"], True),
    "io_types": (["--io-type", "x:float16,y:int8"], (("x", "float16"), ("y", "int8"))),
    "io_formats": (["--io-format", "x:hwc8"], (("x", "hwc8"),)),
    "version_compatible": (["--version-compatible"], True),
    "embed_lean_runtime": (["--version-compatible", "--exclude-lean-runtime"], False),
    "hardware_compatible": (["--hardware-compatible", "ampere+"], "ampere+"),
    "refittable": (["--refittable"], True),
    "strip_weights": (["--strip-weights"], True),
    "weight_streaming": (["--weight-streaming"], True),
    "max_aux_streams": (["--max-aux-streams", "2"], 2),
    "dla_core": (["--dla-core", "1"], 1),
    "gpu_fallback": (["--gpu-fallback", "--dla-core", "0"], True),
    "verbosity": (["--verbosity", "detailed"], "detailed"),
    "compute_capabilities": (
        ["--compute-capability", "8.6", "--compute-capability", "8.9"],
        ("8.6", "8.9"),
    ),
    "plugin_libraries": (["--plugin", "a.so", "--plugin", "b.so"], ("a.so", "b.so")),
}


class _Stop(Exception):
    """The build is not what these tests are about."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, doubling: str) -> Any:
    """The configuration that ``trt-runtime build`` makes of its options."""

    def of(*arguments: str) -> BuildConfig:
        caught: list[BuildConfig] = []

        def catch(path: Path, config: BuildConfig, *_: Any, **__: Any) -> None:
            caught.append(config)
            raise _Stop

        monkeypatch.setattr(build_module, "_built_here", catch)
        monkeypatch.setattr(build_module, "_built_for_elsewhere", catch)
        result = invoke("build", doubling, *arguments)
        assert caught, result.output
        return caught[0]

    return of


@pytest.mark.parametrize("field", [field.name for field in fields(BuildConfig)])
def test_every_field_can_be_said(field: str, said: Any) -> None:
    arguments, expected = SAID[field]
    assert getattr(said(*arguments), field) == expected
    assert getattr(BuildConfig(), field) != expected


def test_nothing_said_is_the_default(said: Any) -> None:
    assert said() == BuildConfig()


def test_min_opt_and_max_make_one_profile_and_each_profile_option_another(said: Any) -> None:
    config = said(
        *("--min-shapes", "x:1x8", "--opt-shapes", "x:4x8", "--max-shapes", "x:8x8"),
        *("--shapes", "y:3", "--profile", "x:9x8,y:3", "--profile", "x:1..2..3,y:4"),
    )
    assert config.profiles == (
        Profile({"y": (3,), "x": ((1, 8), (4, 8), (8, 8))}),
        Profile({"x": (9, 8), "y": (3,)}),
        Profile({"x": ((1,), (2,), (3,)), "y": (4,)}),
    )


def test_only_an_optimum_is_all_three_as_in_trtexec(said: Any) -> None:
    assert said("--optShapes=x:4x8").profiles == (Profile({"x": (4, 8)}),)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--min-shapes", "x:1"], "--opt-shapes and --max-shapes"),
        (["--min-shapes", "x:1", "--max-shapes", "x:2"], "--opt-shapes"),
        (["--shapes", "x:1", "--max-shapes", "x:2"], "--shapes gives"),
        (["--precision", "fp61"], "fp16"),
        (["--workspace", "4096"], "--workspace"),
        (["--io-type", "x"], "--io-type"),
        (["--exclude-lean-runtime"], "version_compatible"),
        (["--optimization-level", "9"], "0 to 5"),
        (["--calibrate", "missing"], "--calibrate"),
    ],
)
def test_what_does_not_fit_is_a_usage_error_that_names_it(
    arguments: list[str], expected: str, doubling: str
) -> None:
    result = invoke("build", doubling, *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("trtexec", "ours"),
    [
        ("minShapes", "min-shapes"),
        ("versionCompatible", "version-compatible"),
        ("builderOptimizationLevel", "optimization-level"),
        ("timingCacheFile", "timing-cache"),
        ("saveEngine", "output"),
        ("allowGPUFallback", "gpu-fallback"),
        ("tensorrt_rtx", "tensorrt_rtx"),
        ("SIZE", "SIZE"),
    ],
)
def test_trtexecs_spelling_is_understood(trtexec: str, ours: str) -> None:
    assert spelling(trtexec) == ours


def test_trtexecs_options_reach_the_configuration(said: Any) -> None:
    config = said(
        *("--minShapes=x:1", "--optShapes=x:2", "--maxShapes=x:3"),
        *("--builderOptimizationLevel=3", "--refit", "--saveEngine=model.plan"),
    )
    assert config == BuildConfig(
        profiles=(Profile({"x": ((1,), (2,), (3,))}),), optimization_level=3, refittable=True
    )
