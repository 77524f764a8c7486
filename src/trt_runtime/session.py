"""`Session`: the four steps in their order, from any thread, with results that are yours."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .build.cache import EngineCache
from .build.calibration import Batch, Calibration
from .build.config import BuildConfig, Profile
from .build.progress import OnProgress
from .device import Device, borrow_or_open
from .engine import Engine, _read_plan, check_shape
from .errors import DtypeError, InputError, ModelError, ShapeError
from .futures import Dispatcher, InferenceFuture
from .interop import DeviceArray, is_device_array
from .interrupts import uninterrupted
from .locks import Lock
from .memory import PinnedBlock, typed
from .ownership import Owned, Record, release_all
from .pipeline import DeviceInput, Flight, Inputs, Key, Outputs, Pipeline, Targets
from .platform.driver import Part
from .results import Arrays
from .tensor import Shape, TensorSpec, format_shape

if TYPE_CHECKING:
    from .benchmark import BenchmarkReport
    from .profiling import LayerProfile


class _Open:
    """What a session releases: its pipeline, and the threads of `Session.infer_async`."""

    __slots__ = ("_dispatcher", "_lock", "pipeline")

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._dispatcher: Dispatcher | None = None
        self._lock = Lock()

    def dispatcher(self, record: Record) -> Dispatcher:
        """The threads, started on first use; who forgets the session leaves its end to them."""
        with self._lock:
            if self._dispatcher is None:
                with uninterrupted():
                    dispatcher = Dispatcher(self.pipeline.engine.device._primary.current)
                    dispatcher.start()
                    self._dispatcher = dispatcher
                    record.elsewhere = dispatcher.end_with
            return self._dispatcher

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.pipeline.close)
            if self._dispatcher is not None:
                self._dispatcher.close()


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
    calibration : Calibration or iterable, optional
        Example inputs for ``precision="int8"``; as `Engine.build`.
    cache : bool, path or EngineCache
        Where an engine that was built is kept and found again: by default in the user's cache, as
        `EngineCache` says; False builds each time.
    on_progress : callable, optional
        Hears of a build; as `Engine.build`.
    contexts : int
        How many inferences may compute at once. Each has scratch memory of its own.
    graphs : bool
        Whether inferences are captured in CUDA graphs, where that is possible.
    tensorrt, trust_host_code, lean_library, plugin_libraries
        As `Engine.load`; an ONNX model is built with the plugin libraries of both this and its
        ``config``.

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

    __slots__ = ("_fixed", "_primary", "device", "engine", "inputs", "outputs")

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
        calibration: Calibration | Iterable[Batch] | None = None,
        cache: bool | str | os.PathLike[str] | EngineCache = True,
        on_progress: OnProgress | None = None,
        contexts: int = 1,
        graphs: bool = True,
        tensorrt: str | None = None,
        trust_host_code: bool = False,
        lean_library: str | os.PathLike[str] | None = None,
        plugin_libraries: Sequence[str | os.PathLike[str]] = (),
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
                    calibration=calibration,
                    tensorrt=tensorrt,
                    lean_library=lean_library,
                    plugin_libraries=plugin_libraries or None,
                )
                engine = model
            else:
                is_onnx = _is_onnx(model)
                if not is_onnx:
                    _refuse_ignored(
                        "a plan",
                        config=config,
                        profiles=profiles or None,
                        calibration=calibration,
                    )
                opened, close_device = borrow_or_open(device, stack)
                if is_onnx:
                    if plugin_libraries:
                        config = config or BuildConfig()
                        both = (*config.plugin_libraries, *plugin_libraries)
                        config = replace(config, plugin_libraries=both)
                    engine = _builder(cache)(
                        model,
                        config,
                        profiles=profiles or (),
                        calibration=calibration,
                        device=opened,
                        tensorrt=tensorrt,
                        on_progress=on_progress,
                    )
                else:
                    engine = Engine.load(
                        model,
                        device=opened,
                        tensorrt=tensorrt,
                        trust_host_code=trust_host_code,
                        lean_library=lean_library,
                        plugin_libraries=plugin_libraries,
                    )
                stack.enter_context(engine)
                engine._be_part()
                then = [engine.close, *close_device]
            self.engine = engine
            self.device = engine.device
            self.inputs = engine.inputs
            self.outputs = engine.outputs
            self._primary = engine.device._primary
            #: Whether every input has one shape only, so that one key is enough.
            self._fixed = not any(s.is_dynamic or s.is_shape_tensor for s in engine.inputs)
            with uninterrupted():
                opened_now = _Open(Pipeline(engine, contexts, graphs=graphs))
                stack.pop_all()
                # The newest child of both, so that closing either closes the session first.
                self._own(
                    opened_now,
                    _Open.close,
                    parents=[engine, engine.device],
                    then=then,
                    label=f"Session {engine.name!r}",
                )

    @overload
    def infer(
        self,
        *arrays: Any,
        outputs: Mapping[str, NDArray[Any]] | None = None,
        **named: Any,
    ) -> Arrays: ...
    @overload
    def infer(
        self, *arrays: Any, outputs: Literal["device"], **named: Any
    ) -> dict[str, DeviceArray]: ...
    def infer(self, *arrays: Any, outputs: Targets | None = None, **named: Any) -> Outputs:
        """Run the engine once and wait for the result.

        Parameters
        ----------
        *arrays : array_like
            One for each input in the engine's order, or a single mapping of name to array. Arrays
            in device memory, of PyTorch, CuPy, JAX or a `DeviceArray`, do not visit the host.
        outputs : mapping of str to ndarray, or "device", optional
            Arrays to write results into, of exactly the output's shape and dtype; any layout. An
            output that is not named is returned as a new array. ``"device"`` leaves every output
            in device memory.
        **named : array_like
            Inputs by name.

        Returns
        -------
        dict of str to ndarray or DeviceArray
            Every output in the engine's order, at its actual shape. The arrays are yours: no later
            call writes to them.

        Raises
        ------
        InputError, ShapeError, DtypeError
            An argument does not fit. Raised before anything is enqueued, except for an array in
            ``outputs`` that does not fit a result whose shape depends on the data, and for the
            dtype or layout of an array in device memory.

        Notes
        -----
        Safe from any thread. Arrays of another layout are taken as they are; dtypes are cast within
        their kind (float64 to float32) and integers where their values fit.

        With ``outputs="device"`` it does not wait: using the arrays waits, as they are ordered
        before their consumer. An input in page-locked memory must then not change until the
        results are there; any other may.
        """
        primary = self._primary
        with self._record as opened:
            previous = primary.enter()  # as `current`, without an object for each call
            try:
                flight: Flight = opened.pipeline.submit(*self._arrange(arrays, named, outputs))
                return flight.finish()
            finally:
                if previous is not None:
                    primary.leave(previous)

    __call__ = infer

    def infer_async(
        self, *arrays: Any, outputs: Targets | None = None, **named: Any
    ) -> InferenceFuture:
        """Run the engine once, elsewhere; parameters and errors as `infer`.

        Arguments are checked before this returns. Inputs, and ``outputs``, must not change before
        the future is done. Of what is not dispatched yet the session accepts a few dozen
        inferences, then waits for room. Closing it finishes them.

        Returns
        -------
        InferenceFuture
            ``await`` it or call its ``result()``. Cancelling it succeeds until the inference has
            been enqueued.

        Examples
        --------
        >>> outputs = await s.infer_async(img)        # doctest: +SKIP
        >>> a, b = s.infer_async(x), s.infer_async(y)  # doctest: +SKIP
        """
        with self._record as opened:
            request = self._arrange(arrays, named, outputs)
            pipeline: Pipeline = opened.pipeline
            future: InferenceFuture = opened.dispatcher(self._record).dispatch(
                lambda: pipeline.submit(*request, overlap=True)
            )
            return future

    def infer_many(
        self, items: Iterable[Any], *, outputs: Literal["device"] | None = None
    ) -> Generator[Outputs, None, None]:
        """Run the engine once for each item, in order, several at a time.

        One item's copies cross while another is computed. An item is what `infer` takes: a mapping
        of name to array, a tuple of arrays in the engine's order, or, for one input, an array.

        Yields
        ------
        dict of str to ndarray or DeviceArray
            As `infer` returns.

        Notes
        -----
        ``items`` is read a few items ahead, no faster than results are taken. What was read in an
        ordinary array may be overwritten when the next item is asked for; page-locked memory only
        when its results are there. Stopping early waits for what is in flight and leaves nothing
        behind. An error is raised where its item's results would have been.
        """
        flights: deque[Flight] = deque()
        try:
            for item in items:
                arrays = item if isinstance(item, tuple) else (item,)
                with self._record as opened, self._primary.current():
                    pipeline: Pipeline = opened.pipeline
                    request = self._arrange(arrays, {}, outputs)
                    flights.append(pipeline.submit(*request, overlap=True))
                    capacity = pipeline.capacity
                del item, arrays, request
                if len(flights) >= capacity:
                    yield self._land(flights)
            for _ in range(len(flights)):
                yield self._land(flights)
        finally:
            release_all([partial(self._abandon, flight) for flight in flights])

    def _land(self, flights: deque[Flight]) -> Outputs:
        flight = flights.popleft()
        if flight.has_ended():  # and this is closed, perhaps: closing has waited for it
            return flight.finish()
        with self._record, self._primary.current():
            return flight.finish()

    def _abandon(self, flight: Flight) -> None:
        with self._primary.current() if not flight.has_ended() else nullcontext():
            flight.finish()

    def input_buffers(
        self, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """New page-locked arrays, one for each input, to write into and pass to `infer`.

        An input that is in page-locked memory already crosses to the device faster. They are the
        caller's, like any array, and are freed when they are collected. Do not change them while
        an inference that was given them is in flight.

        Parameters
        ----------
        shapes : mapping of str to sequence of int, optional
            For every input of dynamic shape, its shape.

        Examples
        --------
        >>> buffers = s.input_buffers()               # doctest: +SKIP
        >>> preprocess(image, out=buffers["images"])  # doctest: +SKIP
        >>> outputs = s.infer(buffers)                # doctest: +SKIP
        """
        with self._record:
            known = self.engine._input_shapes(shapes or {})
            buffers = {}
            for spec in self.inputs:
                with uninterrupted():
                    block = PinnedBlock(self._primary, spec.nbytes(known[spec.name]))
                    try:
                        buffers[spec.name] = typed(block.export(), known[spec.name], spec.dtype)
                    finally:
                        block.drop()
            return buffers

    def _upload_only(self, parts: Mapping[str, Sequence[Part]]) -> None:
        """Before the first inference: the engine reads nothing else of these inputs."""
        with self._record as opened:
            opened.pipeline.parts = parts

    def benchmark(
        self,
        inputs: Any = None,
        *,
        shapes: Mapping[str, Shape] | None = None,
        warm_up_ms: float = 200,
        duration_s: float = 3.0,
    ) -> BenchmarkReport:
        """Measure: latency and its parts, `infer`, the floor below it, and throughput.

        Parameters
        ----------
        inputs
            What `infer` takes; random by default.
        shapes : mapping of str to shape, optional
            Of random inputs of dynamic shape; what the first profile is best at by default.
        warm_up_ms : float
            Before each measurement, in milliseconds.
        duration_s : float
            Of all measurements together, in seconds; a half is for throughput.

        Returns
        -------
        BenchmarkReport
            ``print`` shows it as a table.

        Notes
        -----
        Steps are timed on a context of its own, whose memory is freed afterwards. Nothing else
        should use the session or the GPU meanwhile.
        """
        from .benchmark import benchmark

        return benchmark(self, inputs, shapes=shapes, warm_up_ms=warm_up_ms, duration_s=duration_s)

    def profile(
        self, inputs: Any = None, *, shapes: Mapping[str, Shape] | None = None, runs: int = 50
    ) -> LayerProfile:
        """Measure each layer with TensorRT's profiler; the median of ``runs`` inferences.

        ``inputs`` and ``shapes`` as `benchmark`. Runs on a context of its own, without CUDA graphs.
        Layers have the names that the engine was built to keep: ``BuildConfig(verbosity=...)``.
        """
        from .profiling import profile

        return profile(self, inputs, shapes=shapes, runs=runs)

    @property
    def graph_fallback(self) -> str | None:
        """Why inferences are not captured in CUDA graphs; None while nothing forbids it."""
        with self._record as opened:
            reasons = (slot.graph_fallback for slot in opened.pipeline.slots)
            return next((reason for reason in reasons if reason is not None), None)

    def _arrange(
        self,
        arrays: tuple[Any, ...],
        named: Mapping[str, Any],
        outputs: Targets | None,
    ) -> tuple[Inputs, Key, Targets | None]:
        """The arguments, checked: inputs in the engine's order, a key of their shapes, targets."""
        specs = self.inputs
        as_they_are = len(arrays) == len(specs) and not named
        if as_they_are:
            for spec, array in zip(specs, arrays):  # noqa: B905  # "strict" would cost 0.2 µs
                if (
                    type(array) is not np.ndarray
                    or array.dtype is not spec.dtype
                    or array.shape != spec.shape
                ):
                    as_they_are = False
                    break
        inputs: Inputs = arrays if as_they_are else self._take(arrays, named)
        if outputs is not None and outputs != "device":
            self._check_targets(outputs, inputs)
        if self._fixed:
            return inputs, (), outputs
        key = tuple(
            (array.shape, array.tobytes())
            if spec.is_shape_tensor and isinstance(array, np.ndarray)
            else array.shape
            for spec, array in zip(specs, inputs, strict=True)
        )
        return inputs, key, outputs

    def _take(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> Inputs:
        """One array for each input, in the engine's order, that the staging copy can take."""
        if named or len(arrays) != len(self.inputs) or _is_mapping(arrays):
            arrays = self._by_name(arrays, named)
        return [_checked(spec, array) for spec, array in zip(self.inputs, arrays, strict=True)]

    def _by_name(self, arrays: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """One argument for each input, in the engine's order."""
        names = [spec.name for spec in self.inputs]
        if len(arrays) == 1 and _is_mapping(arrays):
            given: dict[str, Any] = {**arrays[0], **named}
            twice = [name for name in arrays[0] if name in named]
        else:
            if len(arrays) > len(names):
                raise InputError(
                    f"{len(arrays)} arrays were given and the engine has {len(names)} inputs: "
                    f"{self._signature()}"
                )
            given = {**named, **dict(zip(names, arrays, strict=False))}
            twice = [name for name in names[: len(arrays)] if name in named]
        if twice:
            raise InputError(f"input {', '.join(map(repr, twice))} was given twice")
        unknown = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if unknown or missing:
            problems = []
            if unknown:
                problems.append(f"unknown input {', '.join(map(repr, unknown))}")
            if missing:
                problems.append(f"missing input {', '.join(map(repr, missing))}")
            raise InputError(f"{' and '.join(problems)}; the engine takes {self._signature()}")
        return tuple(given[name] for name in names)

    def _check_targets(self, outputs: Mapping[str, NDArray[Any]], inputs: Inputs) -> None:
        if not isinstance(outputs, Mapping):
            came = repr(outputs) if isinstance(outputs, str) else type(outputs).__name__
            raise InputError(f'outputs is a mapping of name to array, or "device", not {came}')
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
            if _repeats_memory(target):
                raise InputError(f"outputs[{name!r}] shows the same memory several times")
            if any(isinstance(a, np.ndarray) and _share_memory(target, a) for a in inputs):
                raise InputError(f"outputs[{name!r}] shares memory with an input")
        for (name, target), (other, array) in combinations(outputs.items(), 2):
            if _share_memory(target, array):
                raise InputError(f"outputs[{name!r}] shares memory with outputs[{other!r}]")

    def _signature(self) -> str:
        return ", ".join(str(spec) for spec in self.inputs)

    def _describe(self) -> str:
        return self.engine._describe()


def _repeats_memory(array: NDArray[Any]) -> bool:
    """Whether elements along one axis are one and the same, as `numpy.broadcast_to` makes them."""
    repeated = any(n > 1 and not step for n, step in zip(array.shape, array.strides, strict=True))
    return repeated and array.size > 0


def _share_memory(array: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether they overlap; yes where it would take long to find out."""
    try:
        return bool(np.shares_memory(array, other, max_work=_OVERLAP_WORK))
    except Exception as error:  # its class has another home in NumPy 1
        if type(error).__name__ != "TooHardError":
            raise
        return True


def _is_mapping(arrays: tuple[Any, ...]) -> bool:
    return bool(arrays) and type(arrays[0]) is not np.ndarray and isinstance(arrays[0], Mapping)


def _checked(spec: TensorSpec, value: Any) -> NDArray[Any] | DeviceInput:
    """``value`` as an array that the staging copy can take; its layout and dtype may differ."""
    if is_device_array(value):
        return _checked_on_device(spec, value)
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


def _checked_on_device(spec: TensorSpec, value: Any) -> DeviceInput:
    if spec.is_shape_tensor:
        raise InputError(
            f"input {spec.name!r} is a shape tensor, whose values are needed on the host; copy it "
            "there with its own library"
        )
    try:
        shape = value.shape if hasattr(value, "shape") else value.__cuda_array_interface__["shape"]
        known = tuple(int(n) for n in shape)
    except Exception as error:  # whatever the object raises
        raise InputError(
            f"input {spec.name!r}, a {type(value).__name__}, does not tell its shape: {error!r}"
        ) from error
    check_shape(spec, known)
    return DeviceInput(value, known, f"input {spec.name!r}")


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


#: Candidate solutions that NumPy looks at to find out whether two arrays overlap.
_OVERLAP_WORK: Any = 10_000  # some of NumPy's stubs know two values only
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


def _builder(cache: bool | str | os.PathLike[str] | EngineCache) -> Callable[..., Engine]:
    """How an ONNX model becomes an engine."""
    if cache is False:
        return Engine.build
    if cache is True:
        cache = EngineCache()
    elif not isinstance(cache, EngineCache):
        cache = EngineCache(cache)
    return cache.load_or_build


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
        return bytes(_read_plan(model)[2][:1]) == b"\x08"  # a memoryview may be of any shape
    return True
