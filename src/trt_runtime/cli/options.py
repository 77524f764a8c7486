"""The options that several commands share, and how those of a build become a `BuildConfig`.

Names are those of the configuration's fields and of the field: trtexec's spellings work too, see
`spelling`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from trt_runtime import BuildConfig, EngineCache, InputError, Profile
from trt_runtime.cli import grammar

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks, and everything that is logged.")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, host, cuda or cuda:N; what TRT_RUNTIME_DEVICE says, or auto, by default.",
        metavar="DEVICE",
    ),
]
TensorRT = Annotated[
    str | None,
    typer.Option(
        help="tensorrt, tensorrt_rtx, tensorrt_lean or tensorrt_dispatch; the first installed "
        "by default.",
        metavar="FLAVOUR",
    ),
]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(help="The engine cache; TRT_RUNTIME_CACHE sets the default.", metavar="DIR"),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Build anew, and keep nothing.")]
TrustHostCode = Annotated[
    bool, typer.Option("--trust-host-code", help="Run the lean runtime that a plan carries.")
]
LeanLibrary = Annotated[
    Path | None,
    typer.Option(help="A libnvinfer_lean for plans of another release.", metavar="FILE"),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A library of plugins that MODEL uses; its code is run. Repeatable.",
    ),
]


def help_of(command: Callable[..., None]) -> str:
    """The docstring, each paragraph on one line: typer keeps line breaks."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def device_of(text: str | None) -> str | int | None:
    """``cuda:1`` as it is, and ``1`` as the number of a GPU; None is the default."""
    return int(text) if text is not None and text.isdecimal() else text


def cache_of(directory: Path | None) -> EngineCache:
    return EngineCache(directory)


_TRTEXEC = {
    "builderOptimizationLevel": "optimization-level",
    "timingCacheFile": "timing-cache",
    "hardwareCompatibilityLevel": "hardware-compatible",
    "refit": "refittable",
    "allowWeightStreaming": "weight-streaming",
    "useDLACore": "dla-core",
    "allowGPUFallback": "gpu-fallback",
    "dynamicPlugins": "plugin",
    "saveEngine": "output",
}


def spelling(name: str) -> str:
    """Our name of an option in trtexec's spelling: ``minShapes`` is ``min-shapes``."""
    known = _TRTEXEC.get(name, name)
    return re.sub("(?<=[a-z])([A-Z])", r"-\1", known).lower() if known[:1].islower() else known


def _option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


_SHAPES = "Shapes of dynamic inputs"
_PRECISION = "Precision and layout"
_EFFORT = "Search for kernels"
_WHERE = "Where the engine runs"
_WEIGHTS = "Weights and inspection"

_Several = list[str] | None


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says about a build; `config` gives the configuration."""

    shapes: Annotated[
        _Several,
        _option(
            "--shapes",
            panel=_SHAPES,
            metavar="NAME:SHAPE,...",
            help="One shape for each input, such as images:4x3x224x224: min, opt and max at once.",
        ),
    ] = None
    min_shapes: Annotated[
        _Several,
        _option("--min-shapes", panel=_SHAPES, metavar="NAME:SHAPE,...", help="The smallest."),
    ] = None
    opt_shapes: Annotated[
        _Several,
        _option(
            "--opt-shapes", panel=_SHAPES, metavar="NAME:SHAPE,...", help="What to be fastest at."
        ),
    ] = None
    max_shapes: Annotated[
        _Several,
        _option("--max-shapes", panel=_SHAPES, metavar="NAME:SHAPE,...", help="The largest."),
    ] = None
    profile: Annotated[
        _Several,
        _option(
            "--profile",
            panel=_SHAPES,
            metavar="NAME:MIN..OPT..MAX,...",
            help="A whole profile, such as x:1x8..4x8..16x8. Repeatable: each one is a further "
            "profile. The values of a shape tensor are given in the same way.",
        ),
    ] = None
    precision: Annotated[
        str,
        _option(
            "--precision",
            panel=_PRECISION,
            metavar="TYPE",
            help="tf32, fp32, fp16, bf16, int8, fp8 or as-typed.",
        ),
    ] = "tf32"
    float32_layer: Annotated[
        _Several,
        _option(
            "--float32-layer",
            panel=_PRECISION,
            metavar="NAME",
            help="A node that stays in float32, or many by a pattern: 'decode/*'. Repeatable.",
        ),
    ] = None
    reduced_io: Annotated[
        bool,
        _option(
            "--reduced-io",
            panel=_PRECISION,
            help="Inputs and outputs take the reduced type too.",
        ),
    ] = False
    calibrate: Annotated[
        list[Path] | None,
        _option(
            "--calibrate",
            panel=_PRECISION,
            metavar="PATH",
            help="Inputs for int8: an .npz or .npy file each, or a folder of them. Repeatable.",
        ),
    ] = None
    io_type: Annotated[
        _Several,
        _option(
            "--io-type",
            panel=_PRECISION,
            metavar="NAME:TYPE",
            help="The type of an input or output, such as images:float16. Repeatable.",
        ),
    ] = None
    io_format: Annotated[
        _Several,
        _option(
            "--io-format",
            panel=_PRECISION,
            metavar="NAME:FORMAT",
            help="Its layout in memory, such as images:hwc8. Repeatable.",
        ),
    ] = None
    optimization_level: Annotated[
        int | None,
        _option(
            "--optimization-level",
            panel=_EFFORT,
            metavar="0-5",
            help="From a fast build to a fast engine.",
        ),
    ] = None
    workspace: Annotated[
        str | None,
        _option("--workspace", panel=_EFFORT, metavar="SIZE", help="Scratch memory, such as 4GiB."),
    ] = None
    memory_pool: Annotated[
        _Several,
        _option(
            "--memory-pool",
            panel=_EFFORT,
            metavar="NAME:SIZE",
            help="Another pool, such as tactic_dram:2GiB. Repeatable.",
        ),
    ] = None
    timing_cache: Annotated[
        Path | None,
        _option(
            "--timing-cache",
            panel=_EFFORT,
            metavar="FILE",
            help="Kernel timings to read first and add to; beside the engine cache by default.",
        ),
    ] = None
    tactic_source: Annotated[
        _Several,
        _option(
            "--tactic-source",
            panel=_EFFORT,
            metavar="NAME",
            help="Take kernels from this one only, such as cublas. Repeatable.",
        ),
    ] = None
    sparse: Annotated[
        bool,
        _option("--sparse", panel=_EFFORT, help="Use structured sparsity where weights have it."),
    ] = False
    max_aux_streams: Annotated[
        int | None,
        _option("--max-aux-streams", panel=_EFFORT, metavar="N", help="Further streams to use."),
    ] = None
    plugin: Annotated[
        list[Path] | None,
        _option(
            "--plugin",
            panel=_EFFORT,
            metavar="FILE",
            help="A library of plugins; its code is run. Repeatable.",
        ),
    ] = None
    version_compatible: Annotated[
        bool,
        _option(
            "--version-compatible", panel=_WHERE, help="Later releases and the lean runtime run it."
        ),
    ] = False
    exclude_lean_runtime: Annotated[
        bool,
        _option(
            "--exclude-lean-runtime", panel=_WHERE, help="Without the lean runtime inside the plan."
        ),
    ] = False
    hardware_compatible: Annotated[
        str | None,
        _option(
            "--hardware-compatible",
            panel=_WHERE,
            metavar="LEVEL",
            help="Other GPUs run it: ampere+ or same-compute-capability.",
        ),
    ] = None
    compute_capability: Annotated[
        _Several,
        _option(
            "--compute-capability",
            panel=_WHERE,
            metavar="X.Y",
            help="With TensorRT for RTX: build for these GPUs, on any machine. Repeatable.",
        ),
    ] = None
    dla_core: Annotated[
        int | None,
        _option("--dla-core", panel=_WHERE, metavar="N", help="A deep learning accelerator."),
    ] = None
    gpu_fallback: Annotated[
        bool,
        _option("--gpu-fallback", panel=_WHERE, help="The GPU runs what the accelerator lacks."),
    ] = False
    refittable: Annotated[
        bool, _option("--refittable", panel=_WEIGHTS, help="Weights can be replaced later.")
    ] = False
    strip_weights: Annotated[
        bool, _option("--strip-weights", panel=_WEIGHTS, help="Leave the weights out of the plan.")
    ] = False
    weight_streaming: Annotated[
        bool,
        _option(
            "--weight-streaming",
            panel=_WEIGHTS,
            help="Weights may stay in host memory at run time.",
        ),
    ] = False
    verbosity: Annotated[
        str,
        _option(
            "--verbosity",
            panel=_WEIGHTS,
            metavar="LEVEL",
            help="What inspect can tell of the layers: names, detailed or none.",
        ),
    ] = "names"

    def config(self) -> BuildConfig:
        """The configuration; `InputError` names the option that does not fit."""
        pools = grammar.parse_pairs(
            "--memory-pool", self.memory_pool or (), "NAME:SIZE", "tactic_dram:2GiB"
        )
        return BuildConfig(
            profiles=self._profiles(),
            precision=self.precision,  # type: ignore[arg-type]  # it checks
            float32_layers=tuple(self.float32_layer or ()),
            reduced_io=self.reduced_io,
            optimization_level=self.optimization_level,
            workspace_bytes=grammar.parse_size("--workspace", self.workspace)
            if self.workspace is not None
            else None,
            memory_pools={
                name: grammar.parse_size("--memory-pool", size) for name, size in pools.items()
            },
            timing_cache=self.timing_cache,
            tactic_sources=tuple(self.tactic_source) if self.tactic_source else None,
            sparse_weights=self.sparse,
            io_types=grammar.parse_pairs(
                "--io-type", self.io_type or (), "NAME:TYPE", "images:float16"
            ),
            io_formats=grammar.parse_pairs(
                "--io-format", self.io_format or (), "NAME:FORMAT", "images:hwc8"
            ),
            version_compatible=self.version_compatible,
            embed_lean_runtime=not self.exclude_lean_runtime,
            hardware_compatible=self.hardware_compatible,  # type: ignore[arg-type]  # it checks
            refittable=self.refittable,
            strip_weights=self.strip_weights,
            weight_streaming=self.weight_streaming,
            max_aux_streams=self.max_aux_streams,
            dla_core=self.dla_core,
            gpu_fallback=self.gpu_fallback,
            verbosity=self.verbosity,  # type: ignore[arg-type]  # it checks
            compute_capabilities=tuple(self.compute_capability or ()),
            plugin_libraries=tuple(self.plugin or ()),
        )

    def _profiles(self) -> tuple[Profile, ...]:
        """One profile of the shape options together, then one for each ``--profile``."""
        fixed = grammar.parse_shapes("--shapes", self.shapes or ())
        bounds = {
            option: grammar.parse_shapes(option, texts or ())
            for option, texts in (
                ("--min-shapes", self.min_shapes),
                ("--opt-shapes", self.opt_shapes),
                ("--max-shapes", self.max_shapes),
            )
        }
        ranges: dict[str, Sequence[grammar.Shape]] = {n: (s, s, s) for n, s in fixed.items()}
        for name in dict.fromkeys(name for given in bounds.values() for name in given):
            if name in fixed:
                raise InputError(
                    f"--shapes gives min, opt and max of {name!r} at once, and another option "
                    "gives it again; leave one of them out."
                )
            if name not in bounds["--min-shapes"] and name not in bounds["--max-shapes"]:
                only = bounds["--opt-shapes"][name]
                ranges[name] = (only, only, only)
                continue
            missing = [option for option, given in bounds.items() if name not in given]
            if missing:
                raise InputError(
                    f"{name!r} needs {' and '.join(missing)} as well; or one shape for all "
                    "three: --shapes."
                )
            ranges[name] = tuple(given[name] for given in bounds.values())
        first = (Profile(ranges),) if ranges else ()
        return first + tuple(
            grammar.parse_profile("--profile", text) for text in self.profile or ()
        )


def takes_build_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `BuildOptions`, gathered in its parameter ``options``."""
    hints = get_type_hints(BuildOptions, include_extras=True)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(BuildOptions)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "options"
    ]

    @functools.wraps(command)
    def collecting(**given: Any) -> None:
        chosen = BuildOptions(**{option.name: given.pop(option.name) for option in options})
        command(options=chosen, **given)

    del collecting.__wrapped__  # typer must see the whole signature, not the command's own
    signature = inspect.Signature([*own, *options])
    collecting.__signature__ = signature  # type: ignore[attr-defined]
    collecting.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
    return collecting
