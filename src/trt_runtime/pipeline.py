"""Inferences in flight: contexts, streams, memory for recent shapes, and captured graphs.

A `Pipeline` has one `Slot` for each execution context. A slot has a few `Track` objects, each a
stream on which one inference at a time travels: its inputs cross, it computes, its results cross
back. A context computes one inference at a time, so that what overlaps is one inference's compute
with its neighbours' copies. A `Lane` is a track's memory at given shapes.

What a user may pass is checked in `session`; nothing is checked here. The device's context must be
current for every call but `Pipeline.close`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bindings import Binding, BindingSet
from .context import ExecutionContext
from .engine import Engine
from .errors import InputError, OutOfMemoryError, ShapeError, UnsupportedError
from .graph import CudaGraph
from .interop import BorrowedArray, DeviceArray, borrow
from .interrupts import uninterrupted
from .locks import Lock, RLock
from .memory import PinnedBlock
from .ownership import insist, release_all
from .platform.driver import Part, Upload, address_of
from .pool import DevicePool
from .results import Arrays, Results
from .stream import Stream
from .tensor import Shape, format_shape

logger = logging.getLogger("trt_runtime")


class DeviceInput(NamedTuple):
    """An input that is in device memory already, somebody else's or a `DeviceArray`."""

    value: Any
    shape: Shape
    what: str


#: Wanted outputs: None for new arrays, arrays to write into by name, or device memory.
Targets = Mapping[str, NDArray[Any]] | Literal["device"]
Inputs = Sequence[NDArray[Any] | DeviceInput]
Outputs = dict[str, Any]
Key = tuple[object, ...]

#: Inferences in flight for each context: one sends its inputs while another computes and a third's
#: results come back.
TRACKS = 3
#: Shape combinations that a slot keeps memory for; the least recently used goes first.
KEPT_SHAPES = 8
#: Graphs that a lane keeps; the oldest goes first.
KEPT_GRAPHS = 16
#: Bytes of page-locked memory that a session keeps for results to lend, of all its shapes; beyond
#: it results are copied. As many as can be in flight, and one more for each context, may be kept in
#: any case: copies of 62 MB took two contexts to half the speed of one
#: (benchmarks/results/2026-11-24-h200-speed.md).
LENT_BYTES = 256 << 20
#: Inputs up to this size are staged in page-locked memory, whose copy a graph can hold; the
#: driver stages larger ones itself, which is faster than a copy here and the transfer after it
#: (benchmarks/results/2026-11-24-h200-speed.md: 4.4 MB in 0.33 ms against 0.46 to 0.50).
STAGED_BYTES = 256 << 10
#: What crosses for an inference, up to which its copies are brief. Chosen, not measured: at the
#: 50 GB/s of an H200's link it is 1.3 µs.
BRIEF_BYTES = 64 << 10
#: Outputs up to this size are written to page-locked memory by the engine's layers, in graphs that
#: hold the copies as well: no copy begins when the last layer has ended (benchmarks/results/
#: 2026-11-28-h100-copies.md: 16.7 µs in place of 24.0 for 16 KiB; but 357 in place of 60 for 1 MB).
DIRECT_BYTES = 16 << 10
#: Beyond it, what other contexts compute fills the time of one's copies, and whole graphs, which
#: have fewer steps, are faster (benchmarks/results/2026-11-24-h200-speed.md, by
#: benchmarks/overlap.py: with six, 1.011 against 1.001 of a loop by hand; with three, 1.026 against
#: 1.053).
OVERLAPPED_CONTEXTS = 4

_next_serial = itertools.count().__next__


class Flight:
    """One inference under way, and what became of it."""

    __slots__ = (
        "arrays",
        "borrowed",
        "claimed",
        "ended",
        "error",
        "held",
        "lane",
        "results",
        "serial",
        "targets",
        "track",
    )

    def __init__(self, track: Track, lane: Lane, held: Inputs, targets: Targets | None) -> None:
        self.serial = _next_serial()
        self.track = track
        self.lane = lane
        #: The inputs, which the device may read until the flight has ended.
        self.held = held
        self.targets = targets
        #: Other libraries' device memory, which is theirs again when the flight has ended.
        self.borrowed: Sequence[BorrowedArray] = ()
        self.results: Results | None = None
        #: Whether a thread waits for its end, or it has ended.
        self.claimed = False
        self.ended = False
        self.arrays: Outputs | None = None
        self.error: BaseException | None = None

    def sleep(self) -> None:
        """Wait until the device has done its work, without keeping a processor busy."""
        track, driver = self.track, self.track.slot.driver
        with track.lock:  # or the next flight might have begun, and be about to be captured
            if self.claimed:
                return
            driver.event_record(track.landed, track.handle)
        driver.event_synchronize(track.landed)

    def has_ended(self) -> bool:
        """Whether it has, after the thread that waits for it, if one does."""
        if self.claimed and not self.ended:
            with self.track.lock:
                pass
        return self.ended

    def finish(self) -> Outputs:
        """Wait until it has ended; its results, or the error that it ended with.

        Results in device memory are there at once, and order whoever uses them.
        """
        arrays = self.arrays
        if arrays is None:
            self.track.settle(self)
            arrays = self.arrays
            if arrays is None:
                self._raise_error()
                assert arrays is not None
        elif self.targets == "device":
            self.arrays = None  # the caller's alone, ended or not
        return arrays

    def make_way(self) -> None:
        """Wait until it has ended, for somebody else."""
        self.track.settle(self, for_another=True)
        if self.targets == "device":  # whoever submitted it does not wait, and is not told
            self._raise_error()

    def _raise_error(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame


class _Feed:
    """An input of a lane: where it goes, and the page-locked memory it passes, if it does."""

    __slots__ = ("binding", "device", "dtype", "in_graph", "index", "staging", "uploads")

    def __init__(
        self, index: int, binding: Binding, device: int, uploads: Sequence[Upload]
    ) -> None:
        self.index = index
        self.binding = binding
        self.device = device
        self.dtype = binding.dtype
        #: The copies of what the engine reads of it, if that is not all.
        self.uploads = uploads
        #: Made when first needed.
        self.staging: NDArray[Any] | None = None
        #: Whether graphs copy it to the device, from ``staging``.
        self.in_graph = binding.nbytes <= STAGED_BYTES


class Lane:
    """The memory of one track at given shapes, and graphs captured over it."""

    __slots__ = (
        "_context",
        "_direct",
        "_feeds",
        "_graph_context",
        "_graphs",
        "_staged",
        "bindings",
        "brief",
        "plain",
        "shapes",
        "track",
    )

    def __init__(
        self, track: Track, shapes: _Shapes, context: ExecutionContext, bindings: BindingSet
    ) -> None:
        self.track = track
        self.shapes = shapes
        self.bindings = bindings
        self._context = context
        #: Of its own, where shapes change: a graph wants its context to stay as it was captured.
        self._graph_context: ExecutionContext | None = context if track.slot.fixed else None
        #: By where the results go; None for what ran once and was not captured yet.
        self._graphs: OrderedDict[Results | None, CudaGraph | None] = OrderedDict()
        #: Whether it runs as the explicit program does, step by step: shapes that depend on the
        #: data, and tensors that TensorRT writes on the host.
        self.plain = any(b.data_dependent or b.spec.location == "host" for b in bindings._outputs)
        #: Whether its copies are so short that nothing is gained beside them, and results are
        #: sooner copied than lent.
        copied = (*bindings._inputs, *bindings._outputs)
        self.brief = not self.plain and sum(b.nbytes for b in copied) <= BRIEF_BYTES
        slot = track.slot
        #: The inputs that cross; the values of a shape tensor are the binding set's.
        self._feeds = [
            _Feed(index, binding, binding._device.address, slot.uploads_of(binding.name))
            for index, binding in enumerate(bindings._inputs)
            if binding._device is not None
        ]
        #: Where each input's copy, if a graph may hold it, comes from; otherwise 0.
        self._staged = [0] * len(bindings._inputs)
        for feed in self._feeds:
            if feed.in_graph:
                self._make_staging(feed)
                self._staged[feed.index] = _pinned(feed.binding).address
        #: For each output whether graphs have it written where it is to go.
        self._direct = [
            b._device is not None and 0 < b.nbytes <= DIRECT_BYTES for b in bindings._outputs
        ]

    def _make_staging(self, feed: _Feed) -> NDArray[Any]:
        self.bindings._make_host_side(feed.binding)
        feed.staging = feed.binding._view()
        return feed.staging

    def stage(self, flight: Flight) -> Sequence[int]:
        """Bring the inputs on their way; for each where it is still to be copied from, or 0."""
        sources: Sequence[int] = self._staged
        for feed in self._feeds:
            array = flight.held[feed.index]
            if isinstance(array, DeviceInput):
                self._borrow(flight, array, feed.binding)
                sources = [0 if n == feed.index else source for n, source in enumerate(sources)]
                continue
            if feed.in_graph or array.dtype != feed.dtype or not array.flags.c_contiguous:
                staging = feed.staging
                if staging is None:
                    staging = self._make_staging(feed)
                # The one staging copy: any layout, and any dtype that was let through.
                staging[...] = array
                if feed.in_graph:
                    continue
                array = staging
            # From pageable memory this returns when the driver has the bytes (CUDA driver API,
            # "API synchronization behavior"), from page-locked memory at once.
            address = address_of(array)
            for upload in feed.uploads:
                upload(feed.device, address, self.track.handle)
            if not feed.uploads:
                self.track.slot.driver.memcpy_htod_async(
                    feed.device, address, array.nbytes, self.track.handle
                )
        return sources

    def _borrow(self, flight: Flight, array: DeviceInput, binding: Binding) -> None:
        """Copy an input within the device, to where the graphs read it."""
        borrowed = borrow(array.value, self.track.stream, what=array.what, dtype=binding.spec.dtype)
        if borrowed is None:  # it was on a device when it was looked at first
            raise InputError(f"{array.what} is in device memory no longer")
        assert binding._device is not None
        flight.borrowed = (*flight.borrowed, borrowed)
        if borrowed.nbytes:
            self.track.slot.driver.memcpy_dtod_async(
                binding._device.address, borrowed.address, borrowed.nbytes, self.track.handle
            )

    def launch(self, results: Results | None) -> None:
        """The inference, between all copies if ``results`` are given: as a graph, if it can be."""
        graph = self._graphs.get(results)
        if graph is None:
            graph = self._capture(results)
        if graph is not None:
            self.track.slot.driver.graph_launch(graph._record.handle, self.track.handle)
            return
        self._before(results, self.track.handle)
        self._context.enqueue(self.bindings, self.track.stream)
        self._after(results, self.track.handle)

    def _before(self, results: Results | None, stream: int) -> None:
        if results is not None:
            self.bindings._upload(stream, self._staged)

    def _after(self, results: Results | None, stream: int) -> None:
        if results is not None:
            self.bindings._download(stream, results.addresses)

    def _after_writing(self, results: Results, stream: int) -> None:
        """Copy the outputs that are not written where they go."""
        targets = zip(results.addresses, self._direct, strict=True)
        self.bindings._download(stream, [0 if direct else at for at, direct in targets])

    def _capture(self, results: Results | None) -> CudaGraph | None:
        """A graph, if this has run before and graphs are possible.

        TensorRT must have run once at new shapes, and what never comes again is not worth it.
        """
        slot = self.track.slot
        if slot.graph_fallback is not None:
            return None
        graph = None
        if results in self._graphs:
            try:
                graph = self._captured(results)
            except (UnsupportedError, OutOfMemoryError) as error:
                slot.graph_fallback = str(error)
                return None
            graph._be_part()
        self._graphs[results] = graph
        if len(self._graphs) > KEPT_GRAPHS:
            oldest = self._graphs.popitem(last=False)[1]
            if oldest is not None:
                oldest.close()
        return graph

    def _captured(self, results: Results | None) -> CudaGraph:
        slot, context = self.track.slot, self._settled_context()
        before, after = partial(self._before, results), partial(self._after, results)
        capture = partial(CudaGraph._around, context, self.bindings, self.track.stream, before)
        if results is None or not slot.writes_directly or not any(self._direct):
            return capture(after)
        outputs = zip(self.bindings._outputs, results.addresses, self._direct, strict=True)
        elsewhere = {b.name: address for b, address, direct in outputs if direct}
        try:
            return capture(partial(self._after_writing, results), elsewhere=elsewhere)
        except UnsupportedError as error:
            graph = capture(after)
            slot.writes_directly = False
            logger.warning(
                "graphs of %r copy their small outputs, which could not be written to page-locked "
                "memory at once: %s",
                context.engine.name,
                str(error),  # not its traceback, which would keep what is in these frames
            )
            return graph

    def _settled_context(self) -> ExecutionContext:
        """The context that graphs are captured from: it never has other shapes again.

        Raises
        ------
        UnsupportedError
            TensorRT gives no second context these shapes.
        """
        if self._graph_context is None:
            with uninterrupted():
                self._graph_context = self._context._beside(self.bindings.profile)
                self._graph_context._be_part()
        return self._graph_context

    def give_on_device(self) -> Outputs:
        """The outputs as device arrays of the caller's, to be filled by work on the stream."""
        with uninterrupted():
            return self._on_device()

    def _on_device(self) -> Outputs:
        track, driver = self.track, self.track.slot.driver
        arrays: Outputs = {}
        for binding in self.bindings._outputs:
            assert binding.shape is not None
            block = track.slot.pipeline.device_pool.take(binding.nbytes, track.stream)
            try:
                if binding._device is None:
                    address = _pinned(binding).address
                    driver.memcpy_htod_async(block.address, address, binding.nbytes, track.handle)
                elif binding.nbytes:
                    address = binding._device.address
                    driver.memcpy_dtod_async(block.address, address, binding.nbytes, track.handle)
            except BaseException:
                block.drop()
                raise
            arrays[binding.name] = DeviceArray(block, binding.shape, binding.dtype)
        return arrays

    def run_plainly(self, flight: Flight) -> Outputs:
        """The explicit program: every step on its own, and results copied."""
        bindings, stream = self.bindings, self.track.stream
        for binding, array in zip(bindings._inputs, flight.held, strict=True):
            if binding._device is not None and not isinstance(array, DeviceInput):
                binding._view()[...] = array
        try:
            bindings.copy_to_device(stream)
            for binding, array in zip(bindings._inputs, flight.held, strict=True):
                if isinstance(array, DeviceInput):
                    self._borrow(flight, array, binding)
            self._context.enqueue(bindings, stream)
            if flight.targets == "device":
                return self.give_on_device()
            bindings.copy_to_host(stream)
        finally:
            # Also after a failure: nothing may still read or write memory that the next call fills.
            insist(stream.synchronize)
        if flight.targets is not None:
            return _deliver(
                flight.targets, {binding.name: binding._view() for binding in bindings._outputs}
            )
        return {binding.name: binding._view().copy() for binding in bindings._outputs}

    def check(self, targets: Mapping[str, NDArray[Any]]) -> None:
        """Raise `ShapeError` for an array that the result cannot be written into."""
        for binding in self.bindings._outputs:
            if binding.name in targets and not binding.data_dependent:
                assert binding.shape is not None
                _check_fits(binding.name, binding.shape, targets[binding.name])

    def forget_graphs(self) -> None:
        """Close the graphs; what has run before is captured anew."""
        graphs = [graph for graph in self._graphs.values() if graph is not None]
        self._graphs = OrderedDict.fromkeys(self._graphs)
        release_all([graph.close for graph in graphs])

    def close(self) -> None:
        if self.track.lane is self:
            self.track.lane = None
        steps = [self.bindings.close]  # and the graphs over it
        if self._graph_context not in (None, self._context):
            steps.append(self._graph_context.close)
        release_all(steps)


class _Shapes:
    """What a slot keeps for one combination of shapes: a lane for each track, and results."""

    __slots__ = ("key", "lanes", "results", "spares")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.lanes: dict[Track, Lane] = {}
        self.results: list[Results] = []
        self.spares: list[Results] = []  # never lent

    def close(self) -> None:
        release_all(
            [
                *(lane.close for lane in self.lanes.values()),
                *(results.close for results in (*self.results, *self.spares)),
            ]
        )


class Track:
    """A stream, and the inference that is on it."""

    __slots__ = (
        "_primary",
        "computed",
        "flight",
        "handle",
        "landed",
        "lane",
        "lock",
        "marked",
        "slot",
        "stream",
    )

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.flight: Flight | None = None
        #: The one of the latest inference.
        self.lane: Lane | None = None
        #: The end of the latest compute on this track, if ``marked``.
        self.marked = False
        #: Held while a flight is waited for. A collected generator may settle at any point, also
        #: where the slot's is held: so whoever has this one does not wait for the slot's.
        self.lock = RLock()
        self._primary = primary = slot.device._primary
        driver = primary.driver
        with ExitStack() as stack:
            self.stream = stack.enter_context(Stream(slot.device))
            self.computed = primary.create(lambda: driver.event_create(False), driver.event_destroy)
            stack.callback(primary.release, partial(driver.event_destroy, self.computed))
            #: Waited for by a thread that sleeps meanwhile.
            self.landed = primary.create(
                lambda: driver.event_create(False, blocking=True), driver.event_destroy
            )
            stack.pop_all()
        self.stream._be_part()
        self.handle = self.stream.handle

    def settle(self, flight: Flight, *, for_another: bool = False) -> None:
        """Wait for a flight's end, unless another thread did; the track is idle then.

        Who waits for another's flight and is interrupted leaves it to be waited for again.
        """
        with self.lock:
            if flight.claimed:
                return
            flight.claimed = True
            driver, results, targets = self.slot.driver, flight.results, flight.targets
            arrays: Outputs | None = None
            try:
                try:
                    if results is not None and results.lends:
                        arrays = results.lend()  # made while the device works
                    self._wait(flight.lane)
                except BaseException:
                    driver.stream_synchronize(self.handle)  # as `ownership.insist`, and cheaper
                    raise
                if results is not None and arrays is None:
                    assert targets != "device"
                    arrays = _deliver(targets or {}, results.shown)
                if arrays is not None:
                    flight.arrays = arrays
            except Exception as error:
                flight.error = error
            except BaseException as error:
                if for_another:
                    flight.claimed = False
                else:
                    flight.error = error
                    self.leave(flight)
                raise
            self.leave(flight)

    def _wait(self, lane: Lane) -> None:
        """Block until the device has done what is on the track.

        By asking again and again, if no other Python thread wants the interpreter: after a
        millisecond in the driver, Python is slow for a while (benchmarks/results/
        2026-11-24-h200-speed.md: 187 µs for what takes 98, and 124 after one of questions; on an
        H100's host it was the same after either). The processor is busy either way. What is brief
        is seldom long under way.
        """
        slot, driver = self.slot, self.slot.driver
        if slot.asks and not lane.brief and threading.active_count() == 1:
            driver.stream_poll(self.handle)
        else:
            driver.stream_synchronize(self.handle)

    def leave(self, flight: Flight) -> None:
        """The flight has ended, well or not."""
        flight.claimed = flight.ended = True
        if flight.results is not None:
            flight.results.in_flight = False
        flight.held = ()
        for borrowed in flight.borrowed:
            borrowed.release()
        self.flight = None
        self.slot.idle.append(self)

    def close(self) -> None:
        destroy = self._primary.driver.event_destroy
        self._primary.release(
            self.stream.close, partial(destroy, self.computed), partial(destroy, self.landed)
        )


class Slot:
    """One execution context and the tracks that take turns on it."""

    def __init__(self, pipeline: Pipeline, number: int) -> None:
        engine = pipeline.engine
        self.pipeline = pipeline
        self.device = engine.device
        self.driver = engine.device._driver
        #: Whether its context has one configuration only.
        self.fixed = not any(s.is_dynamic or s.is_shape_tensor for s in engine.inputs)
        #: Why inferences are not captured in graphs; None while they may be.
        self.graph_fallback: str | None = None if pipeline.graphs else "graphs=False was given"
        #: Whether graphs may have small outputs written where they go.
        self.writes_directly = True
        #: Whether to wait by asking: not where the process wants waiting threads to sleep.
        self.asks = self.driver.primary_context_spins(self.device.ordinal)
        #: The tracks without a flight. Taken from under the lock only, and added to from anywhere.
        self.idle: deque[Track] = deque()
        self._tracks: list[Track] = []
        self._kept: OrderedDict[Key, _Shapes] = OrderedDict()
        #: Held while an inference is enqueued: of who waits for a track nobody sees a half one.
        self._lock = RLock()
        self._last: Track | None = None
        with ExitStack() as stack:
            self.context = stack.enter_context(
                engine._make_context(f"{engine.name} #{number}", self.at_rest)
            )
            for _ in range(TRACKS):
                self._tracks.append(Track(self))
                stack.callback(self._tracks[-1].close)
            stack.pop_all()
        self.context._be_part()
        self.idle.extend(reversed(self._tracks))

    def uploads_of(self, name: str) -> Sequence[Upload]:
        """The copies of an input of which only parts cross, for one lane."""
        return [self.driver.prepare_upload(part) for part in self.pipeline.parts.get(name, ())]

    def submit(
        self, inputs: Inputs, key: Key, targets: Targets | None, *, overlap: bool = False
    ) -> Flight:
        """Enqueue an inference; waits for an earlier one only if every track has one.

        With ``overlap`` its copies run beside its neighbours' compute, unless they are brief.
        Otherwise, and if no other is in flight, all of it is one graph: sooner done, and nothing
        runs beside it.
        """
        while True:
            with self._lock:
                if self.idle:
                    return self._fly(self.idle.pop(), inputs, key, targets, overlap)
                flights = [track.flight for track in self._tracks if track.flight is not None]
            flights = [flight for flight in flights if not flight.claimed]
            if flights:
                min(flights, key=_serial).make_way()
            else:
                self._find_lost_tracks()

    def _find_lost_tracks(self) -> None:
        """Wait for whoever settles a flight; make idle the tracks that an interrupt has left aside.

        One can come between taking a track and its flight, and between a flight's end and the
        track's return.
        """
        for track in self._tracks:
            with track.lock, self._unless_enqueuing() as alone:
                flight = track.flight
                if not alone or track in self.idle or not (flight is None or flight.claimed):
                    continue
                insist(partial(self.driver.stream_synchronize, track.handle))
                if flight is None:
                    self.idle.append(track)
                else:
                    track.leave(flight)

    @contextmanager
    def _unless_enqueuing(self) -> Iterator[bool]:
        """Hold the lock if nobody has it, without waiting for who may wait for a track."""
        taken = False
        with uninterrupted():
            try:
                taken = self._lock.acquire(blocking=False)
                yield taken
            finally:
                if taken:
                    self._lock.release()

    def _fly(
        self, track: Track, inputs: Inputs, key: Key, targets: Targets | None, overlap: bool
    ) -> Flight:
        """Enqueue an inference on an idle track, with the lock held."""
        try:
            lane = track.lane
            if lane is None or lane.shapes.key != key:
                with uninterrupted():
                    lane = track.lane = self._lane(key, track, inputs)
            if targets is not None and targets != "device":
                lane.check(targets)
        except BaseException:
            self.idle.append(track)
            raise
        track.flight = flight = Flight(track, lane, inputs, targets)
        try:
            if lane.plain:
                if self._last is not track:
                    self._follow(track)
                flight.arrays = lane.run_plainly(flight)
                track.leave(flight)
                return flight
            sources = lane.stage(flight)
            if targets != "device":
                flight.results = self._take_results(lane, targets is None and not lane.brief)
            if self._last is not track:
                self._follow(track)
            track.marked = False
            alone = len(self.idle) == TRACKS - 1
            whole = lane.brief or (alone and not overlap) or not self.pipeline.overlaps
            if whole and flight.results is not None and not flight.borrowed:
                lane.launch(flight.results)
                return flight
            lane.bindings._upload(track.handle, sources)
            lane.launch(None)
            self.driver.event_record(track.computed, track.handle)
            track.marked = True
            if flight.results is not None:
                lane.bindings._download(track.handle, flight.results.addresses)
            else:
                flight.arrays = lane.give_on_device()
        except BaseException:
            release_all([partial(insist, track.stream.synchronize), partial(track.leave, flight)])
            raise
        return flight

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No inference under way or beginning, and no graphs: for a refit of the engine."""
        with self._lock:
            for track in self._tracks:
                insist(partial(self.driver.stream_synchronize, track.handle))
            for shapes in self._kept.values():
                for lane in shapes.lanes.values():
                    lane.forget_graphs()
            yield

    def _lane(self, key: Key, track: Track, inputs: Inputs) -> Lane:
        """The memory for these shapes and shape values, made now if they are new."""
        shapes = self._kept.get(key)
        if shapes is None:
            if len(self._kept) >= KEPT_SHAPES:
                self._forget_oldest_shapes()
            shapes = _Shapes(key)
        else:
            self._kept.move_to_end(key)
        lane = shapes.lanes.get(track)
        if lane is None:
            specs = self.context.engine.inputs
            given = dict(zip((spec.name for spec in specs), inputs, strict=True))
            bindings = BindingSet._on_device(
                self.context,
                {spec.name: given[spec.name].shape for spec in specs if not spec.is_shape_tensor},
                {spec.name: given[spec.name] for spec in specs if spec.is_shape_tensor},
            )
            with ExitStack() as stack:
                stack.callback(bindings.close)
                bindings._be_part()
                lane = Lane(track, shapes, self.context, bindings)
                if lane.plain:
                    bindings._make_host_sides()
                stack.pop_all()
            shapes.lanes[track] = lane
            self._kept[key] = shapes
        return lane

    def _forget_oldest_shapes(self) -> None:
        """Of those that are not in flight; there are always some."""
        flying = {track.flight.lane for track in self._tracks if track.flight is not None}
        for key, shapes in self._kept.items():
            if flying.isdisjoint(shapes.lanes.values()):
                del self._kept[key]
                self.pipeline.may_lend(-sum(results.nbytes for results in shapes.results))
                shapes.close()
                return

    def _take_results(self, lane: Lane, lends: bool) -> Results:
        """Memory for results: the caller's then, unless that is not wanted or too much."""
        kept = lane.shapes.results if lends else lane.shapes.spares
        for results in kept:
            if results.idle:
                break
        else:
            outputs = {
                b.name: (b.shape, b.dtype, b.nbytes)
                for b in lane.bindings._outputs
                if b.shape is not None
            }
            nbytes = sum(nbytes for _, _, nbytes in outputs.values())
            if lends and not self.pipeline.may_lend(nbytes):
                return self._take_results(lane, False)
            with uninterrupted():
                try:
                    results = Results(self.context._primary, outputs, lends=lends)
                except BaseException:
                    if lends:
                        self.pipeline.may_lend(-nbytes)
                    raise
                kept.append(results)
        results.in_flight = True
        return results

    def _follow(self, track: Track) -> None:
        """Make the track's stream wait for the context's latest inference, on another one."""
        last = self._last
        if last is not None:
            if not last.marked:
                self.driver.event_record(last.computed, last.handle)
            self.driver.stream_wait_event(track.handle, last.computed)
        self._last = track

    def close(self) -> None:
        tracks = list(self._tracks)
        flights = [track.flight for track in tracks]
        kept, self._kept = list(self._kept.values()), OrderedDict()
        release_all(
            [
                *(f.make_way for f in flights if f is not None),
                *(partial(insist, track.stream.synchronize) for track in tracks),
                *(shapes.close for shapes in kept),
                self.context.close,
                *(track.close for track in tracks),
            ]
        )


class Pipeline:
    """The slots of one engine, and what bounds them.

    Parameters
    ----------
    engine : Engine
        Held, not owned.
    contexts : int
    graphs : bool
        Whether inferences may be captured in CUDA graphs.
    """

    def __init__(self, engine: Engine, contexts: int, *, graphs: bool) -> None:
        self.engine = engine
        self.graphs = graphs
        #: Whether one context's copies run beside its own compute.
        self.overlaps = contexts <= OVERLAPPED_CONTEXTS
        #: What the engine reads of an input, if that is not all of it and the input is not small.
        self.parts: Mapping[str, Sequence[Part]] = {}
        self.lent_bytes = 0
        self._lock = Lock()
        self.slots: list[Slot] = []
        #: Enqueues an inference on the slot with the least to do; see `Slot.submit`.
        self.submit: Callable[..., Flight] = self._submit_to_idlest
        #: Where results on the device are kept.
        self.device_pool = DevicePool(engine.device)
        self.device_pool._be_part()
        with ExitStack() as stack:
            stack.callback(self.close)
            for number in range(contexts):
                self.slots.append(Slot(self, number))
            stack.pop_all()
        if contexts == 1:
            self.submit = self.slots[0].submit

    @property
    def capacity(self) -> int:
        """How many inferences can be in flight."""
        return TRACKS * len(self.slots)

    def _submit_to_idlest(self, *request: Any, overlap: bool = False) -> Flight:
        slot = max(self.slots, key=_idle_tracks)
        return slot.submit(*request, overlap=overlap)

    def may_lend(self, nbytes: int) -> bool:
        """Count these bytes in, if the bound allows."""
        with self._lock:
            if self.lent_bytes + nbytes > max(LENT_BYTES, (TRACKS + 1) * len(self.slots) * nbytes):
                return False
            self.lent_bytes += nbytes
            return True

    def close(self) -> None:
        """Wait for what is in flight, then release everything; results in flight are kept."""
        slots, self.slots = self.slots, []
        steps = [slot.close for slot in reversed(slots)]
        if steps:
            steps = [partial(self.engine.device._primary.release, *steps)]
        release_all([*steps, self.device_pool.close])


def _idle_tracks(slot: Slot) -> int:
    return len(slot.idle)


def _serial(flight: Flight) -> int:
    return flight.serial


def _deliver(targets: Mapping[str, NDArray[Any]], arrays: Arrays) -> Arrays:
    """Write results into the caller's arrays, where there are; copies of the others."""
    results = {}
    for name, array in arrays.items():
        target = targets.get(name)
        if target is None:
            results[name] = array.copy()
        else:
            _check_fits(name, array.shape, target)
            np.copyto(target, array)
            results[name] = target
    return results


def _check_fits(name: str, shape: Shape, target: NDArray[Any]) -> None:
    if target.shape != shape:
        raise ShapeError(
            f"outputs[{name!r}] has shape {format_shape(target.shape)}, and this result "
            f"{format_shape(shape)}"
        )


def _pinned(binding: Binding) -> PinnedBlock:
    assert binding._pinned is not None
    return binding._pinned
