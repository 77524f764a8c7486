"""Engines and execution contexts of TensorRT: `PlanEngine` and `PlanContext`.

Each wraps TensorRT's object, checks what every call returns, and raises with the log lines that
explain a failure. They own nothing but that object; who releases them, and when, is the business
of `trt_runtime.engine` and `trt_runtime.context`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ...errors import (
    CorruptPlanError,
    EngineError,
    ModelError,
    NotAPlanError,
    OutOfMemoryError,
    PlanDeviceError,
    PlanError,
    PlanVersionError,
    RefitError,
    ShapeError,
    UnsupportedError,
    UntrustedPlanError,
)
from ...tensor import Range, Shape, TensorSpec, format_shape, numpy_dtype
from .inspector import EngineFacts, engine_facts, stripped_bytes
from .refit import Arrays, Refit

if TYPE_CHECKING:
    from . import TensorRT

#: What plans begin with: built by TensorRT, by TensorRT for RTX, version compatible, by the host.
PLAN_MAGIC = (b"ftrt", b"ptrt", b"rtrt", b"vtrt", b"TRTHOST\0")

_VERSIONED_MAGIC = (b"ftrt", b"vtrt")

# What TensorRT says when it refuses a plan, most telling first. The first three were read off
# releases 8.6.0, 10.16.1 and RTX 1.7.1; see tests/gpu and tests/platform.
_REFUSALS: tuple[tuple[tuple[str, ...], type[PlanError], str], ...] = (
    (
        ("host code", "host_code", "hostcode"),
        UntrustedPlanError,
        "the plan carries its own runtime, which is host code. If you trust where it came from, "
        "load it with trust_host_code=True",
    ),
    (
        ("incompatible device", "different compute capability", "compute capability"),
        PlanDeviceError,
        "the plan was built for another GPU; build it again on this one",
    ),
    (
        (
            "version tag does not match",
            "library version",
            "not compatible with this version",
            "incompatible serialization version",
            "lean runtime",
            "different version",
            "older tensorrt version",
        ),
        PlanVersionError,
        "the plan was built by another TensorRT; build it again with this one, or make it version "
        "compatible",
    ),
    (
        ("checksum", "truncated", "header.size == blobsize", "blobsize >", "minbuffersize"),
        CorruptPlanError,
        "the plan is truncated or damaged; copy or build it again",
    ),
)


Validity = Literal["valid", "suboptimal", "invalid"]

# TensorRT for RTX's ``EngineInvalidityDiagnostics``.
_DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by another release; build it again",
    "UNSUPPORTED_CC": "it was not built for this GPU's compute capability; build it again",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory; build it with weight_streaming=True",
    "MALFORMED_ENGINE": "it is damaged, or no plan",
    "CUDA_ERROR": "CUDA failed",
}

# Of the warning that TensorRT logs then.
_OTHER_GPU = "different models of devices"

#: Where 32 bits end: what ``get_weight_streaming_automatic_budget`` returns from there on is wrong.
_LARGEST_AUTOMATIC_BUDGET = 1 << 31


def plan_version(plan: bytes | memoryview) -> tuple[int, int, int, int] | None:
    """The release that built a plan, read off its header; None if there is no such header.

    Bytes 24 to 27 after the magic (read off plans of TensorRT 8.6.0 and RTX 1.7.1).
    """
    head = bytes(plan[:28])
    if len(head) < 28 or not head.startswith(_VERSIONED_MAGIC):
        return None
    major, minor, patch, build = head[24:]
    return major, minor, patch, build


def plan_generation(plan: bytes | memoryview) -> int:
    """The `Flavour.generation` of the release that built a plan; the latest if it is not told."""
    version = plan_version(plan)
    if version is None or plan[:4] == b"vtrt":
        return 11
    return version[0] if version[0] in (8, 10) else 11


def _is_foreign(library: TensorRT, generation: int) -> bool:
    """Whether an engine is of 8.6 under a later release, which knows calls that 8.6 does not."""
    return generation < 10 <= library.flavour.generation


def _is_native(library: TensorRT, plan: bytes | memoryview) -> bool:
    """Whether a plan is of the release that runs it, which then knows all of the engine's calls.

    What an older release's engine is asked, it must have known: see `PlanEngine.generation`. Which
    call came with which minor release is not known here, so such engines are asked no more than is
    needed to run them.
    """
    version = plan_version(plan)
    if version is None:  # not understood: taken for the latest, as by `plan_generation`
        return True
    return version[:2] == tuple(int(part) for part in library.version.split(".")[:2])


def plan_validity(
    library: TensorRT, plan: bytes | memoryview
) -> tuple[Validity, tuple[str, ...]] | None:
    """What TensorRT for RTX says of a plan's header; None from releases without the question."""
    if not hasattr(library.module, "EngineValidity"):
        return None
    with library.log.capture() as lines:
        try:
            runtime = _make_runtime(library, lines)
            verdict, diagnostics = runtime.get_engine_validity(plan)
        except (TypeError, RuntimeError) as error:
            raise EngineError(
                f"TensorRT {library.version} could not judge the plan: {error}", log_lines=lines
            ) from None
        finally:
            runtime = None
    kinds = library.module.EngineInvalidityDiagnostics.__members__
    found = [str(name) for name, bit in kinds.items() if int(diagnostics) & int(bit)]
    reasons = tuple(_DIAGNOSTICS.get(name, name.lower()) for name in found)
    verdicts: dict[int, Validity] = {
        int(library.module.EngineValidity.VALID): "valid",
        int(library.module.EngineValidity.SUBOPTIMAL): "suboptimal",
    }
    return verdicts.get(int(verdict), "invalid"), reasons


def _make_runtime(library: TensorRT, lines: Sequence[str]) -> Any:
    """TensorRT's runtime, or `EngineError` if it logged in ``lines`` that there is none.

    Releases differ in what they return then. The lean and dispatch runtimes give an object without
    anything behind it (measured with 10.16.1 and 11.4.0), and to use it, or to release it, crashes
    the process. So it is never released.
    """
    runtime = library.module.Runtime(library.log.logger)
    if any("createInferRuntime" in line for line in lines):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
        raise EngineError(
            f"{library.name} {library.version} could not start CUDA. It may be for a later CUDA "
            "than the NVIDIA driver knows: compare them with trt-runtime doctor, and update the "
            "driver",
            log_lines=lines,
        )
    return runtime


class _Weights:
    """Whether an engine's weights can be used: shared by the engine and its contexts."""

    __slots__ = ("unusable",)

    def __init__(self) -> None:
        #: Why not; empty if they can.
        self.unusable = ""


_STRIPPED = (
    "the plan was built without its weights; give them to the engine before it is used: "
    "engine.refit('model.onnx')"
)
_HALF_REFITTED = (
    "a refit failed half way, and the engine's weights are neither the old nor the new ones; refit "
    "it again, or load the plan again"
)


class PlanEngine:
    """A deserialised engine and the runtime that made it.

    The device's context must be current for construction, `create_context`, `refit` and `release`.
    """

    __slots__ = (
        "_engine",
        "_foreign",
        "_library",
        "_loader",
        "_native",
        "_runtime",
        "_weights",
        "generation",
        "load_warnings",
    )

    def __init__(
        self,
        library: TensorRT,
        plan: bytes | memoryview,
        *,
        trust_host_code: bool,
        lean_library: str | None,
    ) -> None:
        self._library = library
        self._loader: Any = None  # of a lean runtime that was supplied: outlives what it loaded
        self._runtime: Any = None
        self._engine: Any = None
        #: Whose surface the engine has. An older release's version-compatible engine is run by that
        #: release's lean runtime, and a call that it does not know crashes the process (measured:
        #: ``device_memory_size_v2`` of an 8.6.0 engine under 10.16.1).
        self.generation = min(library.flavour.generation, plan_generation(plan))
        self._foreign = _is_foreign(library, self.generation)
        self._native = _is_native(library, plan)
        self._weights = _Weights()
        with library.log.capture() as lines:
            try:
                self._runtime = _make_runtime(library, lines)
                if lean_library is not None:
                    self._loader, self._runtime = self._runtime, None
                    self._runtime = self._loader.load_runtime(lean_library)
                    if self._runtime is None:
                        raise EngineError(
                            f"TensorRT could not load the lean runtime {lean_library}; expected a "
                            "libnvinfer_lean.so of the release that built the plan",
                            log_lines=lines,
                        )
                if trust_host_code:
                    self._runtime.engine_host_code_allowed = True
                self._engine = self._runtime.deserialize_cuda_engine(plan)
                #: What TensorRT warned of while it loaded the plan.
                self.load_warnings = tuple(lines)
                if self._engine is not None and self._is_stripped():
                    self._weights.unusable = _STRIPPED
            except (TypeError, RuntimeError) as error:
                self.release()
                raise EngineError(
                    f"TensorRT {library.version} could not make a runtime: {error}",
                    log_lines=lines,
                ) from error
            except BaseException:
                self.release()
                raise
        if self._engine is None:
            self.release()
            raise _refusal(library, plan, lines)

    def release(self) -> None:
        """Drop TensorRT's objects, the engine first."""
        self._engine = None
        self._runtime = None
        self._loader = None

    @property
    def other_gpu_warnings(self) -> tuple[str, ...]:
        """What TensorRT warned of when it loaded a plan that was built on another GPU."""
        return tuple(line for line in self.load_warnings if _OTHER_GPU in line.lower())

    @property
    def why_closed_to_questions(self) -> str:
        """Why this engine is asked nothing that is not needed to run it; empty if it is."""
        if self._native:
            return ""
        return (
            f"the plan is of another release than {self._library.name} {self._library.version}, "
            "and a question that its own did not know crashes the process"
        )

    @property
    def refittable(self) -> bool:
        return self._native and bool(self._engine.refittable)

    @property
    def contexts_survive_refit(self) -> bool:
        """TensorRT 8 demands new contexts after a refit (NvInferRuntime.h, ``refitCudaEngine``)."""
        return self.generation >= 10

    def _is_stripped(self) -> bool:
        if self.generation < 10 or not self.refittable:
            return False
        return stripped_bytes(self) > 0

    def refit(self, model: bytes, path: str | None, weights_of: Callable[[], Arrays]) -> None:
        """Replace the weights by those of a model; nothing may be using the engine.

        Raises
        ------
        UnsupportedError
            The engine is of another release.
        RefitError
            The engine is not refittable, or the weights do not fit; nothing was changed.
        EngineError
            TensorRT failed half way. The engine refuses to run until a refit succeeds.
        """
        if not self._native:
            raise UnsupportedError(
                "this engine cannot be refitted here: " + self.why_closed_to_questions
            )
        if not self._engine.refittable:
            raise RefitError(
                "the engine cannot be refitted; build it with BuildConfig(refittable=True)"
            )
        before, self._weights.unusable = self._weights.unusable, _HALF_REFITTED
        try:
            with self._library.log.capture() as lines:
                Refit(self, lines).run(model, path, weights_of)
        except (RefitError, ModelError):  # raised before anything was changed
            self._weights.unusable = before
            raise
        self._weights.unusable = ""

    def facts(self) -> EngineFacts:
        """What the engine tells of itself; nothing if it is of another release."""
        if not self._native:
            return EngineFacts(untold={"": self.why_closed_to_questions})
        facts = engine_facts(self)
        streams = self.generation >= 10
        return replace(
            facts,
            scratch_bytes=self.scratch_bytes,
            streamable_bytes=self.streamable_bytes if streams else None,
            streaming_budget=self.streaming_budget if streams else None,
        )

    # Weight streaming -----------------------------------------------------------------------

    @property
    def streamable_bytes(self) -> int:
        self._require_streaming()
        return int(self._engine.streamable_weights_size)

    @property
    def streaming_budget(self) -> int:
        self._require_streaming()
        return int(self._engine.weight_streaming_budget_v2)

    def automatic_streaming_budget(self) -> int:
        """The budget that TensorRT would choose for the memory that is free now.

        Raises
        ------
        UnsupportedError
            It could be 2 GiB or more, which the bindings return wrapped round to 32 bits.
        """
        streamable = self.streamable_bytes
        if streamable >= _LARGEST_AUTOMATIC_BUDGET:
            raise UnsupportedError(
                f"TensorRT's Python cannot tell an automatic budget of 2 GiB or more, and the "
                f"engine has {streamable} bytes of streamable weights; set weight_streaming_budget "
                "to what Device.memory_info() leaves you"
            )
        return int(self._engine.get_weight_streaming_automatic_budget())

    def set_streaming_budget(self, nbytes: int) -> None:
        """No context of the engine may exist."""
        self._require_streaming()
        with self._library.log.capture() as lines:
            try:
                self._engine.weight_streaming_budget_v2 = nbytes
            except RuntimeError:
                raise EngineError(
                    f"TensorRT refused a weight streaming budget of {nbytes} bytes", log_lines=lines
                ) from None

    def _require_streaming(self) -> None:
        if not self._native:
            raise UnsupportedError(
                "weight streaming cannot be controlled: " + self.why_closed_to_questions
            )
        if self.generation < 10:
            raise UnsupportedError(
                f"{self._library.name} {self._library.version} has no weight streaming; use "
                "TensorRT 10 or later, or TensorRT for RTX"
            )

    @property
    def scratch_bytes(self) -> int:
        """Device memory that one context must be given, for any profile.

        0 where TensorRT has to allocate it: what an 8.6 engine needs can be neither asked nor
        given through the calls that a later release's runtime has left.
        """
        if self._foreign:
            return 0
        if self.generation >= 10:
            return int(self._engine.device_memory_size_v2)
        return int(self._engine.device_memory_size)

    @property
    def profile_count(self) -> int:
        return int(self._engine.num_optimization_profiles)

    def serialize(self) -> bytes:
        with self._library.log.capture() as lines:
            if self.generation >= 10 and self.refittable:
                memory = self._serialize_refittable()
            else:
                memory = self._engine.serialize()
        if memory is None:
            raise EngineError(
                "TensorRT could not serialise the engine. One that was loaded from a version-"
                "compatible plan it never can: copy that file instead",
                log_lines=lines,
            )
        return bytes(memory)

    def _serialize_refittable(self) -> Any:
        """With the weights that it has now, if it has any, and so that it stays refittable.

        Both are flags from TensorRT 10 on, so neither is left to a release's default.
        """
        flags = self._library.module.SerializationFlag
        config = self._engine.create_serialization_config()
        if self._weights.unusable != _STRIPPED:
            config.clear_flag(flags.EXCLUDE_WEIGHTS)
        if hasattr(flags, "INCLUDE_REFIT"):  # not in the first releases of 10
            config.set_flag(flags.INCLUDE_REFIT)
        return self._engine.serialize_with_config(config)

    def describe(self) -> tuple[TensorSpec, ...]:
        """Every input and output, in the engine's order."""
        names = [str(self._engine.get_tensor_name(i)) for i in range(self._engine.num_io_tensors)]
        return tuple(self._describe(name) for name in names)

    def _describe(self, name: str) -> TensorSpec:
        module = self._library.module
        is_input = self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        on_host = self._engine.get_tensor_location(name) == module.TensorLocation.HOST
        layout = str(self._engine.get_tensor_format_desc(name))
        return TensorSpec(
            name=name,
            dtype=numpy_dtype(self._engine.get_tensor_dtype(name).name, name),
            shape=self._shape(name),
            mode="input" if is_input else "output",
            location="host" if on_host else "device",
            profiles=tuple(self._ranges(name)) if is_input else (),
            values=tuple(self._values(name)) if is_input and on_host else (),
            layout="" if "LINEAR" in layout.upper() else layout,
        )

    def _shape(self, name: str) -> Shape:
        dims = self._engine.get_tensor_shape(name)
        try:
            return tuple(int(dims[axis]) for axis in range(len(dims)))
        except ValueError:
            # 8.6.0 forgets the shape of a static input when an output's shape depends on the data
            # and no profile was given (measured; `builder` gives one).
            raise UnsupportedError(
                f"TensorRT {self._library.version} does not tell the shape of {name!r}. Build the "
                "engine again with an optimisation profile for it, even though its shape is fixed"
            ) from None

    def _ranges(self, name: str) -> list[Range]:
        ranges = []
        for index in range(self.profile_count):
            shapes = self._engine.get_tensor_profile_shape(name, index)
            if len(shapes) == 3:
                ranges.append(Range(*(tuple(int(n) for n in shape) for shape in shapes)))
        return ranges

    def _values(self, name: str) -> list[Range]:
        if self.generation < 10:
            # 8.6's bindings return as many values as the tensor has dimensions, not as it has
            # elements (measured), so that TensorRT alone can check the values.
            return []
        ranges = []
        for index in range(self.profile_count):
            # The bindings name these arguments the other way round; by position is right.
            values = self._engine.get_tensor_profile_values(index, name)
            if len(values) == 3:
                ranges.append(Range(*(tuple(int(n) for n in value) for value in values)))
        return ranges

    def create_context(self) -> PlanContext:
        """A context; one with `scratch_bytes` must be given them by `PlanContext.set_scratch`."""
        if self._weights.unusable:
            raise EngineError(self._weights.unusable)
        with self._library.log.capture() as lines:
            if self._foreign:
                made = self._engine.create_execution_context()
            elif self.generation >= 10:
                strategies = self._library.module.ExecutionContextAllocationStrategy
                made = self._engine.create_execution_context(strategies.USER_MANAGED)
            else:
                made = self._engine.create_execution_context_without_device_memory()
            context = PlanContext(self._library, self.generation, made, self._weights)
            del made
        if not context:
            raise EngineError("TensorRT could not create an execution context", log_lines=lines)
        return context


class PlanContext:
    """An execution context of TensorRT. The device's context must be current for every call."""

    __slots__ = (
        "_allocated",
        "_allocator",
        "_context",
        "_generation",
        "_library",
        "_profiler",
        "_weights",
    )

    def __init__(self, library: TensorRT, generation: int, context: Any, weights: _Weights) -> None:
        self._library = library
        self._weights = weights
        self._generation = generation
        self._context = context
        self._allocator: Any = None
        self._allocated: frozenset[str] = frozenset()
        self._profiler: Any = None

    def __bool__(self) -> bool:
        return self._context is not None

    def release(self) -> None:
        """Drop TensorRT's object, then what it pointed to."""
        self._context = None
        self._allocator = None
        self._profiler = None

    @property
    def profile(self) -> int:
        return int(self._context.active_optimization_profile)

    def set_name(self, name: str) -> None:
        """TensorRT keeps a reference to each name it is ever given: set it once."""
        self._context.name = name

    def set_scratch(self, address: int, nbytes: int) -> None:
        if self._generation >= 10:
            self._context.set_device_memory(address, nbytes)
        else:
            self._context.device_memory = address

    def set_profile(self, index: int, stream: int) -> None:
        with self._library.log.capture() as lines:
            try:
                done = self._context.set_optimization_profile_async(index, stream)
            except RuntimeError:
                done = False
        if not done:
            hint = (
                ""
                if self._library.flavour.shared_profiles
                else "; in TensorRT 8 a profile serves one context at a time unless the engine was "
                "built with profile sharing"
            )
            raise EngineError(
                f"TensorRT could not switch to optimisation profile {index}{hint}", log_lines=lines
            )

    def set_input_shape(self, name: str, shape: Shape) -> None:
        with self._library.log.capture() as lines:
            done = self._context.set_input_shape(name, shape)
        if not done:
            raise ShapeError(
                f"TensorRT refused shape {format_shape(shape)} for input {name!r}",
                log_lines=lines,
            )

    def set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(
                f"TensorRT refused address {hex(address)} for tensor {name!r}",
                log_lines=self._library.log.take_errors(),
            )

    def infer_shapes(self) -> None:
        """Let TensorRT work out the output shapes; inputs and shape values must be set."""
        with self._library.log.capture() as lines:
            try:
                missing = self._context.infer_shapes()
            except RuntimeError as error:
                raise EngineError(
                    f"TensorRT could not infer the output shapes: {error}", log_lines=lines
                ) from error
        if missing:
            raise EngineError(
                f"TensorRT still misses the shape or values of {', '.join(map(repr, missing))}",
                log_lines=lines,
            )

    def shape(self, name: str) -> Shape:
        """The tensor's shape now; -1 where it depends on the data."""
        return tuple(int(n) for n in self._context.get_tensor_shape(name))

    def set_output_allocator(
        self,
        names: Sequence[str],
        allocate: Callable[[str, int], int],
        notify: Callable[[str, Shape], None],
    ) -> None:
        """Have outputs of data-dependent shape allocated by ``allocate(name, nbytes)``.

        Succeeds once in a context's life: TensorRT's bindings keep a reference per call. Neither
        callback may raise, since TensorRT would lose the exception.

        Raises
        ------
        UnsupportedError
            An 8.6 engine runs under a later release, whose allocators it cannot call: their class
            has another layout, and the call crashes the process (measured: 10.16.1).
        """
        if _is_foreign(self._library, self._generation):
            raise UnsupportedError(
                f"the shape of output {', '.join(map(repr, names))} depends on the data, and an "
                f"engine built by TensorRT 8 cannot tell it to TensorRT {self._library.version}; "
                "run it with TensorRT 8.6, or build it with TensorRT 10 or later"
            )
        base = self._library.module.IOutputAllocator

        class OutputAllocator(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def reallocate_output(
                self, tensor_name: str, memory: Any, size: int, alignment: int
            ) -> int:
                return allocate(tensor_name, int(size))

            def reallocate_output_async(
                self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any
            ) -> int:
                return allocate(tensor_name, int(size))

            def notify_shape(self, tensor_name: str, shape: Any) -> None:
                notify(tensor_name, tuple(int(n) for n in shape))

        self._allocator = self._allocator or OutputAllocator()
        for name in names:
            if not self._context.set_output_allocator(name, self._allocator):
                raise EngineError(
                    f"TensorRT refused an output allocator for {name!r}",
                    log_lines=self._library.log.take_errors(),
                )
        self._allocated = frozenset(names)  # not before: what was refused is tried again

    @property
    def allocated_outputs(self) -> frozenset[str]:
        """The outputs that an allocator serves; empty while there is none."""
        return self._allocated

    @property
    def has_profiler(self) -> bool:
        return self._profiler is not None

    def set_profiler(self, report: Callable[[str, float], None]) -> None:
        """Report each layer's milliseconds after every enqueue; once in a context's life."""
        base = self._library.module.IProfiler

        class Profiler(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(str(layer_name), float(ms))

        self._profiler = Profiler()
        self._context.profiler = self._profiler

    def enqueue(self, stream: int) -> None:
        if self._weights.unusable:
            raise EngineError(self._weights.unusable)
        if not self._context.execute_async_v3(stream):
            lines = self._library.log.take_errors()
            if any("out of memory" in line.lower() for line in lines):
                raise OutOfMemoryError(2, "CUDA_ERROR_OUT_OF_MEMORY", "enqueueV3", lines[-1])
            raise EngineError("TensorRT could not enqueue the inference", log_lines=lines)


def _refusal(library: TensorRT, plan: bytes | memoryview, lines: Sequence[str]) -> PlanError:
    """Why a plan was refused, as far as its first bytes and TensorRT's log tell."""
    head = bytes(plan[:16])
    version = plan_version(plan)
    built_by = f" built by release {'.'.join(map(str, version))}" if version is not None else ""
    told = f"{library.name} {library.version} refused the plan{built_by} ({len(plan)} bytes): "
    if not plan:
        return NotAPlanError(told + "it is empty", log_lines=lines)
    text = " ".join(lines).lower()
    looks_like_plan = head.startswith(PLAN_MAGIC)
    refused = next((why for why in _REFUSALS if any(phrase in text for phrase in why[0])), None)
    if not looks_like_plan and (
        refused is None or refused[1] is CorruptPlanError or "magic" in text
    ):
        return NotAPlanError(
            f"{told}it is not a plan; it begins with {head[:8]!r}. A plan is what Engine.save "
            "writes; an ONNX model goes through Engine.build or Session.",
            log_lines=lines,
        )
    if refused is not None:
        _, kind, advice = refused
        return kind(told + advice, log_lines=lines)
    if "magic" in text:
        return PlanVersionError(
            told + "it is of another TensorRT or TensorRT for RTX; build it again with this one",
            log_lines=lines,
        )
    if "cuda" in text.replace("deserializecudaengine", "").replace("catchcudaerror", ""):
        return PlanError(told + "CUDA failed; TensorRT's log says how", log_lines=lines)
    return CorruptPlanError(told + "it is probably damaged; build it again", log_lines=lines)
