"""Building with a real TensorRT: each option's engine computes what onnxruntime does."""

from __future__ import annotations

import _thread
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    BuildConfig,
    BuildProgress,
    Calibration,
    Device,
    Engine,
    Session,
    UnsupportedError,
    build_plan,
)
from trt_runtime.platform.tensorrt.flavours import Flavour

from ..models import (
    Case,
    Feed,
    assert_matches,
    dynamic,
    light,
    reference,
    several,
    static,
    varied,
)

pytestmark = pytest.mark.gpu

#: Of the largest value. fp32 differs in the order of sums only; int8 has 255 steps, and calibration
#: cuts off the rarest values.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}


@pytest.fixture
def flavour(builder: Device) -> Flavour:
    return builder.platform.tensorrt().flavour


def check(device: Device, case: Case, config: BuildConfig, **options: Any) -> dict[str, Any]:
    """Build, compare every result with onnxruntime's; how far off the worst one is."""
    if not config.profiles:
        options.setdefault("profiles", case.profiles)
    worst: dict[str, Any] = {}
    with (
        Engine.build(case.model, config, device=device, **options) as engine,
        Session(engine) as session,
    ):
        for feed in case.feeds:
            got, want = session.infer(feed), reference(case.model, feed)
            for name, right in want.items():
                scale = max(1e-6, float(np.abs(right).max()))
                error = float(np.abs(got[name].astype(np.float64) - right).max()) / scale
                worst[name] = max(error, worst.get(name, 0.0))
    print(f"{case} {config.precision}: worst relative errors {worst}")
    for name, error in worst.items():
        assert error <= TOLERANCE[config.precision], (name, error)
    return worst


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("make", [static, dynamic, several], ids=lambda make: make.__name__)
def test_a_small_network_computes_what_onnxruntime_does(
    builder: Device, flavour: Flavour, make: Any, precision: Any
) -> None:
    if precision == "bf16" and flavour.generation == 8:
        with pytest.raises(UnsupportedError, match="no bfloat16"):
            build_plan(make().model, BuildConfig(precision=precision), device=builder)
        return
    check(builder, make(), BuildConfig(precision=precision))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_squeezenet_computes_what_onnxruntime_does(builder: Device, precision: Any) -> None:
    check(builder, varied("squeezenet"), BuildConfig(precision=precision, optimization_level=1))


# Int8 -------------------------------------------------------------------------------------------


class Counted:
    """Calibration data that counts the batches that are taken from it."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        draw = np.random.default_rng(0)
        self.batches: list[Feed] = [
            {"x": draw.standard_normal(shape).astype(np.float32)} for _ in range(count)
        ]
        self.taken = 0

    def __iter__(self) -> Iterator[Feed]:
        for batch in self.batches:
            self.taken += 1
            yield batch


@pytest.mark.parametrize("make", [static, dynamic], ids=lambda make: make.__name__)
def test_a_calibrated_network_computes_nearly_what_onnxruntime_does(
    builder: Device, flavour: Flavour, make: Any, tmp_path: Path
) -> None:
    if flavour.typed_only:
        pytest.skip("quantises what the model says")
    case = make()
    shape = case.profiles[0]["x"].opt if case.profiles else (1, 3, 8, 8)
    data = Counted(shape, 32)
    table = tmp_path / "tables.json"
    config = BuildConfig(precision="int8")
    check(builder, case, config, calibration=Calibration(data, table=table))
    assert data.taken > 2 * 32  # once for the digest, once for TensorRT
    contents = table.read_bytes()
    print(contents.decode())

    again = Counted(shape, 32)
    check(builder, case, config, calibration=Calibration(again, table=table))
    assert again.taken < 32 + 3  # the digest, and a look at the first: the table served
    assert table.read_bytes() == contents


def test_calibration_leaves_no_device_memory_behind(builder: Device, flavour: Flavour) -> None:
    if flavour.typed_only:
        pytest.skip("quantises what the model says")
    config = BuildConfig(precision="int8", optimization_level=0)

    def cycle() -> None:
        calibration = Counted((1, 3, 8, 8), 2)
        build_plan(static().model, config, calibration=calibration, device=builder)

    cycle()
    before, _ = builder.memory_info()
    for _ in range(5):
        cycle()
    after, _ = builder.memory_info()
    print(f"free device memory before and after 5 calibrated builds: {before} and {after} bytes")
    assert after == before


# Options ----------------------------------------------------------------------------------------


def test_a_second_build_uses_the_timing_cache(
    builder: Device, flavour: Flavour, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    config = BuildConfig(timing_cache=path)
    model = light("squeezenet")[0].model
    if not flavour.timing_cache:
        with pytest.raises(UnsupportedError, match="timing_cache"):
            build_plan(model, config, device=builder)
        return
    seconds, sizes = [], []
    for _ in range(2):
        began = time.perf_counter()
        build_plan(model, config, device=builder)
        seconds.append(time.perf_counter() - began)
        sizes.append(path.stat().st_size)
    print(f"seconds {seconds}, bytes of the timing cache {sizes}")
    assert sizes[0] > 100
    assert sizes[1] == sizes[0]  # nothing had to be measured again
    assert seconds[1] < seconds[0]


def test_a_damaged_timing_cache_is_ignored_and_replaced(
    builder: Device, flavour: Flavour, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not flavour.timing_cache:
        pytest.skip("has no timing cache")
    path = tmp_path / "timing.cache"
    path.write_bytes(b"no timings at all" * 10)
    config = BuildConfig(timing_cache=path, optimization_level=0)
    with caplog.at_level(logging.WARNING, "trt_runtime"):
        assert build_plan(static().model, config, device=builder)
    print(caplog.text)
    assert "is damaged" in caplog.text
    assert not path.read_bytes().startswith(b"no timings")


@pytest.mark.parametrize(
    "options",
    [
        {"refittable": True},
        {"verbosity": "detailed"},
        {"verbosity": "none"},
        {"sparse_weights": True},
        {"workspace_bytes": 64 << 20},
        {"memory_pools": {"tactic_dram": 1 << 30}},
        {"tactic_sources": ("edge_mask_convolutions", "jit_convolutions")},
        {"max_aux_streams": 0},
        {"hardware_compatible": "ampere+"},
        {"io_formats": {"x": "linear", "y": "linear"}},
        {"optimization_level": 5},
    ],
    ids=str,
)
def test_an_engine_built_with_an_option_computes_the_same(
    builder: Device, flavour: Flavour, options: dict[str, Any]
) -> None:
    if "hardware_compatible" in options and not flavour.hardware_compatibility:
        pytest.skip("builds for chosen compute capabilities instead")
    config = BuildConfig(precision="fp32", **options)
    check(builder, static(), config)


def test_inputs_and_outputs_of_float16(builder: Device) -> None:
    case = static()
    (feed,) = case.feeds
    config = BuildConfig(precision="fp16", reduced_io=True)
    with Engine.build(case.model, config, device=builder) as engine, Session(engine) as session:
        assert {spec.dtype.name for spec in (*session.inputs, *session.outputs)} == {"float16"}
        got = session.infer(feed["x"].astype(np.float16))
        want = {n: a.astype(np.float16) for n, a in reference(case.model, feed).items()}
        assert_matches(got, want, TOLERANCE["fp16"])


@pytest.mark.parametrize("embedded", [True, False])
def test_a_version_compatible_plan_carries_a_lean_runtime_or_none(
    builder: Device, flavour: Flavour, embedded: bool
) -> None:
    if flavour.name == "tensorrt_rtx" and embedded:
        pytest.skip("ships no lean runtime")
    config = BuildConfig(version_compatible=True, embed_lean_runtime=embedded, optimization_level=0)
    plan = build_plan(static().model, config, device=builder)
    print(f"embedded {embedded}: {len(plan)} bytes")
    assert (len(plan) > 10 << 20) == embedded


def test_what_the_device_or_release_lacks_is_refused_by_name(
    builder: Device, flavour: Flavour
) -> None:
    asked: list[dict[str, Any]] = [{"dla_core": 0}]
    if flavour.generation == 8:
        asked += [
            {"precision": "fp8"},
            {"precision": "as-typed"},
            {"strip_weights": True},
            {"weight_streaming": True},
            {"hardware_compatible": "same-compute-capability"},
            {"memory_pools": {"tactic_shared_memory": 1 << 10}},
            {"io_types": {"x": "bfloat16"}},
        ]
    version = builder.tensorrt_version
    for options in asked:
        with pytest.raises(UnsupportedError, match=version.replace(".", r"\.")) as caught:
            build_plan(static().model, BuildConfig(**options), device=builder)
        print(caught.value)


# While it builds --------------------------------------------------------------------------------


def test_the_phases_are_told(builder: Device, flavour: Flavour) -> None:
    seen: list[BuildProgress] = []
    config = BuildConfig(optimization_level=0)
    Engine.build(static().model, config, device=builder, on_progress=seen.append).close()
    ours = [(told.phase, told.step) for told in seen if not told.parent]
    assert ours == [(phase, step) for phase in ("parse", "build", "load") for step in (0, 1)]
    assert any(told.parent for told in seen) == flavour.monitor
    print(*seen, sep="\n")


def test_ctrl_c_comes_out_and_the_next_build_works(builder: Device) -> None:
    """8.6 cannot be cancelled: it finishes, and the interrupt comes out all the same."""

    def press(told: BuildProgress) -> None:
        if told.phase == "build" and told.step == 0:
            _thread.interrupt_main()

    config = BuildConfig(optimization_level=0)
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        build_plan(varied("squeezenet").model, config, device=builder, on_progress=press)
    print(f"the interrupt came out after {time.perf_counter() - began:.1f} s")
    check(builder, static(), BuildConfig(precision="fp32", optimization_level=0))
