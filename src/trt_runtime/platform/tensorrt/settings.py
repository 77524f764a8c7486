"""How each option of a `BuildConfig` is told to TensorRT, and which releases lack it.

`refuse` raises before a build begins for what that release or flavour cannot do; `apply`,
`apply_to_layers` and `apply_to_tensors` tell the rest to the builder configuration and the
network. Between them no option is dropped: ``tests/build/test_settings.py`` goes through every
field and every release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...build.precision import matching
from ...errors import BuildError, InputError, UnsupportedError
from ...tensor import DTYPES

if TYPE_CHECKING:
    from ...build.config import BuildConfig
    from . import TensorRT
    from .flavours import Flavour

#: ``DataType`` names by NumPy's.
_DATA_TYPES = {dtype.name: name for name, dtype in DTYPES.items()}


def is_typed(flavour: Flavour, config: BuildConfig) -> bool:
    """Whether the network takes every type from the model."""
    return flavour.typed_only or config.precision == "as-typed"


@dataclass(frozen=True)
class _Lack:
    """An option, where it is missing, and what to do there instead."""

    option: str
    asked: Callable[[BuildConfig], bool]
    missing: Callable[[Flavour], bool]
    instead: str


def _release_8(flavour: Flavour) -> bool:
    return flavour.generation == 8


_LACKS = (
    _Lack(
        "precision='as-typed'",
        lambda config: config.precision == "as-typed",
        _release_8,
        "it has no strongly typed networks; use 'fp32', 'tf32' or 'fp16', or TensorRT 10 or later",
    ),
    _Lack(
        "precision='bf16'",
        lambda config: config.precision == "bf16",
        _release_8,
        "it has no bfloat16; use 'fp16', or TensorRT 10 or later",
    ),
    _Lack(
        "precision='fp8'",
        lambda config: config.precision == "fp8",
        _release_8,
        "its float8 is a name only; use 'int8', or TensorRT 10 or later",
    ),
    _Lack(
        "strip_weights=True",
        lambda config: config.strip_weights,
        _release_8,
        "use refittable=True, whose plan keeps its weights, or TensorRT 10 or later",
    ),
    _Lack(
        "weight_streaming=True",
        lambda config: config.weight_streaming,
        _release_8,
        "use TensorRT 10 or later",
    ),
    _Lack(
        "hardware_compatible='same-compute-capability'",
        lambda config: config.hardware_compatible == "same-compute-capability",
        _release_8,
        "use 'ampere+', or TensorRT 10 or later",
    ),
    _Lack(
        "hardware_compatible",
        lambda config: config.hardware_compatible is not None,
        lambda flavour: not flavour.hardware_compatibility,
        "name the GPUs' compute_capabilities instead",
    ),
    _Lack(
        "compute_capabilities",
        lambda config: bool(config.compute_capabilities),
        lambda flavour: not flavour.compute_capabilities,
        "it builds for the GPU at hand; use hardware_compatible, or TensorRT for RTX",
    ),
    _Lack(
        "timing_cache",
        lambda config: config.timing_cache is not None,
        lambda flavour: not flavour.timing_cache,
        "it times nothing while it builds; leave the option out",
    ),
    _Lack(
        "dla_core",
        lambda config: config.dla_core is not None,
        lambda flavour: not flavour.dla,
        "it knows no DLA; leave the option out, or build with the full TensorRT",
    ),
)


def refuse(
    library: TensorRT, config: BuildConfig, quantised: Iterable[str] = (), calibrated: bool = False
) -> None:
    """Raise for what this TensorRT cannot do, naming it and what can be done instead.

    Parameters
    ----------
    quantised : iterable of str
        What the model's own quantisation nodes make, ``"int8"`` or ``"fp8"``.
    calibrated : bool
        Whether calibration data was given.

    Raises
    ------
    UnsupportedError
        This release or flavour lacks it.
    InputError
        The model or the calibration data does not go with the precision.
    """
    flavour, release = library.flavour, f"{library.name} {library.version}"
    for lack in _LACKS:
        if lack.asked(config) and lack.missing(flavour):
            raise UnsupportedError(f"{release} does not do {lack.option}: {lack.instead}")
    if config.weight_streaming and not is_typed(flavour, config):
        raise UnsupportedError(
            f"{release} streams the weights of strongly typed networks only: add "
            "precision='as-typed'"
        )
    module = library.module
    pools = _names(module.MemoryPoolType, flavour)
    _known(release, "memory pool", dict(config.memory_pools), pools)
    _known(release, "tactic source", config.tactic_sources or (), _names(module.TacticSource))
    _known(release, "tensor format", dict(config.io_formats).values(), _names(module.TensorFormat))
    there = {name for name, data_type in _DATA_TYPES.items() if hasattr(module.DataType, data_type)}
    _known(release, "dtype of inputs and outputs", dict(config.io_types).values(), there)
    if config.compute_capabilities:
        targets = _compute_capabilities(module)
        for text in config.compute_capabilities:
            if text not in targets:
                raise UnsupportedError(
                    f"{release} does not build for compute capability {text}; it knows "
                    f"{', '.join(targets)}"
                )
    _check_quantisation(release, flavour, config, frozenset(quantised), calibrated)


def _names(enum: Any, flavour: Flavour | None = None) -> list[str]:
    return [
        name.lower()
        for name in enum.__members__
        if name != "WORKSPACE" and (flavour is None or flavour.dla or not name.startswith("DLA"))
    ]


def _known(release: str, what: str, asked: Iterable[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in asked:
        if name not in known:
            raise UnsupportedError(f"{release} has no {what} {name!r}; it has {', '.join(known)}")


def _compute_capabilities(module: Any) -> dict[str, Any]:
    known = module.ComputeCapability
    return {
        f"{name[2:-1]}.{name[-1]}": getattr(known, name)
        for name in known.__members__
        if name.startswith("SM")
    }


def _check_quantisation(
    release: str, flavour: Flavour, config: BuildConfig, quantised: frozenset[str], calibrated: bool
) -> None:
    precision = config.precision
    if calibrated and flavour.typed_only:
        raise UnsupportedError(
            f"{release} does not calibrate: it quantises what the model says. Put QuantizeLinear "
            "and DequantizeLinear nodes into the model, as NVIDIA's Model Optimizer does, or build "
            "with TensorRT 8.6 or 10"
        )
    if calibrated and precision != "int8":
        raise InputError(f"calibration is for precision='int8', not for {precision!r}")
    if calibrated and quantised:
        raise InputError(
            "the model has quantisation nodes of its own, and TensorRT would ignore the "
            "calibration; leave one of them out"
        )
    if precision not in ("int8", "fp8") or precision in quantised or calibrated:
        return
    nodes = (
        f"precision={precision!r} needs a model with QuantizeLinear and DequantizeLinear nodes "
        f"of {'8-bit integers' if precision == 'int8' else 'float8'}, and this one has none"
    )
    if flavour.typed_only:
        raise UnsupportedError(
            f"{release} builds strongly typed networks only: {nodes}; make them with NVIDIA's "
            "Model Optimizer, or use 'fp16' or 'bf16'"
        )
    data = ", or calibration=... with example inputs" if precision == "int8" else ""
    raise InputError(f"{release}: {nodes}{data}")


def apply(library: TensorRT, settings: Any, config: BuildConfig) -> None:
    """Tell every option of ``config`` that is the builder configuration's to ``settings``."""
    module, flavour = library.module, library.flavour
    flags = module.BuilderFlag
    if not flavour.typed_only:
        _allow_precision(settings, flags, config)
    if config.precision == "fp32":
        settings.clear_flag(flags.TF32)
    if config.optimization_level is not None:
        settings.builder_optimization_level = config.optimization_level
    _limit_memory(library, settings, config)
    if config.tactic_sources is not None:
        chosen = [getattr(module.TacticSource, name.upper()) for name in config.tactic_sources]
        if not settings.set_tactic_sources(sum(1 << int(source) for source in chosen)):
            raise _refused(library, "tactic_sources", config.tactic_sources)
    if config.sparse_weights:
        settings.set_flag(flags.SPARSE_WEIGHTS)
    if config.version_compatible:
        settings.set_flag(flags.VERSION_COMPATIBLE)
        if not config.embed_lean_runtime:
            settings.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    levels = module.HardwareCompatibilityLevel
    if config.hardware_compatible == "ampere+":
        settings.hardware_compatibility_level = levels.AMPERE_PLUS
    elif config.hardware_compatible == "same-compute-capability":
        settings.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY
    if config.refittable:
        settings.set_flag(flags.REFIT)
    if config.strip_weights:
        settings.set_flag(flags.STRIP_PLAN)
    if config.weight_streaming:
        settings.set_flag(flags.WEIGHT_STREAMING)
    if config.max_aux_streams is not None:
        settings.max_aux_streams = config.max_aux_streams
    if config.dla_core is not None:
        settings.default_device_type = module.DeviceType.DLA
        settings.DLA_core = config.dla_core
        if config.gpu_fallback:
            settings.set_flag(flags.GPU_FALLBACK)
    verbosities = module.ProfilingVerbosity
    if config.verbosity == "detailed":
        settings.profiling_verbosity = verbosities.DETAILED
    elif config.verbosity == "none":
        settings.profiling_verbosity = verbosities.NONE
    if not flavour.shared_profiles:
        settings.set_preview_feature(module.PreviewFeature.PROFILE_SHARING_0806, True)
    if config.compute_capabilities:
        targets = _compute_capabilities(module)
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, text in enumerate(config.compute_capabilities):
            if not settings.set_compute_capability(targets[text], index):
                raise _refused(library, "compute capability", text)


def _allow_precision(settings: Any, flags: Any, config: BuildConfig) -> None:
    """What a weakly typed network may be computed in besides float32.

    Where int8 or float8 is allowed, float16 is too, for the layers that are not quantised.
    """
    if config.precision in ("fp16", "int8", "fp8"):
        settings.set_flag(flags.FP16)
    if config.precision == "bf16":
        settings.set_flag(flags.BF16)
    elif config.precision == "int8":
        settings.set_flag(flags.INT8)
    elif config.precision == "fp8":
        settings.set_flag(flags.FP8)


def _limit_memory(library: TensorRT, settings: Any, config: BuildConfig) -> None:
    pools = library.module.MemoryPoolType
    if config.workspace_bytes is not None:
        settings.set_memory_pool_limit(pools.WORKSPACE, config.workspace_bytes)
    for name, nbytes in dict(config.memory_pools).items():
        pool = getattr(pools, name.upper())
        settings.set_memory_pool_limit(pool, nbytes)
        if settings.get_memory_pool_limit(pool) != nbytes:  # it logs, and returns nothing
            raise _refused(library, f"memory_pools[{name!r}]", nbytes)


def _refused(library: TensorRT, option: str, value: object) -> BuildError:
    return BuildError(
        f"{library.name} {library.version} refused {option} = {value!r}",
        log_lines=library.log.take_errors(),
    )


def apply_to_layers(
    library: TensorRT, settings: Any, config: BuildConfig, layers: Iterable[Any]
) -> None:
    """Keep in float32 what ``config`` says; a layer has its node's name.

    Those of a strongly typed network were kept in the model.
    """
    if not config.float32_layers or is_typed(library.flavour, config):
        return
    module, keeps = library.module, matching(config.float32_layers)
    wide = module.DataType.FLOAT
    for layer in layers:
        if not keeps(str(layer.name)):
            continue
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        # One that is optional may be None.
        from_wide, to_wide = (
            [n for n, tensor in enumerate(side) if tensor is not None and tensor.dtype == wide]
            for side in (inputs, outputs)
        )
        if from_wide or to_wide:  # and not shapes and indices alone, which have no other type
            layer.precision = wide
        for index in to_wide:
            layer.set_output_type(index, wide)
    settings.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def apply_to_tensors(
    library: TensorRT, config: BuildConfig, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> None:
    """Give inputs and outputs the types and layouts that ``config`` asks for.

    The types of a strongly typed network are the model's, and were changed there.

    Raises
    ------
    InputError
        A name is neither an input nor an output.
    """
    module = library.module
    tensors = {**inputs, **outputs}
    types, layouts = dict(config.io_types), dict(config.io_formats)
    for option, named in (("io_types", types), ("io_formats", layouts)):
        unknown = [name for name in named if name not in tensors]
        if unknown:
            raise InputError(
                f"{option} names {', '.join(map(repr, unknown))}, but the model's inputs and "
                f"outputs are {', '.join(map(repr, tensors))}"
            )
    if not is_typed(library.flavour, config):
        if config.reduced_io:
            small = "float16" if config.precision == "fp16" else "bfloat16"
            wide = [n for n, tensor in tensors.items() if tensor.dtype == module.DataType.FLOAT]
            types = {**dict.fromkeys(wide, small), **types}
        for name, dtype in types.items():
            tensor = tensors[name]
            tensor.dtype = getattr(module.DataType, _DATA_TYPES[dtype])
    for name, layout in layouts.items():
        tensor = tensors[name]
        tensor.allowed_formats = 1 << int(getattr(module.TensorFormat, layout.upper()))
