"""`CudaDriver` checks every result: against a stand-in for ``cuda.bindings.driver`` that fails."""

from __future__ import annotations

import importlib.util
import inspect
import os
from types import SimpleNamespace
from typing import Any

import pytest

from trt_runtime import (
    CudaError,
    ForkedProcessError,
    NoDeviceError,
    OutOfMemoryError,
    StickyCudaError,
)
from trt_runtime.platform import cuda
from trt_runtime.platform.cuda import CudaDriver
from trt_runtime.platform.driver import STICKY, Driver, Part

NAMES = {
    0: "CUDA_SUCCESS",
    1: "CUDA_ERROR_INVALID_VALUE",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    4: "CUDA_ERROR_DEINITIALIZED",
    100: "CUDA_ERROR_NO_DEVICE",
    600: "CUDA_ERROR_NOT_READY",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
}


class Status(int):
    """A ``CUresult``."""

    @property
    def name(self) -> str:
        return NAMES.get(self, f"CUDA_ERROR_{int(self)}")


class Handle:
    """A handle object of the bindings: nothing but what ``int`` makes of it."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __int__(self) -> int:
        return self._value


#: What each call returns beside its status.
RESULTS: dict[str, tuple[Any, ...]] = {
    "cuDriverGetVersion": (13000,),
    "cuDeviceGetCount": (2,),
    "cuDeviceGet": (Handle(1),),
    "cuDeviceGetName": (b"NVIDIA H200\0\0\0",),
    "cuDeviceGetAttribute": (9,),
    "cuDeviceTotalMem": (1 << 37,),
    "cuDevicePrimaryCtxRetain": (Handle(0xC0),),
    "cuDevicePrimaryCtxGetState": (0, 1),
    "cuCtxGetCurrent": (Handle(0),),
    "cuMemGetInfo": (5, 7),
    "cuMemAlloc": (Handle(0x7000),),
    "cuMemHostAlloc": (0x8000,),
    "cuStreamCreateWithPriority": (Handle(0x51),),
    "cuStreamGetFlags": (1,),
    "cuPointerGetAttribute": (1,),
    "cuEventCreate": (Handle(0xE1),),
    "cuEventElapsedTime": (1.5,),
    "cuStreamEndCapture": (Handle(0x61),),
    "cuStreamIsCapturing": (1,),
    "cuGraphInstantiate": (Handle(0x62),),
}


class Bindings:
    """``cuda.bindings.driver``, of which any call can be told what to return."""

    CUDA_MEMCPY3D = SimpleNamespace
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_HOST=1, CU_MEMORYTYPE_DEVICE=2)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUctx_flags = SimpleNamespace(CU_CTX_SCHED_YIELD=2, CU_CTX_SCHED_BLOCKING_SYNC=4)
    CUevent_flags = SimpleNamespace(CU_EVENT_BLOCKING_SYNC=1, CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    CUstreamCaptureStatus = SimpleNamespace(CU_STREAM_CAPTURE_STATUS_NONE=0)
    CUresult = SimpleNamespace(CUDA_SUCCESS=Status(0), CUDA_ERROR_NOT_READY=Status(600))
    CUpointer_attribute = SimpleNamespace(
        CU_POINTER_ATTRIBUTE_HOST_POINTER=4, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9
    )
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
    )

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def cuGetErrorString(self, status: int) -> tuple[Status, bytes | None]:
        return Status(0), b"the reason" if status in NAMES else None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            results = RESULTS.get(name, ())
            if name in self.failing:
                return (Status(self.failing[name]), *(None for _ in results))
            return (Status(0), *results)

        return call


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    bindings = Bindings()
    monkeypatch.setattr(cuda, "_load_bindings", lambda: bindings)
    return bindings


#: A call of every method, and which driver call it stands on.
METHODS: dict[str, tuple[tuple[Any, ...], str]] = {
    "driver_version": ((), "cuDriverGetVersion"),
    "device_count": ((), "cuDeviceGetCount"),
    "device_name": ((0,), "cuDeviceGetName"),
    "compute_capability": ((0,), "cuDeviceGetAttribute"),
    "total_memory": ((0,), "cuDeviceTotalMem"),
    "multiprocessor_count": ((0,), "cuDeviceGetAttribute"),
    "retain_primary_context": ((0,), "cuDevicePrimaryCtxRetain"),
    "release_primary_context": ((0,), "cuDevicePrimaryCtxRelease"),
    "primary_context_spins": ((0,), "cuDevicePrimaryCtxGetState"),
    "current_context": ((), "cuCtxGetCurrent"),
    "set_current_context": ((0xC0,), "cuCtxSetCurrent"),
    "memory_info": ((), "cuMemGetInfo"),
    "mem_alloc": ((16,), "cuMemAlloc"),
    "mem_free": ((0x7000,), "cuMemFree"),
    "pointer_device": ((0x7000,), "cuPointerGetAttribute"),
    "host_pointer": ((0x7000,), "cuPointerGetAttribute"),
    "mem_host_alloc": ((16,), "cuMemHostAlloc"),
    "mem_host_free": ((0x8000,), "cuMemFreeHost"),
    "memcpy_htod_async": ((1, 2, 3, 4), "cuMemcpyHtoDAsync"),
    "prepare_upload": ((Part(16, 2, 3, 4, 15, 6),), "cuMemcpy3DAsync"),
    "memcpy_dtoh_async": ((1, 2, 3, 4), "cuMemcpyDtoHAsync"),
    "memcpy_dtod_async": ((1, 2, 3, 4), "cuMemcpyDtoDAsync"),
    "memset_d8_async": ((1, 2, 3, 4), "cuMemsetD8Async"),
    "stream_create": ((0,), "cuStreamCreateWithPriority"),
    "stream_destroy": ((0x51,), "cuStreamDestroy"),
    "stream_is_blocking": ((0x51,), "cuStreamGetFlags"),
    "stream_synchronize": ((0x51,), "cuStreamSynchronize"),
    "stream_query": ((0x51,), "cuStreamQuery"),
    "stream_poll": ((0x51,), "cuStreamQuery"),
    "stream_wait_event": ((0x51, 0xE1), "cuStreamWaitEvent"),
    "event_create": ((False,), "cuEventCreate"),
    "event_destroy": ((0xE1,), "cuEventDestroy"),
    "event_record": ((0xE1, 0x51), "cuEventRecord"),
    "event_synchronize": ((0xE1,), "cuEventSynchronize"),
    "event_query": ((0xE1,), "cuEventQuery"),
    "event_elapsed_ms": ((0xE1, 0xE2), "cuEventElapsedTime"),
    "stream_begin_capture": ((0x51,), "cuStreamBeginCapture"),
    "stream_end_capture": ((0x51,), "cuStreamEndCapture"),
    "is_capturing": ((0x51,), "cuStreamIsCapturing"),
    "graph_instantiate": ((0x61,), "cuGraphInstantiate"),
    "graph_launch": ((0x62, 0x51), "cuGraphLaunch"),
    "graph_exec_destroy": ((0x62,), "cuGraphExecDestroy"),
    "graph_destroy": ((0x61,), "cuGraphDestroy"),
}
every_method = pytest.mark.parametrize("method", METHODS)


def call(driver: CudaDriver, method: str) -> Any:
    result = getattr(driver, method)(*METHODS[method][0])
    return result(1, 2, 4) if method == "prepare_upload" else result


def test_every_method_of_the_protocol_is_tried_here() -> None:
    methods = {name for name, _ in inspect.getmembers(Driver, inspect.isfunction)}
    assert {name for name in methods if not name.startswith("_")} == set(METHODS)


@every_method
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, CudaError),
        (2, OutOfMemoryError),
        (3, CudaError),
        (700, StickyCudaError),
        (12345, CudaError),
    ],
)
def test_a_failing_call_raises_its_kind_with_name_and_code(
    bindings: Bindings, method: str, code: int, kind: type[CudaError]
) -> None:
    driver = CudaDriver()
    _, name = METHODS[method]
    bindings.failing[name] = code
    with pytest.raises(kind) as caught:
        call(driver, method)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.call) == (code, name)
    assert f"{name} failed with {Status(code).name} ({code})" in str(error)
    assert ("the reason" in str(error)) == (code in NAMES)
    del bindings.failing[name]
    call(driver, method)  # one failure is not remembered


@pytest.mark.parametrize("code", sorted(STICKY))
def test_every_sticky_code_says_that_the_process_must_restart(
    bindings: Bindings, code: int
) -> None:
    driver = CudaDriver()
    bindings.failing["cuStreamSynchronize"] = code
    with pytest.raises(StickyCudaError, match="must be restarted"):
        driver.stream_synchronize(0x51)


def test_a_part_is_the_same_bytes_of_both_sides(bindings: Bindings) -> None:
    upload = CudaDriver().prepare_upload(Part(16, 2, 3, 4, 15, 6))
    for device, host in ((100, 200), (300, 400), (300, 400), (300, 200), (100, 200)):
        upload(device, host, 0x51)
        name, (copy, stream) = bindings.calls[-1]
        assert (name, stream) == ("cuMemcpy3DAsync", 0x51)
        assert vars(copy) == {
            "srcMemoryType": 1,
            "srcHost": host + 16,
            "srcPitch": 3,
            "srcHeight": 5,
            "dstMemoryType": 2,
            "dstDevice": device + 16,
            "dstPitch": 3,
            "dstHeight": 5,
            "WidthInBytes": 2,
            "Height": 4,
            "Depth": 6,
        }


def test_what_describes_a_part_is_in_the_bindings() -> None:
    cu = pytest.importorskip("cuda.bindings.driver")
    copy = cu.CUDA_MEMCPY3D()
    for name in ("srcPitch", "srcHeight", "dstPitch", "dstHeight", "WidthInBytes", "Height"):
        assert getattr(copy, name) == 0
    copy.srcHost, copy.dstDevice, copy.Depth = 1 << 40, 1 << 41, 3
    copy.srcMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_HOST
    copy.dstMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
    assert (int(copy.srcHost), int(copy.dstDevice), copy.Depth) == (1 << 40, 1 << 41, 3)


def test_running_out_of_memory_is_a_memory_error(bindings: Bindings) -> None:
    driver = CudaDriver()
    bindings.failing["cuMemAlloc"] = 2
    with pytest.raises(MemoryError):
        driver.mem_alloc(16)


@pytest.mark.parametrize(
    ("flags", "spins"), [(0, True), (1, True), (8, True), (2, False), (4, False), (12, False)]
)
def test_whether_waiting_threads_spin_is_what_the_context_was_made_with(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch, flags: int, spins: bool
) -> None:
    monkeypatch.setitem(RESULTS, "cuDevicePrimaryCtxGetState", (flags, 1))
    assert CudaDriver().primary_context_spins(0) is spins


def test_a_device_that_cannot_be_had_names_that_call(bindings: Bindings) -> None:
    driver = CudaDriver()
    bindings.failing["cuDeviceGet"] = 101
    for method in (
        "device_name",
        "compute_capability",
        "total_memory",
        "multiprocessor_count",
        "primary_context_spins",
        "retain_primary_context",
    ):
        with pytest.raises(CudaError, match="cuDeviceGet failed"):
            call(driver, method)


@pytest.mark.parametrize("same_object", [True, False])
def test_polling_asks_until_the_work_is_finished(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch, same_object: bool
) -> None:
    driver = CudaDriver()
    busy = driver._not_ready if same_object else Status(600)
    answers = [(busy,)] * 3 + [(Status(0),), (Status(700),)]
    monkeypatch.setattr(bindings, "cuStreamQuery", lambda _: answers.pop(0), raising=False)
    driver.stream_poll(0x51)
    assert len(answers) == 1
    with pytest.raises(StickyCudaError):
        driver.stream_poll(0x51)


@pytest.mark.parametrize("what", ["stream", "event"])
def test_unfinished_work_is_an_answer_and_no_error(bindings: Bindings, what: str) -> None:
    driver = CudaDriver()
    query = getattr(driver, f"{what}_query")
    assert query(0x51) is True
    bindings.failing[f"cu{what.title()}Query"] = 600
    assert query(0x51) is False


@pytest.mark.parametrize(
    "method", [name for name in METHODS if not name.endswith(("_query", "_poll"))]
)
def test_not_ready_is_an_error_everywhere_else(bindings: Bindings, method: str) -> None:
    driver = CudaDriver()
    bindings.failing[METHODS[method][1]] = 600
    with pytest.raises(CudaError, match="CUDA_ERROR_NOT_READY"):
        call(driver, method)


def test_handles_and_sizes_are_plain_ints(bindings: Bindings) -> None:
    driver = CudaDriver()
    handles = {
        "retain_primary_context": 0xC0,
        "current_context": 0,
        "mem_alloc": 0x7000,
        "mem_host_alloc": 0x8000,
        "stream_create": 0x51,
        "event_create": 0xE1,
        "stream_end_capture": 0x61,
        "graph_instantiate": 0x62,
        "driver_version": 13000,
        "device_count": 2,
        "total_memory": 1 << 37,
        "multiprocessor_count": 9,
        "pointer_device": 1,
        "host_pointer": 1,
    }
    for method, value in handles.items():
        result = call(driver, method)
        assert type(result) is int, method
        assert result == value
    assert driver.device_name(0) == "NVIDIA H200"
    assert driver.compute_capability(0) == (9, 9)
    assert driver.memory_info() == (5, 7)
    assert driver.event_elapsed_ms(0xE1, 0xE2) == 1.5
    assert driver.is_capturing(0x51) is True
    assert driver.stream_is_blocking(0x51) is False


def test_streams_do_not_block_and_events_time_only_when_told(bindings: Bindings) -> None:
    driver = CudaDriver()
    bindings.calls.clear()
    driver.stream_create(-1)
    driver.event_create(True)
    driver.event_create(False)
    driver.event_create(False, blocking=True)
    driver.stream_begin_capture(0x51)
    driver.mem_host_alloc(16)
    assert bindings.calls == [
        ("cuStreamCreateWithPriority", (1, -1)),
        ("cuEventCreate", (0,)),
        ("cuEventCreate", (2,)),
        ("cuEventCreate", (3,)),
        ("cuStreamBeginCapture", (0x51, "thread local")),
        ("cuMemHostAlloc", (16, 1)),  # portable
    ]


def test_a_driver_that_sees_no_gpu_is_no_device(bindings: Bindings) -> None:
    bindings.failing["cuInit"] = 100
    with pytest.raises(NoDeviceError, match="sees no GPU"):
        CudaDriver()


def test_a_driver_that_does_not_start_is_an_error(bindings: Bindings) -> None:
    bindings.failing["cuInit"] = 1
    with pytest.raises(CudaError, match="cuInit failed with CUDA_ERROR_INVALID_VALUE"):
        CudaDriver()


@pytest.mark.parametrize("code", [3, 4])
def test_an_uninitialised_driver_after_a_fork_says_what_happened(
    bindings: Bindings, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    driver = CudaDriver()
    bindings.failing["cuMemAlloc"] = code
    with pytest.raises(CudaError):
        driver.mem_alloc(16)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ForkedProcessError, match="get_context"):
        driver.mem_alloc(16)


def test_missing_bindings_are_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cuda.importlib, "import_module", fail)
    with pytest.raises(NoDeviceError, match="pip install cuda-python"):
        CudaDriver()


def has_driver() -> bool:
    try:
        CudaDriver()
    except NoDeviceError:
        return False
    return True


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed")
@pytest.mark.skipif(has_driver(), reason="shows what happens without a driver")
def test_a_machine_without_a_driver_is_told_to_install_one() -> None:
    with pytest.raises(NoDeviceError, match=r"no CUDA driver was found .*device='host'"):
        CudaDriver()
