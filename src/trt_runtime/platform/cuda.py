"""The CUDA driver API through ``cuda.bindings.driver``, every result checked.

The only module that imports ``cuda``. Importing it is free: the bindings load when `CudaDriver` is
made, and a missing driver library shows itself at its first call.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..errors import ForkedProcessError, NoDeviceError
from .driver import (
    DEINITIALIZED,
    NO_DEVICE,
    NOT_INITIALIZED,
    NOT_READY,
    SUCCESS,
    Part,
    Upload,
    cuda_error,
)

_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every context, not only this one
_INSTALL_DRIVER = "Install NVIDIA's display driver (nvidia-smi must work), or choose device='host'."


def _load_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise NoDeviceError(
            "cuda-python is not installed, so no CUDA device can be used. "
            "pip install cuda-python, or choose device='host'."
        ) from error


class CudaDriver:
    """`trt_runtime.platform.driver.Driver` over NVIDIA's bindings; one a process is enough."""

    dlpack_device_type = 2  # kDLCUDA

    def __init__(self) -> None:
        cu = _load_bindings()
        self._cu: Any = cu
        self._pid = os.getpid()
        self._non_blocking = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._no_timing = int(cu.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._blocking_sync = int(cu.CUevent_flags.CU_EVENT_BLOCKING_SYNC)
        self._gives_up_processor = int(cu.CUctx_flags.CU_CTX_SCHED_YIELD) | int(
            cu.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC
        )
        self._capture_mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._not_capturing = cu.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        self._success = cu.CUresult.CUDA_SUCCESS
        self._not_ready = cu.CUresult.CUDA_ERROR_NOT_READY
        try:
            status = cu.cuInit(0)[0]
        except Exception as error:  # cuda.pathfinder and the bindings raise several kinds
            raise NoDeviceError(f"no CUDA driver was found ({error}). {_INSTALL_DRIVER}") from error
        if status == NO_DEVICE:
            raise NoDeviceError(f"the CUDA driver sees no GPU. {_INSTALL_DRIVER}")
        self._check(status, "cuInit")

    # What an inference calls asks first whether all is well, and saves the call that would.

    def _check(self, status: Any, call: str) -> None:
        if status is self._success or status == SUCCESS:
            return
        code = int(status)
        if code in (NOT_INITIALIZED, DEINITIALIZED) and os.getpid() != self._pid:
            raise ForkedProcessError(
                f"{call}: CUDA was initialised in process {self._pid} and does not survive a fork. "
                "Start workers with multiprocessing.get_context('spawn')."
            )
        _, text = self._cu.cuGetErrorString(status)
        name = getattr(status, "name", f"CUresult {code}")
        raise cuda_error(code, name, call, text.decode() if text else "")

    # Devices and contexts -------------------------------------------------------------------

    def driver_version(self) -> int:
        status, version = self._cu.cuDriverGetVersion()
        self._check(status, "cuDriverGetVersion")
        return int(version)

    def device_count(self) -> int:
        status, count = self._cu.cuDeviceGetCount()
        self._check(status, "cuDeviceGetCount")
        return int(count)

    def _device(self, ordinal: int) -> Any:
        status, device = self._cu.cuDeviceGet(ordinal)
        self._check(status, "cuDeviceGet")
        return device

    def device_name(self, ordinal: int) -> str:
        status, name = self._cu.cuDeviceGetName(256, self._device(ordinal))
        self._check(status, "cuDeviceGetName")
        return str(name.split(b"\0", 1)[0].decode())

    def _attribute(self, ordinal: int, name: str) -> int:
        attribute = getattr(self._cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        status, value = self._cu.cuDeviceGetAttribute(attribute, self._device(ordinal))
        self._check(status, "cuDeviceGetAttribute")
        return int(value)

    def compute_capability(self, ordinal: int) -> tuple[int, int]:
        return (
            self._attribute(ordinal, "COMPUTE_CAPABILITY_MAJOR"),
            self._attribute(ordinal, "COMPUTE_CAPABILITY_MINOR"),
        )

    def total_memory(self, ordinal: int) -> int:
        status, nbytes = self._cu.cuDeviceTotalMem(self._device(ordinal))
        self._check(status, "cuDeviceTotalMem")
        return int(nbytes)

    def multiprocessor_count(self, ordinal: int) -> int:
        return self._attribute(ordinal, "MULTIPROCESSOR_COUNT")

    def retain_primary_context(self, ordinal: int) -> int:
        status, context = self._cu.cuDevicePrimaryCtxRetain(self._device(ordinal))
        self._check(status, "cuDevicePrimaryCtxRetain")
        return int(context)

    def release_primary_context(self, ordinal: int) -> None:
        self._check(
            self._cu.cuDevicePrimaryCtxRelease(self._device(ordinal))[0],
            "cuDevicePrimaryCtxRelease",
        )

    def primary_context_spins(self, ordinal: int) -> bool:
        status, flags, _ = self._cu.cuDevicePrimaryCtxGetState(self._device(ordinal))
        self._check(status, "cuDevicePrimaryCtxGetState")
        return not int(flags) & self._gives_up_processor

    def current_context(self) -> int:
        status, context = self._cu.cuCtxGetCurrent()
        if status is not self._success:
            self._check(status, "cuCtxGetCurrent")
        return int(context)

    def set_current_context(self, context: int) -> None:
        self._check(self._cu.cuCtxSetCurrent(context)[0], "cuCtxSetCurrent")

    # Memory ---------------------------------------------------------------------------------

    def memory_info(self) -> tuple[int, int]:
        status, free, total = self._cu.cuMemGetInfo()
        self._check(status, "cuMemGetInfo")
        return int(free), int(total)

    def mem_alloc(self, nbytes: int) -> int:
        status, address = self._cu.cuMemAlloc(nbytes)
        self._check(status, "cuMemAlloc")
        return int(address)

    def mem_free(self, address: int) -> None:
        self._check(self._cu.cuMemFree(address)[0], "cuMemFree")

    def _pointer_attribute(self, name: str, address: int) -> int:
        attribute = getattr(self._cu.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
        status, value = self._cu.cuPointerGetAttribute(attribute, address)
        self._check(status, "cuPointerGetAttribute")
        return int(value)

    def pointer_device(self, address: int) -> int:
        return self._pointer_attribute("DEVICE_ORDINAL", address)

    def host_pointer(self, address: int) -> int:
        return self._pointer_attribute("HOST_POINTER", address)

    def mem_host_alloc(self, nbytes: int) -> int:
        status, address = self._cu.cuMemHostAlloc(nbytes, _PORTABLE)
        self._check(status, "cuMemHostAlloc")
        return int(address)

    def mem_host_free(self, address: int) -> None:
        self._check(self._cu.cuMemFreeHost(address)[0], "cuMemFreeHost")

    def memcpy_htod_async(self, device: int, host: int, nbytes: int, stream: int) -> None:
        status = self._cu.cuMemcpyHtoDAsync(device, host, nbytes, stream)[0]
        if status is not self._success:
            self._check(status, "cuMemcpyHtoDAsync")

    def prepare_upload(self, part: Part) -> Upload:
        cu = self._cu
        copy = cu.CUDA_MEMCPY3D()
        copy.srcMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_HOST
        copy.dstMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcPitch = copy.dstPitch = part.pitch
        copy.srcHeight = copy.dstHeight = part.slice_pitch // part.pitch
        copy.WidthInBytes, copy.Height, copy.Depth = part.width, part.rows, part.slices
        told = (0, 0)

        def upload(device: int, host: int, stream: int) -> None:
            nonlocal told
            if told != (device, host):  # the same memory comes again and again
                told = (0, 0)  # until both are told: an interrupt may come between
                copy.srcHost, copy.dstDevice = host + part.offset, device + part.offset
                told = (device, host)
            status = cu.cuMemcpy3DAsync(copy, stream)[0]
            if status is not self._success:
                self._check(status, "cuMemcpy3DAsync")

        return upload

    def memcpy_dtoh_async(self, host: int, device: int, nbytes: int, stream: int) -> None:
        status = self._cu.cuMemcpyDtoHAsync(host, device, nbytes, stream)[0]
        if status is not self._success:
            self._check(status, "cuMemcpyDtoHAsync")

    def memcpy_dtod_async(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._check(
            self._cu.cuMemcpyDtoDAsync(target, source, nbytes, stream)[0], "cuMemcpyDtoDAsync"
        )

    def memset_d8_async(self, device: int, value: int, nbytes: int, stream: int) -> None:
        self._check(self._cu.cuMemsetD8Async(device, value, nbytes, stream)[0], "cuMemsetD8Async")

    # Streams and events ---------------------------------------------------------------------

    def stream_create(self, priority: int) -> int:
        status, stream = self._cu.cuStreamCreateWithPriority(self._non_blocking, priority)
        self._check(status, "cuStreamCreateWithPriority")
        return int(stream)

    def stream_destroy(self, stream: int) -> None:
        self._check(self._cu.cuStreamDestroy(stream)[0], "cuStreamDestroy")

    def stream_is_blocking(self, stream: int) -> bool:
        status, flags = self._cu.cuStreamGetFlags(stream)
        self._check(status, "cuStreamGetFlags")
        return not int(flags) & self._non_blocking

    def stream_synchronize(self, stream: int) -> None:
        status = self._cu.cuStreamSynchronize(stream)[0]
        if status is not self._success:
            self._check(status, "cuStreamSynchronize")

    def _query(self, status: Any, call: str) -> bool:
        if status == NOT_READY:
            return False
        self._check(status, call)
        return True

    def stream_query(self, stream: int) -> bool:
        return self._query(self._cu.cuStreamQuery(stream)[0], "cuStreamQuery")

    def stream_poll(self, stream: int) -> None:
        query, not_ready = self._cu.cuStreamQuery, self._not_ready
        status = query(stream)[0]
        # The bindings' own object, mostly; comparing it takes as long as asking.
        while status is not_ready or status == NOT_READY:
            status = query(stream)[0]
        self._check(status, "cuStreamQuery")

    def stream_wait_event(self, stream: int, event: int) -> None:
        status = self._cu.cuStreamWaitEvent(stream, event, 0)[0]
        if status is not self._success:
            self._check(status, "cuStreamWaitEvent")

    def event_create(self, timing: bool, blocking: bool = False) -> int:
        flags = (0 if timing else self._no_timing) | (self._blocking_sync if blocking else 0)
        status, event = self._cu.cuEventCreate(flags)
        self._check(status, "cuEventCreate")
        return int(event)

    def event_destroy(self, event: int) -> None:
        self._check(self._cu.cuEventDestroy(event)[0], "cuEventDestroy")

    def event_record(self, event: int, stream: int) -> None:
        status = self._cu.cuEventRecord(event, stream)[0]
        if status is not self._success:
            self._check(status, "cuEventRecord")

    def event_synchronize(self, event: int) -> None:
        self._check(self._cu.cuEventSynchronize(event)[0], "cuEventSynchronize")

    def event_query(self, event: int) -> bool:
        return self._query(self._cu.cuEventQuery(event)[0], "cuEventQuery")

    def event_elapsed_ms(self, start: int, end: int) -> float:
        status, milliseconds = self._cu.cuEventElapsedTime(start, end)
        self._check(status, "cuEventElapsedTime")
        return float(milliseconds)

    # Graphs ---------------------------------------------------------------------------------

    def stream_begin_capture(self, stream: int) -> None:
        self._check(
            self._cu.cuStreamBeginCapture(stream, self._capture_mode)[0], "cuStreamBeginCapture"
        )

    def stream_end_capture(self, stream: int) -> int:
        status, graph = self._cu.cuStreamEndCapture(stream)
        self._check(status, "cuStreamEndCapture")
        return int(graph)

    def is_capturing(self, stream: int) -> bool:
        status, capture = self._cu.cuStreamIsCapturing(stream)
        self._check(status, "cuStreamIsCapturing")
        return bool(capture != self._not_capturing)

    def graph_instantiate(self, graph: int) -> int:
        status, executable = self._cu.cuGraphInstantiate(graph, 0)
        self._check(status, "cuGraphInstantiate")
        return int(executable)

    def graph_launch(self, executable: int, stream: int) -> None:
        status = self._cu.cuGraphLaunch(executable, stream)[0]
        if status is not self._success:
            self._check(status, "cuGraphLaunch")

    def graph_exec_destroy(self, executable: int) -> None:
        self._check(self._cu.cuGraphExecDestroy(executable)[0], "cuGraphExecDestroy")

    def graph_destroy(self, graph: int) -> None:
        self._check(self._cu.cuGraphDestroy(graph)[0], "cuGraphDestroy")
