"""The execution context: shapes, addresses, and work enqueued on a stream.

What is enqueued keeps the engine's network and nothing of the context, so a context that is
destroyed while its work waits is seen by the ledger, as it would crash on a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import CudaError, MisuseError, UnsupportedError
from ....locks import Lock
from .datatypes import numpy_dtype
from .enums import ExecutionContextAllocationStrategy, ProfilingVerbosity
from .interfaces import IOutputAllocator, IProfiler
from .loaded import LoadedNetwork
from .model import Tensor
from .profile import Profile
from .seam import Driver, TensorRTObject, frameless
from .shapes import Array, Shape, ShapeError

if TYPE_CHECKING:
    from .engine import ICudaEngine

_ALIGNMENT = 512
"""Bytes, as TensorRT asks of an output allocator."""


class _Refused(Exception):
    """A call that TensorRT answers with False; the message is what it logs."""


@dataclass(frozen=True)
class _Placed:
    """A tensor of one enqueue: where it lies, and how large it is there."""

    tensor: Tensor
    shape: Shape
    address: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * numpy_dtype(self.tensor.data_type).itemsize

    @property
    def range(self) -> tuple[int, int]:
        return self.address, self.nbytes

    def read(self, driver: Driver, call: str) -> Array:
        dtype = numpy_dtype(self.tensor.data_type)
        if not self.nbytes:
            return np.empty(self.shape, dtype)
        return driver.view(self.address, self.nbytes, call).view(dtype).reshape(self.shape)

    def write(self, driver: Driver, result: Array, call: str) -> None:
        if result.shape != self.shape:
            raise UnsupportedError(
                f"{call}: output {self.tensor.name!r} came out with shape {result.shape}, and "
                f"{self.shape} was inferred: the host device did not see that it depends on data"
            )
        if self.nbytes:
            target = driver.view(self.address, self.nbytes, call)
            target[:] = result.reshape(-1).view(np.uint8)


@dataclass
class _LayerTimes:
    """When the latest work of a context ran; outlives the context with the work that fills it."""

    milliseconds: float = 0.0


@dataclass
class _Changes:
    """How often a context was given another profile or shape, or a shape tensor elsewhere."""

    count: int = 0


@dataclass(frozen=True)
class _Execution:
    """One enqueued run of a network; calling it runs it, as often as a graph is launched."""

    driver: Driver
    network: LoadedNetwork
    call: str
    inputs: Sequence[_Placed]
    values: Mapping[str, Array]
    outputs: Sequence[_Placed]
    times: _LayerTimes
    refits: int
    changes: _Changes
    #: Of the context when this was captured; None if it was not.
    captured_at: int | None

    def results(self) -> list[Array]:
        if self.network.refits != self.refits:
            raise MisuseError(
                f"{self.call}: it was enqueued or captured, and then the engine was refitted, "
                "which on a GPU is undefined"
            )
        if self.captured_at not in (None, self.changes.count):
            raise MisuseError(
                f"{self.call}: it was captured, and then its context was given other shapes, or "
                "the address of a shape tensor, after which a graph may write to memory that "
                "TensorRT has freed"
            )
        feeds = {p.tensor.name: p.read(self.driver, self.call) for p in self.inputs}
        start = time.perf_counter()
        try:
            results = self.network.executable.run({**feeds, **self.values})
        except Exception as error:  # onnxruntime's exceptions share no base
            raise MisuseError(
                f"{self.call}: the network cannot be computed for this input, which on a GPU is "
                f"undefined: {error}"
            ) from error
        self.times.milliseconds = (time.perf_counter() - start) * 1e3
        return results

    def __call__(self) -> None:
        self.write(self.results())

    def write(self, results: Sequence[Array]) -> None:
        for placed, result in zip(self.outputs, results, strict=True):
            placed.write(self.driver, result, self.call)


@dataclass
class _Scratch:
    """Memory that a context works in, when its user has to provide it."""

    is_users: bool
    required: int
    address: int = 0
    nbytes: int = 0

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(self.address, self.nbytes)] if self.is_users else []


@dataclass
class _Bindings:
    """What a context was told about its tensors."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    allocators: dict[str, Any] = field(default_factory=dict)


class IExecutionContext(TensorRTObject):
    """Runs an engine. One thread at a time; several contexts of one engine run side by side."""

    def __init__(
        self,
        engine: ICudaEngine,
        network: LoadedNetwork,
        strategy: ExecutionContextAllocationStrategy,
    ) -> None:
        super().__init__(engine._trt, engine._logger, "execution context", engine.name, engine)
        self._engine = engine
        self._network = network
        self._profile_index = 0
        self._bindings = _Bindings()
        self._unset_shapes()
        is_users = strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self._scratch = _Scratch(is_users, network.scratch_bytes)
        self._in_call = Lock()
        self._times = _LayerTimes()
        self._changes = _Changes()
        self._values: dict[str, Array] = {}
        self._last_stream: int | None = None
        self._input_consumed_event = 0
        self.name = ""
        self.profiler: IProfiler | None = None
        self.enqueue_emits_profile = True
        self.nvtx_verbosity: ProfilingVerbosity = engine.profiling_verbosity
        self.persistent_cache_limit = 0
        self.debug_sync = False

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile_index

    @frameless
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile; the shapes of dynamic inputs are unset when it is another one."""
        call = "set_optimization_profile_async"
        failed = self._fails(call)
        if not failed:
            self._require_current_context(call)
            failed = not self._choose_profile(profile_index, stream_handle, call)
        if failed:
            raise RuntimeError("Error in set optimization profile async.")
        return True

    def _choose_profile(self, index: int, stream: int, call: str) -> bool:
        count = len(self._network.profiles)
        if not 0 <= index < count:
            return self._no(
                f"IExecutionContext::setOptimizationProfileAsync: profile index {index} is not "
                f"below the {count} profiles of the engine"
            )
        if self._driver.is_capturing(stream):
            return self._no(
                "IExecutionContext::setOptimizationProfileAsync: the stream is capturing"
            )
        if index != self._profile_index:
            self._driver.submit(stream, call, _nothing, uses=self._entries)
            self._profile_index = index
            self._changes.count += 1
            self._unset_shapes()
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """Set an input's shape; False if it is outside the active profile."""
        if self._fails("set_input_shape"):
            return False
        dims = tuple(int(dim) for dim in shape)
        tensor = self._tensor(name)
        if tensor is None:
            return False
        call = "IExecutionContext::setInputShape: Error Code 3: API Usage Error"
        if not tensor.is_input:
            return self._no(f"{call} ({name} is not an input)")
        if len(dims) != len(tensor.dims):
            return self._no(
                f"{call} (Number of dimensions of {name} does not match: got {list(dims)}, "
                f"expected {list(tensor.dims)})"
            )
        if any(fixed not in (-1, dim) for fixed, dim in zip(tensor.dims, dims, strict=True)):
            return self._no(
                f"{call} (Static dimension mismatch while setting input shape for {name}. "
                f"Set dimensions are {list(dims)}. Expected dimensions are {list(tensor.dims)}.)"
            )
        valid = self._profile.shapes[name]
        if dims not in valid:
            return self._no(
                f"{call} (Set dimension {list(dims)} for tensor {name} does not satisfy any "
                f"optimization profiles. Valid range for profile {self._profile_index}: {valid}.)"
            )
        if self._bindings.shapes.get(name) != dims:
            self._changes.count += 1
        self._bindings.shapes[name] = dims
        return True

    @frameless
    def get_tensor_shape(self, name: str) -> Shape:
        """Return the shape, with -1 for what is not known yet."""
        tensor = self._tensor(name)
        if tensor is None:
            return ()
        if tensor.is_input:
            return self._bindings.shapes.get(name, tensor.dims)
        if self._missing():
            return tensor.dims
        try:
            return self._output_shapes(self._shape_values("get_tensor_shape"))[name]
        except _Refused as refused:
            self._error(f"IExecutionContext::getTensorShape: {refused}")
            return (-1,) * len(tensor.dims)

    def get_tensor_strides(self, name: str) -> Shape:
        """Return the strides in elements; everything is row-major here."""
        shape = self.get_tensor_shape(name)
        return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set where a tensor lies; nothing keeps that memory alive."""
        if self._fails("set_tensor_address"):
            return False
        tensor = self._tensor(name)
        if tensor is None:
            return False
        if tensor.is_input and tensor.is_shape_tensor:
            self._changes.count += 1  # also if it lies there already
        self._bindings.addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        self._tensor(name)
        return self._bindings.addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator | None) -> bool:
        """Let `output_allocator` supply an output's memory; None takes that back."""
        if self._fails("set_output_allocator"):
            return False
        tensor = self._tensor(name)
        if tensor is None:
            return False
        if tensor.is_input:
            return self._no(f"IExecutionContext::setOutputAllocator: {name} is not an output")
        self._bindings.allocators[name] = output_allocator
        return True

    def get_output_allocator(self, name: str) -> IOutputAllocator | None:
        allocator: IOutputAllocator | None = self._bindings.allocators.get(name)
        return allocator

    @frameless
    def get_max_output_size(self, name: str) -> int:
        """Return the most bytes an output can have for the current input shapes, or -1."""
        tensor = self._tensor(name)
        if tensor is None or tensor.is_input or self._missing():
            return -1
        try:
            values = self._shape_values("get_max_output_size")
            shape = self._network.shapes.upper_bounds(self._bindings.shapes, values)[name]
        except (_Refused, ShapeError) as error:
            self._error(f"IExecutionContext::getMaxOutputSize: {error}")
            return -1
        return math.prod(shape) * numpy_dtype(tensor.data_type).itemsize

    @property
    def all_binding_shapes_specified(self) -> bool:
        return all(t.name in self._bindings.shapes for t in self._network.inputs)

    @property
    def all_shape_inputs_specified(self) -> bool:
        return not [t for t in self._shape_tensors if not self._bindings.addresses.get(t.name)]

    @frameless
    def infer_shapes(self) -> list[str]:
        """Return the inputs that still lack a shape, or values; raises RuntimeError on failure."""
        call = "infer_shapes"
        if self._fails(call):
            raise RuntimeError("infer_shapes error code: -1")
        with self._alone(call):
            missing = self._missing()
            if missing:
                return missing
            try:
                self._output_shapes(self._shape_values(call))
            except _Refused as refused:
                self._error(f"IExecutionContext::inferShapes: {refused}")
                raise RuntimeError("infer_shapes error code: -1") from None
            return []

    @property
    def device_memory(self) -> int:
        raise AttributeError("unreadable attribute")

    @device_memory.setter
    def device_memory(self, memory: int) -> None:
        self.set_device_memory(memory, self._scratch.required)

    def set_device_memory(self, memory: int, size: int) -> None:
        """Give a context without scratch memory its own, in bytes."""
        if not self._scratch.is_users:
            self._error("IExecutionContext::setDeviceMemoryV2: the context has its own memory")
        elif size < self._scratch.required:
            self._error(
                f"IExecutionContext::setDeviceMemoryV2: {size} bytes given, "
                f"{self._scratch.required} required"
            )
        else:
            self._scratch.address, self._scratch.nbytes = int(memory), int(size)

    def update_device_memory_size_for_shapes(self) -> int:
        """Return the scratch memory needed for the current shapes, in bytes."""
        return self._scratch.required

    def set_input_consumed_event(self, event: int) -> bool:
        """Have `event` recorded once the inputs of an execution were read; 0 takes that back."""
        self._input_consumed_event = int(event)
        return True

    def get_input_consumed_event(self) -> int:
        return self._input_consumed_event

    @frameless
    def report_to_profiler(self) -> bool:
        """Report the latest execution's layers, if `enqueue_emits_profile` is off."""
        if self.profiler is None or self._last_stream is None:
            return self._no("IExecutionContext::reportToProfiler: nothing was profiled")
        self._driver.drain(self._last_stream)
        return self._report(self.profiler)

    @frameless
    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue one execution; False, after logging why, if it cannot be."""
        call = "execute_async_v3"
        if self._fails(call):
            return False
        self._require_current_context(call)
        with self._alone(call):
            try:
                self._enqueue(int(stream_handle), call)
            except _Refused as refused:
                return self._no(f"IExecutionContext::enqueueV3: {refused}")
        self._last_stream = int(stream_handle)
        capturing = self._driver.is_capturing(self._last_stream)
        if self.profiler is not None and self.enqueue_emits_profile and not capturing:
            self._driver.drain(self._last_stream)
            return self._report(self.profiler)
        return True

    def _enqueue(self, stream: int, call: str) -> None:
        if self._network.stripped:
            raise _Refused(
                "Error Code 3: API Usage Error (The engine was built without weights and has not "
                "been refitted)"
            )
        inputs = [self._place_input(t) for t in self._network.inputs if not t.is_shape_tensor]
        values = self._shape_values(call)
        shapes = self._output_shapes(values)
        if self._scratch.is_users and not self._scratch.address:
            raise _Refused("Error Code 3: API Usage Error (Device memory was not set)")
        if any(-1 in shape for shape in shapes.values()):
            self._execute_now(stream, call, inputs, values, shapes)
        else:
            outputs = [self._place_output(t, shapes[t.name], stream) for t in self._network.outputs]
            at = self._changes.count if self._driver.is_capturing(stream) else None
            execution = self._execution(call, inputs, values, outputs, at)
            self._driver.submit(
                stream,
                call,
                execution,
                reads=[p.range for p in inputs],
                writes=[p.range for p in outputs] + self._scratch.ranges,
                uses=self._entries,
            )
        if self._input_consumed_event:
            try:
                self._driver.event_record(self._input_consumed_event, stream)
            except CudaError as error:
                raise _Refused(f"Error Code 1: Cuda Runtime ({error})") from error

    def _execute_now(
        self,
        stream: int,
        call: str,
        inputs: Sequence[_Placed],
        values: Mapping[str, Array],
        shapes: Mapping[str, Shape],
    ) -> None:
        """Run before returning, as TensorRT does when only the data can tell an output's size."""
        for name in (n for n, shape in shapes.items() if -1 in shape):
            if self._bindings.allocators.get(name) is None:
                raise _Refused(
                    f"Error Code 3: API Usage Error (No output allocator is set for {name}, whose "
                    "shape depends on data)"
                )
        if self._driver.is_capturing(stream):
            raise _Refused(
                "Error Code 10: an output shape depends on data, and the stream is capturing"
            )
        self._driver.drain(stream)
        results = self._execution(call, inputs, values, ()).results()
        outputs = [
            self._place_output(tensor, result.shape, stream)
            for tensor, result in zip(self._network.outputs, results, strict=True)
        ]
        execution = self._execution(call, inputs, values, outputs)
        self._driver.submit(
            stream,
            call,
            lambda: execution.write(results),
            reads=[p.range for p in inputs],
            writes=[p.range for p in outputs] + self._scratch.ranges,
            uses=self._entries,
        )

    def _execution(
        self,
        call: str,
        inputs: Sequence[_Placed],
        values: Mapping[str, Array],
        outputs: Sequence[_Placed],
        captured_at: int | None = None,
    ) -> _Execution:
        return _Execution(
            self._driver,
            self._network,
            call,
            inputs,
            values,
            outputs,
            self._times,
            self._network.refits,
            self._changes,
            captured_at,
        )

    def _place_input(self, tensor: Tensor) -> _Placed:
        return _Placed(tensor, self._shape(tensor), self._address(tensor))

    def _place_output(self, tensor: Tensor, shape: Shape, stream: int) -> _Placed:
        allocator = self._bindings.allocators.get(tensor.name)
        if allocator is None:
            return _Placed(tensor, shape, self._address(tensor))
        current = self._bindings.addresses.get(tensor.name, 0)
        nbytes = _Placed(tensor, shape, 0).nbytes
        try:
            address = _reallocate(allocator, tensor.name, current, nbytes, stream)
            if address:
                allocator.notify_shape(tensor.name, shape)
        except Exception as error:
            raise _Refused(
                f"Error Code 1: output allocator of {tensor.name} raised {error!r}"
            ) from error
        if not address:
            raise _Refused(
                f"Error Code 2: OutOfMemory (the output allocator of {tensor.name} gave no memory "
                f"for {nbytes} bytes)"
            )
        self._bindings.addresses[tensor.name] = address
        return _Placed(tensor, shape, address)

    def _shape(self, tensor: Tensor) -> Shape:
        shape = self._bindings.shapes.get(tensor.name)
        if shape is None:
            raise _Refused(
                f"Error Code 3: API Usage Error (Input dimensions of {tensor.name} are not set)"
            )
        return shape

    def _address(self, tensor: Tensor) -> int:
        """Return a tensor's address, which TensorRT wants even for an empty tensor."""
        address = self._bindings.addresses.get(tensor.name, 0)
        if not address:
            kind = "input" if tensor.is_input else "output"
            raise _Refused(
                f"Error Code 3: API Usage Error (Address is not set for {kind} tensor "
                f"{tensor.name}. Call setTensorAddress or setOutputAllocator before enqueue)"
            )
        return address

    def _shape_values(self, call: str) -> dict[str, Array]:
        """Read the shape tensors, now: their host memory may change once the call returned."""
        values: dict[str, Array] = {}
        for tensor in self._shape_tensors:
            placed = self._place_input(tensor)
            value = placed.read(self._driver, call).copy()
            valid = self._profile.values[tensor.name]
            if tuple(value.reshape(-1).tolist()) not in valid:
                raise _Refused(
                    f"Error Code 3: API Usage Error (values {value.tolist()} of shape tensor "
                    f"{tensor.name} are outside of profile {self._profile_index}: {valid})"
                )
            values[tensor.name] = value
            if not np.array_equal(self._values.get(tensor.name, ()), value):
                self._changes.count += 1
            self._values[tensor.name] = value
        return values

    def _output_shapes(self, values: Mapping[str, Array]) -> dict[str, Shape]:
        for tensor in self._network.inputs:
            self._shape(tensor)
        try:
            return self._network.shapes(self._bindings.shapes, values)
        except ShapeError as error:
            raise _Refused(f"Error Code 7: the input shapes do not go together: {error}") from None

    def _missing(self) -> list[str]:
        shapes, addresses = self._bindings.shapes, self._bindings.addresses
        return [
            t.name
            for t in self._network.inputs
            if t.name not in shapes or (t.is_shape_tensor and not addresses.get(t.name))
        ]

    def _unset_shapes(self) -> None:
        self._bindings.shapes = {t.name: t.dims for t in self._network.inputs if not t.is_dynamic}

    def _report(self, profiler: IProfiler) -> bool:
        each = self._times.milliseconds / max(1, len(self._network.layers))
        try:
            for name, _ in self._network.layers:
                profiler.report_layer_time(name, each)
        except Exception as error:
            return self._no(f"IProfiler raised {error!r}")
        return True

    @property
    def _entries(self) -> list[Any]:
        return [self._entry, self._engine._entry]

    @property
    def _profile(self) -> Profile:
        return self._network.profiles[self._profile_index]

    @property
    def _shape_tensors(self) -> list[Tensor]:
        return [t for t in self._network.inputs if t.is_shape_tensor]

    def _tensor(self, name: str) -> Tensor | None:
        tensor = self._network.by_name.get(name)
        if tensor is None:
            self._error(
                "IExecutionContext: Error Code 3: API Usage Error (Given invalid tensor name: "
                f"{name}. Get valid tensor names with getIOTensorName())"
            )
        return tensor

    def _no(self, message: str) -> bool:
        self._error(message)
        return False

    @contextmanager
    def _alone(self, call: str) -> Iterator[None]:
        """Refuse a call inside of another, which TensorRT would let corrupt the context."""
        if not self._in_call.acquire(blocking=False):
            raise MisuseError(
                f"{call}: another call on this execution context has not returned yet"
            )
        try:
            yield
        finally:
            self._in_call.release()


def _reallocate(allocator: Any, name: str, memory: int, nbytes: int, stream: int) -> int:
    if hasattr(allocator, "reallocate_output_async"):
        return int(allocator.reallocate_output_async(name, memory, nbytes, _ALIGNMENT, stream) or 0)
    return int(allocator.reallocate_output(name, memory, nbytes, _ALIGNMENT) or 0)


def _nothing() -> None:
    """Stand for the copies that TensorRT makes when the profile changes."""
