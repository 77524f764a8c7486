"""The part of ``cuda.bindings.driver`` that `raw` calls, over the host device's driver.

So the loops and their results can be tried without a GPU. Timings of that mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from trt_runtime.platform import HostPlatform

_CALLS = {
    "cuDevicePrimaryCtxRetain": "retain_primary_context",
    "cuDevicePrimaryCtxRelease": "release_primary_context",
    "cuCtxGetCurrent": "current_context",
    "cuCtxSetCurrent": "set_current_context",
    "cuMemAlloc": "mem_alloc",
    "cuMemFree": "mem_free",
    "cuMemFreeHost": "mem_host_free",
    "cuMemcpyHtoDAsync": "memcpy_htod_async",
    "cuMemcpyDtoHAsync": "memcpy_dtoh_async",
    "cuStreamSynchronize": "stream_synchronize",
    "cuStreamDestroy": "stream_destroy",
    "cuStreamEndCapture": "stream_end_capture",
    "cuGraphLaunch": "graph_launch",
    "cuGraphDestroy": "graph_destroy",
    "cuGraphExecDestroy": "graph_exec_destroy",
}


class HostDriverApi:
    """Every call gives a tuple whose first element is the status, always success: others raise."""

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, platform: HostPlatform) -> None:
        driver = platform.host_driver
        self.cuInit = _returning(lambda flags: None)
        self.cuDeviceGet = _returning(lambda ordinal: ordinal)
        self.cuMemHostAlloc = _returning(lambda nbytes, flags: driver.mem_host_alloc(nbytes))
        self.cuStreamCreate = _returning(lambda flags: driver.stream_create(0))
        self.cuStreamBeginCapture = _returning(
            lambda stream, mode: driver.stream_begin_capture(stream)
        )
        self.cuGraphInstantiate = _returning(lambda graph, flags: driver.graph_instantiate(graph))
        for name, method in _CALLS.items():
            setattr(self, name, _returning(getattr(driver, method)))


def _returning(method: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    def call(*arguments: Any) -> tuple[Any, ...]:
        result = method(*arguments)
        return (0,) if result is None else (0, result)

    return call
