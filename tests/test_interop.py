"""Device memory goes to other libraries and comes from them: no copy, in order, and never too soon.

Most of it runs on a host driver that calls itself CUDA: its streams are deferred queues, so work
that is not ordered gives wrong values, and its ledger shows what was freed and what was not.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trt_runtime import (
    ClosedError,
    CudaError,
    Device,
    DeviceArray,
    DeviceBuffer,
    DtypeError,
    ExportError,
    ForkedProcessError,
    InputError,
    MisuseError,
    OutOfMemoryError,
    PinnedBuffer,
    Stream,
    TrtRuntimeError,
    dlpack,
)
from trt_runtime.interop import BorrowedArray, borrow, is_device_array
from trt_runtime.lending import Counted
from trt_runtime.memory import DeviceBlock
from trt_runtime.platform import HostPlatform, Platform
from trt_runtime.platform.driver import LEGACY_STREAM, PER_THREAD_STREAM, host_bytes
from trt_runtime.platform.host.driver import HostDriver
from trt_runtime.platform.host.faults import Faults
from trt_runtime.pool import DevicePool, PooledBlock, size_class
from trt_runtime.tensor import DTYPES

from .test_exit import run
from .test_faults import Interrupted, let_go
from .together import run_together

PATIENCE_SECONDS = 20
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)

Life = Callable[[Platform], None]


def like_cuda(faults: Faults | None = None, devices: int = 1) -> Platform:
    """A platform whose memory other libraries take for a GPU's."""
    driver = HostDriver(faults, devices=devices)
    driver.dlpack_device_type = dlpack.CUDA
    return Platform("cuda", driver)


def driver_at(platform: Platform) -> HostDriver:
    assert isinstance(platform.driver, HostDriver)
    return platform.driver


def driver_of(device: Device) -> HostDriver:
    return driver_at(device.platform)


@pytest.fixture
def gpu() -> Iterator[Device]:
    """The first of two devices of a driver that calls itself CUDA; its ledger must end empty."""
    platform = like_cuda(devices=2)
    with Device(platform) as device:
        yield device
    gc.collect()
    driver_of(device).ledger.assert_empty()


@pytest.fixture
def stream(gpu: Device) -> Iterator[Stream]:
    with Stream(gpu) as stream:
        yield stream


@pytest.fixture
def other(gpu: Device) -> Iterator[Stream]:
    with Stream(gpu) as stream:
        yield stream


@pytest.fixture
def pool(gpu: Device) -> Iterator[DevicePool]:
    with DevicePool(gpu) as pool:
        yield pool


def produce(pool: DevicePool, stream: Stream, values: NDArray[Any] = VALUES) -> DeviceArray:
    """An array of these values, which ``stream`` has still to write."""
    with ExitStack() as stack:
        block = pool.take(values.nbytes, stream)
        stack.callback(block.drop)
        if values.nbytes:
            with pool.device._primary.current():
                pool.device._driver.memcpy_htod_async(
                    block.address, values.ctypes.data, values.nbytes, stream.handle
                )
        stack.pop_all()
    return DeviceArray(block, values.shape, values.dtype)


def pending(stream: Stream) -> bool:
    """Whether work waits on the stream; a query would run some of it."""
    return not driver_of(stream.device)._streams[stream.handle].idle


def taken(value: Any, stream: Stream) -> BorrowedArray:
    borrowed = borrow(value, stream)
    assert borrowed is not None
    return borrowed


class Reader:
    """A consumer's kernel: reads memory on a stream of its own, when that gets to it."""

    def __init__(self, device: Device, address: int, values: NDArray[Any] = VALUES) -> None:
        self.device = device
        self.driver = driver_of(device)
        self.address = address
        self.values = values
        self.buffer = PinnedBuffer(values.shape, values.dtype, device=device)

    def enqueue(self, handle: int) -> None:
        with self.device._primary.current():
            self.driver.memcpy_dtoh_async(
                self.buffer.address, self.address, self.values.nbytes, handle
            )

    def finish(self, handle: int) -> NDArray[Any]:
        with self.device._primary.current():
            self.driver.stream_synchronize(handle)
        result = self.buffer.array.copy()
        self.buffer.close()
        return result

    def read(self, handle: int) -> NDArray[Any]:
        self.enqueue(handle)
        return self.finish(handle)


class Consumer:
    """What a C library does with a capsule: takes it over, and calls the deleter in the end."""

    USED: ClassVar = {name: b"used_" + name for name in (b"dltensor", b"dltensor_versioned")}

    def __init__(self, capsule: Any) -> None:
        managed, name = dlpack._located(capsule)
        self.versioned = isinstance(managed, dlpack._Versioned)
        self.described = dlpack.read(capsule, "the capsule")
        self.flags = managed.flags if isinstance(managed, dlpack._Versioned) else 0
        self._pointer = ctypes.addressof(managed)
        self._deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)
        rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_SetName", ctypes.pythonapi)
        )
        assert rename(capsule, self.USED[name]) == 0

    def free(self) -> None:
        """As from C: without the interpreter's lock."""
        self._deleter(self._pointer)


class Foreign:
    """Another library's array, which knows DLPack only."""

    def __init__(self, array: Any, **changes: Any) -> None:
        self.array = array
        self.changes = changes
        self.calls: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.changes.get("device", self.array.__dlpack_device__())
        return device

    def __dlpack__(self, **request: Any) -> Any:
        self.calls.append(request)
        if "old" in self.changes and "max_version" in request:
            raise TypeError("unexpected keyword argument 'max_version'")
        if "error" in self.changes:
            raise self.changes["error"]
        capsule = self.array.__dlpack__(**request)
        managed, _ = dlpack._located(capsule)
        for name, value in self.changes.get("tensor", {}).items():
            setattr(managed.tensor, name, value)
        if "strides" in self.changes:
            strides = self.changes["strides"]
            self.strides = (ctypes.c_int64 * len(strides))(*strides)
            managed.tensor.strides = self.strides
        if "major" in self.changes:
            managed.major = self.changes["major"]
        return capsule


class Shown:
    """Another library's array, which knows ``__cuda_array_interface__`` only."""

    def __init__(self, address: int, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": VALUES.shape,
            "typestr": "<f4",
            "data": (address, False),
            "version": 3,
            **changes,
        }


def device_memory(device: Device) -> list[str]:
    entries = driver_of(device).ledger.entries
    return [entry.name for entry in entries if entry.kind == "device memory"]


# The memory is shared -----------------------------------------------------------------------


def test_numpy_takes_a_result_of_the_host_device_without_a_copy(host: Device) -> None:
    with DevicePool(host) as pool, Stream(host) as stream:
        array = produce(pool, stream)
        taken = np.from_dlpack(array)  # the copy to the device has not run before
        assert taken.tolist() == VALUES.tolist()
        with host._primary.current():
            assert taken.ctypes.data == host._driver.host_pointer(array.address)
        assert array.__dlpack_device__() == (dlpack.CPU, 0)
        del array, taken


def test_a_capsule_of_a_gpu_names_its_address_and_ordinal() -> None:
    platform = like_cuda(devices=2)
    with (
        Device(platform, 1) as second,
        DevicePool(second) as pool,
        Stream(second) as stream,
        produce(pool, stream) as array,
    ):
        described = dlpack.read(array.__dlpack__(stream=stream.handle), "it")
        assert described.address == array.address
        assert described.device == array.__dlpack_device__() == (dlpack.CUDA, 1)
        assert (described.shape, described.dtype) == ((3, 4), np.dtype(np.float32))
        assert described.strides in (None, (16, 4))
    driver_of(second).ledger.assert_empty()


CODES = {
    "FLOAT": (2, 32),
    "HALF": (2, 16),
    "BF16": (4, 16),
    "FP8": (10, 8),
    "INT8": (0, 8),
    "INT32": (0, 32),
    "INT64": (0, 64),
    "UINT8": (1, 8),
    "BOOL": (6, 8),
}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_of_tensorrt_has_its_dlpack_code_and_comes_back(
    pool: DevicePool, stream: Stream, name: str
) -> None:
    dtype = DTYPES[name]
    with DeviceArray(pool.take(64, stream), (2, 3), dtype) as array:
        for max_version in (None, (1, 1)):
            capsule = array.__dlpack__(stream=1, max_version=max_version)
            managed, _ = dlpack._located(capsule)
            tensor = managed.tensor
            assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (*CODES[name], 1)
            assert dlpack.read(capsule, "it").dtype == dtype
        with taken(Foreign(array), stream) as borrowed:
            assert borrowed.dtype == dtype


def test_a_dtype_without_a_dlpack_code_is_refused_with_its_name(gpu: Device) -> None:
    with (
        DeviceBuffer(4, np.dtype([("a", "f4")]), device=gpu) as buffer,
        pytest.raises(ExportError, match="DLPack has no type for") as caught,
    ):
        buffer.__dlpack__()
    assert isinstance(caught.value, BufferError)  # as the array API asks


@pytest.mark.parametrize(
    ("max_version", "versioned"),
    [(None, False), ((0, 8), False), ((1, 0), True), ((1, 2), True), ((2, 0), True)],
)
def test_a_capsule_is_of_the_kind_that_its_consumer_knows(
    pool: DevicePool, stream: Stream, max_version: tuple[int, int] | None, versioned: bool
) -> None:
    with produce(pool, stream) as array:
        consumer = Consumer(array.__dlpack__(stream=1, max_version=max_version))
        assert consumer.versioned == (versioned and dlpack.NUMPY_IS_VERSIONED)
        assert consumer.flags == 0
        consumer.free()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1)])
def test_scalars_and_empty_arrays_can_be_handed_over(
    pool: DevicePool, stream: Stream, shape: tuple[int, ...]
) -> None:
    values = np.ones(shape, np.float32)
    with produce(pool, stream, values) as array:
        described = dlpack.read(array.__dlpack__(stream=1), "it")
        assert described.shape == shape
        assert bool(described.address) == bool(values.size)
        assert bool(array.__cuda_array_interface__["data"][0]) == bool(values.size)
        assert array.copy_to_host().tolist() == values.tolist()
        assert array.strides == values.strides or not values.size
        with taken(array, stream) as borrowed:
            assert borrowed.shape == shape
            assert borrowed.nbytes == values.nbytes


def test_an_array_describes_itself(pool: DevicePool, stream: Stream) -> None:
    array = produce(pool, stream)
    assert (array.shape, array.dtype, array.nbytes) == ((3, 4), np.dtype(np.float32), 48)
    assert array.strides == VALUES.strides
    assert repr(array) == f"<DeviceArray float32[3, 4] 48 B at {hex(array.address)} on cuda:0>"
    assert not array.query()
    array.synchronize()
    assert array.query()
    array.close()
    assert repr(array) == "<DeviceArray closed>"


def test_memory_that_is_too_small_is_refused_and_goes_back(
    pool: DevicePool, stream: Stream
) -> None:
    with pytest.raises(InputError, match="has 4000 bytes and its memory 512"):
        DeviceArray(pool.take(8, stream), (1000,), np.float32)
    assert pool.idle_bytes == 512


def test_a_silent_copy_to_the_host_is_refused(pool: DevicePool, stream: Stream) -> None:
    with produce(pool, stream) as array:
        with pytest.raises(InputError, match="copy_to_host"):
            np.asarray(array)
        assert array.copy_to_host().tolist() == VALUES.tolist()
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(array)


def test_a_copy_on_the_cpu_can_be_asked_for_through_dlpack(
    pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        capsule = array.__dlpack__(dl_device=(dlpack.CPU, 0), max_version=(1, 0))
        described = dlpack.read(capsule, "it")
        assert described.device == (dlpack.CPU, 0)
        array.close()
        copied = host_bytes(described.address, 48).view(np.float32).reshape(3, 4)
        assert copied.tolist() == VALUES.tolist()
        if dlpack.NUMPY_IS_VERSIONED:
            consumer = Consumer(capsule)
            assert consumer.flags == 2  # IS_COPIED
            consumer.free()


def test_what_dlpack_cannot_have_is_a_buffer_error_that_says_what_to_do(
    pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        for request in (
            {"copy": True},
            {"dl_device": (dlpack.CUDA, 1)},
            {"dl_device": (10, 0)},
            {"dl_device": (dlpack.CPU, 0), "copy": False},
        ):
            with pytest.raises(BufferError, match="on cuda:0"):
                array.__dlpack__(**request)
        assert array.__dlpack__(dl_device=(dlpack.CUDA, 0), copy=False) is not None


# Lifetimes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["array", "view", "stream", "pool", "device"]))
)
def test_memory_lives_as_long_as_anything_shows_it_in_any_order_of_release(
    platform: HostPlatform, order: tuple[str, ...]
) -> None:
    device = Device(platform)
    stream, pool = Stream(device), DevicePool(device)
    array = produce(pool, stream)
    view = np.from_dlpack(array)
    for step in order:
        if step == "view":
            assert view.tolist() == VALUES.tolist()
            del view
        else:
            {"array": array, "stream": stream, "pool": pool, "device": device}[step].close()
        if "view" in locals():
            assert view.tolist() == VALUES.tolist()
    platform.host_driver.ledger.assert_empty()


def test_an_array_can_be_used_after_everything_else_was_closed(platform: HostPlatform) -> None:
    with Device(platform) as device, DevicePool(device) as pool, Stream(device) as stream:
        array = produce(pool, stream)
    assert array.copy_to_host().tolist() == VALUES.tolist()
    assert np.from_dlpack(array).tolist() == VALUES.tolist()
    assert "on host:0" in repr(array)
    del array


def test_a_forgotten_array_is_no_fault_and_its_memory_is_used_again(
    pool: DevicePool, stream: Stream
) -> None:
    array = produce(pool, stream)
    address = array.address
    del array  # a ResourceWarning would fail the test
    assert pool.idle_bytes == 512
    with produce(pool, stream) as again:
        assert again.address == address


def test_a_capsule_that_nobody_takes_frees_what_it_holds(pool: DevicePool, stream: Stream) -> None:
    array = produce(pool, stream)
    capsule = array.__dlpack__()
    array.close()
    assert pool.idle_bytes == 0
    del capsule
    assert pool.idle_bytes == 512


def test_a_capsule_dropped_while_an_exception_is_on_its_way_frees_what_it_holds(
    pool: DevicePool, stream: Stream
) -> None:
    def fail() -> None:
        array = produce(pool, stream)
        capsules = [array.__dlpack__(), array.__dlpack__(max_version=(1, 0))]
        array.close()
        raise LookupError(len(capsules))

    with pytest.raises(LookupError) as caught:
        fail()
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert pool.idle_bytes == 512


def test_two_consumers_of_one_array_each_hold_it(pool: DevicePool, stream: Stream) -> None:
    array = produce(pool, stream)
    first, second = (Consumer(array.__dlpack__(max_version=(1, 0))) for _ in range(2))
    assert first.described.address == second.described.address
    array.close()
    first.free()
    assert pool.idle_bytes == 0
    second.free()
    assert pool.idle_bytes == 512


def test_a_capsule_is_taken_once(pool: DevicePool, stream: Stream) -> None:
    with produce(pool, stream) as array:
        capsule = array.__dlpack__()
        consumer = Consumer(capsule)
        with pytest.raises(InputError, match="consumed already"):
            dlpack.read(capsule, "it")
        consumer.free()


def test_a_consumer_may_let_go_on_another_thread_after_everything_was_closed(
    platform: HostPlatform,
) -> None:
    with (
        Device(platform) as device,
        DevicePool(device) as pool,
        Stream(device) as stream,
        produce(pool, stream) as array,
    ):
        consumer = Consumer(array.__dlpack__(max_version=(1, 0)))
    assert [e.kind for e in platform.host_driver.ledger.entries].count("device memory") == 1
    thread = threading.Thread(target=consumer.free)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    platform.host_driver.ledger.assert_empty()


def test_a_closed_array_refuses_and_says_so(pool: DevicePool, stream: Stream) -> None:
    array = produce(pool, stream)
    array.close()
    for use in (
        array.__dlpack__,
        array.copy_to_host,
        array.synchronize,
        lambda: array.address,
        lambda: array.__cuda_array_interface__,
        lambda: borrow(array, stream),
    ):
        with pytest.raises(ClosedError, match="DeviceArray is closed"):
            use()


def test_a_fork_of_the_process_cannot_use_an_array_and_frees_nothing(
    pool: DevicePool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = produce(pool, stream)
    block = array._record.handle
    capsule = array.__dlpack__()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)
        with pytest.raises(ForkedProcessError, match="spawn"):
            array.__dlpack__()
        del capsule
    array.close()
    assert len(device_memory(pool.device)) == 1
    block.drop()  # here parent and fork are one process: what the fork did not give up
    assert pool.idle_bytes == 512


def test_arrays_that_live_until_the_interpreter_ends_are_released_in_silence() -> None:
    ended = run(
        """
        from trt_runtime.pool import DevicePool
        device = Device(platform)
        stream, pool = Stream(device), DevicePool(device)
        array = DeviceArray(pool.take(64, stream), (4,), np.float32)
        second = DeviceArray(pool.take(64, stream), (4,), np.float32)
        view = np.from_dlpack(second)
        del second, view
        """
    )
    ended.assert_clean()
    assert not [line for line in ended.unclosed if line.startswith("DeviceArray")]


def test_a_consumer_that_outlives_the_interpreter_does_not_crash_it() -> None:
    ended = run(
        """
        from trt_runtime.pool import DevicePool
        with Device(platform) as device, Stream(device) as stream, DevicePool(device) as pool:
            array = DeviceArray(pool.take(64, stream), (4,), np.float32)
            sys.modules["view"] = np.from_dlpack(array)
            sys.modules["capsule"] = array.__dlpack__(max_version=(1, 0))
            array.close()
        """
    )
    assert ended.code == 0, ended.err
    for bad in ("Traceback", "Fatal", "Segmentation", "Exception ignored"):
        assert bad not in ended.err, ended.err


def test_memory_of_a_buffer_outlives_it_and_its_device(platform: HostPlatform) -> None:
    with (
        Device(platform) as device,
        Stream(device) as stream,
        DeviceBuffer((3, 4), np.float32, device=device) as buffer,
    ):
        buffer.copy_from(VALUES, stream=stream)
        view = np.from_dlpack(buffer)  # waits for the copy
        assert view.tolist() == VALUES.tolist()
    assert view.tolist() == VALUES.tolist()
    del view


# The order of work --------------------------------------------------------------------------


@pytest.mark.parametrize("told", [None, LEGACY_STREAM, PER_THREAD_STREAM, "other"])
def test_a_consumer_reads_what_the_array_is_going_to_be(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream, told: Any
) -> None:
    handle = other.handle if told == "other" else told
    with produce(pool, stream) as array:
        consumer = Consumer(array.__dlpack__(stream=handle))
        assert pending(stream)  # the host did not wait
        seen = Reader(gpu, consumer.described.address).read(handle or LEGACY_STREAM)
        assert seen.tolist() == VALUES.tolist()
        consumer.free()


def test_a_consumer_that_asks_for_no_ordering_gets_none(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    with produce(pool, stream) as array:
        consumer = Consumer(array.__dlpack__(stream=-1))
        seen = Reader(gpu, consumer.described.address).read(other.handle)
        assert seen.tolist() != VALUES.tolist()
        consumer.free()


@pytest.mark.parametrize("told", [0, -2, True, False, "1", 1.0])
def test_a_stream_that_could_be_two_or_none_is_refused(
    pool: DevicePool, stream: Stream, told: Any
) -> None:
    with produce(pool, stream) as array, pytest.raises(InputError, match="legacy default stream"):
        array.__dlpack__(stream=told)


def test_the_cpu_has_no_streams(host: Device) -> None:
    with (
        DeviceBuffer(4, device=host) as buffer,
        pytest.raises(InputError, match="must be None, not 1"),
    ):
        buffer.__dlpack__(stream=1)


def test_a_stream_that_does_not_exist_is_an_error_of_the_consumer(
    pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array, pytest.raises(MisuseError, match="not a stream"):
        array.__dlpack__(stream=0xBAD0)


def test_the_next_user_of_a_block_waits_for_the_kernels_of_its_last_consumer(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    array = produce(pool, stream)
    consumer = Consumer(array.__dlpack__(stream=LEGACY_STREAM))
    reader = Reader(gpu, array.address)
    reader.enqueue(LEGACY_STREAM)  # a kernel that has not run when its library lets go
    array.close()
    consumer.free()
    assert pool.idle_bytes == 512
    with produce(pool, other, VALUES * 2) as again:
        assert again.address == reader.address
        again.synchronize()
        assert reader.finish(LEGACY_STREAM).tolist() == VALUES.tolist()


def test_the_next_user_of_a_block_waits_for_the_work_that_nobody_looked_at(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    produce(pool, stream).close()
    with produce(pool, other, VALUES * 2) as again:
        other.synchronize()
        stream.synchronize()  # would overwrite it, if it had not run before
        assert again.copy_to_host().tolist() == (VALUES * 2).tolist()


@pytest.mark.parametrize("told", ["other", -1])
def test_memory_whose_consumer_cannot_be_waited_for_is_not_used_again(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream, told: Any
) -> None:
    array = produce(pool, stream)
    consumer = Consumer(array.__dlpack__(stream=other.handle if told == "other" else told))
    array.close()
    stream.synchronize()
    other.synchronize()  # as cuMemFree does on a GPU, and the host driver insists on
    consumer.free()
    assert pool.idle_bytes == 0
    assert device_memory(gpu) == []


def test_the_handle_of_a_stream_that_was_destroyed_meanwhile_is_never_used(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array, Stream(gpu) as short_lived:
        consumer = Consumer(array.__dlpack__(stream=short_lived.handle))
    consumer.free()  # a MisuseError would be logged, and fail the fixture's ledger
    assert device_memory(gpu) == []


def test_a_copy_to_the_host_comes_after_a_consumer_that_writes(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        consumer = Consumer(array.__dlpack__())
        with gpu._primary.current():
            gpu._driver.memset_d8_async(array.address, 0, 48, LEGACY_STREAM)
        assert array.copy_to_host().tolist() == np.zeros((3, 4)).tolist()
        consumer.free()


def test_a_buffers_consumer_waits_for_its_copies(
    gpu: Device, stream: Stream, other: Stream
) -> None:
    with DeviceBuffer((3, 4), np.float32, device=gpu) as buffer:
        assert buffer.__dlpack_device__() == (dlpack.CUDA, 0)
        buffer.copy_from(VALUES, stream=stream)
        capsule = buffer.__dlpack__(stream=other.handle)
        seen = Reader(gpu, dlpack.read(capsule, "it").address).read(other.handle)
        assert seen.tolist() == VALUES.tolist()
        assert buffer.copy_to_host().tolist() == VALUES.tolist()
        del capsule


# __cuda_array_interface__ -------------------------------------------------------------------


def test_the_cuda_array_interface_names_a_stream_that_is_in_order(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    array = produce(pool, stream)
    interface = array.__cuda_array_interface__
    assert interface == {
        "shape": (3, 4),
        "typestr": "<f4",
        "data": (array.address, False),
        "strides": None,
        "version": 3,
        "stream": 1,
    }
    assert pending(stream)
    assert Reader(gpu, array.address).read(interface["stream"]).tolist() == VALUES.tolist()
    del array
    assert pool.idle_bytes == 0  # where the consumer used it, nobody said


def test_memory_that_was_shown_stays_until_its_object_is_gone(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    array = produce(pool, stream)
    for _ in range(3):
        address = array.__cuda_array_interface__["data"][0]
    stream.synchronize()
    array.close()
    assert device_memory(gpu) == [hex(address)]
    del array
    assert device_memory(gpu) == []


def test_what_has_no_cuda_array_interface_says_so_to_hasattr(
    host: Device, gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    with DeviceBuffer(4, device=host) as buffer:
        assert not hasattr(buffer, "__cuda_array_interface__")
    with DeviceBuffer(4, ml_dtypes.bfloat16, device=gpu) as buffer:
        assert not hasattr(buffer, "__cuda_array_interface__")
    with DeviceBuffer(4, np.float16, device=gpu) as buffer:
        assert hasattr(buffer, "__cuda_array_interface__")


# Arrays of others ---------------------------------------------------------------------------


class OnTheCpu:
    """Such as a tensor of PyTorch on the CPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.CPU, 0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise AttributeError("not on a GPU")


@pytest.mark.parametrize(
    "value", [VALUES, VALUES.tolist(), 1.0, np.float32(1), None, "x", OnTheCpu()]
)
def test_what_lies_in_host_memory_is_left_to_the_ordinary_path(stream: Stream, value: Any) -> None:
    assert not is_device_array(value)
    assert borrow(value, stream) is None


def test_our_own_array_is_borrowed_in_order_and_held(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    array = produce(pool, stream)
    borrowed = borrow(array, other, dtype=np.dtype(np.float32))
    assert borrowed is not None
    assert (borrowed.address, borrowed.shape, borrowed.nbytes) == (array.address, (3, 4), 48)
    array.close()
    del array
    assert Reader(gpu, borrowed.address).read(other.handle).tolist() == VALUES.tolist()
    assert pool.idle_bytes == 0
    assert not borrowed.released
    borrowed.release()
    borrowed.release()
    assert borrowed.released
    assert "released" in repr(borrowed)
    assert pool.idle_bytes == 512


@pytest.mark.parametrize("old", [False, True])
def test_a_producer_is_asked_to_order_itself_before_our_stream(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream, old: bool
) -> None:
    array = produce(pool, stream)
    producer = Foreign(array, **({"old": True} if old else {}))
    with taken(producer, other) as borrowed:
        assert [request["stream"] for request in producer.calls] == [other.handle] * (1 + old)
        assert producer.calls[0]["max_version"] >= (1, 0)
        array.close()
        del array, producer
        assert Reader(gpu, borrowed.address).read(other.handle).tolist() == VALUES.tolist()
        assert len(device_memory(gpu)) == 1
    assert device_memory(gpu) == []  # released: the producer's capsule is gone


def test_on_a_borrowed_default_stream_the_producer_is_told_the_legacy_one(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array, Stream.from_handle(0, device=gpu, owner=gpu) as default:
        producer = Foreign(array)
        with taken(producer, default):
            assert producer.calls[0]["stream"] == LEGACY_STREAM


def test_an_array_on_another_device_is_refused_and_both_are_named(
    gpu: Device, host: Device, pool: DevicePool, stream: Stream
) -> None:
    with (
        Device(gpu.platform, 1) as second,
        Stream(second) as there,
        produce(pool, stream) as array,
    ):
        for value in (array, Foreign(array), Shown(array.address)):
            with pytest.raises(InputError, match=r"input 'x' is on cuda:0 .*cuda:1"):
                borrow(value, there, what="input 'x'")
        with Stream(host) as on_the_host:
            for value in (array, Foreign(array), Shown(array.address)):
                with pytest.raises(InputError, match=r"cuda:0 .*host:0"):
                    borrow(value, on_the_host)
        for kind, name in ((10, "rocm:0"), (8, "metal:0"), (77, "device type 77:0")):
            with pytest.raises(InputError, match=f"is on {name} and must be on cuda:0"):
                borrow(Foreign(array, device=(kind, 0)), stream)


def test_another_dtype_is_refused_and_not_converted(pool: DevicePool, stream: Stream) -> None:
    with produce(pool, stream) as array:
        stream.synchronize()
        for value in (array, Foreign(array), Shown(array.address)):
            with pytest.raises(DtypeError, match=r"input 'x' takes float16 and has float32.*\.to"):
                borrow(value, stream, what="input 'x'", dtype=np.dtype(np.float16))
    assert len(device_memory(pool.device)) <= 1


@pytest.mark.parametrize("strides", [(1, 3), (8, 1), (4, 2), (0, 1), (-4, 1)])
def test_what_is_not_contiguous_is_refused_and_not_copied(
    pool: DevicePool, stream: Stream, strides: tuple[int, int]
) -> None:
    with produce(pool, stream) as array:
        in_bytes = tuple(4 * n for n in strides)
        for value in (Foreign(array, strides=strides), Shown(array.address, strides=in_bytes)):
            with pytest.raises(InputError, match=r"must be C-contiguous.*\.contiguous\(\)"):
                borrow(value, stream)


def test_strides_that_nothing_depends_on_do_not_matter(pool: DevicePool, stream: Stream) -> None:
    with produce(pool, stream, np.ones((1, 12, 1), np.float32)) as array:
        with taken(Foreign(array, strides=(99, 1, 77)), stream) as borrowed:
            assert borrowed.shape == (1, 12, 1)
        with taken(Foreign(array, tensor={"strides": None}), stream) as borrowed:
            assert borrowed.shape == (1, 12, 1)


def test_an_offset_into_the_memory_is_added(pool: DevicePool, stream: Stream) -> None:
    with (
        produce(pool, stream) as array,
        taken(Foreign(array, tensor={"byte_offset": 16}), stream) as borrowed,
    ):
        assert borrowed.address == array.address + 16


def test_a_library_that_refuses_to_export_is_quoted(pool: DevicePool, stream: Stream) -> None:
    with produce(pool, stream) as array:
        for error in (BufferError("requires gradient"), TypeError("requires gradient")):
            with pytest.raises(InputError, match="Foreign refused to export it: requires grad"):
                borrow(Foreign(array, error=error), stream)


def test_a_type_or_version_of_dlpack_that_is_unknown_is_refused(
    pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        for code, bits, lanes in ((2, 32, 4), (17, 4, 1), (3, 64, 1), (0, 24, 1), (6, 1, 1)):
            changed = dlpack._DataType(code, bits, lanes)
            with pytest.raises(DtypeError, match=f"code {code} with {bits} bits and {lanes} lanes"):
                borrow(Foreign(array, tensor={"dtype": changed}), stream)
        if dlpack.NUMPY_IS_VERSIONED:
            with pytest.raises(InputError, match=r"comes as DLPack 2\."):
                borrow(Foreign(array, major=2), stream)


def test_a_named_stream_is_waited_for_by_ours(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    with (
        produce(pool, stream) as array,
        taken(Shown(array.address, stream=stream.handle), other) as borrowed,
    ):
        assert pending(stream)  # the host did not wait
        assert Reader(gpu, borrowed.address).read(other.handle).tolist() == VALUES.tolist()


def test_a_producer_that_names_no_stream_is_done(
    gpu: Device, pool: DevicePool, stream: Stream, other: Stream
) -> None:
    with produce(pool, stream) as array:
        for changes in ({}, {"stream": None}):
            with taken(Shown(array.address, **changes), other) as borrowed:
                seen = Reader(gpu, borrowed.address).read(other.handle)
                assert seen.tolist() != VALUES.tolist()


def test_an_object_that_shows_memory_is_held_until_the_release(
    gpu: Device, pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        shown = Shown(array.address)
        borrowed = taken(shown, stream)
        assert any(shown is held for held in gc.get_referents(borrowed._held))
        borrowed.release()
        assert not [o for o in gc.get_referrers(shown) if isinstance(o, tuple)]


def test_a_cuda_array_interface_that_cannot_be_used_is_refused(
    pool: DevicePool, stream: Stream
) -> None:
    with produce(pool, stream) as array:
        for changes, text in (
            ({"stream": 0}, "names stream 0"),
            ({"mask": object()}, "masked"),
            ({"typestr": "<V2"}, "no number's"),
        ):
            with pytest.raises(InputError, match=text):
                borrow(Shown(array.address, **changes), stream)
        with pytest.raises(MisuseError, match="in no living allocation"):
            borrow(Shown(0x1234), stream)
        with taken(Shown(0, shape=(0, 4)), stream) as empty:
            assert empty.nbytes == 0


# Streams of others --------------------------------------------------------------------------


class TheirStream:
    """Another library's stream."""

    def __init__(self, handle: int, version: int = 0) -> None:
        self.protocol = (version, handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        return self.protocol


def test_a_stream_object_of_another_library_is_borrowed_and_stays(
    gpu: Device, stream: Stream
) -> None:
    theirs = TheirStream(stream.handle)
    for borrowed in (Stream.borrow(theirs, device=gpu), Stream.borrow(stream, device=gpu)):
        assert borrowed.handle == stream.handle
        assert borrowed.owner in (theirs, stream)
        borrowed.close()
    stream.synchronize()


def test_what_is_no_stream_is_refused_with_what_to_pass(gpu: Device) -> None:
    with pytest.raises(InputError, match=r"int has no __cuda_stream__; pass its handle"):
        Stream.borrow(5, device=gpu)
    with pytest.raises(InputError, match="version 1 of __cuda_stream__; 0 is known"):
        Stream.borrow(TheirStream(5, version=1), device=gpu)


# The pool -----------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40))
@settings(deadline=None)
def test_a_block_is_large_enough_and_wastes_an_eighth_at_most(nbytes: int) -> None:
    size = size_class(nbytes)
    assert nbytes <= size <= max(nbytes * 9 / 8 + 1, 512, nbytes + 511)
    assert size_class(size) == size


def test_a_pool_keeps_no_more_than_it_may_and_the_newest(gpu: Device, stream: Stream) -> None:
    with DevicePool(gpu, max_bytes=2048) as pool:
        sizes = (1024, 512, 1024, 4096)
        arrays = [DeviceArray(pool.take(n, stream), (n,), np.uint8) for n in sizes]
        addresses = [hex(array.address) for array in arrays]
        for array in arrays:
            array.close()
        assert pool.idle_bytes == 1536
        assert device_memory(gpu) == addresses[1:3]
        assert repr(pool) == "<DevicePool on cuda:0: 1.5 KiB of at most 2.0 KiB unused>"


def test_a_pool_of_nothing_keeps_nothing(gpu: Device, stream: Stream) -> None:
    with DevicePool(gpu, max_bytes=0) as pool:
        produce(pool, stream).close()
        assert device_memory(gpu) == []
    with pytest.raises(InputError, match="not -1"):
        DevicePool(gpu, max_bytes=-1)


def test_what_a_pool_keeps_is_given_up_before_memory_runs_out() -> None:
    platform = like_cuda(Faults(device_memory=4096))
    with Device(platform) as device, DevicePool(device) as pool, Stream(device) as stream:
        pool.take(3072, stream).drop()
        assert pool.idle_bytes == 3072
        block = pool.take(2048, stream)
        with pytest.raises(OutOfMemoryError, match="4096"):
            pool.take(4096, stream)
        block.drop()
    driver_of(device).ledger.assert_empty()


def test_memory_that_comes_back_to_a_closed_pool_is_freed(gpu: Device, stream: Stream) -> None:
    with DevicePool(gpu) as pool:
        array = produce(pool, stream)
    assert len(device_memory(gpu)) == 1
    array.close()
    assert device_memory(gpu) == []
    with pytest.raises(ClosedError, match="DevicePool is closed"):
        pool.take(8, stream)


def test_a_pool_refuses_a_stream_of_another_device(gpu: Device, pool: DevicePool) -> None:
    with (
        Device(gpu.platform, 1) as second,
        Stream(second) as there,
        pytest.raises(InputError, match="the pool is on cuda:0 and the stream on cuda:1"),
    ):
        pool.take(8, there)


def test_memory_may_come_back_while_memory_is_coming_back(
    gpu: Device, pool: DevicePool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a collection begins in the middle of it: the same thread, inside the lock."""
    first, *others = (produce(pool, stream) for _ in range(3))
    settle = PooledBlock.settle

    def collecting(block: PooledBlock) -> bool:
        while others:
            others.pop().close()
        return settle(block)

    with monkeypatch.context() as patch:
        patch.setattr(PooledBlock, "settle", collecting)
        first.close()
        assert others == []
    assert pool.idle_bytes == 3 * 512


def test_memory_that_comes_back_while_memory_is_taken_is_not_forgotten(
    gpu: Device, pool: DevicePool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(pool, stream).close()
    forgotten = [produce(pool, stream, np.ones(1000, np.float32))]
    hold = PooledBlock.hold

    def collecting(block: PooledBlock) -> None:
        while forgotten:
            forgotten.pop().close()
        hold(block)

    with monkeypatch.context() as patch:
        patch.setattr(PooledBlock, "hold", collecting)
        block = pool.take(48, stream)
    assert forgotten == []
    assert pool.idle_bytes == size_class(4000)
    block.drop()


def test_a_block_whose_end_cannot_be_marked_is_freed(
    gpu: Device, pool: DevicePool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with produce(pool, stream) as array:
        consumer = Consumer(array.__dlpack__())
    faults = driver_of(gpu).faults
    with monkeypatch.context() as patch:
        patch.setattr(faults, "fails", lambda call: call == "cuEventRecord")
        consumer.free()
    assert device_memory(gpu) == []


def test_threads_that_share_a_pool_never_see_each_others_memory(
    gpu: Device, pool: DevicePool
) -> None:
    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        with Stream(gpu) as mine:
            for _ in range(60):
                values = np.full(int(rng.integers(1, 400)), number, np.int32)
                array = produce(pool, mine, values)
                consumers = [
                    Consumer(array.__dlpack__(stream=1, max_version=(1, 0)))
                    for _ in range(int(rng.integers(0, 3)))
                ]
                if rng.integers(2):
                    assert array.copy_to_host().tolist() == values.tolist()
                    array.close()
                del array
                for consumer in consumers:
                    address = consumer.described.address
                    seen = Reader(gpu, address, values).read(LEGACY_STREAM)
                    assert seen.tolist() == values.tolist()
                    consumer.free()

    assert run_together(8, work) == []


def test_counting_holders_releases_once(gpu: Device) -> None:
    released: list[int] = []

    class Thing(Counted):
        def _release(self) -> None:
            released.append(1)

    thing = Thing()
    thing.hold()
    thing.drop()
    assert released == []
    thing.drop()
    assert released == [1]


def test_a_device_block_is_given_up_by_its_maker_once(gpu: Device) -> None:
    block = DeviceBlock(gpu._primary, 8)
    block.hold()
    block.free()
    block.free()
    assert len(device_memory(gpu)) == 1
    block.drop()
    assert device_memory(gpu) == []


# Any call may fail --------------------------------------------------------------------------


def host_life(platform: Platform) -> None:
    with Device(platform) as device, Stream(device) as stream, DevicePool(device) as pool:
        for _ in range(2):
            with produce(pool, stream) as array:
                view = np.from_dlpack(array)
                assert view.tolist() == VALUES.tolist()
                del view
                assert array.copy_to_host().tolist() == VALUES.tolist()


def gpu_life(platform: Platform) -> None:
    with (
        Device(platform) as device,
        Stream(device) as stream,
        Stream(device) as other,
        DevicePool(device, max_bytes=1024) as pool,
        DeviceBuffer((3, 4), np.float32, device=device) as buffer,
    ):
        for told in (LEGACY_STREAM, other.handle, LEGACY_STREAM):
            with produce(pool, stream) as array, ExitStack() as stack:
                capsule = array.__dlpack__(stream=told)
                for value in (array, buffer, Foreign(array), Shown(array.address, stream=told)):
                    stack.callback(taken(value, other).release)
                assert array.copy_to_host().tolist() == VALUES.tolist()
                del capsule


@pytest.mark.parametrize("kind", [Faults, Interrupted], ids=["failure", "interrupt"])
@pytest.mark.parametrize(
    ("life", "platform_with"),
    [(host_life, HostPlatform), (gpu_life, like_cuda)],
    ids=["host", "cuda"],
)
def test_after_any_failing_call_the_error_is_typed_and_nothing_is_left(
    life: Life, platform_with: Callable[[Faults], Platform], kind: type[Faults]
) -> None:
    for number in range(1, 1000):
        faults = kind(fail_call=number)
        platform = platform_with(faults)
        raised: BaseException | None = None
        try:
            life(platform)
        except BaseException as error:
            raised = error
        if not faults.failed:
            assert raised is None
            assert number > 40
            return
        where = f"call {number} ({faults.failed[0]}): {raised!r}"
        # None: a block whose readers' end could not be marked is freed instead, and nobody is told.
        expected = KeyboardInterrupt if kind is Interrupted else TrtRuntimeError
        assert raised is None or isinstance(raised, expected), where
        let_go(raised)
        try:
            driver_at(platform).ledger.assert_empty()
        except AssertionError as left:
            pytest.fail(f"{where}\n{left}")
    pytest.fail("the life cycle calls the platform without end")


def test_a_failure_is_the_errors_of_cuda(gpu: Device, pool: DevicePool, stream: Stream) -> None:
    faults = driver_of(gpu).faults
    with produce(pool, stream) as array:
        faults.fail_call = faults.count + 1
        with pytest.raises(CudaError, match="injected failure"):
            array.__dlpack__()
        faults.fail_call = None
        assert array.copy_to_host().tolist() == VALUES.tolist()
