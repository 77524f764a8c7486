"""Loops written by hand over ``tensorrt`` and ``cuda.bindings``: what a `Session` is held to.

Nothing of trt_runtime is in here, and nothing is checked or caught that the timing does not need.
``cu`` is ``cuda.bindings.driver``, or `on_host.HostDriverApi` for a try without a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


def must(result: tuple[Any, ...]) -> Any:
    if int(result[0]) != 0:
        raise RuntimeError(result)
    return result[1] if len(result) == 2 else result[1:]


class Tensor(NamedTuple):
    """Pinned memory as an array, its address, and the device side's."""

    name: str
    array: np.ndarray
    host: Any
    device: Any
    nbytes: int


class RawEngine:
    """An engine, and the device's primary context made current on this thread."""

    def __init__(self, cu: Any, trt: Any, plan: bytes) -> None:
        must(cu.cuInit(0))
        self.before = must(cu.cuCtxGetCurrent())
        must(cu.cuCtxSetCurrent(must(cu.cuDevicePrimaryCtxRetain(must(cu.cuDeviceGet(0))))))
        self.cu, self.trt = cu, trt

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.ERROR):
                    print(message)

        self.logger = Logger()
        self.runtime = trt.Runtime(self.logger)
        self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(plan)

    def close(self) -> None:
        del self.engine, self.runtime, self.logger
        must(self.cu.cuCtxSetCurrent(self.before))
        must(self.cu.cuDevicePrimaryCtxRelease(must(self.cu.cuDeviceGet(0))))


class Lane:
    """A context of the engine with a stream, and pinned and device memory for every tensor.

    Methods that run something wait for it, unless they are called ``launch`` or ``enqueue``. What
    they return is overwritten by the next call, unless they say otherwise.
    """

    def __init__(self, raw: RawEngine, shapes: Mapping[str, Sequence[int]]) -> None:
        self.cu = cu = raw.cu
        engine, trt = raw.engine, raw.trt
        self.context = engine.create_execution_context()
        self.stream = must(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)))
        self.handle = int(self.stream)
        self.names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {
            name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in self.names
        }
        if self.context.active_optimization_profile != 0:  # only the first context's is by itself
            self.context.set_optimization_profile_async(0, self.handle)
            self.wait()
        for name in filter(is_input.__getitem__, self.names):
            if -1 in tuple(engine.get_tensor_shape(name)):
                self.context.set_input_shape(name, tuple(shapes[name]))
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        for name in self.names:
            shape = tuple(self.context.get_tensor_shape(name))
            dtype = np.dtype(DTYPES[engine.get_tensor_dtype(name).name])
            nbytes = int(np.prod(shape)) * dtype.itemsize
            host, device = must(cu.cuMemHostAlloc(nbytes, 0)), must(cu.cuMemAlloc(nbytes))
            array = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(int(host)), dtype)
            self.context.set_tensor_address(name, int(device))
            side = self.inputs if is_input[name] else self.outputs
            side.append(Tensor(name, array.reshape(shape), host, device, nbytes))
        self.addresses = {t.name: int(t.device) for t in (*self.inputs, *self.outputs)}
        self.pageable = [np.empty_like(tensor.array) for tensor in self.outputs]
        self.pinned()  # TensorRT must have run once before a capture
        self.whole = self._capture(self.enqueue)
        self.compute = self._capture(self.enqueue_compute)

    def enqueue_compute(self) -> None:
        if not self.context.execute_async_v3(self.handle):
            raise RuntimeError("execute_async_v3")

    def enqueue(self) -> None:
        """Copy in, compute, copy out, on pinned memory."""
        cu = self.cu
        for _, _, host, device, nbytes in self.inputs:
            must(cu.cuMemcpyHtoDAsync(device, host, nbytes, self.stream))
        self.enqueue_compute()
        for _, _, host, device, nbytes in self.outputs:
            must(cu.cuMemcpyDtoHAsync(host, device, nbytes, self.stream))

    def _capture(self, enqueue: Any) -> Any:
        cu = self.cu
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        must(cu.cuStreamBeginCapture(self.stream, mode))
        enqueue()
        graph = must(cu.cuStreamEndCapture(self.stream))
        executable = must(cu.cuGraphInstantiate(graph, 0))
        must(cu.cuGraphDestroy(graph))
        return executable

    def close(self) -> None:
        cu = self.cu
        self.wait()
        for graph in (self.whole, self.compute):
            must(cu.cuGraphExecDestroy(graph))
        del self.context
        for tensor in (*self.inputs, *self.outputs):
            must(cu.cuMemFreeHost(tensor.host))
            must(cu.cuMemFree(tensor.device))
        must(cu.cuStreamDestroy(self.stream))

    def wait(self) -> None:
        must(self.cu.cuStreamSynchronize(self.stream))

    def fill(self, image: np.ndarray) -> None:
        np.copyto(self.inputs[0].array, image)

    def results(self) -> dict[str, np.ndarray]:
        """The outputs' pinned sides as copies, which stay."""
        return {tensor.name: tensor.array.copy() for tensor in self.outputs}

    def floor(self) -> None:
        """F: one graph of htod, compute and dtoh on pinned memory, then a synchronisation."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        must(self.cu.cuGraphLaunch(self.whole, self.stream))

    def pinned(self) -> None:
        """Pinned memory, no graph."""
        self.enqueue()
        self.wait()

    def copies(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Pinned, with one copy in and one out on the host: owned results, the simple way."""
        self.fill(image)
        self.pinned()
        return self.results()

    def pageable_loop(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Ordinary arrays handed to the driver."""
        cu = self.cu
        (_, _, _, device, nbytes), *_ = self.inputs
        must(cu.cuMemcpyHtoDAsync(device, image.ctypes.data, nbytes, self.stream))
        self.enqueue_compute()
        for array, (_, _, _, device, nbytes) in zip(self.pageable, self.outputs, strict=True):
            must(cu.cuMemcpyDtoHAsync(array.ctypes.data, device, nbytes, self.stream))
        self.wait()
        return {tensor.name: a for tensor, a in zip(self.outputs, self.pageable, strict=True)}

    def sample(self, image: np.ndarray) -> list[np.ndarray]:
        """What NVIDIA's Python samples of TensorRT 10 do for each inference, call by call.

        The input goes through ``ndarray.flat`` into pinned memory; every tensor's address is set
        anew; asynchronous copies; flat views of the pinned outputs come back.
        """
        cu = self.cu
        pinned = self.inputs[0].array.reshape(-1)
        np.copyto(pinned[: image.size], image.flat, casting="safe")
        for name in self.names:
            self.context.set_tensor_address(name, self.addresses[name])
        for tensor in self.inputs:
            must(cu.cuMemcpyHtoDAsync(tensor.device, tensor.host, tensor.nbytes, self.stream))
        self.enqueue_compute()
        for tensor in self.outputs:
            must(cu.cuMemcpyDtoHAsync(tensor.host, tensor.device, tensor.nbytes, self.stream))
        self.wait()
        return [tensor.array.reshape(-1) for tensor in self.outputs]


def back_to_back(lane: Lane, count: int) -> None:
    """Launches of the inference alone, one after another, without copies."""
    for _ in range(count):
        must(lane.cu.cuGraphLaunch(lane.compute, lane.stream))
    lane.wait()


def in_turns(lanes: Sequence[Lane], count: int) -> None:
    """Copies and compute as one graph for each lane, one launch in flight each."""
    for lane in lanes:
        lane.launch()
    for number in range(count - len(lanes)):
        lane = lanes[number % len(lanes)]
        lane.wait()
        lane.launch()
    for lane in lanes:
        lane.wait()
