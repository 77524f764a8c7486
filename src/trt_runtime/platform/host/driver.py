"""A CUDA driver made of NumPy memory, and stricter than a GPU.

Device memory lives at invented addresses; page-locked memory is real. Work is deferred (`queue`),
every handle is in the ledger (`ledger`), and any call can be made to fail (`faults`).

Beyond what CUDA promises it raises `MisuseError` for: a handle or address that was freed or never
existed, a copy out of bounds, a release with work in flight, and page-locked input changed between
the enqueue of its copy and the copy. Page-locked memory that a copy will overwrite is filled with
0xFF bytes (NaN, -1) at the enqueue, so that a host read that comes too early shows.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...errors import CudaError, ForkedProcessError, MisuseError
from ...locks import RLock
from ..driver import (
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_VALUE,
    LEGACY_STREAM,
    NOT_READY,
    OUT_OF_MEMORY,
    PER_THREAD_STREAM,
    Part,
    Upload,
    cuda_error,
    host_bytes,
)
from .faults import Faults
from .ledger import Entry, Ledger, place
from .queue import Enqueued, EventState, GraphState, Marker, Operation, Range, StreamQueue

Bytes = NDArray[np.uint8]

_DEVICE_BASE = 0x7000_0000_0000
_ALIGNMENT = 256
_QUARANTINE_BLOCKS = 32
_CAPTURE_UNSUPPORTED = 900
_CAPTURE_INVALIDATED = 901
_CAPTURE_ISOLATION = 905


class _Allocation:
    """One block of device or page-locked memory."""

    __slots__ = ("address", "context", "data", "entry", "nbytes")

    def __init__(self, address: int, data: Bytes, context: int, entry: Entry) -> None:
        self.address = address
        self.data = data
        self.nbytes = data.nbytes
        self.context = context
        self.entry = entry


class HostDriver:
    """`trt_runtime.platform.driver.Driver` without a GPU.

    Parameters
    ----------
    faults : Faults, optional
        What shall fail; nothing by default.
    devices : int
        How many devices it pretends to have.
    """

    dlpack_device_type = 1  # kDLCPU

    def __init__(self, faults: Faults | None = None, *, devices: int = 1) -> None:
        self.faults = faults or Faults()
        self.ledger = Ledger()
        self._devices = devices
        self._pid = os.getpid()
        self._lock = RLock()
        self._local = threading.local()
        self._next_handle = 0x1000
        self._next_address = _DEVICE_BASE
        self._retained: dict[int, list[Entry]] = {n: [] for n in range(devices)}
        self._allocations: dict[int, _Allocation] = {}
        self._starts: list[int] = []
        self._quarantine: deque[_Allocation] = deque(maxlen=_QUARANTINE_BLOCKS)
        # One queue for every default stream: they synchronise with each other.
        default = StreamQueue(0, None)
        self._streams: dict[int, StreamQueue] = {
            handle: default for handle in (0, LEGACY_STREAM, PER_THREAD_STREAM)
        }
        self._events: dict[int, EventState] = {}
        self._graphs: dict[int, GraphState] = {}
        self._executables: dict[int, GraphState] = {}
        # The oldest finaliser runs last: whatever it finds open was released by nobody.
        weakref.finalize(self, self.ledger.report_at_exit)

    # What every call begins with -----------------------------------------------------------

    def _enter(self, call: str) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                f"{call}: this device was opened in process {self._pid} and does not survive a "
                "fork. Start workers with multiprocessing.get_context('spawn')."
            )
        if self.faults.fails(call):
            self._lose_work_if_broken()
            raise cuda_error(*self.faults.error, call, "injected failure")

    def _enter_context(self, call: str) -> int:
        """Like `_enter`, for calls that need a current context."""
        self._enter(call)
        context = self.current_context_quietly()
        if not context:
            raise CudaError(
                INVALID_CONTEXT,
                "CUDA_ERROR_INVALID_CONTEXT",
                call,
                "no CUDA context is current on this thread",
            )
        return context

    def _handle(self) -> int:
        with self._lock:
            self._next_handle += 0x10
            return self._next_handle

    def _missing(self, call: str, kind: str, handle: int) -> MisuseError:
        grave = self.ledger.grave(kind, hex(handle))
        if grave is None:
            return MisuseError(f"{call}: {hex(handle)} is not a {kind} and never was, at {place()}")
        return MisuseError(
            f"{call} at {place()}: {grave} was released at {grave.closed_at} already"
        )

    def _lose_work_if_broken(self) -> None:
        """A broken context runs nothing any more, and keeps nothing for work that has not run."""
        if self.faults.broken:
            for queue in list(self._streams.values()):
                queue.lose()

    def _refuse_busy(self, call: str, entry: Entry) -> None:
        self._lose_work_if_broken()
        if entry.busy:
            raise MisuseError(
                f"{call} at {place()}: {entry} is still used by work enqueued at {entry.used_at}; "
                "synchronise first"
            )

    # Devices and contexts ------------------------------------------------------------------

    def driver_version(self) -> int:
        self._enter("cuDriverGetVersion")
        return 13000

    def device_count(self) -> int:
        self._enter("cuDeviceGetCount")
        return self._devices

    def _check_ordinal(self, call: str, ordinal: int) -> None:
        if not 0 <= ordinal < self._devices:
            raise cuda_error(INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", call, f"{ordinal}")

    def device_name(self, ordinal: int) -> str:
        self._enter("cuDeviceGetName")
        self._check_ordinal("cuDeviceGetName", ordinal)
        return "host"

    def compute_capability(self, ordinal: int) -> tuple[int, int]:
        self._enter("cuDeviceGetAttribute")
        self._check_ordinal("cuDeviceGetAttribute", ordinal)
        return (0, 0)

    def total_memory(self, ordinal: int) -> int:
        self._enter("cuDeviceTotalMem")
        self._check_ordinal("cuDeviceTotalMem", ordinal)
        return self._total_bytes()

    def _total_bytes(self) -> int:
        limit = self.faults.device_memory
        return limit if limit is not None else 1 << 40

    def multiprocessor_count(self, ordinal: int) -> int:
        self._enter("cuDeviceGetAttribute")
        self._check_ordinal("cuDeviceGetAttribute", ordinal)
        return 1

    def retain_primary_context(self, ordinal: int) -> int:
        self._enter("cuDevicePrimaryCtxRetain")
        self._check_ordinal("cuDevicePrimaryCtxRetain", ordinal)
        context = self._context_of(ordinal)
        with self._lock:
            self._retained[ordinal].append(self.ledger.open("primary context", hex(context)))
        return context

    def release_primary_context(self, ordinal: int) -> None:
        call = "cuDevicePrimaryCtxRelease"
        self._check_ordinal(call, ordinal)
        with self._lock:
            if not self._retained[ordinal]:
                raise self._missing(call, "primary context", self._context_of(ordinal))
            entry = self._retained[ordinal].pop()
            context = self._context_of(ordinal)
            allocations = list(self._allocations.values())
            orphans = [a.entry for a in allocations if a.context == context]
            if not self._retained[ordinal] and orphans:
                self.ledger.violate(f"{call} at {place()}: it still holds {orphans[0]}")
            self.ledger.close(entry, call)
        self._enter(call)

    def primary_context_spins(self, ordinal: int) -> bool:
        self._enter("cuDevicePrimaryCtxGetState")
        self._check_ordinal("cuDevicePrimaryCtxGetState", ordinal)
        return True

    @staticmethod
    def _context_of(ordinal: int) -> int:
        return 0xC000 + ordinal

    def current_context_quietly(self) -> int:
        """The context current on this thread, without counting a call."""
        return getattr(self._local, "context", 0)

    def current_context(self) -> int:
        self._enter("cuCtxGetCurrent")
        return self.current_context_quietly()

    def set_current_context(self, context: int) -> None:
        self._enter("cuCtxSetCurrent")
        ordinal = context - self._context_of(0)
        if context and not (0 <= ordinal < self._devices and self._retained[ordinal]):
            raise cuda_error(
                INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "cuCtxSetCurrent", hex(context)
            )
        self._local.context = context

    # Memory --------------------------------------------------------------------------------

    def memory_info(self) -> tuple[int, int]:
        self._enter_context("cuMemGetInfo")
        total = self._total_bytes()
        return total - self._allocated("device memory"), total

    def _allocated(self, kind: str) -> int:
        with self._lock:
            # Copied in one step: a finaliser's release may come in between.
            allocations = list(self._allocations.values())
            return sum(a.nbytes for a in allocations if a.entry.kind == kind)

    def _allocate(self, call: str, kind: str, nbytes: int, limit: int | None) -> int:
        context = self._enter_context(call)
        self._refuse_capture(call)
        if nbytes <= 0:
            raise cuda_error(INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", call, f"{nbytes} bytes")
        with self._lock:
            if limit is not None and self._allocated(kind) + nbytes > limit:
                raise cuda_error(
                    OUT_OF_MEMORY,
                    "CUDA_ERROR_OUT_OF_MEMORY",
                    call,
                    f"{nbytes} bytes asked for, {limit - self._allocated(kind)} of {limit} free",
                )
            if kind == "device memory":
                data = np.full(nbytes, 0xCD, np.uint8)
                address = self._next_address
                self._next_address += -(-(nbytes + 1) // _ALIGNMENT) * _ALIGNMENT
            else:
                raw = np.full(nbytes + _ALIGNMENT, 0xCD, np.uint8)
                skip = -raw.ctypes.data % _ALIGNMENT
                data = raw[skip : skip + nbytes]
                address = data.ctypes.data
            entry = self.ledger.open(kind, hex(address), nbytes=nbytes)
            self._allocations[address] = _Allocation(address, data, context, entry)
            bisect.insort(self._starts, address)
        return address

    def _free(self, call: str, kind: str, address: int) -> None:
        with self._lock:
            allocation = self._allocations.get(address)
            if allocation is None or allocation.entry.kind != kind:
                raise self._missing(call, kind, address)
            self._refuse_busy(call, allocation.entry)
            del self._allocations[address]
            self._starts.remove(address)
            self.ledger.close(allocation.entry, call)
            if kind == "pinned memory":
                # Kept for a while, so that a late reader finds poison instead of a stranger's data.
                allocation.data.fill(0xDD)
                self._quarantine.append(allocation)
        self._enter_context(call)

    def mem_alloc(self, nbytes: int) -> int:
        return self._allocate("cuMemAlloc", "device memory", nbytes, self.faults.device_memory)

    def mem_free(self, address: int) -> None:
        self._free("cuMemFree", "device memory", address)

    def mem_host_alloc(self, nbytes: int) -> int:
        return self._allocate("cuMemHostAlloc", "pinned memory", nbytes, self.faults.pinned_memory)

    def mem_host_free(self, address: int) -> None:
        self._free("cuMemFreeHost", "pinned memory", address)

    def pointer_device(self, address: int) -> int:
        call = "cuPointerGetAttribute"
        self._enter_context(call)
        return self._locate(address, 0, call).context - self._context_of(0)

    def host_pointer(self, address: int) -> int:
        call = "cuPointerGetAttribute"
        self._enter_context(call)
        allocation = self._locate(address, 0, call)
        return allocation.data.ctypes.data + (address - allocation.address)

    def _find(self, address: int) -> _Allocation | None:
        with self._lock:
            index = bisect.bisect_right(self._starts, address) - 1
            if index < 0:
                return None
            allocation = self._allocations[self._starts[index]]
        reach = max(allocation.nbytes, 1)
        return allocation if address < allocation.address + reach else None

    def _locate(self, address: int, nbytes: int, call: str) -> _Allocation:
        """The living allocation that holds the whole range."""
        allocation = self._find(address)
        if allocation is None:
            for kind in ("device memory", "pinned memory"):
                if self.ledger.grave(kind, hex(address)) is not None:
                    raise self._missing(call, kind, address)
            raise MisuseError(f"{call} at {place()}: {hex(address)} is in no living allocation")
        end = allocation.address + allocation.nbytes
        if nbytes < 0 or address + nbytes > end:
            raise MisuseError(
                f"{call} at {place()}: {nbytes} bytes at offset {address - allocation.address} "
                f"do not fit into {allocation.entry}"
            )
        return allocation

    def view(self, address: int, nbytes: int, call: str) -> Bytes:
        """The living bytes at a device or page-locked address, as a writable view."""
        if nbytes == 0:
            return np.empty(0, np.uint8)
        allocation = self._locate(address, nbytes, call)
        offset = address - allocation.address
        return allocation.data[offset : offset + nbytes]

    def _host_view(self, address: int, nbytes: int, call: str) -> tuple[Bytes, bool]:
        """Host bytes, and whether they are page-locked."""
        if self._find(address) is not None:
            return self.view(address, nbytes, call), True
        for block in tuple(self._quarantine):
            if block.address <= address < block.address + block.nbytes:
                raise self._missing(call, "pinned memory", block.address)
        return host_bytes(address, nbytes), False

    def memcpy_htod_async(self, device: int, host: int, nbytes: int, stream: int) -> None:
        self._upload("cuMemcpyHtoDAsync", Part.whole(nbytes), device, host, stream)

    def prepare_upload(self, part: Part) -> Upload:
        if part.width > part.pitch or part.pitch * part.rows > part.slice_pitch:
            raise cuda_error(
                INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "cuMemcpy3DAsync", f"{part} overlaps"
            )
        return partial(self._upload, "cuMemcpy3DAsync", part)

    def _upload(self, call: str, part: Part, device: int, host: int, stream: int) -> None:
        self._enter_context(call)
        target, origin = ((at + part.offset, part.span) for at in (device, host))
        source, pinned = self._host_view(*origin, call)
        if not pinned:  # the driver stages pageable memory before it returns
            source = source.copy()

        def copy() -> None:
            _rows_of(self.view(*target, call), part)[...] = _rows_of(source, part)

        self._enqueue(
            stream,
            Operation(
                call,
                copy,
                reads=[origin] if pinned else [],
                writes=[target],
                host_source=origin if pinned else None,
            ),
        )

    def memcpy_dtoh_async(self, host: int, device: int, nbytes: int, stream: int) -> None:
        call = "cuMemcpyDtoHAsync"
        self._enter_context(call)
        target, pinned = self._host_view(host, nbytes, call)

        def copy() -> None:
            target[:] = self.view(device, nbytes, call)

        self._enqueue(
            stream,
            Operation(
                call,
                copy,
                reads=[(device, nbytes)],
                writes=[(host, nbytes)] if pinned else [],
                host_target=(host, nbytes) if pinned else None,
            ),
        )
        if not pinned:  # and returns from such a copy only when it is done
            self._stream(call, stream).drain()

    def memcpy_dtod_async(self, target: int, source: int, nbytes: int, stream: int) -> None:
        call = "cuMemcpyDtoDAsync"
        self._enter_context(call)

        def copy() -> None:
            self.view(target, nbytes, call)[:] = self.view(source, nbytes, call)

        self._enqueue(
            stream, Operation(call, copy, reads=[(source, nbytes)], writes=[(target, nbytes)])
        )

    def memset_d8_async(self, device: int, value: int, nbytes: int, stream: int) -> None:
        call = "cuMemsetD8Async"
        self._enter_context(call)

        def fill() -> None:
            self.view(device, nbytes, call).fill(value)

        self._enqueue(stream, Operation(call, fill, writes=[(device, nbytes)]))

    # The queue -----------------------------------------------------------------------------

    def submit(
        self,
        stream: int,
        call: str,
        work: Callable[[], None],
        *,
        reads: Sequence[Range] = (),
        writes: Sequence[Range] = (),
        uses: Sequence[Entry] = (),
    ) -> None:
        """Enqueue work of the host TensorRT; during capture it becomes part of the graph."""
        self._enqueue(stream, Operation(call, work, reads=reads, writes=writes, uses=uses))

    def drain(self, stream: int) -> None:
        """Run everything that is queued on ``stream`` now."""
        self._stream("drain", stream).drain()

    def _enqueue(self, stream: int, operation: Operation) -> None:
        queue = self._stream(operation.call, stream)
        if queue.capture is not None:
            queue.capture.append(operation)
            return
        readers: list[Entry] = []
        writers: list[Entry] = []

        def release() -> None:
            with self._lock:
                _let_go(readers, writers)

        try:
            self._mark_busy(queue, operation, readers, writers)
            fingerprint = self._fingerprint(operation)
            self._poison(operation)

            def run() -> None:
                self._check_fingerprint(operation, fingerprint)
                operation.work()

            queue.queue.append(Enqueued(operation, run, release))
        except BaseException:  # an interrupt too: what is not in the queue keeps nothing busy
            release()
            raise

    def _mark_busy(
        self,
        queue: StreamQueue,
        operation: Operation,
        readers: list[Entry],
        writers: list[Entry],
    ) -> None:
        """Mark what the operation needs, and list what is marked so far."""
        with self._lock:
            locate = self._locate
            call = operation.call
            reads = [locate(a, n, call).entry for a, n in operation.reads if n]
            writes = [locate(a, n, call).entry for a, n in operation.writes if n]
            reads += [*operation.uses, *([queue.entry] if queue.entry else [])]
            here = place()
            for entry in (*reads, *writes):
                entry.used_at = here
            for entry in reads:
                entry.reads += 1
                readers.append(entry)
            for entry in writes:
                entry.writes += 1
                writers.append(entry)

    def _fingerprint(self, operation: Operation) -> int | None:
        """A checksum of page-locked input, unless work before this one will still write it."""
        if operation.host_source is None or operation.host_source[1] == 0:
            return None
        if self._locate(*operation.host_source, operation.call).entry.writes:
            return None
        return zlib.crc32(self.view(*operation.host_source, operation.call).data)

    def _check_fingerprint(self, operation: Operation, expected: int | None) -> None:
        if expected is None or operation.host_source is None:
            return
        if zlib.crc32(self.view(*operation.host_source, operation.call).data) != expected:
            entry = self._locate(*operation.host_source, operation.call).entry
            raise MisuseError(
                f"{operation.call}: {entry} changed between the enqueue at {entry.used_at} and "
                "the copy; wait for the copy (an event, or the stream) before writing to it"
            )

    def _poison(self, operation: Operation) -> None:
        """Make host memory that will be overwritten unreadable, unless it is still needed."""
        if operation.host_target is None or operation.host_target[1] == 0:
            return
        entry = self._locate(*operation.host_target, operation.call).entry
        if entry.reads == 0 and entry.writes == 1:
            self.view(*operation.host_target, operation.call).fill(0xFF)

    # Streams and events --------------------------------------------------------------------

    def _stream(self, call: str, handle: int) -> StreamQueue:
        queue = self._streams.get(handle)
        if queue is None:
            raise self._missing(call, "stream", handle)
        return queue

    def _event(self, call: str, handle: int) -> EventState:
        event = self._events.get(handle)
        if event is None:
            raise self._missing(call, "event", handle)
        return event

    def _waiting(self, call: str, stream: int) -> StreamQueue:
        """A stream that the host may wait for: not one that is being captured."""
        queue = self._stream(call, stream)
        if queue.capture is not None:
            queue.capture_broken = call
            raise cuda_error(_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", call)
        return queue

    def _refuse_capture(self, call: str) -> None:
        """Calls that may synchronise are not allowed on a thread that is capturing."""
        for stream in getattr(self._local, "capturing", ()):
            self._waiting(call, stream)

    def stream_create(self, priority: int) -> int:
        self._enter_context("cuStreamCreateWithPriority")
        handle = self._handle()
        self._streams[handle] = StreamQueue(handle, self.ledger.open("stream", hex(handle)))
        return handle

    def stream_destroy(self, stream: int) -> None:
        call = "cuStreamDestroy"
        queue = self._stream(call, stream)
        if queue.entry is None:
            raise MisuseError(f"{call} at {place()}: the default stream cannot be destroyed")
        self._refuse_busy(call, queue.entry)
        del self._streams[stream]
        self.ledger.close(queue.entry, call)
        self._enter_context(call)

    def stream_is_blocking(self, stream: int) -> bool:
        self._enter_context("cuStreamGetFlags")
        return self._stream("cuStreamGetFlags", stream).entry is None

    def stream_synchronize(self, stream: int) -> None:
        self._enter_context("cuStreamSynchronize")
        self._waiting("cuStreamSynchronize", stream).drain()

    def stream_query(self, stream: int) -> bool:
        self._enter_context("cuStreamQuery")
        queue = self._waiting("cuStreamQuery", stream)
        queue.step()
        return queue.idle

    def stream_poll(self, stream: int) -> None:
        while not self.stream_query(stream):
            pass

    def stream_wait_event(self, stream: int, event: int) -> None:
        call = "cuStreamWaitEvent"
        self._enter_context(call)
        state = self._event(call, event)
        queue = self._stream(call, stream)
        if queue.capture is not None:
            queue.capture_broken = call
            raise cuda_error(_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", call)
        if state.marker is not None:
            self._enqueue(stream, Operation(call, lambda: None, waits_for=state.marker))

    def event_create(self, timing: bool, blocking: bool = False) -> int:
        self._enter_context("cuEventCreate")
        handle = self._handle()
        entry = self.ledger.open("event", hex(handle))
        self._events[handle] = EventState(handle, timing, entry)
        return handle

    def event_destroy(self, event: int) -> None:
        state = self._event("cuEventDestroy", event)
        del self._events[event]
        self.ledger.close(state.entry, "cuEventDestroy")
        self._enter_context("cuEventDestroy")

    def event_record(self, event: int, stream: int) -> None:
        call = "cuEventRecord"
        self._enter_context(call)
        state = self._event(call, event)
        queue = self._stream(call, stream)
        if queue.capture is not None:
            queue.capture_broken = call
            raise cuda_error(_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", call)
        marker = state.marker = Marker(queue)

        def reach() -> None:
            marker.milliseconds = time.perf_counter() * 1e3
            marker.done = True

        self._enqueue(stream, Operation(call, reach))

    def event_synchronize(self, event: int) -> None:
        self._enter_context("cuEventSynchronize")
        marker = self._event("cuEventSynchronize", event).marker
        if marker is not None:
            marker.stream.run_until(marker)

    def event_query(self, event: int) -> bool:
        self._enter_context("cuEventQuery")
        marker = self._event("cuEventQuery", event).marker
        if marker is None or marker.done:
            return True
        marker.stream.step()
        return marker.done

    def event_elapsed_ms(self, start: int, end: int) -> float:
        call = "cuEventElapsedTime"
        self._enter_context(call)
        first, last = self._event(call, start), self._event(call, end)
        if not (first.timing and last.timing) or first.marker is None or last.marker is None:
            raise cuda_error(
                INVALID_VALUE,
                "CUDA_ERROR_INVALID_HANDLE",
                call,
                "both events need timing and a record",
            )
        if not (first.marker.done and last.marker.done):
            raise cuda_error(NOT_READY, "CUDA_ERROR_NOT_READY", call)
        return last.marker.milliseconds - first.marker.milliseconds

    # Graphs --------------------------------------------------------------------------------

    def stream_begin_capture(self, stream: int) -> None:
        call = "cuStreamBeginCapture"
        self._enter_context(call)
        queue = self._waiting(call, stream)
        if queue.entry is None:
            raise cuda_error(
                _CAPTURE_UNSUPPORTED,
                "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
                call,
                "the default stream cannot be captured",
            )
        queue.capture, queue.capture_broken = [], None
        if not hasattr(self._local, "capturing"):
            self._local.capturing = set()
        self._local.capturing.add(stream)

    def stream_end_capture(self, stream: int) -> int:
        call = "cuStreamEndCapture"
        queue = self._stream(call, stream)
        operations, broken = queue.capture, queue.capture_broken
        queue.capture, queue.capture_broken = None, None
        getattr(self._local, "capturing", set()).discard(stream)
        self._enter_context(call)
        if operations is None:
            raise cuda_error(INVALID_VALUE, "CUDA_ERROR_ILLEGAL_STATE", call, "nothing to end")
        if broken is not None:
            raise cuda_error(
                _CAPTURE_INVALIDATED,
                "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
                call,
                f"by {broken}",
            )
        handle = self._handle()
        self._graphs[handle] = GraphState(
            handle, operations, self.ledger.open("graph", hex(handle))
        )
        return handle

    def is_capturing(self, stream: int) -> bool:
        return self._stream("cuStreamIsCapturing", stream).capture is not None

    def graph_instantiate(self, graph: int) -> int:
        call = "cuGraphInstantiate"
        self._enter_context(call)
        state = self._graphs.get(graph)
        if state is None:
            raise self._missing(call, "graph", graph)
        handle = self._handle()
        entry = self.ledger.open("executable graph", hex(handle))
        self._executables[handle] = GraphState(handle, state.operations, entry)
        return handle

    def graph_launch(self, executable: int, stream: int) -> None:
        call = "cuGraphLaunch"
        self._enter_context(call)
        state = self._executables.get(executable)
        if state is None:
            raise self._missing(call, "executable graph", executable)
        self._enqueue(stream, Operation(call, lambda: None, uses=[state.entry]))
        for operation in state.operations:
            self._enqueue(stream, operation)
        # Busy until the last of its operations has run.
        self._enqueue(stream, Operation(call, lambda: None, uses=[state.entry]))

    def graph_exec_destroy(self, executable: int) -> None:
        call = "cuGraphExecDestroy"
        state = self._executables.get(executable)
        if state is None:
            raise self._missing(call, "executable graph", executable)
        self._refuse_busy(call, state.entry)
        del self._executables[executable]
        self.ledger.close(state.entry, call)
        self._enter_context(call)

    def graph_destroy(self, graph: int) -> None:
        call = "cuGraphDestroy"
        state = self._graphs.pop(graph, None)
        if state is None:
            raise self._missing(call, "graph", graph)
        self.ledger.close(state.entry, call)
        self._enter_context(call)


def _rows_of(data: Bytes, part: Part) -> Bytes:
    """What a part takes of memory that begins with it: (slices, rows, bytes)."""
    return np.lib.stride_tricks.as_strided(
        data, (part.slices, part.rows, part.width), (part.slice_pitch, part.pitch, 1)
    )


def _let_go(readers: list[Entry], writers: list[Entry]) -> None:
    while readers:
        readers.pop().reads -= 1
    while writers:
        writers.pop().writes -= 1
