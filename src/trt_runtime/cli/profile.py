"""``trt-runtime profile``: how long each layer of a model takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from trt_runtime.cli import options as shared
from trt_runtime.cli import output
from trt_runtime.cli.bench import Batch, Measured, Model
from trt_runtime.cli.options import BuildOptions, takes_build_options
from trt_runtime.cli.saving import require_writable
from trt_runtime.pictures import plot_profile, require_matplotlib

EXAMPLES = """\
Examples:

  trt-runtime profile yolo.onnx --precision fp16

  trt-runtime profile yolo.engine --top 10 --plot layers.png
"""


@takes_build_options
def profile(
    model: Model,
    batch: Batch = None,
    runs: Annotated[int, typer.Option(min=1, help="Inferences to take the median of.")] = 50,
    top: Annotated[int, typer.Option(min=1, help="How many layers to show.")] = 20,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw them as bars: .png, .svg or .pdf.", metavar="FILE"),
    ] = None,
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    no_cache: shared.NoCache = False,
    trust_host_code: shared.TrustHostCode = False,
    lean_library: shared.LeanLibrary = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
    *,
    options: BuildOptions,
) -> None:
    """Measure each layer of MODEL with TensorRT's profiler, and show the slowest.

    Without CUDA graphs. All layers together take more than an inference, as each is measured on its
    own. --json has every layer, in order.
    """
    measured = Measured.of(model, batch, options)
    if plot is not None:
        require_matplotlib()
        require_writable(plot, force=True)
    opened = measured.open(
        device=shared.device_of(device),
        tensorrt=tensorrt,
        cache=not no_cache and (cache_dir or True),
        trust_host_code=trust_host_code,
        lean_library=lean_library,
    )
    with opened as session:
        found = session.profile(shapes=measured.shapes_of(session), runs=runs)
    found = replace(found, model=model)
    if plot is not None:
        plot_profile(found, plot, count=top)
    if json:
        output.document({**found.to_json(), "saved": [str(plot)] if plot is not None else []})
        return
    output.line(f"{model} on {found.device}")
    rows = [(f"{each.ms:.4f}", f"{each.share:.1%}", each.name) for each in found.slowest(top)]
    output.table(("ms", "share", "layer"), rows)
    shown = sum(each.share for each in found.slowest(top))
    output.line(
        f"{len(rows)} of {len(found.layers)} layers, {shown:.1%} of {found.total_ms:.4f} ms; "
        f"medians of {found.runs} runs"
    )
    if not found.on_gpu:
        output.line("These timings are of the host device; they say nothing about a GPU.")
    if plot is not None:
        output.line(f"saved {plot}")
