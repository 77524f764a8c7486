"""What TensorRT tells of an engine besides its tensors: sizes, build settings and layers.

What a release lacks is None here. Nothing in here is for an engine of another release, which must
not be asked what its own did not know: see `runtime.PlanEngine.facts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import EngineError

if TYPE_CHECKING:
    from .runtime import PlanEngine

_VERBOSITIES = {"LAYER_NAMES_ONLY": "names", "DETAILED": "detailed", "NONE": "none"}
_LEVELS = {
    "NONE": "none",
    "AMPERE_PLUS": "ampere+",
    "SAME_COMPUTE_CAPABILITY": "same-compute-capability",
}
_CAPABILITIES = {"STANDARD": "standard", "SAFETY": "safety", "DLA_STANDALONE": "dla-standalone"}


@dataclass(frozen=True)
class EngineFacts:
    """What one engine told; None for what it does not, with the reason in ``untold``.

    Sizes are in bytes. ``layers`` is the inspector's JSON as text.
    """

    layer_count: int | None = None
    aux_streams: int | None = None
    refittable: bool | None = None
    verbosity: str | None = None
    hardware_compatible: str | None = None
    capability: str | None = None
    tactic_sources: tuple[str, ...] | None = None
    scratch_bytes: int | None = None
    scratch_bytes_by_profile: tuple[int, ...] | None = None
    weights_bytes: int | None = None
    stripped_bytes: int | None = None
    streamable_bytes: int | None = None
    streaming_budget: int | None = None
    layers: str | None = None
    untold: dict[str, str] = field(default_factory=dict)


def engine_facts(plan: PlanEngine) -> EngineFacts:
    """Ask an engine of the library's own release what the release knows.

    Its scratch memory and its weight streaming are `runtime.PlanEngine`'s to tell.
    """
    library = plan._library
    module = library.module
    told: dict[str, Any] = {
        "layer_count": int(plan._engine.num_layers),
        "aux_streams": int(plan._engine.num_aux_streams),
        "refittable": bool(plan._engine.refittable),
        "verbosity": _name(
            plan._engine.profiling_verbosity, module.ProfilingVerbosity, _VERBOSITIES
        ),
        "hardware_compatible": _name(
            plan._engine.hardware_compatibility_level, module.HardwareCompatibilityLevel, _LEVELS
        ),
        "capability": _name(plan._engine.engine_capability, module.EngineCapability, _CAPABILITIES),
        "tactic_sources": _sources(module, int(plan._engine.tactic_sources)),
    }
    untold: dict[str, str] = {}
    release = f"{library.name} {library.version}"
    if plan.generation >= 10:
        profiles = range(int(plan._engine.num_optimization_profiles))
        told["scratch_bytes_by_profile"] = tuple(
            int(plan._engine.get_device_memory_size_for_profile_v2(index)) for index in profiles
        )
        told |= _weights(plan, bool(told["refittable"]))
    else:
        for name in ("scratch_bytes_by_profile", "streamable_bytes", "streaming_budget"):
            untold[name] = f"{release} does not tell it; TensorRT 10 and later do"
    if told.get("weights_bytes") is None:
        untold["weights_bytes"] = f"{release} does not tell it"
    if told["verbosity"] == "none":
        untold["layers"] = "the engine was built to tell nothing of its layers"
    elif hasattr(module, "EngineInspector"):
        told["layers"], untold["layers"] = _layers(plan)
        if told["layers"] is not None:
            del untold["layers"]
    else:
        untold["layers"] = f"{release} has no inspector; full TensorRT and TensorRT for RTX have"
    return EngineFacts(**told, untold=untold)


def stripped_bytes(plan: PlanEngine) -> int:
    """Bytes of weights that were left out of the plan; 0 for an engine that has its own.

    The first releases of 10 do not tell, and none tells of an engine that cannot be refitted.
    """
    module = plan._library.module
    if not hasattr(module, "EngineStat"):
        return 0
    return max(0, int(plan._engine.get_engine_stat(module.EngineStat.STRIPPED_WEIGHTS_SIZE)))


def _weights(plan: PlanEngine, refittable: bool) -> dict[str, int]:
    module = plan._library.module
    if not hasattr(module, "EngineStat"):
        return {}
    total = int(plan._engine.get_engine_stat(module.EngineStat.TOTAL_WEIGHTS_SIZE))
    stripped = stripped_bytes(plan) if refittable else 0
    return {"weights_bytes": total, "stripped_bytes": stripped}


def _layers(plan: PlanEngine) -> tuple[str | None, str]:
    """The inspector's text, or why there is no inspector: an engine's own lean runtime has none."""
    library = plan._library
    inspector = None
    with library.log.capture() as lines:
        try:
            inspector = plan._engine.create_engine_inspector()
            if inspector is None:
                return None, "; ".join(["TensorRT gives no inspector for this engine", *lines])
            text = inspector.get_engine_information(library.module.LayerInformationFormat.JSON)
        finally:
            inspector = None  # before the engine, whatever happens
    if text is None:
        raise EngineError("TensorRT could not inspect the engine", log_lines=lines)
    return str(text), ""


def _name(value: Any, enum: Any, names: dict[str, str]) -> str:
    """Our name of an enum's value; by value, since 8.6 has several names for some."""
    for name, ours in names.items():
        if hasattr(enum, name) and int(getattr(enum, name)) == int(value):
            return ours
    return str(value)


def _sources(module: Any, bits: int) -> tuple[str, ...]:
    members = {str(name): int(value) for name, value in module.TacticSource.__members__.items()}
    return tuple(sorted(name.lower() for name, value in members.items() if bits >> value & 1))
