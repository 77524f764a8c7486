"""Fixtures: a host device of one's own, whose ledger must be empty afterwards, and the real GPU."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_runtime import (
    BuildConfig,
    Device,
    Engine,
    NoDeviceError,
    NoTensorRTError,
    build_plan,
    pipeline,
)
from trt_runtime.platform import HostPlatform, cuda_platform

from .models import Case

#: Where the GPU tests keep version-compatible plans: a runtime without a builder loads them.
PLANS = os.environ.get("TRT_RUNTIME_TEST_PLANS")


def _why_no_gpu() -> str | None:
    try:
        cuda_platform().tensorrt()
    except (NoDeviceError, NoTensorRTError) as error:
        return error.message
    return None


def has_gpu() -> bool:
    try:
        cuda_platform()
    except NoDeviceError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="shows what happens without a GPU")


def pytest_configure() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would the programs started here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    reason = _why_no_gpu()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


_INJECTED = pytest.StashKey[Counter[str]]()


@pytest.fixture(scope="session")
def injected(pytestconfig: pytest.Config) -> Counter[str]:
    """How many runs met a fault, by the kind of fault; the report ends with it."""
    return pytestconfig.stash.setdefault(_INJECTED, Counter())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    injected = config.stash.get(_INJECTED, Counter())
    if injected:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in injected.items())
        terminalreporter.write_line(f"runs with a fault in them: {injected.total():,} ({kinds})")


@pytest.fixture(autouse=True)
def cache_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines are kept for the test alone, and not in the user's cache."""
    monkeypatch.setenv("TRT_RUNTIME_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How long copies take: long by default, as large tensors' do, however small a test's are."""
    how: str = getattr(request, "param", "long")
    if how == "long":
        monkeypatch.setattr(pipeline, "BRIEF_BYTES", -1)
    return how


@pytest.fixture
def platform() -> Iterator[HostPlatform]:
    """A host platform of the test's own; everything opened on it must be closed by the end."""
    platform = HostPlatform()
    yield platform
    platform.host_driver.ledger.assert_empty()


@pytest.fixture
def host(platform: HostPlatform) -> Iterator[Device]:
    """A host device whose ledger must be empty once it is closed."""
    with Device(platform) as device:
        yield device


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The host device always, and the first GPU where there is one."""
    if request.param == "cuda":
        with Device("cuda") as device:
            yield device
        return
    platform = HostPlatform()
    with Device(platform) as device:
        yield device
    platform.host_driver.ledger.assert_empty()


def open_engine(device: Device, case: Case) -> Engine:
    """Build the case's engine, or load the plan that a run with a builder left behind."""
    return Engine.load(plan_of(device, case), device=device, trust_host_code=True)


def plan_path(case: Case) -> Path | None:
    """Where the case's plan is handed on, if plans are."""
    return Path(PLANS) / f"{case.name}.engine" if PLANS else None


def plan_of(device: Device, case: Case) -> bytes:
    """The case's plan for this device: version compatible where plans are handed on."""
    if device.kind == "host":
        return build_plan(case.model, profiles=case.profiles, device=device)
    library = device.platform.tensorrt()
    for key in (library.version.split(".")[0], library.name):
        if key in case.unsupported_by:
            pytest.skip(case.unsupported_by[key])
    path = plan_path(case)
    if path is not None and path.exists():
        return path.read_bytes()
    if not library.has_builder:
        pytest.skip(f"{library.name} cannot build, and there is no plan of {case.name}")
    config = BuildConfig(
        profiles=case.profiles,
        precision="fp32",
        optimization_level=0,
        version_compatible=PLANS is not None,
    )
    plan = build_plan(case.model, config, device=device)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plan)
    return plan
