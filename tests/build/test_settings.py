"""Every option of a build is told to every TensorRT release, or refused by name; none is dropped.

A stand-in has exactly the enums and the members that the manifest of a release lists, so that a
name which does not exist there fails here, and it writes down what it was told.
"""

from __future__ import annotations

import json
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from trt_runtime import BuildConfig, InputError, UnsupportedError
from trt_runtime.build.calibration import Calibration
from trt_runtime.build.plan import _prepare
from trt_runtime.platform.tensorrt import TensorRT
from trt_runtime.platform.tensorrt.flavours import FLAVOURS
from trt_runtime.platform.tensorrt.settings import (
    apply,
    apply_to_layers,
    apply_to_tensors,
    is_typed,
    refuse,
)

from ..models import fp8, int8, static
from .test_config import OTHER

MANIFESTS = Path(__file__).parents[1] / "manifests"
RELEASES = ("tensorrt-8.6.0", "tensorrt-10.16.1", "tensorrt-11.4.0", "tensorrt_rtx-1.7.1")
ALL = frozenset(RELEASES)
R8, R10, R11, RTX = RELEASES


class Recorder:
    """An object of TensorRT: takes what its class has, and nothing else; remembers it."""

    def __init__(self, members: dict[str, str], **values: Any) -> None:
        self.__dict__.update(_members=members, told=[], _values=values)

    def __setattr__(self, name: str, value: Any) -> None:
        assert self._members.get(name) == "property", f"there is no {name} to set"
        self.told.append((name, value))

    def __getattr__(self, name: str) -> Any:
        assert name in self._members, f"there is no {name}"
        if self._members[name] == "property" or name in self._values:
            return self._values[name]

        def call(*given: Any) -> Any:
            self.told.append((name, *given))
            if name == "get_memory_pool_limit":
                return next(t[2] for t in self.told if t[:2] == ("set_memory_pool_limit", given[0]))
            return True

        return call


@cache
def manifest(release: str) -> Any:
    return json.loads((MANIFESTS / f"{release}.json").read_text())


@cache
def module(release: str) -> Any:
    enums = manifest(release)["enums"]
    return SimpleNamespace(**{name: IntEnum(name, members) for name, members in enums.items()})


def library(release: str) -> Any:
    name, version = release.split("-")
    refused: Any = TensorRT.refuse
    made = SimpleNamespace(
        module=module(release),
        name=name,
        version=version,
        flavour=FLAVOURS[name].of_release(version),
        has_builder=True,
        log=SimpleNamespace(take_errors=tuple),
    )
    made.refuse = lambda *given: refused(made, *given)
    return made


def told(release: str, config: BuildConfig, model: onnx.ModelProto) -> Any:
    """What TensorRT gets to hear and to see under ``config``."""
    at_hand = library(release)
    classes = manifest(release)["classes"]
    data = model.SerializeToString()
    prepared = _prepare(at_hand, data, None, config, None)
    settings = Recorder(classes["IBuilderConfig"])
    apply(at_hand, settings, config)
    layers = layers_of(release)
    apply_to_layers(at_hand, settings, config, layers.values())
    half_read = onnx.ModelProto.FromString(prepared)
    tensors = {
        value.name: Recorder(classes["ITensor"], dtype=at_hand.module.DataType.FLOAT)
        for value in (*half_read.graph.input, *half_read.graph.output)
    }
    apply_to_tensors(at_hand, config, {"x": tensors["x"]}, {"y": tensors["y"]})
    typed = is_typed(at_hand.flavour, config)  # the network's flag
    heard = [told for tensor in (*tensors.values(), *layers.values()) for told in tensor.told]
    return settings.told, heard, prepared, typed


@cache
def named() -> onnx.ModelProto:
    """The static model, whose nodes have names here."""
    model = onnx.ModelProto.FromString(static().model.SerializeToString())
    for node in model.graph.node:
        node.name = node.op_type.lower()
    return model


def layers_of(release: str) -> dict[str, Any]:
    """A few layers: each has a name, and inputs and outputs of some types."""
    classes, kinds = manifest(release)["classes"], module(release).DataType
    made = {}
    for name, (inputs, outputs) in {
        "conv": (["FLOAT", "FLOAT"], ["FLOAT"]),
        "part/choose": (["FLOAT", None], ["FLOAT", "INT32"]),
        "part/compare": (["FLOAT"], ["BOOL"]),
        "part/count": (["INT32"], ["INT32"]),
    }.items():
        sides = [
            [t and Recorder(classes["ITensor"], dtype=getattr(kinds, t)) for t in side]
            for side in (inputs, outputs)
        ]
        made[name] = Recorder(
            classes["ILayer"],
            name=name,
            num_inputs=len(inputs),
            num_outputs=len(outputs),
            get_input=sides[0].__getitem__,
            get_output=sides[1].__getitem__,
        )
    return made


# (field, value, which releases refuse it, what the refusal tells), each told by `apply` elsewhere.
OPTIONS: tuple[tuple[str, Any, frozenset[str], str], ...] = (
    ("precision", "fp32", frozenset(), ""),
    ("precision", "fp16", frozenset(), ""),
    ("precision", "bf16", frozenset({R8}), "no bfloat16; use 'fp16'"),
    ("precision", "as-typed", frozenset({R8}), "no strongly typed networks"),
    ("float32_layers", ("conv",), frozenset(), ""),
    ("reduced_io", True, frozenset(), ""),
    ("optimization_level", 2, frozenset(), ""),
    ("workspace_bytes", 1 << 20, frozenset(), ""),
    ("memory_pools", {"tactic_dram": 5}, frozenset(), ""),
    ("memory_pools", {"tactic_shared_memory": 5}, frozenset({R8}), "memory pool 'tactic_shared"),
    ("memory_pools", {"dla_local_dram": 5}, frozenset({RTX}), "memory pool 'dla_local_dram'"),
    ("memory_pools", {"made_up": 5}, ALL, "memory pool 'made_up'; it has .*tactic_dram"),
    ("tactic_sources", ("jit_convolutions",), frozenset(), ""),
    ("tactic_sources", ("cudnn",), frozenset({R11, RTX}), "tactic source 'cudnn'; it has edge_"),
    ("sparse_weights", True, frozenset(), ""),
    ("io_types", {"x": "float16"}, frozenset(), ""),
    ("io_types", {"x": "bfloat16"}, frozenset({R8}), "dtype of inputs and outputs 'bfloat16'"),
    ("io_formats", {"x": "hwc8"}, frozenset(), ""),
    ("io_formats", {"x": "zigzag"}, ALL, "tensor format 'zigzag'; it has cdhw32"),
    ("version_compatible", True, frozenset(), ""),
    ("embed_lean_runtime", False, frozenset(), ""),
    ("hardware_compatible", "ampere+", frozenset({RTX}), "compute_capabilities instead"),
    (
        "hardware_compatible",
        "same-compute-capability",
        frozenset({R8, RTX}),
        "use 'ampere\\+'|GPUs",
    ),
    ("refittable", True, frozenset(), ""),
    ("strip_weights", True, frozenset({R8}), "use refittable=True"),
    ("weight_streaming", True, frozenset({R8, R10}), "TensorRT 10 or later|precision='as-typed'"),
    ("max_aux_streams", 1, frozenset(), ""),
    ("dla_core", 0, frozenset({RTX}), "knows no DLA"),
    ("gpu_fallback", True, frozenset({RTX}), "knows no DLA"),
    ("verbosity", "detailed", frozenset(), ""),
    ("verbosity", "none", frozenset(), ""),
    ("compute_capabilities", ("8.6",), ALL - {RTX}, "builds for the GPU at hand"),
    ("timing_cache", "a.cache", frozenset({RTX}), "times nothing while it builds"),
)

#: Told elsewhere than by `apply`: where that is tested.
ELSEWHERE = {
    "profiles": "tests/test_engine.py",
    "timing_cache": "tests/build/test_timing_cache.py",
    "plugin_libraries": "tests/build/test_build.py",
}


def test_every_field_is_in_the_table() -> None:
    assert {field for field, *_ in OPTIONS} | set(ELSEWHERE) == set(OTHER)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("field", "value", "refusing", "why"), OPTIONS, ids=str)
def test_an_option_is_told_or_refused_by_name(
    release: str, field: str, value: Any, refusing: frozenset[str], why: str
) -> None:
    beside = OTHER[field][1]
    config = BuildConfig(**{**beside, field: value})
    if release in refusing:
        at_hand = library(release)
        with pytest.raises(UnsupportedError, match=why) as caught:
            refuse(at_hand, config)
        assert f"{at_hand.name} {at_hand.version}" in str(caught.value)
        return
    now, before = (
        told(release, config, named()),
        told(release, BuildConfig(**beside), named()),
    )
    as_the_model_says = value == "as-typed" and library(release).flavour.typed_only
    assert (now != before) != (as_the_model_says or field in ELSEWHERE)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("make", "precision"), [(int8, "int8"), (fp8, "fp8")], ids=str)
def test_quantised_models_are_allowed_their_types(release: str, make: Any, precision: Any) -> None:
    at_hand = library(release)
    config = BuildConfig(precision=precision)
    if release == R8 and precision == "fp8":
        with pytest.raises(UnsupportedError, match=r"tensorrt 8\.6\.0 .*use 'int8'"):
            refuse(at_hand, config, {"fp8"})
        return
    refuse(at_hand, config, {precision})
    settings = Recorder(manifest(release)["classes"]["IBuilderConfig"])
    apply(at_hand, settings, config)
    flags = {given[1].name for given in settings.told if given[0] == "set_flag"}
    assert flags == (set() if at_hand.flavour.typed_only else {"FP16", precision.upper()})


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_precision_without_a_quantised_model_is_refused_with_the_remedy(
    release: str, precision: Any
) -> None:
    at_hand = library(release)
    typed = at_hand.flavour.typed_only
    kind = UnsupportedError if typed or (release, precision) == (R8, "fp8") else InputError
    with pytest.raises(kind, match=rf"{at_hand.name} {at_hand.version}") as caught:
        refuse(at_hand, BuildConfig(precision=precision))
    if kind is InputError:
        assert ("calibration=" in str(caught.value)) == (precision == "int8")


@pytest.mark.parametrize("release", RELEASES)
def test_calibration_is_for_releases_that_choose_types(release: str) -> None:
    at_hand = library(release)
    config = BuildConfig(precision="int8")
    if at_hand.flavour.typed_only:
        with pytest.raises(UnsupportedError, match="does not calibrate"):
            refuse(at_hand, config, (), True)
        return
    refuse(at_hand, config, (), True)
    with pytest.raises(InputError, match="would ignore the calibration"):
        refuse(at_hand, config, {"int8"}, True)
    with pytest.raises(InputError, match="not for 'fp16'"):
        refuse(at_hand, BuildConfig(precision="fp16"), (), True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("precision", "small"), [("fp16", 10), ("bf16", 16)])
def test_sixteen_bits_are_a_flag_or_the_models_own_types(
    release: str, precision: Any, small: int
) -> None:
    at_hand = library(release)
    if release == R8 and precision == "bf16":
        return
    data = static().model.SerializeToString()
    prepared = _prepare(at_hand, data, None, BuildConfig(precision=precision), None)
    if not at_hand.flavour.typed_only:
        assert prepared == data
        return
    model = onnx.ModelProto.FromString(prepared)
    assert [w.data_type for w in model.graph.initializer] == [small]
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}


@pytest.mark.parametrize("release", RELEASES)
def test_layers_stay_in_float32_by_a_constraint_or_by_the_models_types(release: str) -> None:
    at_hand, layers = library(release), layers_of(release)
    config = BuildConfig(precision="fp16", float32_layers=("part/*",))
    settings = Recorder(manifest(release)["classes"]["IBuilderConfig"])
    apply_to_layers(at_hand, settings, config, layers.values())
    if at_hand.flavour.typed_only:
        assert not any(layer.told for layer in layers.values())
        data = named().SerializeToString()
        kept = BuildConfig(precision="fp16", float32_layers=("c*",))
        model = onnx.ModelProto.FromString(_prepare(at_hand, data, None, kept, None))
        assert [w.data_type for w in model.graph.initializer] == [1]
        return
    wide, flags = at_hand.module.DataType.FLOAT, at_hand.module.BuilderFlag
    assert layers["conv"].told == []
    assert layers["part/choose"].told == [("precision", wide), ("set_output_type", 0, wide)]
    assert layers["part/compare"].told == [("precision", wide)]
    assert layers["part/count"].told == []
    assert settings.told == [("set_flag", flags.OBEY_PRECISION_CONSTRAINTS)]


@pytest.mark.parametrize("release", RELEASES)
def test_a_layer_that_is_not_there_is_refused(release: str) -> None:
    config = BuildConfig(precision="fp16", float32_layers=("c*", "d*"))
    with pytest.raises(InputError, match=r"no node .* called 'd\*'; its 2 .* are 'conv', 'relu'"):
        _prepare(library(release), named().SerializeToString(), None, config, None)
    with pytest.raises(InputError, match="have no names"):
        _prepare(library(release), static().model.SerializeToString(), None, config, None)


def test_weight_streaming_goes_with_strong_types_in_release_10() -> None:
    refuse(library(R10), BuildConfig(weight_streaming=True, precision="as-typed"))


def test_what_is_refused_is_refused_before_the_model_is_converted() -> None:
    config = BuildConfig(precision="fp16", timing_cache="a.cache")
    with pytest.raises(UnsupportedError, match="timing_cache"):
        _prepare(library(RTX), b"no model", None, config, None)
    with pytest.raises(UnsupportedError, match="does not calibrate"):
        _prepare(library(RTX), b"no model", None, BuildConfig(), Calibration([[1.0]]))
