"""TensorRT for RTX builds real engines on a machine without a GPU: the builder path, for real."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trt_runtime import (
    BuildConfig,
    BuildError,
    BuildProgress,
    Device,
    Engine,
    InputError,
    ModelError,
    NoDeviceError,
    NotAPlanError,
    PlanError,
    Profile,
    UnsupportedError,
    build_plan,
)
from trt_runtime.build.config import Precision
from trt_runtime.platform.tensorrt import TensorRT, load_tensorrt

from ..conftest import without_gpu
from ..models import dynamic, expand, fp8, half, int8, integers, light, nonzero, reshape, static
from ..test_engine import unsupported

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)

FOR_AMPERE = BuildConfig(compute_capabilities=("8.6",))


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may depend on a device; a host device would be noticed by its warning."""
    monkeypatch.delenv("TRT_RUNTIME_DEVICE", raising=False)


@pytest.fixture
def rtx() -> TensorRT:
    return load_tensorrt("tensorrt_rtx")


def is_plan(plan: bytes) -> bool:
    return plan.startswith((b"ftrt", b"ptrt", b"rtrt", b"vtrt")) and len(plan) > 1000


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet", "bvlc_alexnet"])
def test_a_classic_network_builds_without_a_gpu(name: str) -> None:
    case, _ = light(name)
    plan = build_plan(case.model, FOR_AMPERE, device="host", tensorrt="tensorrt_rtx")
    assert is_plan(plan)


@pytest.mark.parametrize(
    "make", [dynamic, half, integers, reshape, expand], ids=lambda make: make.__name__
)
def test_profiles_and_shape_tensors_build_without_a_gpu(make: Any) -> None:
    case = make()
    plan = build_plan(case.model, FOR_AMPERE, profiles=case.profiles, tensorrt="tensorrt_rtx")
    assert is_plan(plan)


@pytest.mark.parametrize(
    "options",
    [
        {"tensorrt": "tensorrt_rtx"},
        {"tensorrt": "tensorrt_rtx", "device": "host"},
        {"config": FOR_AMPERE},
        {"config": FOR_AMPERE, "device": "host"},
        {"config": FOR_AMPERE, "tensorrt": "tensorrt_rtx"},
        {"config": BuildConfig(compute_capabilities=["7.5", "12.0"])},  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_asking_for_rtx_or_for_another_gpu_needs_no_device(options: dict[str, Any]) -> None:
    assert is_plan(build_plan(static().model, **options))


def test_an_open_host_device_is_left_alone(host: Device) -> None:
    calls = host.platform.host_driver.faults.count  # type: ignore[attr-defined]
    assert is_plan(build_plan(static().model, FOR_AMPERE, device=host))
    assert host.platform.host_driver.faults.count == calls  # type: ignore[attr-defined]


def test_the_host_device_builds_for_itself_when_nothing_else_is_asked_for(host: Device) -> None:
    assert build_plan(static().model, device=host).startswith(b"TRTHOST")


def test_the_host_device_refuses_to_run_what_rtx_would_build(host: Device) -> None:
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx.*build_plan"):
        Engine.build(static().model, device=host, tensorrt="tensorrt_rtx")
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx.*build_plan"):
        Engine.build(static().model, FOR_AMPERE, device=host)
    with pytest.raises(UnsupportedError, match="tensorrt_rtx"):
        Engine.load(b"vtrt" + bytes(100), device=host, tensorrt="tensorrt_rtx")


def test_the_host_device_refuses_a_plan_of_rtx(host: Device) -> None:
    plan = build_plan(static().model, FOR_AMPERE)
    with pytest.raises(PlanError, match="another TensorRT"):
        Engine.load(plan, device=host)


def test_unsupported_operators_are_listed_with_their_nodes() -> None:
    with pytest.raises(ModelError) as caught:
        build_plan(unsupported(), FOR_AMPERE)
    told = str(caught.value)
    assert "node 1 'odd one' (Frobnicate)" in told
    assert caught.value.problems


def test_an_operator_that_this_release_cannot_build_is_named() -> None:
    """RTX 1.7.1 wants a plugin for NonZero, and ships none."""
    with pytest.raises(ModelError, match=r"node 1.*\(NonZero\)"):
        build_plan(nonzero().model, FOR_AMPERE)


@pytest.mark.parametrize("model", [b"", b"garbage", b"\x08\x07"])
def test_bytes_that_are_no_model_are_refused(model: bytes) -> None:
    with pytest.raises(ModelError, match="cannot parse the ONNX model"):
        build_plan(model, FOR_AMPERE)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_a_classic_network_builds_in_sixteen_bits(name: str, precision: Precision) -> None:
    case, _ = light(name)
    assert is_plan(build_plan(case.model, replace(FOR_AMPERE, precision=precision)))


def test_two_profiles_build_in_sixteen_bits() -> None:
    case = dynamic()
    assert len(case.profiles) == 2
    config = replace(FOR_AMPERE, precision="fp16", reduced_io=True)
    assert is_plan(build_plan(case.model, config, profiles=case.profiles))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_precision_needs_a_quantised_model(rtx: TensorRT, precision: Precision) -> None:
    told = f"tensorrt_rtx {rtx.version} .*strongly typed.*QuantizeLinear"
    with pytest.raises(UnsupportedError, match=told):
        build_plan(static().model, replace(FOR_AMPERE, precision=precision))


@pytest.mark.parametrize(("make", "precision"), [(int8, "int8"), (fp8, "fp8")])
def test_a_quantised_model_builds_as_it_says(make: Any, precision: Precision) -> None:
    gpus = BuildConfig(compute_capabilities=("8.9",), precision=precision)
    assert is_plan(build_plan(make().model, gpus))


def test_calibration_is_refused_with_what_to_do_instead(rtx: TensorRT) -> None:
    with pytest.raises(UnsupportedError, match=r"does not calibrate.*QuantizeLinear"):
        build_plan(
            static().model, replace(FOR_AMPERE, precision="int8"), calibration=[static().feeds[0]]
        )


def test_inputs_and_outputs_take_the_types_that_are_asked_for() -> None:
    config = replace(FOR_AMPERE, io_types={"x": "float16", "y": "float16"})
    plan = build_plan(static().model, replace(config, io_formats={"x": "hwc8"}))
    assert is_plan(plan)
    with pytest.raises(BuildError, match="could not build") as caught:
        build_plan(static().model, replace(FOR_AMPERE, io_formats={"x": "hwc8"}))  # of float32
    assert any("TensorFormats" in line for line in caught.value.log_lines)


def test_a_library_that_is_no_plugin_is_refused_with_the_reason(tmp_path: Path) -> None:
    fake = tmp_path / "libplugins.so"
    fake.write_bytes(b"no library")
    with pytest.raises(BuildError, match=r"cannot load .*libplugins") as caught:
        build_plan(static().model, replace(FOR_AMPERE, plugin_libraries=(fake,)))
    assert any("Unable to load library" in line for line in caught.value.log_lines)


def test_an_unknown_compute_capability_is_told_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"capability 9\.0; it knows 7\.5, 8\.0, 8\.6, 8\.9"):
        build_plan(static().model, BuildConfig(compute_capabilities=("9.0",)))


def test_compute_capabilities_are_refused_where_the_gpu_at_hand_decides(host: Device) -> None:
    with pytest.raises(UnsupportedError, match="tensorrt"):
        build_plan(static().model, FOR_AMPERE, device=host, tensorrt="tensorrt")


def test_a_missing_profile_is_told_with_one_that_builds() -> None:
    with pytest.raises(BuildError) as caught:
        build_plan(dynamic().model, FOR_AMPERE)
    told = str(caught.value)
    profiles = eval(told[told.index("profiles=[") + len("profiles=") :], {"Profile": Profile})
    assert is_plan(build_plan(dynamic().model, FOR_AMPERE, profiles=profiles))


def test_profiles_that_contradict_the_model_are_refused_with_the_reason() -> None:
    with pytest.raises(BuildError, match="could not build") as caught:
        build_plan(dynamic().model, FOR_AMPERE, profiles=[Profile({"x": (1, 4, 8, 8)})])
    assert any("Dimension mismatch for tensor x" in line for line in caught.value.log_lines)
    negative = Profile({"x": ((-1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))})
    with pytest.raises(InputError, match=r"profile 0: TensorRT refused .* for 'x'"):
        build_plan(dynamic().model, FOR_AMPERE, profiles=[negative])


def test_progress_is_told_and_can_cancel() -> None:
    seen: list[BuildProgress] = []
    assert is_plan(build_plan(static().model, FOR_AMPERE, on_progress=seen.append))
    ours = [told.phase for told in seen if not told.parent]
    assert ours == ["parse", "parse", "build", "build"]
    own = [told for told in seen if told.parent]
    assert any(told.parent == "build" for told in own)
    assert any(told.step == told.steps > 0 for told in own)
    with pytest.raises(BuildError, match="cancelled by on_progress"):
        build_plan(static().model, FOR_AMPERE, on_progress=lambda *_: False)


def test_an_exception_in_on_progress_comes_out_of_the_build() -> None:
    def on_progress(told: BuildProgress) -> bool:
        raise LookupError(told.phase)

    with pytest.raises(LookupError):
        build_plan(static().model, FOR_AMPERE, on_progress=on_progress)
    assert is_plan(build_plan(static().model, FOR_AMPERE))


def test_a_library_has_one_log_however_it_is_asked_for(rtx: TensorRT) -> None:
    assert load_tensorrt("tensorrt_rtx") is rtx


# Without a GPU nothing loads, and says so -------------------------------------------------------


@without_gpu
def test_a_plan_does_not_load_without_a_gpu_and_is_not_called_damaged(rtx: TensorRT) -> None:
    plan = build_plan(static().model, FOR_AMPERE)
    with pytest.raises(PlanError, match="CUDA failed") as caught:
        rtx.load(plan)
    assert type(caught.value) is PlanError
    assert any("CUDA driver version is insufficient" in line for line in caught.value.log_lines)


@without_gpu
@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff" * 4096])
def test_garbage_is_not_a_plan_even_without_a_gpu(rtx: TensorRT, garbage: bytes) -> None:
    with pytest.raises(NotAPlanError) as caught:
        rtx.load(garbage)
    assert caught.value.log_lines


@without_gpu
@pytest.mark.parametrize("length", [4, 28, 100, 10_000])
def test_a_truncated_plan_is_refused_even_without_a_gpu(rtx: TensorRT, length: int) -> None:
    plan = build_plan(static().model, FOR_AMPERE)
    with pytest.raises(PlanError, match=f"{length} bytes"):
        rtx.load(plan[:length])


@without_gpu
def test_a_gpu_that_is_insisted_on_is_missed_before_the_load() -> None:
    with pytest.raises(NoDeviceError):
        Engine.load(b"vtrt", device="cuda", tensorrt="tensorrt_rtx")
