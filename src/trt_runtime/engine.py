"""`Engine`: a TensorRT engine, loaded from a plan or built from ONNX."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .build.calibration import Batch, Calibration
from .build.config import BuildConfig, Profile
from .build.digest import content_digest
from .build.model import external_files, read_model
from .build.plan import build_reporting, prepared_model, with_profiles
from .build.progress import OnProgress, Reporter
from .build.weights import check_same_border, read_proto, weights_of
from .device import Device, borrow_or_open
from .errors import BusyError, DtypeError, InputError, NotAPlanError, PlanError, ShapeError
from .files import write_whole
from .inspection import EngineReport, PlanValidity, make_report
from .interrupts import uninterrupted
from .locks import Lock
from .ownership import Owned, Record
from .platform.tensorrt import offline_flavour, plan_version
from .standstill import standstill
from .tensor import Range, Shape, TensorSpec, format_shape

if TYPE_CHECKING:
    from .context import ExecutionContext
    from .platform.tensorrt import PlanEngine, TensorRT
    from .standstill import Rest


class Engine(Owned):
    """A TensorRT engine on one device. Make one with `load` or `build`.

    Attributes
    ----------
    device : Device
    name : str
        The network's name, or the file's.
    tensors : mapping of str to TensorSpec
        Every input and output, in the engine's order.
    tensorrt_version : str

    Notes
    -----
    May be used from several threads. Owns TensorRT's runtime and engine, and the device if it
    opened it; closing it closes its contexts first, newest first.
    """

    __slots__ = (
        "_changing",
        "_library",
        "_metadata",
        "_plan",
        "_rests",
        "device",
        "inputs",
        "name",
        "outputs",
        "tensors",
    )

    device: Device
    name: str
    tensors: Mapping[str, TensorSpec]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _library: TensorRT
    _plan: bytes | None
    _metadata: dict[str, Any]
    #: Held while the engine changes and while a context is made, so that neither meets the other.
    _changing: Lock
    #: What brings each execution context to rest.
    _rests: weakref.WeakKeyDictionary[Record, Rest]

    def __init__(self) -> None:
        raise TypeError("make an engine with Engine.load(plan) or Engine.build(onnx_model)")

    @classmethod
    def load(
        cls,
        plan: str | os.PathLike[str] | bytes | bytearray | memoryview,
        *,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        trust_host_code: bool = False,
        lean_library: str | os.PathLike[str] | None = None,
        plugin_libraries: Sequence[str | os.PathLike[str]] = (),
    ) -> Engine:
        """Deserialise a plan.

        Parameters
        ----------
        plan : path, bytes, bytearray or memoryview
            What `save` wrote or trtexec built. An engine file is code: load only what you trust.
        device : Device, str, int or None
            As `Device`; a `Device` is borrowed, anything else is opened and owned.
        tensorrt : str, optional
            The flavour by its import name; None takes ``TRT_RUNTIME_TENSORRT``, then the first
            that is installed.
        trust_host_code : bool
            Let a version-compatible plan run the lean runtime that it carries.
        lean_library : path, optional
            A ``libnvinfer_lean`` to load plans of another release that carry none. It is run.
        plugin_libraries : sequence of path
            Libraries of the plugins that the plan uses, beside NVIDIA's own. They are run, and stay
            loaded for as long as the process lives.

        Raises
        ------
        NotAPlanError, CorruptPlanError, PlanVersionError, PlanDeviceError, UntrustedPlanError
            The plan cannot be used here, for that reason.
        InputError, BuildError
            There is no such plugin library, or TensorRT cannot load it.
        """
        name, path, data = _read_plan(plan)
        with uninterrupted(), ExitStack() as stack:
            opened, then = borrow_or_open(device, stack)
            library = opened.platform.tensorrt(tensorrt)
            with opened._record as primary:
                handle = primary.create(
                    lambda: library.load(
                        data,
                        trust_host_code=trust_host_code,
                        lean_library=None if lean_library is None else os.fspath(lean_library),
                        plugin_libraries=[os.fspath(path) for path in plugin_libraries],
                    ),
                    lambda handle: handle.release(),
                )
                stack.callback(primary.release, handle.release)
                with primary.current():
                    tensors = handle.describe()
                self = cls.__new__(cls)
                self.device = opened
                self._library = library
                self._plan = None
                self._metadata = _facts_of_plan(data, path)
                self._changing = Lock()
                self._rests = weakref.WeakKeyDictionary()
                self.name = name
                self.tensors = MappingProxyType({spec.name: spec for spec in tensors})
                self.inputs = tuple(spec for spec in tensors if spec.is_input)
                self.outputs = tuple(spec for spec in tensors if not spec.is_input)
                stack.pop_all()
                self._own(
                    handle,
                    lambda handle: primary.release(handle.release),
                    parents=[opened],
                    then=then,
                    label=f"Engine {name!r}",
                )
        return self

    @classmethod
    def build(
        cls,
        model: str | os.PathLike[str] | bytes | Any,
        config: BuildConfig | None = None,
        *,
        profiles: Sequence[Profile] = (),
        calibration: Calibration | Iterable[Batch] | None = None,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Engine:
        """Build an engine from an ONNX model and load it; the engine cache is not looked at.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto
            External data is found beside a path, and nowhere else.
        config : BuildConfig, optional
        profiles : sequence of Profile
            Short for ``BuildConfig(profiles=...)``.
        calibration : Calibration or iterable, optional
            Example inputs for ``precision="int8"``: a batch is an array for each input by name, or
            the array of a model with one input.
        device, tensorrt
            As `load`.
        on_progress : callable, optional
            Called with each `BuildProgress`, on the thread that builds; returning False cancels.
            Releases before 10 tell only when parsing, building and loading begin and end.

        Raises
        ------
        UnsupportedError
            This TensorRT lacks what the configuration asks for.
        ModelError
            The model is missing or cannot be parsed, or its external data is missing or leads out
            of its folder; ``problems`` lists why.
        BuildError
            It could not be built, or was cancelled; TensorRT's log lines are in the error.
        KeyboardInterrupt
            Ctrl-C, once TensorRT has stopped. TensorRT 8.6 cannot, and finishes first.

        Notes
        -----
        One build runs at a time in a process; others wait. Warnings of a build that succeeds are
        logged to ``trt_runtime.tensorrt``.
        """
        reporter = Reporter(on_progress)
        config = with_profiles(config, profiles)
        plan_name = Path(model).stem if isinstance(model, (str, os.PathLike)) else "engine"
        with ExitStack() as stack:
            opened, then = borrow_or_open(device, stack)
            tensorrt = offline_flavour(tensorrt, bool(config.compute_capabilities)) or tensorrt
            opened.platform.tensorrt(tensorrt)  # what cannot be loaded here need not be built
            plan = build_reporting(
                model,
                config,
                calibration=calibration,
                device=opened,
                tensorrt=tensorrt,
                reporter=reporter,
            )
            reporter.step("load", False)
            # What was built a moment ago is trusted to run the lean runtime that it carries.
            engine = stack.enter_context(
                cls.load(plan, device=opened, tensorrt=tensorrt, trust_host_code=True)
            )
            reporter.step("load", True)
            engine.name = plan_name
            engine._metadata |= {"config": config.to_json(), "model_digest": _model_digest(model)}
            engine._record.label = f"Engine {plan_name!r}"
            if config.version_compatible:
                engine._plan = plan  # TensorRT cannot serialise such an engine again
            engine._record.also(then)
            stack.pop_all()
        return engine

    def create_execution_context(self, *, name: str | None = None) -> ExecutionContext:
        """A new context: TensorRT's, with scratch memory of its own. Release it with ``close``."""
        return self._make_context(name)

    def _make_context(
        self, name: str | None, at_rest: Callable[[], AbstractContextManager[None]] | None = None
    ) -> ExecutionContext:
        """A context, for a refit to wait for.

        ``at_rest``, a method, gives a ``with`` in which the context is in no call, has no work in
        flight and no graphs; for one that is not used through its own calls alone.
        """
        from .context import ExecutionContext

        self._require_open()
        with self._changing:
            context = ExecutionContext(self, name=name)
            self._rests[context._record] = (
                context._turn if at_rest is None else weakref.WeakMethod(at_rest)
            )
        return context

    def serialize(self) -> bytes:
        """The plan, as `load` takes it, with the weights that the engine has now.

        Raises
        ------
        EngineError
            The engine was loaded from a version-compatible plan, which TensorRT cannot serialise
            again: copy the file instead.
        """
        with self._record as handle, self.device._primary.current():
            plan: bytes = self._plan if self._plan is not None else handle.serialize()
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to ``path``; a reader finds the old file or the whole new one."""
        plan = self.serialize()
        write_whole(path, lambda file: file.write(plan))

    @property
    def profiles(self) -> tuple[Mapping[str, Range], ...]:
        """For each optimisation profile, what it allows of each input; shape tensors: values."""
        count = max((len(spec.profiles) for spec in self.inputs), default=1)
        return tuple(
            MappingProxyType(
                {
                    spec.name: (spec.values or spec.profiles)[index]
                    for spec in self.inputs
                    if len(spec.values or spec.profiles) > index
                }
            )
            for index in range(count)
        )

    @property
    def tensorrt_version(self) -> str:
        return self._library.version

    @property
    def tensorrt_name(self) -> str:
        """The import name of the TensorRT that runs it."""
        return self._library.name

    # What it is made of ---------------------------------------------------------------------

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is known of how the engine was made: a copy, JSON throughout.

        Always ``tensorrt`` and ``tensorrt_version`` (what runs it), ``built_by`` (the release that
        the plan's header names, or None) and ``plan_bytes``; ``path`` if it was loaded from a file;
        ``config`` (as `BuildConfig.to_json`) and ``model_digest`` (of the ONNX bytes) if it was
        built here; ``cache_key`` and ``cache_hit`` (False: built for it) if the engine cache gave
        it; ``refitted_with_digest`` after `refit`.
        """
        running = {"tensorrt": self.tensorrt_name, "tensorrt_version": self.tensorrt_version}
        return MappingProxyType(running | deepcopy(self._metadata))

    def inspect(self) -> EngineReport:
        """Everything that TensorRT and the plan tell of the engine. Does not synchronise.

        Layers are told in full for engines built with ``BuildConfig(verbosity="detailed")``, by
        name for others. An engine of another release is asked nothing but its tensors and
        profiles: a question that its release did not know crashes the process.

        Raises
        ------
        EngineError
            TensorRT's inspector failed.
        """
        with self._record as handle, self.device._primary.current():
            facts, warnings = handle.facts(), handle.load_warnings
        return make_report(
            facts,
            name=self.name,
            device=f"{self.device} ({self.device.name})",
            tensors=tuple(self.tensors.values()),
            profiles=self.profiles,
            metadata=self.metadata,
            warnings=warnings,
        )

    @classmethod
    def check(
        cls,
        plan: str | os.PathLike[str] | bytes | bytearray | memoryview,
        *,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        trust_host_code: bool = False,
        lean_library: str | os.PathLike[str] | None = None,
        plugin_libraries: Sequence[str | os.PathLike[str]] = (),
    ) -> PlanValidity:
        """Whether a plan can be used on this device; parameters as `load`.

        TensorRT for RTX answers from the plan's header. Others cannot be asked, so the plan is
        loaded and closed again, which costs as much as `load`; ``suboptimal`` is then what TensorRT
        warns of when a plan was built on another model of GPU.

        Raises
        ------
        EngineError, CudaError
            It could not be found out: TensorRT did not start, say.
        """
        with ExitStack() as stack:
            opened, _ = borrow_or_open(device, stack)
            library = opened.platform.tensorrt(tensorrt)
            try:
                _, _, data = _read_plan(plan)
                with opened._record as primary, primary.current():
                    told = library.validity(data)
                if told is not None:
                    return PlanValidity(*told)
                with (
                    cls.load(
                        data,
                        device=opened,
                        tensorrt=tensorrt,
                        trust_host_code=trust_host_code,
                        lean_library=lean_library,
                        plugin_libraries=plugin_libraries,
                    ) as engine,
                    engine._record as handle,
                ):
                    warnings = handle.other_gpu_warnings
            except PlanError as refused:
                if type(refused) is PlanError:  # CUDA failed: that says nothing of the plan
                    raise
                return PlanValidity("invalid", (refused.message, *refused.log_lines))
            return PlanValidity("suboptimal", warnings) if warnings else PlanValidity("valid")

    # Its weights ----------------------------------------------------------------------------

    def refit(self, model: str | os.PathLike[str] | bytes | Any) -> None:
        """Replace the weights by those of a model of the same structure. Synchronises.

        Takes effect for every context at once: calls of other threads wait, what is under way ends
        with the old weights, and every later result is of the new. Graphs that were captured on the
        engine's contexts are closed. Shapes, memory and bindings stay as they are.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto
            The same network with other weights; external data is found beside a path. Where the
            build converted the model (``precision="fp16"`` on TensorRT 11, say), an engine that was
            built here converts this one too; for one that was loaded, give the converted model.

        Raises
        ------
        RefitError
            The engine is not refittable (``BuildConfig(refittable=True)``), or the model's weights
            do not fit: ``problems`` lists them. Nothing was changed.
        ModelError
            The model cannot be read.
        BusyError
            On TensorRT 8, contexts are open: it demands new ones after a refit. Or this is called
            from inside a call on a context.
        UnsupportedError
            The plan is of another release than the TensorRT that runs it.
        EngineError
            TensorRT failed half way, and does not tell how far it came. The engine refuses to run
            until a refit succeeds.

        Notes
        -----
        Neither call it nor make contexts in a profiler's callback: it waits for calls to end.
        """
        data, path = read_model(model)
        external_files(data, path)  # TensorRT would open whatever they name
        with self._record as handle:
            check_same_border(read_proto(data), self.tensors.values())
            prepared = self._as_built(data, path)
            with self._changing, self.device._primary.current():
                self._refit(handle, prepared, None if path is None else os.path.abspath(path))
            self._plan = None  # it has the old weights
            self._metadata["refitted_with_digest"] = content_digest(data)

    def _as_built(self, data: bytes, path: str | None) -> bytes:
        """The model as the builder was given its own, if that is known."""
        config = self._metadata.get("config")
        if config is None:
            return data
        return prepared_model(self._library, data, path, BuildConfig.from_json(config))

    def _refit(self, handle: PlanEngine, model: bytes, path: str | None) -> None:
        contexts = self._contexts()
        if contexts and handle.refittable and not handle.contexts_survive_refit:
            raise BusyError(
                f"the engine has {len(contexts)} execution contexts, and TensorRT "
                f"{self.tensorrt_version} demands new ones after a refit; close its contexts and "
                "sessions, refit, and open them again"
            )
        with standstill(contexts):
            handle.refit(model, path, lambda: weights_of(read_proto(model), model, path))

    def _contexts(self) -> dict[Record, Rest | None]:
        """The engine's contexts, oldest first; there are no others while `_changing` is held."""
        from .context import _State

        children = sorted(self._record.children.copy(), key=lambda record: record.serial)
        return {
            record: self._rests.get(record)
            for record in children
            if record in self._rests or isinstance(record.handle, _State)
        }

    @property
    def streamable_weights_bytes(self) -> int:
        """Bytes of weights that can stay on the host; 0 unless built for weight streaming.

        Raises
        ------
        UnsupportedError
            This TensorRT has no weight streaming (before 10).
        """
        with self._record as handle, self.device._primary.current():
            return int(handle.streamable_bytes)

    @property
    def weight_streaming_budget(self) -> int:
        """Bytes of device memory for streamable weights; what exceeds them is streamed.

        `streamable_weights_bytes` or more, the default, streams nothing; 0 streams as much as can
        be. Set it before contexts and sessions are made.

        Raises
        ------
        BusyError
            Set while contexts are open.
        InputError
            Set to something else than a number of bytes.
        EngineError
            TensorRT refused it: the engine was not built with ``weight_streaming=True``, say.
        UnsupportedError
            This TensorRT has no weight streaming (before 10).
        """
        with self._record as handle, self.device._primary.current():
            return int(handle.streaming_budget)

    @weight_streaming_budget.setter
    def weight_streaming_budget(self, nbytes: int) -> None:
        if not isinstance(nbytes, int) or isinstance(nbytes, bool) or nbytes < 0:
            raise InputError(f"a weight streaming budget is a number of bytes, not {nbytes!r}")
        with self._record as handle, self._changing:
            contexts = self._contexts()
            if contexts:
                raise BusyError(
                    f"the engine has {len(contexts)} execution contexts; set its weight streaming "
                    "budget before they and their sessions are made"
                )
            with self.device._primary.current():
                handle.set_streaming_budget(nbytes)

    def automatic_weight_streaming_budget(self) -> int:
        """The budget that TensorRT would choose for the device memory that is free now, in bytes.

        Raises
        ------
        UnsupportedError
            The engine has 2 GiB of streamable weights or more, whose budget TensorRT's Python may
            tell wrong; or this TensorRT has no weight streaming.
        """
        with self._record as handle, self.device._primary.current():
            return int(handle.automatic_streaming_budget())

    # Shapes ---------------------------------------------------------------------------------

    def _shape_values(self, values: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """The values of every input shape tensor, checked."""
        expected = {spec.name: spec for spec in self.inputs if spec.is_shape_tensor}
        _same_names("value", values, expected, "shape tensor")
        arrays = {}
        for name, spec in expected.items():
            array = np.asarray(values[name])
            if array.size and array.dtype.kind not in "iub":
                raise DtypeError(
                    f"shape tensor {name!r} takes {spec.dtype.name} values, not {array.dtype.name}"
                )
            arrays[name] = np.ascontiguousarray(array, dtype=spec.dtype).reshape(array.shape)
        return arrays

    def _input_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """The shape of every input: given, or the only one it can have."""
        given = {spec.name: spec for spec in self.inputs}
        _same_names("shape", shapes, given, "input", complete=False)
        known: dict[str, Shape] = {}
        for name, spec in given.items():
            if name in shapes:
                shape = tuple(int(n) for n in shapes[name])
            elif not spec.is_dynamic:
                shape = spec.shape
            else:
                raise ShapeError(
                    f"input {spec} has a dynamic shape; say which: shapes={{{name!r}: (...)}}"
                )
            check_shape(spec, shape)
            known[name] = shape
        return known

    def _fitting_profile(
        self, shapes: Mapping[str, Shape], values: Mapping[str, NDArray[Any]]
    ) -> int:
        """The optimisation profile that allows these shapes: of several the tightest.

        An exact match of the optimum wins; then the one with the fewest elements at its maximum.
        """
        best: tuple[bool, int, int] | None = None
        count = max((len(spec.profiles) for spec in self.inputs), default=0)
        for index in range(count):
            exact, volume = True, 0
            for spec in self.inputs:
                allowed = spec.profiles[index]
                shape = shapes[spec.name]
                if not allowed.contains(shape):
                    break
                if spec.values and not spec.values[index].contains(
                    [int(n) for n in values[spec.name].ravel()]
                ):
                    break
                exact = exact and shape == allowed.opt
                volume += spec.nbytes(allowed.max)
            else:
                candidate = (not exact, volume, index)
                best = candidate if best is None else min(best, candidate)
        if best is None and count:
            raise self._no_profile(shapes, values)
        return best[2] if best is not None else 0

    def _no_profile(
        self, shapes: Mapping[str, Shape], values: Mapping[str, NDArray[Any]]
    ) -> ShapeError:
        came = ", ".join(
            f"{spec.name!r} = {values[spec.name].tolist()}"
            if spec.is_shape_tensor
            else f"{spec.name!r} {format_shape(shapes[spec.name])}"
            for spec in self.inputs
        )
        ranges = "; ".join(
            f"profile {index}: " + ", ".join(f"{name!r} {r}" for name, r in profile.items())
            for index, profile in enumerate(self.profiles)
        )
        return ShapeError(
            f"no optimisation profile allows {came}; the engine has (min .. opt .. max) {ranges}. "
            "Change the input, or build with a profile that includes it."
        )

    def _describe(self) -> str:
        inputs = ", ".join(str(spec) for spec in self.inputs)
        outputs = ", ".join(str(spec) for spec in self.outputs)
        return f"{self.name!r} on {self.device} ({inputs} -> {outputs})"


def _read_plan(
    plan: str | os.PathLike[str] | bytes | bytearray | memoryview,
) -> tuple[str, Path | None, bytes | memoryview]:
    """A name for the engine, the file that it came from, and the plan itself, not a copy of it."""
    if isinstance(plan, (str, os.PathLike)):
        path = Path(plan)
        try:
            return path.stem, path, path.read_bytes()
        except (OSError, ValueError) as error:  # the latter of a path with a zero byte
            why = getattr(error, "strerror", None) or error
            raise NotAPlanError(f"the engine file {str(path)!r} cannot be read: {why}") from error
    if not isinstance(plan, (bytes, bytearray, memoryview)):
        raise InputError(f"a plan is a path or bytes, not {type(plan).__name__}")
    if isinstance(plan, bytes):
        return "engine", None, plan
    view = memoryview(plan)
    castable = view.c_contiguous and view.nbytes  # Python casts no view that is empty
    return "engine", None, view.cast("B") if castable else view.tobytes()


def _facts_of_plan(plan: bytes | memoryview, path: Path | None) -> dict[str, Any]:
    version = plan_version(plan)
    facts: dict[str, Any] = {
        "built_by": None if version is None else ".".join(map(str, version)),
        "plan_bytes": len(plan),
    }
    if path is not None:
        facts["path"] = str(path)
    return facts


def _model_digest(model: str | os.PathLike[str] | bytes | Any) -> str:
    data, _ = read_model(model)
    return content_digest(data)


def check_shape(spec: TensorSpec, shape: Shape) -> None:
    """Raise `ShapeError` unless ``shape`` has the rank and the fixed sizes of ``spec``."""
    if len(shape) != len(spec.shape):
        raise ShapeError(
            f"input {spec.name!r} has {len(spec.shape)} dimensions, {format_shape(spec.shape)}; "
            f"came {len(shape)}, {format_shape(shape)}"
        )
    for axis, (n, expected) in enumerate(zip(shape, spec.shape, strict=True)):
        if n < 0 or expected not in (-1, n):
            raise ShapeError(
                f"input {spec.name!r} has shape {format_shape(spec.shape)}; came "
                f"{format_shape(shape)}, which differs at axis {axis}"
            )


def _same_names(
    what: str,
    given: Mapping[str, Any],
    expected: Mapping[str, TensorSpec],
    kind: str,
    *,
    complete: bool = True,
) -> None:
    unknown = [name for name in given if name not in expected]
    if unknown:
        names = ", ".join(map(repr, expected)) or "none"
        raise InputError(
            f"a {what} was given for {', '.join(map(repr, unknown))}, which is no {kind}; "
            f"the engine has {names}"
        )
    missing = [name for name in expected if name not in given]
    if missing and complete:
        raise InputError(f"the {what}s of {kind} {', '.join(map(repr, missing))} are missing")
