"""Pictures of what was measured, by matplotlib, which the extra ``plot`` installs.

The format follows from the file's name: .png, .svg, .pdf.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .benchmark import BenchmarkReport
from .errors import InputError
from .profiling import LayerProfile
from .timeline import STAGES, Timeline

_COLOURS = {"H2D": "#1f77b4", "GPU compute": "#76b900", "D2H": "#ff7f0e"}
_HOST = "  (host device: timings mean nothing)"

StrPath = str | os.PathLike[str]


def require_matplotlib() -> None:
    """Raise `InputError` if there is none; before the work, not after it."""
    _figure_class()


def plot_benchmark(report: BenchmarkReport, timeline: Timeline | None, path: StrPath) -> None:
    """A histogram of latencies and, below it, what ran beside what."""
    figure = _figure(9, 3.6 if timeline is None else 7.2)
    axes = figure.subplots(1 if timeline is None else 2, 1, squeeze=False)[:, 0]
    histogram = axes[0]
    shown = {
        "infer": report.infer,
        "infer, page-locked": report.infer_page_locked,
        "H2D + GPU compute + D2H": report.latency,
    }
    if report.floor is not None:
        shown["floor F"] = report.floor
    # The few slowest calls would leave the others a single bar.
    end = max(figures.p99 for figures in shown.values())
    start = min(figures.minimum for figures in shown.values())
    for name, figures in shown.items():
        samples = [ms for ms in figures.samples if ms <= end]
        label = f"{name}, median {figures.median:.4g} ms"
        if end > start:
            histogram.hist(samples, bins=80, range=(start, end), alpha=0.6, label=label)
    histogram.set_xlabel("ms, up to the 99th percentile")
    histogram.set_ylabel("calls")
    histogram.set_title(f"{report.model} on {report.device}{'' if report.on_gpu else _HOST}")
    histogram.legend(fontsize="small")
    if timeline is not None:
        _draw_timeline(axes[1], timeline)
    _save(figure, path)


def plot_timeline(timeline: Timeline, path: StrPath) -> None:
    """What ran beside what: a row for each stream, a colour for each step."""
    figure = _figure(9, 3.6)
    _draw_timeline(figure.subplots(), timeline)
    _save(figure, path)


def plot_profile(profile: LayerProfile, path: StrPath, *, count: int = 20) -> None:
    """The slowest layers as bars."""
    layers = profile.slowest(count)
    figure = _figure(9, 1.2 + 0.26 * len(layers))
    axes = figure.subplots()
    names = [layer.name if len(layer.name) <= 60 else f"{layer.name[:59]}…" for layer in layers]
    rows = range(len(layers))
    axes.barh(rows, [layer.ms for layer in layers], color=_COLOURS["GPU compute"])
    axes.set_yticks(rows, labels=[_plain(name) for name in names], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    note = "" if profile.on_gpu else _HOST
    axes.set_title(f"{profile.model}: {len(layers)} of {len(profile.layers)} layers{note}")
    _save(figure, path)


def _draw_timeline(axes: Any, timeline: Timeline) -> None:
    tracks = sorted({(span.context, span.stream) for span in timeline.spans})
    for span in timeline.spans:
        row = tracks.index((span.context, span.stream))
        width = span.end_ms - span.start_ms
        axes.barh(row, width, left=span.start_ms, color=_COLOURS[span.stage], height=0.7)
        if span.stage == "GPU compute":
            middle = span.start_ms + width / 2
            axes.text(middle, row, str(span.inference), ha="center", va="center", fontsize="small")
    labels = [f"context {context}, stream {stream}" for context, stream in tracks]
    axes.set_yticks(range(len(tracks)), labels=labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(f"overlapped inferences{'' if timeline.on_gpu else _HOST}")
    for stage in STAGES:
        axes.barh(0, 0, color=_COLOURS[stage], label=stage)
    axes.legend(fontsize="small", ncols=len(STAGES), loc="upper left", bbox_to_anchor=(0, -0.2))


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "pictures take matplotlib: pip install 'trt-runtime[plot]', or pip install matplotlib"
        ) from error
    return Figure


def _figure(width: float, height: float) -> Any:
    # Not pyplot, which keeps figures and may open a window.
    return _figure_class()(figsize=(width, height), dpi=120, layout="constrained")


def _plain(text: str) -> str:
    """``$`` would begin a formula."""
    return text.replace("$", r"\$")


def _save(figure: Any, path: StrPath) -> None:
    try:
        figure.savefig(Path(path))
    except (OSError, ValueError) as error:  # an unknown suffix
        raise InputError(f"{os.fspath(path)!r} cannot be written: {error}") from error
