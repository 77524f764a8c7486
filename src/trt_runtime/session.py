"""`Session`: the four steps in their order, from any thread, with results that are yours."""

from __future__ import annotations

import os
import queue
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bindings import Binding, BindingSet
from .build.config import BuildConfig, Profile
from .context import ExecutionContext
from .device import Device, borrow_or_open
from .engine import Engine, check_shape
from .errors import DtypeError, InputError, ModelError, ShapeError
from .ownership import Owned, insist, release_all
from .stream import Stream
from .tensor import TensorSpec, format_shape

Arrays = dict[str, NDArray[Any]]
Key = tuple[object, ...]

#: How many shape combinations a slot keeps memory for; the least recently used goes first.
KEPT_SHAPES = 8


class _Slot:
    """What one inference at a time needs: a context, a stream, and bindings for recent shapes."""

    __slots__ = ("_kept", "context", "stream")

    def __init__(self, engine: Engine, number: int) -> None:
        self._kept: OrderedDict[Key, BindingSet] = OrderedDict()
        with ExitStack() as stack:
            self.stream = stack.enter_context(Stream(engine.device))
            self.context = stack.enter_context(
                ExecutionContext(engine, name=f"{engine.name} #{number}")
            )
            stack.pop_all()
        for part in (self.stream, self.context):
            part._be_part()

    def bindings(self, arrays: Arrays) -> BindingSet:
        """The bindings for these shapes and shape values, made now if they are new."""
        inputs = self.context.engine.inputs
        key: Key = tuple(
            (arrays[spec.name].shape, arrays[spec.name].tobytes())
            if spec.is_shape_tensor
            else arrays[spec.name].shape
            for spec in inputs
        )
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        if len(self._kept) >= KEPT_SHAPES:
            self._kept.popitem(last=False)[1].close()
        made = BindingSet(
            self.context,
            {spec.name: arrays[spec.name].shape for spec in inputs if not spec.is_shape_tensor},
            {spec.name: arrays[spec.name] for spec in inputs if spec.is_shape_tensor},
        )
        made._be_part()
        self._kept[key] = made
        return made

    def run(self, arrays: Arrays, outputs: Mapping[str, NDArray[Any]] | None) -> Arrays:
        bindings = self.bindings(arrays)
        for binding in bindings._outputs:
            if outputs is not None and binding.name in outputs and not binding.data_dependent:
                _check_fits(binding, outputs[binding.name])
        for spec in self.context.engine.inputs:
            if not spec.is_shape_tensor:
                # The one staging copy: any layout, and any dtype that `_checked` let through.
                np.copyto(bindings[spec.name]._view(), arrays[spec.name], casting="unsafe")
        try:
            bindings.copy_to_device(self.stream)
            self.context.enqueue(bindings, self.stream)
            bindings.copy_to_host(self.stream)
        finally:
            # Also after a failure: nothing may still read or write memory that the next call fills.
            insist(self.stream.synchronize)
        results: Arrays = {}
        for binding in bindings._outputs:
            if outputs is not None and binding.name in outputs:
                results[binding.name] = _deliver(binding, outputs[binding.name])
            else:
                results[binding.name] = binding._view().copy()
        return results

    def close(self) -> None:
        release_all([self.context.close, self.stream.close])  # the context closes its bindings


class Session(Owned):
    """An engine, ready to infer: build or load, allocate, run.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or Engine
        An ONNX model (``.onnx``) is built; anything else is loaded as a plan. Bytes are told apart
        by their beginning. An `Engine` is borrowed: it stays open when the session closes.
    device : Device, str, int or None
        As `Device`; a `Device` is borrowed, anything else is opened and owned.
    config : BuildConfig, optional
        How an ONNX model is built.
    profiles : sequence of Profile
        Short for ``BuildConfig(profiles=...)``.
    contexts : int
        How many inferences may run at once; further threads wait their turn.
    tensorrt, trust_host_code, lean_library
        As `Engine.load`.

    Attributes
    ----------
    engine : Engine
    device : Device
    inputs, outputs : tuple of TensorSpec

    Examples
    --------
    >>> with Session("yolov3.onnx") as s:         # doctest: +SKIP
    ...     outputs = s.infer(img)
    """

    __slots__ = ("device", "engine", "inputs", "outputs")

    engine: Engine
    device: Device
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | Engine | Any,
        *,
        device: Device | str | int | None = None,
        config: BuildConfig | None = None,
        profiles: Sequence[Profile] | None = None,
        contexts: int = 1,
        tensorrt: str | None = None,
        trust_host_code: bool = False,
        lean_library: str | os.PathLike[str] | None = None,
    ) -> None:
        if contexts < 1:
            raise InputError(f"a session needs at least one context, not {contexts}")
        with ExitStack() as stack:
            then: list[Callable[[], object]] = []
            if isinstance(model, Engine):
                _refuse_ignored(
                    "an Engine",
                    device=device,
                    config=config,
                    profiles=profiles or None,
                    tensorrt=tensorrt,
                    lean_library=lean_library,
                )
                engine = model
            else:
                is_onnx = _is_onnx(model)
                if not is_onnx:
                    _refuse_ignored("a plan", config=config, profiles=profiles or None)
                opened, close_device = borrow_or_open(device, stack)
                if is_onnx:
                    engine = Engine.build(
                        model,
                        config,
                        profiles=profiles or (),
                        device=opened,
                        tensorrt=tensorrt,
                    )
                else:
                    engine = Engine.load(
                        model,
                        device=opened,
                        tensorrt=tensorrt,
                        trust_host_code=trust_host_code,
                        lean_library=lean_library,
                    )
                stack.enter_context(engine)
                engine._be_part()
                then = [engine.close, *close_device]
            self.engine = engine
            self.device = engine.device
            self.inputs = engine.inputs
            self.outputs = engine.outputs
            slots = []
            for number in range(contexts):
                slot = _Slot(engine, number)
                stack.callback(slot.close)
                slots.append(slot)
            free: queue.LifoQueue[_Slot] = queue.LifoQueue()
            for slot in reversed(slots):
                free.put(slot)
            stack.pop_all()
            self._own(
                free,
                lambda _: release_all([slot.close for slot in reversed(slots)]),
                parents=[engine],
                then=then,
                label=f"Session {engine.name!r}",
            )

    def infer(
        self,
        *arrays: ArrayLike | Mapping[str, ArrayLike],
        outputs: Mapping[str, NDArray[Any]] | None = None,
        **named: ArrayLike,
    ) -> Arrays:
        """Run the engine once and wait for the result.

        Parameters
        ----------
        *arrays : array_like
            One for each input in the engine's order, or a single mapping of name to array.
        outputs : mapping of str to ndarray, optional
            Arrays to write results into, of exactly the output's shape and dtype; any layout. An
            output that is not named is returned as a new array.
        **named : array_like
            Inputs by name.

        Returns
        -------
        dict of str to ndarray
            Every output in the engine's order, at its actual shape. The arrays are yours: no later
            call writes to them.

        Raises
        ------
        InputError, ShapeError, DtypeError
            An argument does not fit. Raised before anything is enqueued, except for an array in
        ``outputs`` that does not fit a result whose shape depends on the data.

        Notes
        -----
        Safe from any thread. Arrays of another layout are taken as they are; dtypes are cast within
        their kind (float64 to float32) and integers where their values fit.
        """
        with self._record as free:
            checked = self._arrange(arrays, named)
            if outputs is not None:
                self._check_targets(outputs, checked)
            slot = free.get()
            try:
                results: Arrays = slot.run(checked, outputs)
                return results
            finally:
                free.put(slot)

    __call__ = infer

    def _arrange(
        self,
        arrays: tuple[ArrayLike | Mapping[str, ArrayLike], ...],
        named: Mapping[str, ArrayLike],
    ) -> Arrays:
        """The arguments as one array for each input, checked."""
        if len(arrays) == 1 and isinstance(arrays[0], Mapping):
            given: dict[str, Any] = {**arrays[0], **named}
            positional: tuple[Any, ...] = ()
            twice = [name for name in arrays[0] if name in named]
        else:
            given, positional = dict(named), arrays
            names = [spec.name for spec in self.inputs]
            if len(positional) > len(names):
                raise InputError(
                    f"{len(positional)} arrays were given and the engine has {len(names)} inputs: "
                    f"{self._signature()}"
                )
            twice = [name for name in names[: len(positional)] if name in named]
            given.update(zip(names, positional, strict=False))
        if twice:
            raise InputError(f"input {', '.join(map(repr, twice))} was given twice")
        specs = {spec.name: spec for spec in self.inputs}
        unknown = [name for name in given if name not in specs]
        missing = [name for name in specs if name not in given]
        if unknown or missing:
            problems = []
            if unknown:
                problems.append(f"unknown input {', '.join(map(repr, unknown))}")
            if missing:
                problems.append(f"missing input {', '.join(map(repr, missing))}")
            raise InputError(f"{' and '.join(problems)}; the engine takes {self._signature()}")
        checked = {name: _checked(spec, given[name]) for name, spec in specs.items()}
        self.engine._fitting_profile(
            {name: array.shape for name, array in checked.items()},
            {name: checked[name] for name, spec in specs.items() if spec.is_shape_tensor},
        )
        return checked

    def _check_targets(self, outputs: Mapping[str, NDArray[Any]], inputs: Arrays) -> None:
        if not isinstance(outputs, Mapping):
            raise InputError(f"outputs is a mapping of name to array, not {type(outputs).__name__}")
        specs = {spec.name: spec for spec in self.outputs}
        for name, target in outputs.items():
            spec = specs.get(name)
            if spec is None:
                raise InputError(
                    f"there is no output {name!r}; the engine has {', '.join(map(repr, specs))}"
                )
            if not isinstance(target, np.ndarray):
                raise InputError(
                    f"outputs[{name!r}] must be a NumPy array, not {type(target).__name__}"
                )
            if target.dtype != spec.dtype:
                raise DtypeError(
                    f"outputs[{name!r}] must have dtype {spec.dtype.name}, not {target.dtype.name}"
                )
            if not target.flags.writeable:
                raise InputError(f"outputs[{name!r}] is read-only")
            fits = len(target.shape) == len(spec.shape) and all(
                expected in (-1, n) for n, expected in zip(target.shape, spec.shape, strict=True)
            )
            if not fits:
                raise ShapeError(
                    f"outputs[{name!r}] has shape {format_shape(target.shape)}, and the output "
                    f"{format_shape(spec.shape)}"
                )
            if any(np.shares_memory(target, array) for array in inputs.values()):
                raise InputError(f"outputs[{name!r}] shares memory with an input")
        for (name, target), (other, array) in combinations(outputs.items(), 2):
            if np.shares_memory(target, array):
                raise InputError(f"outputs[{name!r}] shares memory with outputs[{other!r}]")

    def _signature(self) -> str:
        return ", ".join(str(spec) for spec in self.inputs)

    def _describe(self) -> str:
        return self.engine._describe()


def _deliver(binding: Binding, target: NDArray[Any]) -> NDArray[Any]:
    """Write a result into the caller's array."""
    _check_fits(binding, target)
    np.copyto(target, binding._view())
    return target


def _check_fits(binding: Binding, target: NDArray[Any]) -> None:
    assert binding.shape is not None
    if target.shape != binding.shape:
        raise ShapeError(
            f"outputs[{binding.name!r}] has shape {format_shape(target.shape)}, and this result "
            f"{format_shape(binding.shape)}"
        )


def _checked(spec: TensorSpec, value: ArrayLike) -> NDArray[Any]:
    """``value`` as an array that the staging copy can take; its layout and dtype may differ."""
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the object's __array__ raises
        raise InputError(f"input {spec.name!r} cannot be made an array: {error}") from error
    check_shape(spec, array.shape)
    if array.dtype != spec.dtype:
        _check_cast(spec, array)
        if spec.is_shape_tensor:
            array = array.astype(spec.dtype)
    return array


def _check_cast(spec: TensorSpec, array: NDArray[Any]) -> None:
    """Raise `DtypeError` unless casting to the spec's dtype stays within its kind and range."""
    source, target = _kind(array.dtype), _kind(spec.dtype)
    if source == "other" or _ORDER[source] > _ORDER[target]:
        raise DtypeError(
            f"input {spec.name!r} takes {spec.dtype.name}; {array.dtype.name} would lose values. "
            f"Convert it yourself, for instance with .astype(np.{spec.dtype.name})"
        )
    if source == target == "integer" and array.size:
        limits = np.iinfo(spec.dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise DtypeError(
                f"input {spec.name!r} takes {spec.dtype.name}, from {limits.min} to {limits.max}; "
                f"the {array.dtype.name} array has values from {low} to {high}"
            )


_ORDER = {"bool": 0, "integer": 1, "float": 2}


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "bool"
    if dtype.kind in "iu":
        return "integer"
    # ml_dtypes' floats have kind "V" in some versions and "f" in others.
    if dtype.kind == "f" or "float" in dtype.name:
        return "float"
    return "other"


def _refuse_ignored(what: str, **given: object) -> None:
    """Raise `InputError` for arguments that would be dropped silently."""
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise InputError(f"{', '.join(names)} cannot be given with {what}: it is made already")


def _is_onnx(model: Any) -> bool:
    """Whether ``model`` is to be built, rather than loaded as a plan."""
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if path.suffix.lower() == ".onnx":
            return True
        if not path.exists():
            raise ModelError(
                f"there is no model {str(path)!r} (in {os.getcwd()!r}); expected an ONNX model "
                "(.onnx) or an engine file"
            )
        return False
    if isinstance(model, (bytes, bytearray, memoryview)):
        # Field 1 of a serialised ModelProto, ir_version, as a varint (onnx.proto).
        return bytes(model[:1]) == b"\x08"
    return True
