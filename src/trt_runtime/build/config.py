"""`BuildConfig` and `Profile`: everything that a user can say about a build."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from typing import Any, Literal, cast, get_args

from ..errors import InputError
from ..tensor import DTYPES, Range, Shape

Precision = Literal["tf32", "fp32", "fp16", "bf16", "int8", "fp8", "as-typed"]
HardwareCompatibility = Literal["ampere+", "same-compute-capability"]
Verbosity = Literal["names", "detailed", "none"]


class Profile(Mapping[str, Range]):
    """The shapes, or the values of shape tensors, that one optimisation profile allows.

    Parameters
    ----------
    ranges : mapping of str to (min, opt, max)
        For each dynamic input a triple of shapes; for a shape tensor a triple of values. A single
        shape stands for all three.

    Examples
    --------
    >>> Profile({"images": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))})["images"].max
    (32, 3, 224, 224)
    """

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Mapping[str, Sequence[Sequence[int]] | Sequence[int]]) -> None:
        self._ranges = {name: _range(name, value) for name, value in ranges.items()}

    def __getitem__(self, name: str) -> Range:
        return self._ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._ranges.items())))

    def __repr__(self) -> str:
        return f"Profile({self._ranges!r})"

    def to_json(self) -> dict[str, list[list[int]]]:
        """What `Profile` takes, of lists and in alphabetical order."""
        return {name: [list(shape) for shape in self[name]] for name in sorted(self)}


def _range(name: str, value: Sequence[Sequence[int]] | Sequence[int]) -> Range:
    try:
        if all(hasattr(n, "__index__") for n in value):
            shape: Shape = tuple(index(n) for n in cast(Sequence[int], value))
            triple = (shape, shape, shape)
        else:
            low, opt, high = (tuple(index(n) for n in shape) for shape in cast(Any, value))
            triple = (low, opt, high)
    except (TypeError, ValueError):
        raise InputError(
            f"profile of {name!r}: expected (min, opt, max), three shapes, or one shape; "
            f"came {value!r}"
        ) from None
    low, opt, high = triple
    if not len(low) == len(opt) == len(high):
        raise InputError(f"profile of {name!r}: min, opt and max differ in rank: {value!r}")
    if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise InputError(f"profile of {name!r}: needs min <= opt <= max everywhere, got {value!r}")
    return Range(low, opt, high)


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is built; the default suits most models.

    Mappings may be given as such and are kept as sorted pairs, so that a configuration is hashable
    and equal to any other that says the same. What the TensorRT at hand lacks is refused by name
    before the build begins (`UnsupportedError`), never dropped.

    Attributes
    ----------
    profiles : tuple of Profile
        Needed where the model has dynamic inputs or shape tensors.
    precision : "tf32", "fp32", "fp16", "bf16", "int8", "fp8" or "as-typed"
        What TensorRT may compute in. ``tf32``, its own default, rounds float32 products to ten
        mantissa bits on GPUs that can; ``fp32`` forbids that. ``fp16`` and ``bf16`` let a weakly
        typed release (8.6, 10) choose that type; for one that is strongly typed only (11, RTX) the
        model itself is converted. ``int8`` takes a model with QuantizeLinear nodes or, in 8.6 and
        10, calibration data, and allows float16 as well there; ``fp8`` takes a model with float8
        QuantizeLinear nodes. ``as-typed`` follows the model's types exactly.
    float32_layers : tuple of str
        Layers that compute in float32 whatever ``precision`` allows, by the model's node names:
        patterns of `fnmatch`, such as ``"decode/*"``. One that is no node's is refused.
    reduced_io : bool
        Let float32 inputs and outputs take the type that the model is converted to, or that a
        weakly typed build may compute in: float16 for ``fp16``, bfloat16 for ``bf16``.
    optimization_level : int or None
        0 (fast build) to 5 (fast engine); None is TensorRT's default.
    workspace_bytes : int or None
        Limit of scratch memory during the build and in the engine; None is TensorRT's default.
    memory_pools : mapping of str to int
        Limits in bytes of TensorRT's other memory pools, by ``MemoryPoolType`` name in lower case,
        such as ``"tactic_dram"``.
    timing_cache : path or None
        A file of kernel timings that is read before the build and added to after it. Several
        processes may share it.
    tactic_sources : tuple of str or None
        The only ``TacticSource`` names, in lower case, that kernels may come from; None is
        TensorRT's default.
    sparse_weights : bool
        Use kernels for structured sparsity where the weights have it.
    io_types : mapping of str to str
        The dtype of inputs and outputs that shall not have the model's, such as ``"float16"``.
    io_formats : mapping of str to str
        The memory layout of inputs and outputs that shall not be linear, by ``TensorFormat`` name
        in lower case, such as ``"hwc8"``.
    version_compatible : bool
        The plan runs under later TensorRT releases and the lean runtime. It then carries a lean
        runtime, which is host code, unless ``embed_lean_runtime`` is false.
    embed_lean_runtime : bool
    hardware_compatible : "ampere+", "same-compute-capability" or None
        The plan runs on other GPUs too: all from compute capability 8.0 on, or all of the same.
    refittable : bool
        The engine's weights can be replaced.
    strip_weights : bool
        Leave the weights out of the plan; they must be refitted before the engine is used.
    weight_streaming : bool
        Weights may stay in host memory and travel to the device while the engine runs.
    max_aux_streams : int or None
        How many streams besides the caller's the engine may use; None lets TensorRT choose.
    dla_core : int or None
        Run on this deep learning accelerator instead of the GPU.
    gpu_fallback : bool
        Let layers that the accelerator lacks run on the GPU.
    verbosity : "names", "detailed" or "none"
        What the engine tells an inspector of its layers.
    compute_capabilities : tuple of str
        For TensorRT for RTX: build for these, such as ``"8.6"``, instead of the present GPU.
    plugin_libraries : tuple of path
        Libraries of plugins, loaded before the model is parsed. Their code is run.
    """

    profiles: tuple[Profile, ...] = ()
    precision: Precision = "tf32"
    float32_layers: tuple[str, ...] = ()
    reduced_io: bool = False
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    memory_pools: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    timing_cache: str | os.PathLike[str] | None = None
    tactic_sources: tuple[str, ...] | None = None
    sparse_weights: bool = False
    io_types: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    io_formats: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    version_compatible: bool = False
    embed_lean_runtime: bool = True
    hardware_compatible: HardwareCompatibility | None = None
    refittable: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    max_aux_streams: int | None = None
    dla_core: int | None = None
    gpu_fallback: bool = False
    verbosity: Verbosity = "names"
    compute_capabilities: tuple[str, ...] = ()
    plugin_libraries: tuple[str | os.PathLike[str], ...] = ()

    def __post_init__(self) -> None:
        for name, chosen in (("precision", Precision), ("verbosity", Verbosity)):
            _one_of(name, getattr(self, name), get_args(chosen))
        _one_of(
            "hardware_compatible",
            self.hardware_compatible,
            (None, *get_args(HardwareCompatibility)),
        )
        for field in fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise InputError(
                    f"{field.name} must be True or False, not {getattr(self, field.name)!r}"
                )
        if self.optimization_level is not None and not (
            _is_int(self.optimization_level) and 0 <= self.optimization_level <= 5
        ):
            raise InputError(f"optimization_level must be 0 to 5, not {self.optimization_level!r}")
        if self.workspace_bytes is not None and not (
            _is_int(self.workspace_bytes) and self.workspace_bytes > 0
        ):
            raise InputError(
                f"workspace_bytes must be a positive int, not {self.workspace_bytes!r}"
            )
        for name in ("max_aux_streams", "dla_core"):
            count = getattr(self, name)
            if count is not None and not (_is_int(count) and count >= 0):
                raise InputError(f"{name} must be an int from 0, not {count!r}")
        self._keep("profiles", _several("profiles", self.profiles, Profile, "Profile objects"))
        self._keep(
            "compute_capabilities",
            _several("compute_capabilities", self.compute_capabilities, str, 'texts like "8.6"'),
        )
        layers = _several("float32_layers", self.float32_layers, str, 'texts like "decode/*"')
        self._keep("float32_layers", tuple(sorted(set(layers))))
        if self.tactic_sources is not None:
            sources = _several("tactic_sources", self.tactic_sources, str, 'texts like "cudnn"')
            self._keep("tactic_sources", tuple(sorted({source.lower() for source in sources})))
        libraries = _several("plugin_libraries", self.plugin_libraries, (str, os.PathLike), "paths")
        self._keep("plugin_libraries", tuple(os.fspath(path) for path in libraries))
        if self.timing_cache is not None:
            if not isinstance(self.timing_cache, (str, os.PathLike)):
                raise InputError(f"timing_cache must be a path, not {self.timing_cache!r}")
            self._keep("timing_cache", os.fspath(self.timing_cache))
        self._check_mappings()
        self._check_together()

    def _check_mappings(self) -> None:
        pools = _pairs("memory_pools", self.memory_pools, "bytes")
        for name, size in pools:
            if name.lower() == "workspace":
                raise InputError("memory_pools: the workspace is limited by workspace_bytes")
            if not (_is_int(size) and size >= 0):
                raise InputError(f"memory_pools[{name!r}] must be bytes, an int, not {size!r}")
        self._keep("memory_pools", tuple((name.lower(), size) for name, size in pools))
        types = _pairs("io_types", self.io_types, "a dtype's name")
        for name, dtype in types:
            if dtype not in DTYPE_NAMES:
                raise InputError(
                    f"io_types[{name!r}] must be one of {', '.join(DTYPE_NAMES)}, not {dtype!r}"
                )
        self._keep("io_types", types)
        formats = _pairs("io_formats", self.io_formats, "a layout's name")
        for name, layout in formats:
            if not isinstance(layout, str):
                raise InputError(f'io_formats[{name!r}] must be a text like "hwc8", not {layout!r}')
        self._keep("io_formats", tuple((name, layout.lower()) for name, layout in formats))

    def _check_together(self) -> None:
        """Options that mean nothing without another would be dropped silently."""
        if not self.embed_lean_runtime and not self.version_compatible:
            raise InputError(
                "embed_lean_runtime=False says what a version-compatible plan carries; add "
                "version_compatible=True or leave it out"
            )
        if self.float32_layers and self.precision == "as-typed":
            raise InputError(
                "precision='as-typed' follows the model's types: make the layers float32 there, "
                "and leave float32_layers out"
            )
        if self.gpu_fallback and self.dla_core is None:
            raise InputError("gpu_fallback=True is for DLA: add dla_core=0 or leave it out")
        if self.reduced_io and self.precision not in ("fp16", "bf16"):
            raise InputError(
                "reduced_io=True gives inputs and outputs the type of precision='fp16' or 'bf16', "
                f"not of {self.precision!r}; use io_types to choose one by one"
            )

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON can hold it; `from_json` takes it back."""
        told: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "profiles":
                value = [profile.to_json() for profile in value]
            elif field.name in _MAPPINGS:
                value = dict(value)
            elif isinstance(value, tuple):
                value = list(value)
            told[field.name] = value
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> BuildConfig:
        """The configuration that `to_json` told; fields that are left out have their default.

        Raises
        ------
        InputError
            A key is no field, or a value does not fit.
        """
        if not isinstance(told, Mapping):
            raise InputError(f"a build configuration is a mapping, not {type(told).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [name for name in told if name not in known]
        if unknown:
            raise InputError(
                f"a build configuration has no {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(known)}"
            )
        given = dict(told)
        given["profiles"] = tuple(Profile(profile) for profile in told.get("profiles", ()))
        return cls(**given)


#: NumPy's names of the types that a tensor can have.
DTYPE_NAMES = tuple(dtype.name for dtype in DTYPES.values())

_MAPPINGS = ("memory_pools", "io_types", "io_formats")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, given: Any, known: Sequence[Any]) -> None:
    if given not in known:
        names = ", ".join(repr(value) for value in known)
        raise InputError(f"{name} {given!r} is not known; expected one of {names}")


def _several(name: str, given: Any, kind: type | tuple[type, ...], what: str) -> tuple[Any, ...]:
    """``given`` as a tuple; one object alone is iterable too, and would be taken apart."""
    if (
        isinstance(given, kind)
        or not isinstance(given, Sequence)
        or not all(isinstance(item, kind) for item in given)
    ):
        raise InputError(f"{name} must be a sequence of {what}, not {given!r}")
    return tuple(given)


def _pairs(name: str, given: Any, what: str) -> tuple[tuple[str, Any], ...]:
    """A mapping, or pairs of one, as sorted pairs."""
    try:
        pairs = dict(given)
    except (TypeError, ValueError):
        pairs = {None: None}
    if not all(isinstance(key, str) for key in pairs):
        raise InputError(f"{name} must be a mapping of name to {what}, not {given!r}")
    return tuple(sorted(pairs.items()))
