"""``trt-runtime cache``: what the engine cache holds, why an engine is not in it, and what goes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any

import typer

from trt_runtime import CacheEntry, InputError
from trt_runtime.cli import grammar, networks, output
from trt_runtime.cli import options as shared
from trt_runtime.cli.build import Samples, flavour_for_elsewhere
from trt_runtime.cli.failure import DIFFERS
from trt_runtime.cli.options import BuildOptions, takes_build_options
from trt_runtime.cli.output import readable_size

app = typer.Typer(
    help="Look into the engine cache, and make room in it.",
    no_args_is_help=True,
    epilog="""\
Examples:

  trt-runtime cache explain yolo.onnx --precision fp16

  trt-runtime cache prune --max-size 10GiB --older-than 30d
""",
)


@app.command("path")
def path(
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Print the folder that engines are kept in."""
    cache = shared.cache_of(cache_dir)
    if json:
        output.document({"directory": str(cache.directory), "exists": cache.directory.is_dir()})
    else:
        output.line(str(cache.directory))


@app.command("list")
def list_(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read and hash every engine; 1 if one is damaged.")
    ] = False,
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """List the engines, least recently used first."""
    cache = shared.cache_of(cache_dir)
    entries = cache.entries(verify=verify)
    if json:
        output.document(
            {
                "directory": str(cache.directory),
                "bytes": sum(entry.nbytes for entry in entries),
                "max_bytes": cache.max_bytes,
                "entries": [entry_json(entry) for entry in entries],
            }
        )
    else:
        if entries:
            output.table(
                ("key", "model", "precision", "TensorRT", "device", "size", "last used"),
                [_row(entry) for entry in entries],
            )
        count = f"{len(entries)} engine{'' if len(entries) == 1 else 's'}"
        size = readable_size(sum(entry.nbytes for entry in entries))
        output.line(
            f"{count}, {size} of at most {readable_size(cache.max_bytes)}, in {cache.directory}"
        )
    if verify and any(entry.damage for entry in entries):
        raise typer.Exit(DIFFERS)


@app.command("explain")
@takes_build_options
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for build.")],
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
    *,
    options: BuildOptions,
) -> None:
    """Say whether build, with these options, would find its engine, and what differs if not."""
    config = options.config()
    if flavour_for_elsewhere(config, tensorrt) is not None:
        raise InputError(
            "engines for GPUs of other machines are not kept in the cache: build makes them anew."
        )
    told = shared.cache_of(cache_dir).explain(
        networks.model_file(model),
        config,
        calibration=Samples.of(options.calibrate or ()),
        device=shared.device_of(device),
        tensorrt=tensorrt,
    )
    if not json:
        output.line(str(told))
        return
    output.document(
        {
            "key": told.key,
            "hit": told.hit,
            "reason": told.reason,
            "nearest": entry_json(told.nearest) if told.nearest is not None else None,
            "differences": [
                {"part": part.part, "ours": part.ours, "theirs": part.theirs}
                for part in told.differences
            ],
        }
    )


@app.command("prune")
def prune(
    max_size: Annotated[
        str | None,
        typer.Option(help="Until the rest fits into that, such as 10GiB.", metavar="SIZE"),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="And what was not used for that long, such as 30d.", metavar="AGE"),
    ] = None,
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Remove the least recently used engines, and what dead processes left behind."""
    cache = shared.cache_of(cache_dir)
    before = cache.size
    removed = cache.prune(
        grammar.parse_size("--max-size", max_size) if max_size is not None else None,
        older_than=grammar.parse_age("--older-than", older_than)
        if older_than is not None
        else None,
    )
    _print_removed(removed, before, cache.size, as_json=json)


@app.command("clear")
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this nothing goes.")] = False,
    cache_dir: shared.CacheDirectory = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Remove every engine, and the kernel timings beside them."""
    cache = shared.cache_of(cache_dir)
    before = cache.size
    if not yes:
        raise InputError(
            f"this removes {len(cache.entries())} engines ({readable_size(before)}) from "
            f"{cache.directory}; add --yes if that is meant."
        )
    _print_removed(cache.clear(), before, cache.size, as_json=json)


def find_entry(entries: Sequence[CacheEntry], key: str) -> CacheEntry | None:
    """The entry whose key begins so; `InputError` if there are several."""
    found = [entry for entry in entries if len(key) >= 4 and entry.key.startswith(key.lower())]
    if len(found) > 1:
        keys = ", ".join(entry.key[:16] for entry in found)
        raise InputError(f"{len(found)} engines in the cache begin with {key}: {keys}.")
    return found[0] if found else None


def entry_json(entry: CacheEntry) -> dict[str, Any]:
    """An entry as JSON holds it."""
    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.nbytes,
        "created": entry.created.isoformat() if entry.created else None,
        "last_used": entry.last_used.isoformat() if entry.last_used else None,
        "model": entry.model,
        "build_seconds": entry.build_seconds,
        "damage": entry.damage,
        "parts": dict(entry.parts),
    }


def ago(moment: datetime | None) -> str:
    """``3 h ago``; empty for None."""
    if moment is None:
        return ""
    seconds = (datetime.now(timezone.utc) - moment).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def _row(entry: CacheEntry) -> tuple[str, ...]:
    size, used = readable_size(entry.nbytes), ago(entry.last_used)
    if entry.damage:
        return (entry.key[:12], f"damaged: {entry.damage}", "", "", "", size, used)
    name = entry.model or "-"
    return (entry.key[:12], name, entry.precision, entry.tensorrt, entry.device, size, used)


def _print_removed(removed: Sequence[str], before: int, after: int, *, as_json: bool) -> None:
    if as_json:
        output.document({"removed": list(removed), "bytes_freed": before - after, "bytes": after})
        return
    count = f"{len(removed)} engine{'' if len(removed) == 1 else 's'}"
    output.line(
        f"removed {count}, {readable_size(max(0, before - after))}; {readable_size(after)} are left"
    )
