"""`Engine`: a TensorRT engine, loaded from a plan or built from ONNX."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .build.config import BuildConfig, Profile
from .build.model import read_model
from .device import Device, borrow_or_open
from .errors import DtypeError, InputError, NotAPlanError, ShapeError
from .ownership import Owned
from .platform.tensorrt import load_tensorrt, offline_flavour
from .tensor import Range, Shape, TensorSpec, format_shape

if TYPE_CHECKING:
    from .context import ExecutionContext
    from .platform.tensorrt import TensorRT


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

    __slots__ = ("_library", "_plan", "device", "inputs", "name", "outputs", "tensors")

    device: Device
    name: str
    tensors: Mapping[str, TensorSpec]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _library: TensorRT
    _plan: bytes | None

    def __init__(self) -> None:
        raise TypeError("make an engine with Engine.load(plan) or Engine.build(onnx_model)")

    @classmethod
    def load(
        cls,
        plan: str | os.PathLike[str] | bytes,
        *,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        trust_host_code: bool = False,
        lean_library: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """Deserialise a plan.

        Parameters
        ----------
        plan : path or bytes
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

        Raises
        ------
        NotAPlanError, CorruptPlanError, PlanVersionError, PlanDeviceError, UntrustedPlanError
            The plan cannot be used here, for that reason.
        """
        name = "engine"
        if isinstance(plan, (str, os.PathLike)):
            path = Path(plan)
            name = path.stem
            try:
                plan = path.read_bytes()
            except OSError as error:
                raise NotAPlanError(
                    f"the engine file {str(path)!r} cannot be read: {error.strerror or error}"
                ) from error
        elif not isinstance(plan, (bytes, bytearray, memoryview)):
            raise InputError(f"a plan is a path or bytes, not {type(plan).__name__}")
        with ExitStack() as stack:
            opened, then = borrow_or_open(device, stack)
            library = opened.platform.tensorrt(tensorrt)
            with opened._record as primary:
                handle = primary.create(
                    lambda: library.load(
                        bytes(plan),
                        trust_host_code=trust_host_code,
                        lean_library=None if lean_library is None else os.fspath(lean_library),
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
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        on_progress: Callable[[str, int, int], bool] | None = None,
    ) -> Engine:
        """Build an engine from an ONNX model and load it.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto
            External data is found beside a path.
        config : BuildConfig, optional
        profiles : sequence of Profile
            Short for ``BuildConfig(profiles=...)``.
        device, tensorrt
            As `load`.
        on_progress : callable, optional
            Called with phase, steps done and steps in all; False cancels. Releases before 10 do
            not report.

        Raises
        ------
        ModelError
            The model is missing or cannot be parsed; ``problems`` lists why.
        BuildError
            It could not be built; TensorRT's log lines are in the error.
        """
        plan_name = Path(model).stem if isinstance(model, (str, os.PathLike)) else "engine"
        with ExitStack() as stack:
            opened, then = borrow_or_open(device, stack)
            if config is not None:
                tensorrt = offline_flavour(tensorrt, bool(config.compute_capabilities)) or tensorrt
            opened.platform.tensorrt(tensorrt)  # what cannot be loaded here need not be built
            plan = build_plan(
                model,
                config,
                profiles=profiles,
                device=opened,
                tensorrt=tensorrt,
                on_progress=on_progress,
            )
            # What was built a moment ago is trusted to run the lean runtime that it carries.
            engine = cls.load(plan, device=opened, tensorrt=tensorrt, trust_host_code=True)
            engine.name = plan_name
            engine._record.label = f"Engine {plan_name!r}"
            if config is not None and config.version_compatible:
                engine._plan = plan  # TensorRT cannot serialise such an engine again
            engine._record.also(then)
            stack.pop_all()
        return engine

    def create_execution_context(self, *, name: str | None = None) -> ExecutionContext:
        """A new context: TensorRT's, with scratch memory of its own. Release it with ``close``."""
        from .context import ExecutionContext

        return ExecutionContext(self, name=name)

    def serialize(self) -> bytes:
        """The plan, as `load` takes it.

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
        target = Path(path)
        plan = self.serialize()
        # Not tempfile's, which only the owner may read: the umask decides, as for any new file.
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        with open(part, "xb") as file, ExitStack() as stack:
            stack.callback(part.unlink)
            file.write(plan)
            file.close()
            os.replace(part, target)
            stack.pop_all()

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


def build_plan(
    model: str | os.PathLike[str] | bytes | Any,
    config: BuildConfig | None = None,
    *,
    profiles: Sequence[Profile] = (),
    device: Device | str | int | None = None,
    tensorrt: str | None = None,
    on_progress: Callable[[str, int, int], bool] | None = None,
) -> bytes:
    """Build a plan from an ONNX model without loading it; parameters as `Engine.build`.

    TensorRT for RTX builds without a GPU: where ``tensorrt="tensorrt_rtx"`` or
    ``config.compute_capabilities`` ask for it, no device is opened and ``device`` is not looked at.
    """
    data, path = read_model(model)
    config = config or BuildConfig()
    if profiles:
        if config.profiles:
            raise InputError("profiles were given twice: in the config and as an argument")
        config = replace(config, profiles=tuple(profiles))
    offline = offline_flavour(tensorrt, bool(config.compute_capabilities))
    if offline is not None:
        return load_tensorrt(offline).build(data, path, config, on_progress)
    with ExitStack() as stack:
        opened, _ = borrow_or_open(device, stack)
        library = opened.platform.tensorrt(tensorrt)
        with opened._record as primary, primary.current():
            return library.build(data, path, config, on_progress)


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
