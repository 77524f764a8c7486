"""Loops written by hand over ``tensorrt`` and ``cuda.bindings``: what `Session.infer` is held to.

Nothing of trt_runtime is in here, and nothing is checked, caught or released that the timing does
not need.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import driver as cu


def must(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise RuntimeError(result)
    return result[1] if len(result) == 2 else result[1:]


class RawEngine:
    """A static engine with pinned and device memory for every tensor, on a stream of its own."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        must(cu.cuInit(0))
        self.device = must(cu.cuDeviceGet(0))
        must(cu.cuCtxSetCurrent(must(cu.cuDevicePrimaryCtxRetain(self.device))))
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.logger)
        self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.stream = must(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)))
        self.handle = int(self.stream)
        self.inputs, self.outputs = [], []
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            shape = tuple(self.engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self.engine.get_tensor_dtype(name)))
            nbytes = int(np.prod(shape)) * dtype.itemsize
            host = must(cu.cuMemHostAlloc(nbytes, 0))
            device = must(cu.cuMemAlloc(nbytes))
            array = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(int(host)), dtype)
            self.context.set_tensor_address(name, int(device))
            is_input = self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs).append(
                (array.reshape(shape), host, device, nbytes)
            )
        self.pageable = [np.empty_like(array) for array, *_ in self.outputs]

    def enqueue_pinned(self) -> None:
        for _, host, device, nbytes in self.inputs:
            must(cu.cuMemcpyHtoDAsync(device, host, nbytes, self.stream))
        self.context.execute_async_v3(self.handle)
        for _, host, device, nbytes in self.outputs:
            must(cu.cuMemcpyDtoHAsync(host, device, nbytes, self.stream))

    def pinned(self) -> None:
        """Pinned memory, no graph; results are overwritten by the next call."""
        self.enqueue_pinned()
        must(cu.cuStreamSynchronize(self.stream))

    def capture(self) -> None:
        self.pinned()
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        must(cu.cuStreamBeginCapture(self.stream, mode))
        self.enqueue_pinned()
        self.graph = must(cu.cuGraphInstantiate(must(cu.cuStreamEndCapture(self.stream)), 0))

    def floor(self) -> None:
        """F: one graph of htod, compute and dtoh on pinned memory, then a synchronisation."""
        must(cu.cuGraphLaunch(self.graph, self.stream))
        must(cu.cuStreamSynchronize(self.stream))

    def copies(self, image: np.ndarray) -> list[np.ndarray]:
        """Pinned, with one copy in and one out on the host: owned results, the simple way."""
        np.copyto(self.inputs[0][0], image)
        self.pinned()
        return [array.copy() for array, *_ in self.outputs]

    def pageable_loop(self, image: np.ndarray) -> list[np.ndarray]:
        """The sample's loop with ordinary arrays; results are overwritten by the next call."""
        _, _, device, nbytes = self.inputs[0]
        must(cu.cuMemcpyHtoDAsync(device, image.ctypes.data, nbytes, self.stream))
        self.context.execute_async_v3(self.handle)
        for array, (_, _, device, nbytes) in zip(self.pageable, self.outputs, strict=True):
            must(cu.cuMemcpyDtoHAsync(array.ctypes.data, device, nbytes, self.stream))
        must(cu.cuStreamSynchronize(self.stream))
        return self.pageable
