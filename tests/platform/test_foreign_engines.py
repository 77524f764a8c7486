"""Engines of another release: who built a plan, and what such an engine must never be asked.

The crashes that these tests stand for were seen on a GPU: an engine of TensorRT 8.6.0 run by
10.16.1 takes the process down when it is asked what 8.6 did not know.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from trt_runtime import BuildConfig, EngineError, UnsupportedError, build_plan
from trt_runtime.platform.tensorrt.flavours import FLAVOURS
from trt_runtime.platform.tensorrt.runtime import PlanEngine, plan_generation, plan_version

from ..conftest import without_gpu
from ..models import static

#: The first bytes of a version-compatible plan of 8.6.0, read off one.
HEADER_8_6 = bytes.fromhex("66747274 00000000 02000000 00000000 442df701 00000000 0806000c")


def of_release(major: int, minor: int) -> bytes:
    return HEADER_8_6[:24] + bytes((major, minor, 0, 0)) + bytes(100)


class Engine:
    """An engine of 8.6 as a later release's bindings show it."""

    device_memory_size = 4096
    name = "old"

    def __init__(self) -> None:
        self.made_with: tuple[Any, ...] | None = None

    @property
    def device_memory_size_v2(self) -> int:
        pytest.fail("this call crashes the process")

    def create_execution_context(self, *arguments: Any) -> Any:
        self.made_with = arguments
        return SimpleNamespace(
            set_output_allocator=lambda *_: pytest.fail("this call crashes the process")
        )


def load(plan: bytes, version: str = "10.16.1.11", **told: Any) -> tuple[PlanEngine, Engine]:
    engine = Engine()
    vars(engine).update(told)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: engine)
    library: Any = SimpleNamespace(
        module=SimpleNamespace(
            Runtime=lambda _: runtime,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        ),
        flavour=FLAVOURS["tensorrt_lean"].of_release(version),
        name="tensorrt_lean",
        version=version,
        log=SimpleNamespace(logger=None, capture=lambda: nullcontext([])),
    )
    return PlanEngine(library, plan, trust_host_code=True, lean_library=None), engine


def test_a_plan_tells_the_release_that_built_it() -> None:
    assert plan_version(HEADER_8_6) == (8, 6, 0, 12)
    assert plan_version(HEADER_8_6[:27]) is None
    assert plan_version(b"not a plan" * 10) is None


@pytest.mark.parametrize(
    ("plan", "generation"),
    [
        (HEADER_8_6, 8),
        (of_release(10, 16), 10),
        (of_release(11, 4), 11),
        (of_release(0, 0), 11),  # a header that was not understood: the latest, not the oldest
        (b"", 11),
    ],
)
def test_an_engine_has_the_surface_of_the_release_that_built_it(
    plan: bytes, generation: int
) -> None:
    assert plan_generation(plan) == generation


def test_a_plan_of_tensorrt_for_rtx_tells_its_release_too() -> None:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    plan = build_plan(static().model, BuildConfig(compute_capabilities=("8.6",)))
    assert ".".join(map(str, plan_version(plan) or ())) == tensorrt_rtx.__version__
    assert plan_generation(plan) == 11


def test_an_old_engine_is_not_asked_what_its_release_did_not_know() -> None:
    plan_engine, engine = load(HEADER_8_6)
    assert plan_engine.scratch_bytes == 0  # TensorRT allocates it itself
    assert plan_engine.create_context()
    assert engine.made_with == ()


class Unasked:
    """An engine of another release that is asked for anything at all."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"{name}: this call may crash the process")

    def __setattr__(self, name: str, value: Any) -> None:
        pytest.fail(f"setting {name} may crash the process")


@pytest.mark.parametrize("plan", [HEADER_8_6, of_release(10, 3)], ids=["8.6", "10.3"])
def test_an_engine_of_another_release_is_asked_nothing_that_running_it_does_not_need(
    plan: bytes,
) -> None:
    plan_engine, _ = load(plan)
    plan_engine._engine = Unasked()
    facts = plan_engine.facts()
    assert (facts.layer_count, facts.refittable, facts.layers) == (None, None, None)
    assert "crashes the process" in facts.untold[""]
    assert not plan_engine.refittable
    for use in (
        lambda: plan_engine.refit(b"", None, dict),
        lambda: plan_engine.streamable_bytes,
        lambda: plan_engine.streaming_budget,
        lambda: plan_engine.set_streaming_budget(0),
        plan_engine.automatic_streaming_budget,
    ):
        with pytest.raises(UnsupportedError, match="another release"):
            use()


def test_the_same_release_may_be_asked() -> None:
    plan_engine, _ = load(of_release(10, 16), refittable=True, streamable_weights_size=7)
    assert plan_engine.refittable
    assert plan_engine.streamable_bytes == 7


def test_an_old_context_gets_no_output_allocator() -> None:
    plan_engine, _ = load(HEADER_8_6)
    context = plan_engine.create_context()
    with pytest.raises(UnsupportedError, match="'where' depends on the data"):
        context.set_output_allocator(["where"], lambda *_: 0, lambda *_: None)


def test_an_engine_of_the_same_generation_gets_its_scratch_memory_from_us() -> None:
    plan_engine, engine = load(of_release(10, 3))
    with pytest.raises(pytest.fail.Exception):
        plan_engine.scratch_bytes  # noqa: B018
    plan_engine.create_context()
    assert engine.made_with == ("user managed",)


class Hollow:
    """What lean and dispatch runtimes give when CUDA does not start."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"{name}: this call crashes the process")

    def __del__(self) -> None:
        raise AssertionError("to release it crashes the process")


def test_a_runtime_that_could_not_start_is_neither_used_nor_released() -> None:
    lines: list[str] = []

    def runtime(_: Any) -> Hollow:
        lines.append("createInferRuntime: Error Code 6: API Usage Error (CUDA initialization ...)")
        return Hollow()

    library: Any = SimpleNamespace(
        module=SimpleNamespace(Runtime=runtime),
        flavour=FLAVOURS["tensorrt_lean"].of_release("11.4.0"),
        name="tensorrt_lean",
        version="11.4.0",
        log=SimpleNamespace(logger=None, capture=lambda: nullcontext(lines)),
    )
    with pytest.raises(EngineError, match=r"tensorrt_lean 11\.4\.0 could not start CUDA.*doctor"):
        PlanEngine(library, HEADER_8_6, trust_host_code=True, lean_library=None)


@without_gpu
@pytest.mark.parametrize("name", ["tensorrt_lean", "tensorrt_dispatch"])
def test_a_runtime_without_a_builder_is_an_error_without_a_gpu_and_not_a_crash(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    program = f"""
from trt_runtime import EngineError, NoDeviceError, Session
from trt_runtime.platform.tensorrt import load_tensorrt
try:
    Session(b"ftrt" + bytes(100), device="cuda", tensorrt={name!r})
except NoDeviceError:
    print("no device")
try:
    load_tensorrt({name!r}).load(b"ftrt" + bytes(100))
except EngineError:
    print("no runtime")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "no device\nno runtime\n"), done.stderr
