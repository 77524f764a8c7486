"""Turn pytest-benchmark's JSON into Markdown tables and, given a folder, charts.

python benchmarks/summarize.py out.json [DIR]

The tables go to stdout; with DIR to ``DIR/out.md`` too, the charts beside it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__:
    from .chart import bars, lines
else:  # run as a script
    from chart import bars, lines

FLOOR = "F: raw graph"
COMPUTE = "raw graphs, compute alone"
IN_TURNS = "raw graphs in turns"
MANY = "infer_many, input page-locked"


class Measurement(NamedTuple):
    """One way of inferring, measured: seconds are of one round of ``inferences``."""

    group: str
    model: str
    way: str
    contexts: int
    inferences: int
    batch: int
    median: float
    minimum: float
    beside: Mapping[str, float]

    @property
    def images_per_s(self) -> float:
        return self.inferences * self.batch / self.median


def read(path: Path) -> tuple[list[Measurement], Mapping[str, Any]]:
    """The measurements, and what they ran on."""
    content = json.loads(path.read_text())
    measurements = []
    for benchmark in content["benchmarks"]:
        told, stats = benchmark["extra_info"], benchmark["stats"]
        figures = [told[name] for name in ("model", "way", "contexts", "inferences", "batch")]
        measurements.append(
            Measurement(benchmark["group"], *figures, stats["median"], stats["min"], told["beside"])
        )
    return measurements, content["machine_info"]


def latency(found: list[Measurement]) -> Iterator[str]:
    """A table of medians, the nearest to F first; F is the one that was timed beside it."""
    yield "| way | of F | beyond F, µs | median ms | F ms | fastest ms |"
    yield "|---|---|---|---|---|---|"
    for m in sorted(found, key=lambda m: m.median / m.beside[FLOOR]):
        floor = m.beside[FLOOR]
        yield (
            f"| {m.way} | {m.median / floor:.3f} | {(m.median - floor) * 1e6:.1f} "
            f"| {m.median * 1e3:.4f} | {floor * 1e3:.4f} | {m.minimum * 1e3:.4f} |"
        )


def throughput(found: Sequence[Measurement]) -> Iterator[str]:
    """A table of images per second, a column for each number of contexts, and two ratios."""
    series = by_way(found)
    columns = sorted({contexts for points in series.values() for contexts in points})
    yield f"| images per second, by contexts | {' | '.join(map(str, columns))} |"
    yield "|---|" + "---|" * len(columns)
    for way, points in series.items():
        cells = (f"{points[c]:,.0f}" if c in points else "" for c in columns)
        yield f"| {way} | {' | '.join(cells)} |"
    yield ""
    ours = {m.contexts: m for m in found if m.way == MANY}
    if 1 in ours:
        yield f"`{MANY}`, one context, to `{COMPUTE}` beside it: {_ratio(ours[1], COMPUTE):.3f}."
    if ours:
        best = min(m.median for m in ours.values())
        by_hand = min(m.beside[IN_TURNS] for m in ours.values())
        yield f"The best `{MANY}` to the best `{IN_TURNS}` beside it: {by_hand / best:.3f}; " + (
            ", ".join(f"{c}: {_ratio(m, IN_TURNS):.3f}" for c, m in ours.items()) + "."
        )


def _ratio(measured: Measurement, other: str) -> float:
    """How much faster it is than what was timed beside it."""
    return measured.beside[other] / measured.median


def by_way(found: Sequence[Measurement]) -> Mapping[str, Mapping[int, float]]:
    """Images per second by contexts, for each way."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for m in found:
        series[m.way][m.contexts] = m.images_per_s
    return series


def report(path: Path, directory: Path | None) -> str:
    measurements, machine = read(path)
    by_model: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        by_model[measurement.model].append(measurement)
    text = [f"{_machine(machine)}\n"]
    for model, found in by_model.items():
        text.append(f"### {model}\n")
        single = [m for m in found if m.group == "latency"]
        if single:
            text += [*latency(single), ""]
            if directory is not None:
                name = f"{path.stem}-{model}-latency.svg"
                values = {
                    m.way: m.median / m.beside[FLOOR]
                    for m in sorted(single, key=lambda m: m.median / m.beside[FLOOR])
                }
                ours = [way for way in values if way.startswith(("infer", "CudaGraph"))]
                title = f"{model}: one synchronous inference"
                unit = "times F, one graph launch of copies and compute"
                (directory / name).write_text(bars(title, unit, values, ours=ours))
                text.append(f"![latency]({name})\n")
        many = [m for m in found if m.group == "throughput"]
        if many:
            text += [*throughput(many), ""]
            if directory is not None:
                name = f"{path.stem}-{model}-throughput.svg"
                title = f"{model}: throughput, transfers included"
                (directory / name).write_text(lines(title, "contexts", "images/s", by_way(many)))
                text.append(f"![throughput]({name})\n")
    return "\n".join(text)


def _machine(machine: Mapping[str, Any]) -> str:
    facts = [machine.get("gpu"), machine.get("tensorrt"), machine.get("precision")]
    level = machine.get("optimization_level")
    facts += [f"optimisation level {level}", f"Python {machine['python_version']}"]
    return ", ".join(str(fact) for fact in facts if fact)


def main(path: str, directory: str | None = None) -> None:
    folder = None if directory is None else Path(directory)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    text = report(Path(path), folder)
    if folder is not None:
        (folder / f"{Path(path).stem}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:3])
