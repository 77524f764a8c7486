"""`Engine.inspect`, `Engine.check` and `Engine.metadata`: what an engine and its plan tell."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trt_runtime import (
    BuildConfig,
    CudaError,
    Device,
    Engine,
    EngineError,
    EngineReport,
    InputError,
    Profile,
    build_plan,
)
from trt_runtime.build.digest import content_digest
from trt_runtime.inspection import Layer, LayerTensor, parse_layers
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults
from trt_runtime.platform.host.tensorrt.engine import ICudaEngine
from trt_runtime.platform.tensorrt.runtime import PlanEngine, plan_validity

from .models import dynamic, reshape, several, static

# The report -------------------------------------------------------------------------------------


def report(device: Device, **options: Any) -> EngineReport:
    with Engine.build(static().model, BuildConfig(**options), device=device) as engine:
        return engine.inspect()


def test_a_report_tells_what_the_engine_takes_and_needs(host: Device) -> None:
    case = dynamic()
    config = BuildConfig(profiles=case.profiles, refittable=True, max_aux_streams=2)
    with Engine.build(case.model, config, device=host) as engine:
        told = engine.inspect()
        assert told.tensors == tuple(engine.tensors.values())
        assert told.profiles == engine.profiles
        assert told.memory.plan == len(engine.serialize())
        with engine.create_execution_context(), engine._record as handle:
            assert told.memory.scratch == handle.scratch_bytes
        assert told.metadata == engine.metadata
    assert told.device == "host:0 (host)"
    assert (told.tensorrt, told.tensorrt_version) == ("tensorrt_host", "10.16.1")
    assert told.memory.scratch_by_profile == (told.memory.scratch,) * 2
    assert told.memory.weights == 4 * 3 * 3 * 3 * 4
    assert told.memory.streamable_weights == 0
    assert told.layer_count == 2
    assert (told.refittable, told.stripped, told.aux_streams) == (True, False, 0)
    assert (told.capability, told.hardware_compatible) == ("standard", "none")
    assert told.tactic_sources is not None
    assert "jit_convolutions" in told.tactic_sources
    assert told.warnings == ()
    assert set(told.untold) == {"built_by"}


def test_detailed_verbosity_tells_what_each_layer_is(host: Device) -> None:
    told = report(host, verbosity="detailed")
    conv, relu = told.layers
    assert (conv.type, conv.tactic) == ("Conv", "onnxruntime")
    assert [tensor.name for tensor in conv.inputs] == ["x", "w"]
    assert conv.outputs == relu.inputs == (LayerTensor("c"),)
    assert relu.origin == "[ONNX Layer: node_of_y]"
    assert told.verbosity == "detailed"
    assert told.raw_layers is not None
    assert conv.raw == json.loads(told.raw_layers)["Layers"][0]


def test_names_are_told_by_default(host: Device) -> None:
    told = report(host)
    assert told.layers == (Layer("node_of_c"), Layer("node_of_y"))
    assert told.verbosity == "names"


def test_no_verbosity_tells_no_layers_and_says_why(host: Device) -> None:
    told = report(host, verbosity="none")
    assert told.layers == ()
    assert "built to tell nothing" in told.untold["layers"]
    assert told.layer_count == 2


@pytest.mark.parametrize("level", [None, "ampere+", "same-compute-capability"])
def test_levels_are_called_as_in_the_configuration(host: Device, level: Any) -> None:
    assert report(host, hardware_compatible=level).hardware_compatible == (level or "none")


SCHEMA: dict[str, Any] = {
    "name": str,
    "device": str,
    "tensorrt": str,
    "tensorrt_version": str,
    "built_by": (str, type(None)),
    "tensors": list,
    "profiles": list,
    "memory": dict,
    "layer_count": (int, type(None)),
    "layers": list,
    "verbosity": (str, type(None)),
    "aux_streams": (int, type(None)),
    "refittable": (bool, type(None)),
    "stripped": (bool, type(None)),
    "hardware_compatible": (str, type(None)),
    "capability": (str, type(None)),
    "tactic_sources": (list, type(None)),
    "metadata": dict,
    "warnings": list,
    "untold": dict,
}


@pytest.mark.parametrize("verbosity", ["names", "detailed", "none"])
def test_a_report_is_json_of_one_schema(host: Device, verbosity: Any) -> None:
    told = report(host, verbosity=verbosity).to_json()
    assert json.loads(json.dumps(told)) == told
    assert set(told) == set(SCHEMA)
    for name, kind in SCHEMA.items():
        assert isinstance(told[name], kind), name
    assert told["tensors"][0] == {
        "name": "x",
        "mode": "input",
        "dtype": "float32",
        "shape": [1, 3, 8, 8],
        "location": "device",
        "layout": "linear",
    }
    assert told["profiles"] == [{"x": {k: [1, 3, 8, 8] for k in ("min", "opt", "max")}}]
    if verbosity == "detailed":
        assert [layer["type"] for layer in told["layers"]] == ["Conv", "Relu"]


def test_a_report_prints_as_a_page_to_read(host: Device) -> None:
    page = str(report(host, verbosity="detailed", refittable=True))
    for part in (
        "engine 'engine' on host:0 (host)",
        "tensorrt_host 10.16.1",
        "refittable: yes",
        "memory: plan ",
        "input 'x': float32[1, 3, 8, 8]",
        "profile 0: 'x' [1, 3, 8, 8] ..",
        "2 layers",
        "node_of_c (Conv), onnxruntime",
        "not told: built_by: ",
    ):
        assert part in page
    assert "None" not in page


def test_shape_tensors_are_told_with_their_values(host: Device) -> None:
    case = reshape()
    with Engine.build(case.model, profiles=case.profiles, device=host) as engine:
        told = engine.inspect().to_json()
    assert told["profiles"][0]["shape"] == {"min": [1, 1], "opt": [3, 4], "max": [12, 12]}


def test_a_release_without_an_inspector_says_so(host: Device) -> None:
    """Lean and dispatch: the engine has the method, and the module not the class."""
    with Engine.build(static().model, device=host) as engine:
        with engine._record as handle:
            assert handle.facts().layers is not None
        module = engine._library.module
        lean = SimpleNamespace(
            **{
                name: getattr(module, name)
                for name in dir(module)
                if name != "EngineInspector" and not name.startswith("__")
            }
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine._library, "module", lean)
            told = engine.inspect()
    assert told.layers == ()
    assert "has no inspector" in told.untold["layers"]
    assert told.layer_count == 2


def test_an_8_6_engine_tells_what_8_6_knew(host: Device) -> None:
    with Engine.build(static().model, device=host) as engine:
        with engine._record as handle:
            handle.generation = 8
        told = engine.inspect()
    assert told.memory.scratch is not None
    assert told.layers
    for place in ("memory.scratch_by_profile", "memory.streamable_weights", "memory.weights"):
        assert told.untold[place]
    assert told.memory.weights is None
    assert "TensorRT 10 and later" in str(told)


def test_an_engine_without_an_inspector_tells_the_rest(
    host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ICudaEngine, "create_engine_inspector", lambda _: None)
    told = report(host)
    assert told.layers == ()
    assert "no inspector for this engine" in told.untold["layers"]
    assert told.layer_count == 2


def test_a_failing_inspector_is_an_error() -> None:
    platform = HostPlatform(FailBy("get_engine_information"))
    with (
        Device(platform) as device,
        Engine.build(static().model, device=device) as engine,
        pytest.raises(EngineError, match="could not inspect") as caught,
    ):
        engine.inspect()
    assert caught.value.log_lines
    platform.host_driver.ledger.assert_empty()


class FailBy(Faults):
    """Fail every call of that name."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def fails(self, call: str) -> bool:
        return call == self.call


# The inspector's JSON ---------------------------------------------------------------------------

NAMES_8_6 = """{"Layers": ["conv1 + relu1", "Reformatting CopyNode for Output Tensor 0 to fc"
],
"Bindings": ["x"
,"y"
]}"""

DETAILED_8_6 = """{"Layers": [{
  "Name": "conv1 + relu1",
  "LayerType": "CaskConvolution",
  "Inputs": [
  {
    "Name": "x",
    "Location": "Device",
    "Dimensions": [1,3,8,8],
    "Format/Datatype": "Row major linear FP32"
  }],
  "Outputs": [
  {
    "Name": "y",
    "Location": "Device",
    "Dimensions": [1,4,8,8],
    "Format/Datatype": "Row major linear FP32"
  }],
  "ParameterType": "Convolution",
  "Kernel": [3,3],
  "HasBias": 1,
  "TacticName": "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32",
  "TacticValue": "0x9cd5cdc35441c505",
  "Metadata": "[ONNX Layer: conv1]\\u001e[ONNX Layer: relu1]"
},{
  "Name": "shuffle",
  "LayerType": "NoOp",
  "Inputs": [],
  "Outputs": [],
  "TacticValue": "0x0000000000000000"
}],
"Bindings": ["x","y"]}"""


def test_names_as_8_6_writes_them() -> None:
    layers, why = parse_layers(NAMES_8_6)
    assert [layer.name for layer in layers] == [
        "conv1 + relu1",
        "Reformatting CopyNode for Output Tensor 0 to fc",
    ]
    assert all(layer == Layer(layer.name) for layer in layers)
    assert why == ""


def test_details_as_8_6_writes_them() -> None:
    (conv, shuffle), why = parse_layers(DETAILED_8_6)
    assert conv.type == "CaskConvolution"
    assert conv.inputs == (LayerTensor("x", (1, 3, 8, 8), "Row major linear FP32"),)
    assert conv.tactic.startswith("sm80_xmma")
    assert "ONNX Layer: relu1" in conv.origin
    assert conv.raw["Kernel"] == [3, 3]
    assert shuffle == Layer("shuffle", "NoOp")
    assert why == ""


@pytest.mark.parametrize(
    ("text", "count", "why"),
    [
        ("", 0, "no JSON"),
        ("conv1 + relu1\n", 0, "no JSON"),
        ('{"Layers": ["a",]}', 0, "no JSON"),
        ("null", 0, "no list of layers"),
        ("[]", 0, "no list of layers"),
        ('{"Bindings": []}', 0, "no list of layers"),
        ('{"Layers": {"a": 1}}', 0, "no list of layers"),
        ('{"Layers": []}', 0, "tells none"),
        ('{"Layers": [1, null, ["x"]]}', 0, "tells none"),
        ('{"Layers": ["a", 1, {"Name": 5}]}', 2, ""),
        ('{"Layers": [{"Inputs": "x", "Outputs": [1, "t", {"Dimensions": ["a"]}]}]}', 1, ""),
        ("[" * 100_000, 0, "no JSON"),
    ],
    ids=range(12),
)
def test_other_texts_tell_what_they_can_and_never_fail(text: str, count: int, why: str) -> None:
    layers, told = parse_layers(text)
    assert len(layers) == count
    assert why in told
    assert bool(told) == (count == 0)


# Whether a plan can be used ---------------------------------------------------------------------


def test_a_plan_of_this_release_is_valid_and_nothing_is_left_open(
    host: Device, tmp_path: Path
) -> None:
    plan = build_plan(several().model, device=host)
    path = tmp_path / "net.engine"
    path.write_bytes(plan)
    for given in (plan, path, str(path)):
        checked = Engine.check(given, device=host)
        assert (checked.verdict, checked.reasons, checked.usable) == ("valid", (), True)
        assert str(checked) == "valid"


def test_a_plan_that_cannot_be_used_is_invalid_for_the_reason_that_load_gives(
    host: Device, tmp_path: Path
) -> None:
    plan = build_plan(static().model, device=host)
    carrying = build_plan(static().model, BuildConfig(version_compatible=True), device=host)
    for given, reason in (
        (b"garbage", "not a plan"),
        (plan[:-1], "truncated or damaged"),
        (tmp_path / "no.engine", "cannot be read"),
        (carrying, "trust_host_code=True"),
    ):
        checked = Engine.check(given, device=host)
        assert (checked.verdict, checked.usable) == ("invalid", False)
        assert reason in str(checked)
    assert Engine.check(carrying, device=host, trust_host_code=True).usable
    with Device(HostPlatform(version="11.4.0")) as newer:
        assert "another TensorRT" in str(Engine.check(plan, device=newer))


def test_what_is_no_plan_by_type_is_a_mistake(host: Device) -> None:
    with pytest.raises(InputError, match="a path or bytes"):
        Engine.check(3, device=host)  # type: ignore[arg-type]


def test_a_plan_of_another_gpu_is_suboptimal(host: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of TensorRT's warning."""
    plan = build_plan(static().model, device=host)
    warning = "Using an engine plan file across different models of devices is not recommended"
    init = PlanEngine.__init__

    def warned(self: PlanEngine, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self.load_warnings = (warning, "something else")

    monkeypatch.setattr(PlanEngine, "__init__", warned)
    checked = Engine.check(plan, device=host)
    assert (checked.verdict, checked.reasons, checked.usable) == ("suboptimal", (warning,), True)
    with Engine.load(plan, device=host) as engine:
        assert engine.inspect().warnings == (warning, "something else")


def test_what_cannot_be_found_out_is_an_error_not_a_verdict() -> None:
    platform = HostPlatform(FailBy("Runtime"))
    with Device(platform) as device, pytest.raises(EngineError):
        Engine.check(b"TRTHOST\0", device=device)
    platform.host_driver.ledger.assert_empty()


@pytest.mark.parametrize(
    ("answer", "verdict", "reasons"),
    [
        ((0, 0), "valid", 0),
        ((1, 4), "suboptimal", 1),
        ((2, 1 | 2 | 128), "invalid", 2),
        ((2, 0), "invalid", 0),
        ((7, 0), "invalid", 0),
    ],
)
def test_tensorrt_for_rtx_is_asked(answer: tuple[int, int], verdict: str, reasons: int) -> None:
    members = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
    library: Any = SimpleNamespace(
        module=SimpleNamespace(
            Runtime=lambda _: SimpleNamespace(get_engine_validity=lambda _: answer),
            EngineValidity=SimpleNamespace(VALID=0, SUBOPTIMAL=1),
            EngineInvalidityDiagnostics=SimpleNamespace(__members__=members),
        ),
        log=HostPlatform().tensorrt().log,
        version="1.7.1",
    )
    told = plan_validity(library, b"plan")
    assert told is not None
    assert told[0] == verdict
    assert len(told[1]) == reasons


# Metadata ---------------------------------------------------------------------------------------


def test_an_engine_that_was_built_here_knows_its_configuration_and_model(host: Device) -> None:

    case = dynamic()
    config = BuildConfig(profiles=case.profiles, precision="fp32")
    model = case.model.SerializeToString()
    with Engine.build(model, config, device=host) as engine:
        told = engine.metadata
        assert BuildConfig.from_json(told["config"]) == config
        assert told["model_digest"] == content_digest(model)
        assert told["plan_bytes"] == len(engine.serialize())
        assert json.loads(json.dumps(dict(told))) == told
    shape = (1, 3, 8, 8)
    with Engine.build(model, profiles=[Profile({"x": shape})], device=host) as engine:
        assert engine.metadata["config"]["profiles"] == [{"x": [list(shape)] * 3}]


def test_an_engine_that_was_loaded_knows_its_file(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(build_plan(static().model, device=host))
    with Engine.load(path, device=host) as engine:
        assert dict(engine.metadata) == {
            "tensorrt": "tensorrt_host",
            "tensorrt_version": "10.16.1",
            "built_by": None,
            "plan_bytes": path.stat().st_size,
            "path": str(path),
        }


def test_metadata_cannot_be_changed_from_outside(host: Device) -> None:
    with Engine.build(static().model, device=host) as engine:
        told: Any = engine.metadata
        with pytest.raises(TypeError):
            told["model_digest"] = "other"
        told["config"]["precision"] = "other"
        assert engine.metadata["config"]["precision"] == "tf32"
    assert engine.metadata["config"]["precision"] == "tf32", "it outlives the engine"


def test_an_inspection_that_fails_in_the_driver_is_that_error() -> None:
    faults = Faults()
    platform = HostPlatform(faults)
    with Device(platform) as device, Engine.build(static().model, device=device) as engine:
        faults.fail_call = faults.count + 1
        with pytest.raises(CudaError):
            engine.inspect()
        assert engine.inspect().layers
    platform.host_driver.ledger.assert_empty()
