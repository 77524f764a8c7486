"""`Binding` and `BindingSet`: the memory behind every tensor of a context, at given shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .device import PrimaryContext
from .errors import BusyError, EngineError, InputError, PendingWorkError, UnsupportedError
from .interrupts import uninterrupted
from .memory import DeviceBlock, PinnedBlock, typed
from .ownership import Owned, Record, release_all
from .stream import LastUse, Stream, _same_device, ordered
from .tensor import Shape, TensorSpec, format_bytes, format_shape

if TYPE_CHECKING:
    from .context import ExecutionContext, _GrownOutputs
    from .platform.tensorrt import PlanContext


_serials = itertools.count()


class Binding:
    """One tensor's memory on the host and on the device: the sample's ``HostDeviceMem``, grown up.

    Attributes
    ----------
    spec : TensorSpec
    shape : tuple of int or None
        None for an output whose shape depends on the data, before the first enqueue.
    data_dependent : bool
        Whether only the run itself decides the shape.
    """

    __slots__ = (
        "_device",
        "_last_use",
        "_pinned",
        "_primary",
        "_record",
        "data_dependent",
        "shape",
        "spec",
    )

    def __init__(
        self, spec: TensorSpec, shape: Shape | None, primary: PrimaryContext, last_use: LastUse
    ) -> None:
        self.spec = spec
        self.shape = shape
        self.data_dependent = False
        self._primary = primary
        self._last_use = last_use
        self._pinned: PinnedBlock | None = None
        self._device: DeviceBlock | None = None
        self._record: Record | None = None  # of the set, once that is complete

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.spec.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor at its present shape; 0 while that is unknown."""
        return 0 if self.shape is None else self.spec.nbytes(self.shape)

    @property
    def host(self) -> NDArray[Any]:
        """The page-locked host side, as an array of the tensor's dtype and shape.

        Write inputs into it, read outputs from it. An array that was taken stays valid for as long
        as it lives, but later calls write to the same memory: `BindingSet.outputs` gives copies.
        The values of a shape tensor are fixed with the set's shapes, so its array is read-only.

        Raises
        ------
        PendingWorkError
            Device work on this set has not finished: synchronise its stream first.
        """
        assert self._record is not None
        with self._record:
            with self._primary.current():
                finished = self._last_use.finished
            if not finished:
                raise PendingWorkError(
                    f"the host side of {self.name!r} was touched while device work on it had not "
                    "finished; call stream.synchronize() first"
                )
            if (
                self._pinned is None or self.shape is None or self._pinned.nbytes < self.nbytes
            ):  # the last also while the copy of a result larger than the one before is missing
                raise EngineError(
                    f"the shape of output {self.name!r} depends on the data; it is known after "
                    "enqueue, copy_to_host and a synchronisation"
                )
            array = typed(self._pinned.export(), self.shape, self.dtype)
            if self.spec.is_input and self.spec.is_shape_tensor:
                array.flags.writeable = False
            return array

    @property
    def device_address(self) -> int:
        """The device side's ``CUdeviceptr``; 0 for a tensor that lives on the host."""
        assert self._record is not None
        with self._record:
            return self._device.address if self._device is not None else 0

    def _address(self) -> int:
        """What TensorRT is told: the device side, or the host side of a host tensor."""
        block = self._pinned if self.spec.location == "host" else self._device
        return block.address if block is not None else 0

    def _view(self) -> NDArray[Any]:
        """The host side, not held: only while the set is in use and the device is done with it."""
        assert self._pinned is not None
        assert self.shape is not None
        return typed(self._pinned.raw, self.shape, self.dtype)

    def __repr__(self) -> str:
        shape = "[?]" if self.shape is None else format_shape(self.shape)
        text = f"<Binding {self.name!r} {self.spec.mode} {self.dtype.name}{shape}"
        if self._record is None or self._record.closed:
            return text + " closed>"
        sides = [
            f"{where} {hex(block.address)}"
            for where, block in (("host", self._pinned), ("device", self._device))
            if block is not None
        ]
        return f"{text} {format_bytes(self.nbytes)}, {', '.join(sides) or 'nothing yet'}>"


class _Memory:
    """What a binding set releases: blocks, and the event of their last use."""

    __slots__ = ("blocks", "last_use", "primary")

    def __init__(self, primary: PrimaryContext) -> None:
        self.primary = primary
        self.blocks: list[PinnedBlock | DeviceBlock] = []
        self.last_use = primary.create(lambda: LastUse(primary.driver), LastUse.destroy)

    def pinned(self, nbytes: int) -> PinnedBlock:
        with uninterrupted():
            block = PinnedBlock(self.primary, nbytes)
            self.blocks.append(block)
        return block

    def device(self, nbytes: int) -> DeviceBlock:
        with uninterrupted():
            block = DeviceBlock(self.primary, nbytes)
            self.blocks.append(block)
        return block

    def release(self) -> None:
        blocks, self.blocks = self.blocks, []
        self.primary.release(
            self.last_use.wait,
            *(
                block.drop if isinstance(block, PinnedBlock) else block.free
                for block in reversed(blocks)
            ),
            self.last_use.destroy,
        )


class BindingSet(Owned, Mapping[str, Binding]):
    """Host and device memory for every tensor of a context, at given shapes.

    Parameters
    ----------
    context : ExecutionContext
        Held, not owned; closing it closes this set first.
    shapes : mapping of str to tuple of int, optional
        For every input of dynamic shape, its shape now.
    values : mapping of str to array_like, optional
        For every input shape tensor, its values; they determine shapes and are fixed for the set.

    Raises
    ------
    ShapeError
        A shape has the wrong rank or lies outside every optimisation profile.
    OutOfMemoryError
        The device or the page-locked memory is exhausted; nothing stays allocated.

    Notes
    -----
    A set belongs to one context and is used by one thread at a time. Its memory is used in order
    even when it moves from one stream to another.
    """

    __slots__ = (
        "_bindings",
        "_inputs",
        "_outputs",
        "_primary",
        "_serial",
        "_used",
        "context",
        "profile",
    )

    def __init__(
        self,
        context: ExecutionContext,
        shapes: Mapping[str, Sequence[int]] | None = None,
        values: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        self._open(context, shapes, values)
        with ExitStack() as stack:
            stack.push(self.__exit__)
            self._make_host_sides()
            stack.pop_all()

    @classmethod
    def _on_device(
        cls,
        context: ExecutionContext,
        shapes: Mapping[str, Sequence[int]],
        values: Mapping[str, ArrayLike],
    ) -> BindingSet:
        """A set that has host sides only for what lives on the host."""
        self = cls.__new__(cls)
        self._open(context, shapes, values)
        return self

    def _open(
        self,
        context: ExecutionContext,
        shapes: Mapping[str, Sequence[int]] | None,
        values: Mapping[str, ArrayLike] | None,
    ) -> None:
        self._serial = next(_serials)
        self.context = context
        self._primary = context.device._primary
        specs = context.engine.tensors
        for spec in specs.values():
            if spec.layout:
                raise UnsupportedError(
                    f"tensor {spec.name!r} has the layout {spec.layout}; only linear layouts can "
                    "be shown as arrays. Build the engine with linear inputs and outputs."
                )
        arrays = context.engine._shape_values(values or {})
        known = context.engine._input_shapes(
            {**(shapes or {}), **{name: array.shape for name, array in arrays.items()}}
        )
        self.profile = context.engine._fitting_profile(known, arrays)
        with uninterrupted(), context._record, ExitStack() as stack:
            memory = _Memory(self._primary)
            stack.callback(memory.release)
            self._bindings = {
                name: Binding(spec, known.get(name), self._primary, memory.last_use)
                for name, spec in specs.items()
            }
            for name, array in arrays.items():
                binding = self._bindings[name]
                binding._pinned = memory.pinned(array.nbytes)
                np.copyto(binding._view(), array)
            for name, shape in context._output_shapes(self).items():
                self._bindings[name].data_dependent = -1 in shape
                self._bindings[name].shape = None if -1 in shape else shape
            for binding in self._bindings.values():
                if binding.shape is None:
                    continue
                if binding.spec.location == "device":
                    binding._device = memory.device(binding.nbytes)
                elif binding._pinned is None:
                    binding._pinned = memory.pinned(binding.nbytes)
            self._inputs = tuple(b for b in self._bindings.values() if b.spec.is_input)
            self._outputs = tuple(b for b in self._bindings.values() if not b.spec.is_input)
            stack.pop_all()
            self._own(memory, _Memory.release, parents=[context])
        for binding in self._bindings.values():
            binding._record = self._record

    def __getitem__(self, name: str) -> Binding:
        try:
            return self._bindings[name]
        except KeyError:
            raise InputError(
                f"there is no tensor {name!r}; the engine has "
                f"{', '.join(map(repr, self._bindings))}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._bindings

    def __iter__(self) -> Iterator[str]:
        return iter(self._bindings)

    def __len__(self) -> int:
        return len(self._bindings)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors at their present shapes."""
        return sum(binding.nbytes for binding in self._bindings.values())

    def copy_to_device(self, stream: Stream) -> None:
        """Enqueue the copies of every input's host side to the device. Does not synchronise.

        Do not write to the host sides before they have run.
        """
        _same_device(self.context.device, stream.device, "binding set", "stream")
        with (
            self._record as memory,
            stream._record as handle,
            self._primary.current(),
            ordered([memory.last_use], stream, handle),
        ):
            self._upload(handle)

    def copy_to_host(self, stream: Stream) -> None:
        """Enqueue the copies of every output to its host side. Does not synchronise.

        Raises
        ------
        BusyError
            An output's shape depends on the data, and another set was enqueued on the context
            since: such outputs share the context's memory.
        """
        _same_device(self.context.device, stream.device, "binding set", "stream")
        with (
            self._record as memory,
            self.context._record as state,
            stream._record as handle,
            self._primary.current(),
        ):
            self._make_room(memory)
            uses = [memory.last_use]
            if any(b.data_dependent and b.shape is not None for b in self._outputs):
                if state.grown.writer is not self._record:
                    raise BusyError(
                        "the outputs whose shape depends on the data were overwritten by another "
                        "binding set's inference on this context, or by one that failed; copy them "
                        "to the host before that"
                    )
                uses.append(state.last_use)
            with ordered(uses, stream, handle):
                self._download(handle)

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Copies of every output's host side, in the engine's order; they are yours.

        Raises
        ------
        PendingWorkError
            Device work on this set has not finished: synchronise its stream first.
        """
        return {binding.name: binding.host.copy() for binding in self._outputs}

    def _make_host_sides(self) -> None:
        """Host sides for every tensor of known shape that has none yet."""
        for binding in self._bindings.values():
            if binding.shape is not None:
                self._make_host_side(binding)

    def _make_host_side(self, binding: Binding) -> None:
        with self._record as memory:
            if binding._pinned is None:
                binding._pinned = memory.pinned(binding.nbytes)

    def _upload(self, stream: int, sources: Sequence[int] | None = None) -> None:
        """Enqueue the copies to the device, from the host sides or from these addresses.

        A source of 0 stands for an input that is there already.
        """
        copy = self._primary.driver.memcpy_htod_async
        for source, binding in zip(sources or _pinned(self._inputs), self._inputs, strict=True):
            if source and binding._device is not None and binding.nbytes:
                copy(binding._device.address, source, binding.nbytes, stream)

    def _make_room(self, memory: _Memory) -> None:
        """Host sides for outputs whose shape became known, or grew, at the last enqueue."""
        for binding in self._outputs:
            pinned = binding._pinned
            if binding.shape is not None and (pinned is None or pinned.nbytes < binding.nbytes):
                binding._pinned = memory.pinned(binding.nbytes)
                self._retire(memory, pinned)

    def _download(self, stream: int, targets: Sequence[int] | None = None) -> None:
        """Enqueue the copies from the device, to the host sides or to these addresses.

        A target of 0 stands for an output that needs no copy.
        """
        copy = self._primary.driver.memcpy_dtoh_async
        for target, binding in zip(targets or _pinned(self._outputs), self._outputs, strict=True):
            if target and binding._device is not None and binding.nbytes:
                copy(target, binding._device.address, binding.nbytes, stream)

    def _retire(self, memory: _Memory, block: PinnedBlock | None) -> None:
        """Free a host side that was replaced, once the device is done with it."""
        if block is not None:
            memory.blocks.remove(block)
            release_all([memory.last_use.wait, block.drop])

    def _take_grown(self, grown: _GrownOutputs) -> None:
        """After an enqueue of this set: where TensorRT wrote what depends on the data."""
        for binding in self._outputs:
            if not binding.data_dependent:
                continue
            block = binding._device = grown.blocks.get(binding.name)
            if binding.shape is None or block is None or block.nbytes < binding.nbytes:
                told = (
                    "no shape" if binding.shape is None else f"shape {format_shape(binding.shape)}"
                )
                room = 0 if block is None else block.nbytes
                raise EngineError(
                    f"TensorRT told {told} for output {binding.name!r}, but asked for memory of "
                    f"{room} bytes only"
                )
        grown.writer = self._record

    def _shape_key(self) -> tuple[object, ...]:
        """What the output shapes follow from: profile, input shapes, and shape tensors' values."""
        return (
            self.profile,
            *(b.shape for b in self._bindings.values() if b.spec.is_input),
            *(
                b._view().tobytes()
                for b in self._bindings.values()
                if b.spec.is_input and b.spec.is_shape_tensor
            ),
        )

    def _bind(self, plan_context: PlanContext, *, shape_tensors: bool) -> None:
        """Tell TensorRT where the inputs that are shape tensors are, or all the others.

        Outputs whose shape depends on the data have their allocator.
        """
        for name, binding in self._bindings.items():
            address = binding._address()
            is_shape_tensor = binding.spec.is_input and binding.spec.is_shape_tensor
            if address and not binding.data_dependent and is_shape_tensor is shape_tensors:
                plan_context.set_address(name, address)

    def _host_blocks(self, names: Sequence[str]) -> list[PinnedBlock]:
        """The page-locked memory of these tensors."""
        blocks = (self._bindings[name]._pinned for name in names)
        return [block for block in blocks if block is not None]

    def _describe(self) -> str:
        return (
            f"of {self.context.engine.name!r}: {len(self._inputs)} in, {len(self._outputs)} out, "
            f"{format_bytes(self.nbytes)}, profile {self.profile}"
        )


def _pinned(bindings: Sequence[Binding]) -> list[int]:
    """The addresses of the host sides; 0 where there is none."""
    return [0 if b._pinned is None else b._pinned.address for b in bindings]
