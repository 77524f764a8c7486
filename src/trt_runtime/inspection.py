"""What an engine says of itself: `EngineReport`, its layers and its memory; and `PlanValidity`.

Reads what TensorRT's inspector writes, whose JSON differs between releases and between the
verbosities an engine was built with, and is not always JSON. Asking TensorRT is the business of
`platform.tensorrt.inspector`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .tensor import Range, TensorSpec, format_bytes

if TYPE_CHECKING:
    from .platform.tensorrt.inspector import EngineFacts


class PlanValidity(NamedTuple):
    """Whether a plan can be used; see `Engine.check`.

    Attributes
    ----------
    verdict : "valid", "suboptimal" or "invalid"
        ``suboptimal``: it runs, and was built for something else.
    reasons : tuple of str
        Why it is not simply valid.
    """

    verdict: Literal["valid", "suboptimal", "invalid"]
    reasons: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.verdict != "invalid"

    def __str__(self) -> str:
        return ": ".join(part for part in (self.verdict, "; ".join(self.reasons)) if part)


@dataclass(frozen=True)
class LayerTensor:
    """An input or output of a layer.

    Attributes
    ----------
    name : str
    shape : tuple of int or None
        None where the inspector does not tell it.
    format : str
        TensorRT's description of type and memory layout; empty where it is not told.
    """

    name: str
    shape: tuple[int, ...] | None = None
    format: str = ""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: often several operators of the model in one kernel.

    All but the name is told of engines built with ``verbosity="detailed"`` only.

    Attributes
    ----------
    name : str
    type : str
    inputs, outputs : tuple of LayerTensor
    tactic : str
        The kernel that was chosen.
    origin : str
        The nodes of the ONNX model that it computes, as TensorRT writes them.
    raw : mapping
        Everything that TensorRT told of it.
    """

    name: str
    type: str = ""
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str = ""
    origin: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class EngineMemory:
    """What an engine needs, in bytes; None where it is not told.

    Attributes
    ----------
    plan : int or None
        The serialised engine as it was loaded.
    weights : int or None
        All weights, on the device and streamed.
    streamable_weights : int or None
        Those that can stay on the host; 0 unless the engine was built for weight streaming.
    streaming_budget : int or None
        What streamable weights may take of the device's memory.
    scratch : int or None
        What each execution context needs, for any profile.
    scratch_by_profile : tuple of int or None
    """

    plan: int | None = None
    weights: int | None = None
    streamable_weights: int | None = None
    streaming_budget: int | None = None
    scratch: int | None = None
    scratch_by_profile: tuple[int, ...] | None = None


@dataclass(frozen=True)
class EngineReport:
    """What `Engine.inspect` found out; printing it gives a page to read.

    Attributes
    ----------
    name : str
    device : str
        Such as ``"cuda:0"``, with the device's name.
    tensorrt, tensorrt_version : str
        The TensorRT that runs the engine: its import name and release.
    built_by : str or None
        The release that built the plan, as its header says.
    tensors : tuple of TensorSpec
    profiles : tuple of mapping of str to Range
    memory : EngineMemory
    layer_count : int or None
    layers : tuple of Layer
        Empty where TensorRT does not tell; ``untold["layers"]`` then says why.
    verbosity : "names", "detailed", "none" or None
        What the engine was built to tell of its layers.
    aux_streams : int or None
        Streams that an inference uses besides the caller's.
    refittable : bool or None
    stripped : bool or None
        Whether the plan came without its weights.
    hardware_compatible : str or None
        "none", or the level that it was built for, as in `BuildConfig`.
    capability : str or None
    tactic_sources : tuple of str or None
    metadata : mapping
        `Engine.metadata`.
    warnings : tuple of str
        What TensorRT warned of when it loaded the plan.
    untold : mapping of str to str
        For each field that is None or empty, why; ``"memory.scratch"`` for one of a part.
    raw_layers : str or None
        The inspector's own text.
    """

    name: str
    device: str
    tensorrt: str
    tensorrt_version: str
    built_by: str | None
    tensors: tuple[TensorSpec, ...]
    profiles: tuple[Mapping[str, Range], ...]
    memory: EngineMemory
    layer_count: int | None
    layers: tuple[Layer, ...]
    verbosity: str | None
    aux_streams: int | None
    refittable: bool | None
    stripped: bool | None
    hardware_compatible: str | None
    capability: str | None
    tactic_sources: tuple[str, ...] | None
    metadata: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    untold: Mapping[str, str] = field(default_factory=dict)
    raw_layers: str | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the inspector's own text, as `json.dumps` takes it.

        Tensors have their dtype by NumPy's name; shapes are lists, with -1 for what can vary.
        """
        told: dict[str, Any] = {}
        for item in fields(self):
            if item.name != "raw_layers":
                told[item.name] = _plain(getattr(self, item.name))
        return told

    def __str__(self) -> str:
        built = f", built by {self.built_by}" if self.built_by else ""
        lines = [
            f"engine {self.name!r} on {self.device}",
            f"  {self.tensorrt} {self.tensorrt_version}{built}",
            *self._setting_lines(),
            *self._memory_lines(),
            *self._tensor_lines(),
            *self._layer_lines(),
            *(f"  warning: {line}" for line in self.warnings),
        ]
        reasons: dict[str, list[str]] = {}
        for name, why in self.untold.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"  not told: {', '.join(names)}: {why}" for why, names in reasons.items()]
        return "\n".join(lines)

    def _setting_lines(self) -> list[str]:
        settings = {
            "verbosity": self.verbosity,
            "refittable": _yes_or_no(self.refittable),
            "stripped": _yes_or_no(self.stripped),
            "hardware compatible": self.hardware_compatible,
            "capability": self.capability,
            "auxiliary streams": self.aux_streams,
            "tactic sources": None
            if self.tactic_sources is None
            else ", ".join(self.tactic_sources) or "none",
        }
        return [f"  {name}: {value}" for name, value in settings.items() if value is not None]

    def _memory_lines(self) -> list[str]:
        sizes = {
            item.name.replace("_", " "): getattr(self.memory, item.name)
            for item in fields(self.memory)
            if item.name != "scratch_by_profile"
        }
        told = [f"{name} {format_bytes(n)}" for name, n in sizes.items() if n is not None]
        return [f"  memory: {', '.join(told)}"] if told else []

    def _tensor_lines(self) -> list[str]:
        lines = [f"  {spec.mode} {spec}" for spec in self.tensors]
        for index, profile in enumerate(self.profiles):
            ranges = ", ".join(f"{name!r} {allowed}" for name, allowed in profile.items())
            lines.append(f"  profile {index}: {ranges}")
        return lines

    def _layer_lines(self) -> list[str]:
        if self.layer_count is None and not self.layers:
            return []
        lines = [f"  {len(self.layers) if self.layer_count is None else self.layer_count} layers"]
        for layer in self.layers:
            kind = f" ({layer.type})" if layer.type else ""
            tactic = f", {layer.tactic}" if layer.tactic else ""
            lines.append(f"    {layer.name}{kind}{tactic}")
        return lines


#: Where the report has what TensorRT told.
_PLACES = {
    "layer_count": "layer_count",
    "layers": "layers",
    "verbosity": "verbosity",
    "aux_streams": "aux_streams",
    "refittable": "refittable",
    "stripped_bytes": "stripped",
    "hardware_compatible": "hardware_compatible",
    "capability": "capability",
    "tactic_sources": "tactic_sources",
    "scratch_bytes": "memory.scratch",
    "scratch_bytes_by_profile": "memory.scratch_by_profile",
    "weights_bytes": "memory.weights",
    "streamable_bytes": "memory.streamable_weights",
    "streaming_budget": "memory.streaming_budget",
}


def make_report(
    facts: EngineFacts,
    *,
    name: str,
    device: str,
    tensors: tuple[TensorSpec, ...],
    profiles: tuple[Mapping[str, Range], ...],
    metadata: Mapping[str, Any],
    warnings: tuple[str, ...],
) -> EngineReport:
    """The report of what an engine and its plan told."""
    untold = {
        place: facts.untold.get("", "") or facts.untold.get(fact, "")
        for fact, place in _PLACES.items()
        if getattr(facts, fact) is None
    }
    if metadata["built_by"] is None:
        untold["built_by"] = "the plan's header does not tell it"
    layers: tuple[Layer, ...] = ()
    if facts.layers is not None:
        layers, why = parse_layers(facts.layers)
        if why:
            untold["layers"] = why
    return EngineReport(
        name=name,
        device=device,
        tensorrt=metadata["tensorrt"],
        tensorrt_version=metadata["tensorrt_version"],
        built_by=metadata["built_by"],
        tensors=tensors,
        profiles=profiles,
        memory=EngineMemory(
            plan=metadata["plan_bytes"],
            weights=facts.weights_bytes,
            streamable_weights=facts.streamable_bytes,
            streaming_budget=facts.streaming_budget,
            scratch=facts.scratch_bytes,
            scratch_by_profile=facts.scratch_bytes_by_profile,
        ),
        layer_count=facts.layer_count,
        layers=layers,
        verbosity=facts.verbosity,
        aux_streams=facts.aux_streams,
        refittable=facts.refittable,
        stripped=None if facts.stripped_bytes is None else facts.stripped_bytes > 0,
        hardware_compatible=facts.hardware_compatible,
        capability=facts.capability,
        tactic_sources=facts.tactic_sources,
        metadata=metadata,
        warnings=warnings,
        untold=untold,
        raw_layers=facts.layers,
    )


def parse_layers(text: str) -> tuple[tuple[Layer, ...], str]:
    """The layers that an inspector's JSON tells, and why there are none if there are none.

    ``{"Layers": [...], "Bindings": [...]}``: with names only, a layer is a string; in detail it is
    an object. Whatever does not look like that is left out, never refused.
    """
    try:
        # Not strict: 8.6 puts raw control characters between the names in its metadata.
        told = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        return (), f"the inspector's text is no JSON: {error}"
    listed = told.get("Layers") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        return (), "the inspector's JSON has no list of layers"
    layers = [layer for layer in map(_layer, listed) if layer is not None]
    return tuple(layers), "" if layers else "the inspector tells none"


def _layer(told: Any) -> Layer | None:
    if isinstance(told, str):
        return Layer(told)
    if not isinstance(told, dict):
        return None
    return Layer(
        name=_text(told, "Name"),
        type=_text(told, "LayerType"),
        inputs=_tensors(told.get("Inputs")),
        outputs=_tensors(told.get("Outputs")),
        tactic=_text(told, "TacticName"),
        origin=_text(told, "Metadata"),
        raw=told,
    )


def _tensors(told: Any) -> tuple[LayerTensor, ...]:
    if not isinstance(told, list):
        return ()
    tensors = []
    for tensor in told:
        if isinstance(tensor, str):
            tensors.append(LayerTensor(tensor))
        elif isinstance(tensor, dict):
            dims = tensor.get("Dimensions")
            whole = isinstance(dims, list) and all(type(n) is int for n in dims)
            shape = tuple(dims) if isinstance(dims, list) and whole else None
            tensors.append(
                LayerTensor(_text(tensor, "Name"), shape, _text(tensor, "Format/Datatype"))
            )
    return tuple(tensors)


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    return value if isinstance(value, str) else ""


def _yes_or_no(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, TensorSpec):
        return {
            "name": value.name,
            "mode": value.mode,
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "location": value.location,
            "layout": value.layout or "linear",
        }
    if isinstance(value, Range):
        return {"min": list(value.min), "opt": list(value.opt), "max": list(value.max)}
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
