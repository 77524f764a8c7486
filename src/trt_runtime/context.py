"""`ExecutionContext`: runs an engine, one call at a time."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any

from .device import PrimaryContext
from .errors import BusyError, EngineError, InputError, UnsupportedError
from .interrupts import uninterrupted
from .memory import DeviceBlock, PinnedBlock
from .ownership import Owned, Record, insist, release_all
from .stream import LastUse, Stream, _same_device, ordered
from .tensor import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bindings import BindingSet
    from .engine import Engine
    from .platform.tensorrt import PlanContext

Profiler = Callable[[str, float], None]

#: What a function that takes a context's turn, or has `standstill` take it, names.
_TAKE_TURNS = frozenset({"_turn", "standstill"})
#: How many shape combinations a context remembers the output shapes of.
_KEPT_OUTPUT_SHAPES = 64


class _Turn:
    """One caller at a time; a second waits, or is told that the context is busy."""

    __slots__ = ("_label", "_lock", "_owner")

    def __init__(self, label: str) -> None:
        self._label = label
        self._lock = threading.Lock()
        self._owner: int | None = None

    def take(self, blocking: bool) -> None:
        me = threading.get_ident()
        if self._owner == me:
            if _takes_turns(sys._getframe(2)):
                raise BusyError(f"{self._label} was called from inside its own callback")
            return  # an interrupt came before the call that it was taken for, and has left it so
        taken = False
        try:
            with uninterrupted():
                taken = self._lock.acquire(blocking)
                if taken:
                    self._owner = me
        except BaseException:
            if taken:
                self.give()
            raise
        if not taken:
            raise BusyError(
                f"{self._label} is in use by another thread; wait for it, or create another context"
            )

    def give(self) -> None:
        with uninterrupted():
            self._owner = None
            self._lock.release()


def _takes_turns(frame: FrameType | None) -> bool:
    """Whether a function that takes a turn has been called on this stack and has not returned."""
    while frame is not None:
        if not _TAKE_TURNS.isdisjoint(frame.f_code.co_names):
            return True
        frame = frame.f_back
    return False


class _GrownOutputs:
    """Device memory of outputs whose shape depends on the data: one block each, the context's own.

    Not the binding set's: TensorRT need not ask again while what it was given last is large enough,
    so that memory must outlive the set that was enqueued when it asked.
    """

    __slots__ = ("blocks", "last_use", "primary", "writer")

    def __init__(self, primary: PrimaryContext, last_use: LastUse) -> None:
        self.primary = primary
        self.last_use = last_use
        self.blocks: dict[str, DeviceBlock] = {}
        #: The binding set whose inference wrote them last.
        self.writer: Record | None = None

    def allocate(self, name: str, nbytes: int) -> int:
        """Memory for an output, of at least that size; what was too small is freed when unused."""
        small = self.blocks.get(name)
        if small is not None and small.nbytes >= nbytes:
            return small.address
        with uninterrupted():
            block = self.blocks[name] = DeviceBlock(self.primary, nbytes)
        if small is not None:
            release_all([self.last_use.wait, small.free])
        return block.address

    def free(self) -> None:
        blocks, self.blocks = self.blocks, {}
        release_all([block.free for block in blocks.values()])


class _Callbacks:
    """What TensorRT calls back into during an enqueue, and what went wrong in there.

    Belongs to the context's state and never refers to the context, which must stay collectable.
    """

    __slots__ = ("bindings", "error", "grown", "profiler")

    def __init__(self, grown: _GrownOutputs) -> None:
        self.bindings: BindingSet | None = None
        self.grown = grown
        self.profiler: Profiler | None = None
        self.error: BaseException | None = None

    def allocate(self, name: str, nbytes: int) -> int:
        try:
            return self.grown.allocate(name, nbytes)
        except BaseException as error:  # TensorRT would lose it
            self.error = self.error or error
            return 0

    def notify(self, name: str, shape: Shape) -> None:
        try:
            assert self.bindings is not None
            self.bindings._bindings[name].shape = shape
        except BaseException as error:
            self.error = self.error or error

    def report(self, layer: str, milliseconds: float) -> None:
        try:
            if self.profiler is not None:
                self.profiler(layer, milliseconds)
        except BaseException as error:
            self.error = self.error or error

    def raise_error(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame: a cycle would keep TensorRT's objects


class Configuration:
    """The profile, shapes and shape values that a context was made to have.

    TensorRT leaves undefined what a graph does once the context that it was captured from was
    changed (Developer Guide, "CUDA Graphs"). With shape tensors it does harm: 8.6.0's graphs copy
    shapes to memory that the context has freed by then (measured with compute-sanitizer on an H200,
    `kernelShapeCopyH2D`), and to set a shape tensor's address is such a change even if it is the
    same one (three of three soaks on an H100 had wrong results). Other addresses are no change: a
    graph has its own.
    """

    __slots__ = ("_key",)

    def __init__(self, bindings: BindingSet) -> None:
        key = bindings._shape_key()
        # Equal values of another set are told to TensorRT all the same, as they are elsewhere.
        has_values = any(spec.is_shape_tensor for spec in bindings.context.engine.inputs)
        self._key = (*key, bindings._serial if has_values else None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self._key == other._key

    __hash__ = object.__hash__


class _State:
    """What a context releases: TensorRT's context, its scratch memory, its events and stream."""

    __slots__ = (
        "beside",
        "callbacks",
        "grown",
        "last_use",
        "output_shapes",
        "plan_context",
        "primary",
        "scratch",
        "setup_stream",
        "shape_values",
    )

    def __init__(self, primary: PrimaryContext, engine: Engine, beside: _State | None) -> None:
        self.primary = primary
        #: Whether another context's owner answers for this one, and its scratch memory serves both.
        self.beside = beside is not None
        self.setup_stream = 0
        #: What TensorRT said of output shapes, by profile, input shapes and shape values.
        self.output_shapes: OrderedDict[tuple[object, ...], dict[str, Shape]] = OrderedDict()
        #: The host sides of shape tensors that TensorRT has the addresses of, and may read.
        self.shape_values: list[PinnedBlock] = []
        with ExitStack() as stack:
            self.last_use = LastUse(primary.driver)
            stack.callback(self.last_use.destroy)
            self.grown = _GrownOutputs(primary, self.last_use)
            self.callbacks = _Callbacks(self.grown)
            self.scratch: DeviceBlock | None = None
            self.plan_context: PlanContext
            with engine._record as plan_engine:
                nbytes = plan_engine.scratch_bytes
                if nbytes and beside is not None:
                    assert beside.scratch is not None
                    beside.scratch.hold()
                    self.scratch = beside.scratch
                    stack.callback(self._give_scratch)
                elif nbytes:
                    self.scratch = DeviceBlock(primary, nbytes)
                    stack.callback(self._give_scratch)
                self.plan_context = plan_engine.create_context()
            stack.callback(self.plan_context.release)
            if self.scratch is not None:
                self.plan_context.set_scratch(self.scratch.address, self.scratch.nbytes)
            stack.pop_all()

    def release(self) -> None:
        self.callbacks.bindings = None
        steps: list[Callable[[], object]] = [self.last_use.wait, self.plan_context.release]
        steps += [self._give_scratch, self.grown.free, self.last_use.destroy]
        if self.setup_stream:
            steps.append(lambda: self.primary.driver.stream_destroy(self.setup_stream))
        steps.append(lambda: self.keep_shape_values([]))
        self.primary.release(*steps)

    def _give_scratch(self) -> None:
        scratch, self.scratch = self.scratch, None
        if scratch is not None:
            if self.beside:
                scratch.drop()
            else:
                scratch.free()

    def keep_shape_values(self, blocks: list[PinnedBlock]) -> None:
        """Hold these from now on, instead of the previous ones."""
        for block in blocks:
            block.hold()
        previous, self.shape_values = self.shape_values, blocks
        release_all([block.drop for block in previous])

    def switch_profile(self, index: int) -> None:
        """Wait for the context's work, then switch; returns when the switch is done."""
        if self.plan_context.profile == index:
            return
        driver = self.primary.driver
        if not self.setup_stream:
            with uninterrupted():
                self.setup_stream = driver.stream_create(0)
        self.last_use.wait()
        self.plan_context.set_profile(index, self.setup_stream)
        insist(lambda: driver.stream_synchronize(self.setup_stream))


class ExecutionContext(Owned):
    """Runs an engine with given bindings.

    Made by `Engine.create_execution_context`. One call is in flight at a time: a second thread
    waits, or gets `BusyError` with ``blocking=False``.

    Attributes
    ----------
    engine : Engine
        Held, not owned; closing it closes this context first.
    device : Device
    name : str or None
        Shown in TensorRT's log and in profilers.
    """

    __slots__ = (
        "_bound",
        "_configured",
        "_primary",
        "_profiler",
        "_turn",
        "device",
        "engine",
        "name",
    )

    def __init__(
        self, engine: Engine, *, name: str | None = None, beside: ExecutionContext | None = None
    ) -> None:
        # ``beside`` is a context of the engine that never runs at the same time: its owner's.
        self.engine = engine
        self.device = engine.device
        self.name = name
        self._primary = engine.device._primary
        self._turn = _Turn(f"execution context of {engine.name!r}")
        self._bound: Record | None = None
        self._configured: Configuration | None = None
        self._profiler: Profiler | None = None
        parent = engine if beside is None else beside
        with uninterrupted(), parent._record as other, ExitStack() as stack:
            shared = None if beside is None else other
            state = self._primary.create(
                lambda: _State(self._primary, engine, shared), _State.release
            )
            stack.callback(state.release)
            if name is not None:
                state.plan_context.set_name(name)
            stack.pop_all()
            self._own(state, _State.release, parents=[parent])

    @property
    def profile(self) -> int:
        """The optimisation profile in use; changes with the bindings that are enqueued."""
        with self._record as state:
            return int(state.plan_context.profile)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every tensor now; -1 where it is not known yet or depends on the data."""
        with self._record as state:
            self._turn.take(True)
            try:
                return {name: state.plan_context.shape(name) for name in self.engine.tensors}
            finally:
                self._turn.give()

    @property
    def profiler(self) -> Profiler | None:
        """A callable that gets each layer's name and milliseconds after every enqueue.

        While one is set, TensorRT waits for the GPU in each enqueue. An exception in it is raised
        from the enqueue.
        """
        with self._record:
            return self._profiler

    @profiler.setter
    def profiler(self, profiler: Profiler | None) -> None:
        if profiler is not None and not callable(profiler):
            raise InputError(f"a profiler is a callable (layer, milliseconds), not {profiler!r}")
        with self._record as state:
            self._turn.take(True)
            try:
                # Not in the state: a profiler that knows this context would keep it alive for good.
                self._profiler = profiler
                if profiler is not None and not state.plan_context.has_profiler:
                    state.plan_context.set_profiler(state.callbacks.report)
            finally:
                self._turn.give()

    def enqueue(self, bindings: BindingSet, stream: Stream, *, blocking: bool = True) -> None:
        """Enqueue one inference on ``stream``. Does not synchronise.

        Inputs must have been copied to the device, on this stream or before. TensorRT itself waits
        for the GPU when an output's shape depends on the data.

        Raises
        ------
        EngineError
            TensorRT refused; its log lines are in the error.
        BusyError
            Another thread is in a call on this context and ``blocking`` is false.
        """
        if bindings.context is not self:
            raise InputError(
                "the binding set was made for another context; make one with BindingSet(context)"
            )
        _same_device(self.device, stream.device, "context", "stream")
        with self._record as state, stream._record as handle, bindings._record as memory:
            self._turn.take(blocking)
            try:
                with self._primary.current():
                    self._prepare(state, bindings)
                    with ordered([memory.last_use, state.last_use], stream, handle):
                        self._run(state, bindings, handle)
            finally:
                self._turn.give()

    def execute(self, bindings: BindingSet, stream: Stream) -> dict[str, NDArray[Any]]:
        """Copy the inputs, infer, copy the outputs, synchronise; copies of the outputs."""
        bindings.copy_to_device(stream)
        self.enqueue(bindings, stream)
        bindings.copy_to_host(stream)
        stream.synchronize()
        return bindings.outputs()

    def _run(self, state: _State, bindings: BindingSet, stream: int) -> None:
        callbacks = state.callbacks
        state.grown.writer = None  # what is in there is lost, also if this fails
        callbacks.bindings, callbacks.profiler = bindings, self._profiler
        try:
            state.plan_context.enqueue(stream)
        except Exception:
            callbacks.raise_error()  # what went wrong in a callback explains more
            raise
        finally:
            callbacks.bindings = callbacks.profiler = None
        callbacks.raise_error()
        bindings._take_grown(state.grown)

    def _prepare(self, state: _State, bindings: BindingSet) -> None:
        """Make the next run one of ``bindings``, unless the last one was."""
        if self._bound is not bindings._record:
            self._configure(state, bindings)
            bindings._bind(state.plan_context, shape_tensors=False)
            self._bound = bindings._record

    def _redirect(self, state: _State, addresses: Mapping[str, int]) -> None:
        """Write these outputs elsewhere, until the next run is prepared."""
        if addresses:
            self._bound = None
        for name, address in addresses.items():
            state.plan_context.set_address(name, address)

    def _configure(self, state: _State, bindings: BindingSet) -> None:
        """Make the context's profile, shapes and shape values those of ``bindings``."""
        self._bound = None
        wanted = Configuration(bindings)
        if wanted == self._configured:
            return
        self._configured = None
        plan_context = state.plan_context
        state.switch_profile(bindings.profile)
        host_inputs = []
        for spec in self.engine.inputs:
            shape = bindings._bindings[spec.name].shape
            assert shape is not None
            if spec.is_dynamic:
                plan_context.set_input_shape(spec.name, shape)
            if spec.is_shape_tensor:
                host_inputs.append(spec.name)
        blocks = bindings._host_blocks(host_inputs)
        state.keep_shape_values([*state.shape_values, *blocks])
        bindings._bind(plan_context, shape_tensors=True)
        state.keep_shape_values(blocks)
        self._configured = wanted

    def _beside(self, profile: int) -> ExecutionContext:
        """Another context of the engine, for graphs: it never has other shapes again.

        It works in the same scratch memory, so that the two must never run at the same time. This
        one's owner owns it, and answers for it.

        Raises
        ------
        UnsupportedError
            TensorRT gives no second context that profile.
        """
        try:
            with ExitStack() as stack:
                made = ExecutionContext(self.engine, name=self.name, beside=self)
                stack.callback(made.close)
                with made._record as state, self._primary.current():
                    state.switch_profile(profile)
                stack.pop_all()
        except EngineError as error:
            raise UnsupportedError(
                "a graph of changing shapes needs a context of its own, which cannot be had: "
                f"{error}"
            ) from error
        return made

    def _output_shapes(self, bindings: BindingSet) -> dict[str, Shape]:
        """The output shapes at the bindings' input shapes and values; -1 where data decides."""
        with self._record as state:
            self._turn.take(True)
            try:
                key = bindings._shape_key()
                known: dict[str, Shape] | None = state.output_shapes.get(key)
                if known is None:
                    with self._primary.current():
                        known = self._ask_output_shapes(state, bindings)
                    state.output_shapes[key] = known
                    if len(state.output_shapes) > _KEPT_OUTPUT_SHAPES:
                        state.output_shapes.popitem(last=False)
                return known
            finally:
                self._turn.give()

    def _ask_output_shapes(self, state: _State, bindings: BindingSet) -> dict[str, Shape]:
        self._configure(state, bindings)
        if any(spec.is_dynamic for spec in self.engine.tensors.values()):
            state.plan_context.infer_shapes()
        shapes = {spec.name: state.plan_context.shape(spec.name) for spec in self.engine.outputs}
        names = [name for name, shape in shapes.items() if -1 in shape]
        if names and not state.plan_context.allocated_outputs:
            state.plan_context.set_output_allocator(
                names, state.callbacks.allocate, state.callbacks.notify
            )
        # That it depends on the data is a trait of the network: a shape of an earlier run, should
        # TensorRT tell one now, says nothing of the next.
        unknown = state.plan_context.allocated_outputs
        return {name: (-1,) if name in unknown else shape for name, shape in shapes.items()}

    def _describe(self) -> str:
        named = f"{self.name!r} " if self.name else ""
        return f"{named}of {self.engine.name!r}, profile {self.profile}"
