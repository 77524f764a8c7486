"""The commands on a real GPU: what they say of it is true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trt_runtime import Device
from trt_runtime.platform import cuda_platform

from .conftest import invoke

pytestmark = pytest.mark.gpu


def facts(*arguments: str, status: int = 0) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture
def builder() -> None:
    library = cuda_platform().tensorrt()
    if not library.has_builder:
        pytest.skip(f"{library.name} has no builder")


def test_doctor_sees_what_the_library_uses() -> None:
    told = facts("doctor", "--device", "cuda")
    with Device("cuda") as device:
        assert told["gpus"][0]["name"] == device.name
        assert tuple(told["gpus"][0]["compute_capability"]) == device.compute_capability
        assert told["gpus"][0]["memory"] == device.total_memory
        used = f"{device.tensorrt_name} {device.tensorrt_version}"
    assert told["auto"] == f"cuda:0 with {used}"


@pytest.mark.usefixtures("builder")
def test_an_engine_is_built_inspected_run_and_confirmed_by_onnxruntime() -> None:
    built = facts("build", "squeezenet", "--device", "cuda", "--optimization-level", "0")
    assert built["cache"]["hit"] is False
    assert built["device"]["which"] == "cuda:0"
    again = ("build", "squeezenet", "--device", "cuda", "--optimization-level", "0", "--force")
    assert facts(*again)["cache"]["hit"] is True
    engine = built["output"]
    assert facts("inspect", engine)["engine"]["layers"]
    from trt_runtime.cli import networks

    network = networks.find("squeezenet")
    assert network is not None
    ran = facts("run", engine, "--device", "cuda", "--reference", str(network.model))
    assert ran["timings_are_of_a_gpu"]
    assert ran["reference"]["matches"]
