"""The GPU, and the GPU with a TensorRT that builds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trt_runtime import Device


@pytest.fixture
def gpu() -> Iterator[Device]:
    with Device("cuda") as device:
        yield device


@pytest.fixture
def builder(gpu: Device) -> Device:
    if not gpu.platform.tensorrt().has_builder:
        pytest.skip(f"{gpu.tensorrt_name} has no builder")
    return gpu
