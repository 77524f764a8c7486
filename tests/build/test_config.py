"""`BuildConfig` and `Profile`: what they refuse, and that they survive JSON and hashing."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from trt_runtime import BuildConfig, InputError, Profile

#: A value for every field that is not its default, and what must stand beside it.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "profiles": ((Profile({"x": ((1, 2), (3, 4), (5, 6)), "n": (1, 2)}),), {}),
    "precision": ("bf16", {}),
    "float32_layers": (("decode/*", "a"), {"precision": "fp16"}),
    "reduced_io": (True, {"precision": "fp16"}),
    "optimization_level": (0, {}),
    "workspace_bytes": (1 << 30, {}),
    "memory_pools": ({"tactic_dram": 1 << 20}, {}),
    "timing_cache": (Path("timings.cache"), {}),
    "tactic_sources": (("cudnn", "cublas"), {}),
    "sparse_weights": (True, {}),
    "io_types": ({"y": "float16", "x": "int8"}, {}),
    "io_formats": ({"x": "hwc8"}, {}),
    "version_compatible": (True, {}),
    "embed_lean_runtime": (False, {"version_compatible": True}),
    "hardware_compatible": ("ampere+", {}),
    "refittable": (True, {}),
    "strip_weights": (True, {}),
    "weight_streaming": (True, {}),
    "max_aux_streams": (0, {}),
    "dla_core": (1, {}),
    "gpu_fallback": (True, {"dla_core": 0}),
    "verbosity": ("detailed", {}),
    "compute_capabilities": (("8.6",), {}),
    "plugin_libraries": ((Path("libplugins.so"),), {}),
}


def config_with(name: str) -> BuildConfig:
    value, beside = OTHER[name]
    return BuildConfig(**{name: value, **beside})


def test_every_field_has_an_example_here() -> None:
    assert set(OTHER) == {field.name for field in fields(BuildConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_survives_json(name: str) -> None:
    config = config_with(name)
    told = json.loads(json.dumps(config.to_json()))
    assert set(told) == {field.name for field in fields(BuildConfig)}
    assert BuildConfig.from_json(told) == config
    assert BuildConfig.from_json({**BuildConfig().to_json(), **told}) == config


@pytest.mark.parametrize("name", OTHER)
def test_every_field_counts_in_a_comparison_and_can_be_hashed(name: str) -> None:
    _, beside = OTHER[name]
    config, without = config_with(name), BuildConfig(**beside)
    assert config != without
    assert len({config, config_with(name), without}) == 2


def test_what_is_left_out_of_json_has_its_default() -> None:
    assert BuildConfig.from_json({}) == BuildConfig()
    assert BuildConfig.from_json({"precision": "fp16"}) == BuildConfig(precision="fp16")


@pytest.mark.parametrize("told", [{"presision": "fp16"}, {"Precision": "fp16"}])
def test_an_unknown_key_is_refused_by_name(told: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"no '{next(iter(told))}'; it has profiles, precision"):
        BuildConfig.from_json(told)


def test_json_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(InputError, match="is a mapping, not list"):
        BuildConfig.from_json([])  # type: ignore[arg-type]


def test_the_order_of_a_mapping_and_of_sources_means_nothing() -> None:
    one = BuildConfig(
        io_types={"a": "float16", "b": "int8"}, tactic_sources=("cudnn", "CUBLAS", "cudnn")
    )
    other = BuildConfig(io_types={"b": "int8", "a": "float16"}, tactic_sources=("cublas", "cudnn"))
    assert one == other
    assert hash(one) == hash(other)
    assert dict(one.io_types) == {"a": "float16", "b": "int8"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "half"}, "precision 'half' is not known; expected one of 'tf32', 'fp32'"),
        ({"verbosity": "loud"}, "verbosity 'loud' is not known"),
        ({"hardware_compatible": "hopper"}, "hardware_compatible 'hopper' is not known"),
        ({"refittable": 1}, "refittable must be True or False, not 1"),
        ({"optimization_level": True}, "0 to 5, not True"),
        ({"max_aux_streams": -1}, "max_aux_streams must be an int from 0, not -1"),
        ({"dla_core": "0"}, "dla_core must be an int from 0, not '0'"),
        ({"memory_pools": {"workspace": 1}}, "limited by workspace_bytes"),
        ({"memory_pools": {"tactic_dram": -1}}, r"memory_pools\['tactic_dram'\] must be bytes"),
        ({"memory_pools": 3}, "must be a mapping of name to bytes"),
        ({"io_types": {"x": "fp16"}}, r"io_types\['x'\] must be one of float32, float16"),
        ({"io_types": {1: "float16"}}, "must be a mapping of name to a dtype's name"),
        ({"io_formats": {"x": 3}}, r"io_formats\['x'\] must be a text"),
        ({"tactic_sources": "cudnn"}, "sequence of texts"),
        ({"plugin_libraries": "lib.so"}, "sequence of paths"),
        ({"timing_cache": 3}, "timing_cache must be a path"),
        ({"embed_lean_runtime": False}, "add version_compatible=True"),
        ({"gpu_fallback": True}, "add dla_core=0"),
        ({"reduced_io": True}, "use io_types to choose one by one"),
        ({"float32_layers": "a*"}, "float32_layers must be a sequence of texts"),
        ({"float32_layers": ("a",), "precision": "as-typed"}, "leave float32_layers out"),
    ],
    ids=str,
)
def test_an_option_that_does_not_fit_is_refused_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        BuildConfig(**options)


def test_a_profile_survives_json() -> None:
    profile = Profile({"x": ((1, 2), (3, 4), (5, 6)), "a": (7,)})
    told = json.loads(json.dumps(profile.to_json()))
    assert list(told) == ["a", "x"]
    assert Profile(told) == profile
