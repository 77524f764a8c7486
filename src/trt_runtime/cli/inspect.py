"""``trt-runtime inspect``: what an ONNX model, an engine or an entry of the engine cache is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trt_runtime import CacheEntry, Engine, InputError, NotAPlanError, TrtRuntimeError
from trt_runtime.cli import networks, output
from trt_runtime.cli import options as shared
from trt_runtime.cli.cache import ago, entry_json, find_entry
from trt_runtime.cli.grammar import format_dimensions
from trt_runtime.cli.onnx_file import OnnxReport, inspect_onnx
from trt_runtime.cli.output import readable_seconds, readable_size
from trt_runtime.inspection import EngineReport
from trt_runtime.platform.tensorrt.runtime import PLAN_MAGIC, plan_version

EXAMPLES = """\
Examples:

  trt-runtime inspect yolo.onnx

  trt-runtime inspect yolo.engine --layers

  trt-runtime inspect 3f9a0c  (an engine in the cache, by the beginning of its key)
"""

_HEADER_BYTES = 64
_HOST_MAGIC = b"TRTHOST\0"


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="An .onnx model, an engine file, the beginning of a key in the engine cache, or "
            "the name of a network that run knows.",
        ),
    ],
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="List the layers; of an engine built with --verbosity detailed, more."
        ),
    ] = False,
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    trust_host_code: shared.TrustHostCode = False,
    lean_library: shared.LeanLibrary = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Show what WHAT takes, gives, and is made of.

    An engine that cannot be loaded here still tells what is in its header.
    """
    path, entry = _find(what, cache_dir)
    if entry is None and not _is_plan(path):
        report = inspect_onnx(path)
        facts: dict[str, Any] = {"kind": "onnx", "path": str(path), **report.to_json()}
        if not json:
            _print_onnx(path, report, layers=layers)
    else:
        facts = {"kind": "engine" if entry is None else "cache entry", "path": str(path)}
        if entry is not None:
            facts["cache"] = entry_json(entry)
            if not json:
                _print_entry(entry)
        if entry is None or not entry.damage:
            told = _loaded(
                path,
                device,
                tensorrt=tensorrt,
                # What the cache wrote is this user's own, and trusted there as well.
                trust_host_code=trust_host_code or entry is not None,
                lean_library=lean_library,
            )
            loaded = told if isinstance(told, EngineReport) else None
            facts |= _header(path)
            facts["engine"] = loaded.to_json() if loaded is not None else None
            facts["not_loaded"] = told if isinstance(told, str) else None
            if not json:
                _print_engine(path, facts, told, layers=layers)
    if json:
        output.document(facts)


def _find(what: str, cache_dir: Path | None) -> tuple[Path, CacheEntry | None]:
    """The file that is meant, and the cache's entry if it is one."""
    if networks.find(what) is not None or Path(what).is_file():
        return networks.model_file(what), None
    cache = shared.cache_of(cache_dir)
    entry = find_entry(cache.entries(), what)
    if entry is None:
        raise InputError(
            f"{what} is no file, no network that comes with the onnx package, and no key in the "
            f"engine cache {cache.directory}. 'trt-runtime cache list' shows the keys."
        )
    return entry.path, entry


def _is_plan(path: Path) -> bool:
    """By its first bytes; an empty or foreign file is one if its name says so."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    return head.startswith(PLAN_MAGIC) or path.suffix.lower() in (".engine", ".plan", ".trt")


def _header(path: Path) -> dict[str, Any]:
    """What the file tells without TensorRT."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if not head.startswith(PLAN_MAGIC):
        raise NotAPlanError(f"{str(path)!r} is no TensorRT engine: it does not begin like one")
    version = plan_version(head)
    return {
        "bytes": path.stat().st_size,
        "for_the_host_device": head.startswith(_HOST_MAGIC),
        "built_by": ".".join(map(str, version)) if version is not None else None,
    }


def _loaded(path: Path, device: str | None, **settings: Any) -> EngineReport | str:
    """The engine's own report, or why it cannot be had."""
    if device in (None, "auto"):  # the other one could not load it
        with open(path, "rb") as file:
            device = "host" if file.read(_HEADER_BYTES).startswith(_HOST_MAGIC) else "cuda"
    try:
        with Engine.load(path, device=shared.device_of(device), **settings) as engine:
            return engine.inspect()
    except TrtRuntimeError as error:
        return error.message


def _print_entry(entry: CacheEntry) -> None:
    output.line(f"engine {entry.key[:16]} in the cache: {entry.path}")
    if entry.damage:
        output.line(f"damaged, and built again when it is asked for: {entry.damage}")
        return
    output.line(
        f"built from {entry.model or 'bytes'} in {readable_seconds(entry.build_seconds)}, "
        f"last used {ago(entry.last_used)}"
    )
    output.table(
        ("part", "value"),
        [(part, value) for part, value in entry.parts.items() if value not in (None, [], {}, "")],
    )


def _print_onnx(path: Path, report: OnnxReport, *, layers: bool) -> None:
    size = readable_size(path.stat().st_size)
    opsets = ", ".join(f"{domain} {version}" for domain, version in report.opsets.items())
    output.line(f"{path}, {size}")
    output.line(
        f"ONNX of IR version {report.ir_version}, opset {opsets}"
        + (f", made by {report.producer}" if report.producer else "")
    )
    output.table(
        ("tensor", "mode", "dtype", "shape"),
        [
            (tensor.name, mode, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar")
            for mode, tensors in (("input", report.inputs), ("output", report.outputs))
            for tensor in tensors
        ],
    )
    output.line(
        f"{report.nodes} nodes, {report.parameters:,} parameters in weights "
        f"({readable_size(report.parameter_bytes)})"
    )
    if report.external_files:
        output.line(
            f"external data: {readable_size(report.external_bytes)} in "
            f"{', '.join(report.external_files)}"
        )
    if report.problem:
        output.line(f"external data cannot be used: {report.problem}")
    if report.dynamic:
        axes = "; ".join(f"{n}, axis {', '.join(map(str, a))}" for n, a in report.dynamic.items())
        output.line(f"dynamic: {axes}; build with --shapes or --profile")
    shown = list(report.operators.items())
    rest = 0 if layers else len(shown) - 10
    if rest > 0:
        shown = shown[:10]
    output.table(("operator", "count"), shown)
    if rest > 0:
        output.line(f"and {rest} operators more; --layers lists all")


def _print_engine(
    path: Path, header: dict[str, Any], told: EngineReport | str, *, layers: bool
) -> None:
    kind = "engine of the host device" if header["for_the_host_device"] else "TensorRT engine"
    built = f", built by {header['built_by']}" if header["built_by"] else ""
    output.line(f"{path}, {readable_size(header['bytes'])}: {kind}{built}")
    if not isinstance(told, EngineReport):
        output.line(f"no more can be told here: {told}")
        return
    output.line(f"on {told.device} with {told.tensorrt} {told.tensorrt_version}")
    columns = ("tensor", "mode", "dtype", "shape", "profiles")
    output.table(columns, _tensor_rows(told), if_any=("profiles",))
    output.table(("property", "value"), _properties(told))
    if layers:
        _print_layers(told)
    for warning in told.warnings:
        output.line(f"warning: {warning}")
    reasons: dict[str, list[str]] = {}
    for name, why in told.untold.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        output.line(f"not told: {', '.join(names)}: {why}")


def _tensor_rows(told: EngineReport) -> Sequence[Sequence[str]]:
    return [
        (
            spec.name,
            spec.mode,
            spec.dtype.name,
            format_dimensions(spec.shape, unknown="?"),
            ", ".join(
                "..".join(map(format_dimensions, profile[spec.name]))
                for profile in told.profiles
                if spec.name in profile and (spec.is_dynamic or spec.is_shape_tensor)
            ),
        )
        for spec in told.tensors
    ]


def _properties(told: EngineReport) -> Sequence[tuple[str, object]]:
    """Everything that is known, by name."""
    memory = told.memory
    sizes = {
        "weights": memory.weights,
        "streamable weights": memory.streamable_weights,
        "weight streaming budget": memory.streaming_budget,
        "scratch memory": memory.scratch,
    }
    properties: dict[str, object] = {
        "layers": told.layer_count,
        "verbosity": told.verbosity,
        **{name: readable_size(n) for name, n in sizes.items() if n is not None},
        "auxiliary streams": told.aux_streams,
        "refittable": _yes_or_no(told.refittable),
        "stripped": _yes_or_no(told.stripped),
        "hardware compatible": told.hardware_compatible,
        "capability": told.capability,
        "tactic sources": ", ".join(told.tactic_sources) if told.tactic_sources else None,
    }
    return [(name, value) for name, value in properties.items() if value is not None]


def _print_layers(told: EngineReport) -> None:
    if not told.layers:
        output.line("no layers are told")
        return
    detailed = any(layer.type for layer in told.layers)
    columns = ("layer", "type", "outputs", "kernel") if detailed else ("layer",)
    output.table(
        columns,
        [
            (
                layer.name,
                layer.type,
                ", ".join(
                    format_dimensions(tensor.shape) if tensor.shape is not None else tensor.name
                    for tensor in layer.outputs
                ),
                layer.tactic,
            )[: len(columns)]
            for layer in told.layers
        ],
    )


def _yes_or_no(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
