"""PyTorch and CuPy take our memory and we take theirs: no copy, in order, on a real GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    CudaError,
    Device,
    DeviceArray,
    DeviceBuffer,
    DtypeError,
    InputError,
    PinnedBuffer,
    Stream,
)
from trt_runtime.interop import BorrowedArray, borrow, is_device_array
from trt_runtime.platform.driver import LEGACY_STREAM
from trt_runtime.pool import DevicePool

pytestmark = pytest.mark.gpu

#: Large enough for a copy of it to be far behind the host: 64 MiB.
COUNT = 1 << 24
#: How many fills are queued before the one that counts.
DELAY = 256

#: Libraries differ in how they take and show memory; the promises do not.
FROM_DLPACK: dict[str, Callable[[Any, Any], Any]] = {
    "torch": lambda torch, array: torch.from_dlpack(array),
    "cupy": lambda cupy, array: cupy.from_dlpack(array),
}
FROM_INTERFACE: dict[str, Callable[[Any, Any], Any]] = {
    "torch": lambda torch, array: torch.as_tensor(array, device="cuda"),
    "cupy": lambda cupy, array: cupy.asarray(array),
}


@pytest.fixture
def stream(gpu: Device) -> Iterator[Stream]:
    with Stream(gpu) as stream:
        yield stream


@pytest.fixture
def pool(gpu: Device) -> Iterator[DevicePool]:
    with DevicePool(gpu, max_bytes=1 << 30) as pool:
        yield pool


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


@pytest.fixture(params=["torch", "cupy"])
def library(request: pytest.FixtureRequest) -> Any:
    module = pytest.importorskip(request.param)
    if request.param == "torch" and not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


def produce(pool: DevicePool, stream: Stream, value: int, *, late: bool = True) -> DeviceArray:
    """``COUNT`` floats of these bytes; with ``late``, behind work that takes the GPU a while."""
    block = pool.take(COUNT * 4, stream)
    with pool.device._primary.current():
        driver = pool.device._driver
        for filler in range(DELAY if late else 0):
            driver.memset_d8_async(block.address, 100 + filler % 50, COUNT * 4, stream.handle)
        driver.memset_d8_async(block.address, value, COUNT * 4, stream.handle)
    return DeviceArray(block, (COUNT,), np.float32)


def filled(value: int) -> float:
    """The float whose every byte is that."""
    return float(np.frombuffer(bytes([value] * 4), np.float32)[0])


def pointer(array: Any) -> int:
    return int(array.data_ptr()) if hasattr(array, "data_ptr") else int(array.data.ptr)


def ends(array: Any) -> tuple[float, float]:
    """The first and the last element, read on the library's current stream."""
    return float(array[0]), float(array[-1])


def side_stream(library: Any) -> Any:
    """A context in which the library works on a stream that is not the default one."""
    if library.__name__ == "torch":
        return library.cuda.stream(library.cuda.Stream())
    return library.cuda.Stream(non_blocking=True)


def wait(library: Any) -> None:
    if library.__name__ == "torch":
        library.cuda.synchronize()
    else:
        library.cuda.runtime.deviceSynchronize()


def taken(value: Any, stream: Stream) -> BorrowedArray:
    borrowed = borrow(value, stream)
    assert borrowed is not None
    return borrowed


def read(borrowed: BorrowedArray, stream: Stream) -> np.ndarray[Any, Any]:
    """The memory as ``stream`` sees it."""
    with PinnedBuffer(borrowed.shape, borrowed.dtype, device=stream.device) as pinned:
        with stream.device._primary.current():
            stream.device._driver.memcpy_dtoh_async(
                pinned.address, borrowed.address, borrowed.nbytes, stream.handle
            )
        stream.synchronize()
        return pinned.array.copy()


# Out ----------------------------------------------------------------------------------------


def test_from_dlpack_takes_the_memory_itself(
    library: Any, pool: DevicePool, stream: Stream
) -> None:
    array = produce(pool, stream, 7)
    theirs = FROM_DLPACK[library.__name__](library, array)
    assert pointer(theirs) == array.address
    assert tuple(theirs.shape) == (COUNT,)
    assert "float32" in str(theirs.dtype)
    assert ends(theirs) == (filled(7), filled(7))
    theirs[0] = 1.5
    wait(library)
    assert array.copy_to_host()[0] == 1.5


def test_from_the_cuda_array_interface_it_is_taken_too(
    library: Any, pool: DevicePool, stream: Stream
) -> None:
    array = produce(pool, stream, 7)
    theirs = FROM_INTERFACE[library.__name__](library, array)
    assert pointer(theirs) == array.address
    assert ends(theirs) == (filled(7), filled(7))  # on the default stream, which was ordered
    array.close()
    assert ends(theirs) == (filled(7), filled(7))
    del array, theirs


def test_a_consumer_on_a_side_stream_reads_what_the_array_is_going_to_be(
    library: Any, pool: DevicePool, stream: Stream
) -> None:
    for value in range(1, 9):
        array = produce(pool, stream, value)
        with side_stream(library):
            theirs = FROM_DLPACK[library.__name__](library, array)
            assert ends(theirs) == (filled(value), filled(value))
        wait(library)
        del array, theirs


def test_handing_over_does_not_wait(library: Any, pool: DevicePool, stream: Stream) -> None:
    FROM_DLPACK[library.__name__](library, produce(pool, stream, 1))  # whatever loads on first use
    wait(library)
    array = produce(pool, stream, 7)
    theirs = FROM_DLPACK[library.__name__](library, array)
    assert not array.query(), "the host waited, or the delay is too short for this GPU"
    assert ends(theirs) == (filled(7), filled(7))


def test_what_a_library_took_outlives_array_pool_stream_and_device(library: Any) -> None:
    with Device("cuda") as device, Stream(device) as stream, DevicePool(device) as pool:
        theirs = FROM_DLPACK[library.__name__](library, produce(pool, stream, 7))
    with Device("cuda") as device, DeviceBuffer(COUNT * 4, device=device) as other:
        with Stream(device) as stream:
            other.copy_from(np.zeros(COUNT * 4, np.uint8), stream=stream)
            stream.synchronize()
        assert pointer(theirs) != other.address
    assert ends(theirs) == (filled(7), filled(7))


def test_a_block_is_used_again_only_after_the_consumers_kernels(
    library: Any, pool: DevicePool, stream: Stream, gpu: Device
) -> None:
    """On the default stream: our next result goes into memory that their kernels still read."""
    results = []
    for value in range(1, 17):
        array = produce(pool, stream, value, late=False)
        theirs = FROM_DLPACK[library.__name__](library, array)
        copy = theirs * 1  # what the library is going to read
        for _ in range(8):
            copy = copy * 1
        results.append(theirs * 1)
        del array, theirs, copy
    assert pool.idle_bytes > 0
    wait(library)
    assert [ends(result) for result in results] == [
        (filled(value), filled(value)) for value in range(1, 17)
    ]


def test_memory_comes_back_to_the_device(library: Any, gpu: Device) -> None:
    def cycle() -> None:
        with Stream(gpu) as stream, DevicePool(gpu) as pool:
            for use in (FROM_DLPACK, FROM_INTERFACE):
                array = produce(pool, stream, 3, late=False)
                theirs = use[library.__name__](library, array)
                wait(library)
                del array, theirs

    for _ in range(5):
        cycle()
    gc.collect()
    start, _ = gpu.memory_info()
    for _ in range(50):
        cycle()
    gc.collect()
    end, _ = gpu.memory_info()
    print(f"free device memory before and after 50 cycles: {start} and {end} bytes")
    assert end == start


@pytest.mark.parametrize("name", ["bfloat16", "float16", "bool", "int64"])
def test_torch_takes_the_dtypes_it_shares(
    torch: Any, pool: DevicePool, stream: Stream, name: str
) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    block = pool.take(64, stream)
    with pool.device._primary.current():
        pool.device._driver.memset_d8_async(block.address, 0, 64, stream.handle)
    theirs = torch.from_dlpack(DeviceArray(block, (2, 3), dtype))
    assert theirs.dtype == getattr(torch, name)
    assert theirs.cpu().to(torch.float32).tolist() == [[0.0] * 3] * 2


def test_a_copy_on_the_cpu_through_numpy(pool: DevicePool, stream: Stream) -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("this NumPy's from_dlpack has no device=")
    with produce(pool, stream, 7) as array:
        assert ends(np.from_dlpack(array, device="cpu")) == (filled(7), filled(7))


def test_a_stream_that_was_destroyed_before_its_consumer_let_go_does_no_harm(gpu: Device) -> None:
    pytest.importorskip("cupy")
    program = """
        import cupy, numpy as np
        from trt_runtime import Device, DeviceArray, Stream
        from trt_runtime.pool import DevicePool

        with Device("cuda") as device, Stream(device) as stream, DevicePool(device) as pool:
            for non_blocking in (False, True) * 8:
                array = DeviceArray(pool.take(1 << 20, stream), (1 << 18,), np.float32)
                theirs = cupy.cuda.Stream(non_blocking=non_blocking)
                with theirs:
                    view = cupy.from_dlpack(array)
                    view += 1
                theirs.synchronize()
                del theirs
                del array, view
            stream.synchronize()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr


# In -----------------------------------------------------------------------------------------


def test_their_array_is_borrowed_where_it_is(library: Any, stream: Stream) -> None:
    theirs = library.ones((3, 4), dtype=library.float32, **_on_gpu(library))
    assert is_device_array(theirs)
    with taken(theirs, stream) as borrowed:
        assert borrowed.address == pointer(theirs)
        assert (borrowed.shape, borrowed.dtype) == ((3, 4), np.dtype(np.float32))
        assert (read(borrowed, stream) == 1).all()


def _on_gpu(library: Any) -> dict[str, Any]:
    return {"device": "cuda"} if library.__name__ == "torch" else {}


def test_their_unfinished_work_on_a_side_stream_is_waited_for(library: Any, stream: Stream) -> None:
    theirs = library.zeros(COUNT, dtype=library.float32, **_on_gpu(library))
    wait(library)
    for value in range(1, 9):
        with side_stream(library):
            for _ in range(DELAY):
                theirs[:] = -1.0
            theirs[:] = float(value)
            with taken(theirs, stream) as borrowed:
                seen = read(borrowed, stream)
        assert (seen[0], seen[-1]) == (value, value)


def test_their_memory_is_held_until_the_release(torch: Any, stream: Stream) -> None:
    theirs = torch.full((COUNT,), 5.0, device="cuda")
    before = torch.cuda.memory_allocated()
    borrowed = taken(theirs, stream)
    del theirs
    assert torch.cuda.memory_allocated() == before
    assert read(borrowed, stream)[-1] == 5
    borrowed.release()
    assert torch.cuda.memory_allocated() < before


def test_an_object_with_the_cuda_array_interface_alone_is_borrowed(
    library: Any, stream: Stream
) -> None:
    theirs = library.ones(8, dtype=library.float32, **_on_gpu(library))

    class Shown:
        __cuda_array_interface__ = theirs.__cuda_array_interface__

    with taken(Shown(), stream) as borrowed:
        assert borrowed.address == pointer(theirs)
        wait(library)  # PyTorch names no stream
        assert (read(borrowed, stream) == 1).all()


def test_what_is_not_contiguous_or_of_another_dtype_is_refused(
    library: Any, stream: Stream
) -> None:
    theirs = library.ones((3, 4), dtype=library.float32, **_on_gpu(library))
    with pytest.raises(InputError, match="must be C-contiguous"):
        borrow(theirs.T, stream)
    with pytest.raises(InputError, match="must be C-contiguous"):
        borrow(theirs[:, ::2], stream)
    with pytest.raises(DtypeError, match="takes float16 and has float32"):
        borrow(theirs, stream, dtype=np.dtype(np.float16))
    with taken(theirs[1:], stream) as borrowed:
        assert borrowed.address == pointer(theirs) + 16


def test_tensors_on_the_cpu_take_the_ordinary_path(torch: Any, stream: Stream) -> None:
    for theirs in (torch.ones(3), torch.ones(3).pin_memory()):
        assert borrow(theirs, stream) is None


def test_a_tensor_that_needs_a_gradient_is_refused_in_pytorchs_words(
    torch: Any, stream: Stream
) -> None:
    with pytest.raises(InputError, match=r"(?i)grad"):
        borrow(torch.ones(3, device="cuda", requires_grad=True), stream)


def test_our_result_goes_through_their_kernel_and_back(
    library: Any, pool: DevicePool, stream: Stream
) -> None:
    theirs = FROM_DLPACK[library.__name__](library, produce(pool, stream, 7)) * 2
    with taken(theirs, stream) as borrowed:
        seen = read(borrowed, stream)
    assert (seen[0], seen[-1]) == (2 * np.float32(filled(7)),) * 2


# The driver's answers that this stands on ---------------------------------------------------


def test_the_driver_tells_streams_and_pointers_apart(gpu: Device, stream: Stream) -> None:
    driver = gpu._driver
    with (
        DeviceBuffer(64, device=gpu) as buffer,
        PinnedBuffer(64, device=gpu) as pinned,
        gpu._primary.current(),
    ):
        assert not driver.stream_is_blocking(stream.handle)
        assert driver.stream_is_blocking(LEGACY_STREAM)
        assert driver.pointer_device(buffer.address) == gpu.ordinal
        assert driver.host_pointer(pinned.address) == pinned.address
        with pytest.raises(CudaError):
            driver.host_pointer(buffer.address)


def test_a_stream_of_torch_is_borrowed(torch: Any, gpu: Device, pool: DevicePool) -> None:
    theirs = torch.cuda.Stream()
    if hasattr(theirs, "__cuda_stream__"):
        borrowed = Stream.borrow(theirs, device=gpu)
    else:
        with pytest.raises(InputError, match="cuda_stream"):
            Stream.borrow(theirs, device=gpu)
        borrowed = Stream.from_handle(theirs.cuda_stream, device=gpu, owner=theirs)
    with borrowed:
        assert borrowed.handle == theirs.cuda_stream
        with torch.cuda.stream(theirs):
            result = torch.from_dlpack(produce(pool, borrowed, 7))
            assert ends(result) == (filled(7), filled(7))
        theirs.synchronize()
        del result
