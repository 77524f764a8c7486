"""Turn pytest-benchmark's JSON into Markdown tables and, given a folder, charts.

python benchmarks/summarize.py out.json [DIR]

The tables go to stdout; with DIR to ``DIR/out.md`` too, the charts beside it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
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
            Measurement(benchmark["group"], *figures, stats["median"], stats["min"])
        )
    return measurements, content["machine_info"]


def latency(found: list[Measurement]) -> Iterator[str]:
    """A table of medians, the fastest first, and their distance from F."""
    floor = next(m.median for m in found if m.way == FLOOR)
    yield "| way | median ms | fastest ms | of F | beyond F, µs |"
    yield "|---|---|---|---|---|"
    for m in sorted(found, key=lambda m: m.median):
        yield (
            f"| {m.way} | {m.median * 1e3:.4f} | {m.minimum * 1e3:.4f} | {m.median / floor:.3f} "
            f"| {(m.median - floor) * 1e6:.1f} |"
        )


def throughput(series: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """A table of images per second, a column for each number of contexts, and two ratios."""
    columns = sorted({contexts for points in series.values() for contexts in points})
    yield f"| images per second, by contexts | {' | '.join(map(str, columns))} |"
    yield "|---|" + "---|" * len(columns)
    for way, points in series.items():
        cells = (f"{points[c]:,.0f}" if c in points else "" for c in columns)
        yield f"| {way} | {' | '.join(cells)} |"
    yield ""
    if MANY in series and COMPUTE in series:
        ratio = series[MANY][1] / series[COMPUTE][1]
        yield f"`{MANY}`, one context, to `{COMPUTE}`: {ratio:.3f}."
    if MANY in series and IN_TURNS in series:
        best, by_hand = max(series[MANY].values()), max(series[IN_TURNS].values())
        yield (
            f"The best `{MANY}` to the best `{IN_TURNS}`: {best / by_hand:.3f}; "
            + ", ".join(
                f"{c}: {series[MANY][c] / series[IN_TURNS][c]:.3f}"
                for c in columns
                if c in series[MANY] and c in series[IN_TURNS]
            )
            + "."
        )


def report(path: Path, directory: Path | None) -> str:
    measurements, machine = read(path)
    by_model: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        by_model[measurement.model].append(measurement)
    text = [f"{_machine(machine)}\n"]
    for model, found in by_model.items():
        text.append(f"### {model}\n")
        single = [m for m in found if m.group == "latency"]
        if any(m.way == FLOOR for m in single):
            text += [*latency(single), ""]
            if directory is not None:
                name = f"{path.stem}-{model}-latency.svg"
                values = {m.way: m.median * 1e3 for m in sorted(single, key=lambda m: m.median)}
                ours = [way for way in values if way.startswith(("infer", "CudaGraph"))]
                title = f"{model}: one synchronous inference, median"
                (directory / name).write_text(bars(title, "ms", values, ours=ours))
                text.append(f"![latency]({name})\n")
        series: dict[str, dict[int, float]] = defaultdict(dict)
        for m in found:
            if m.group == "throughput":
                series[m.way][m.contexts] = m.images_per_s
        if series:
            text += [*throughput(series), ""]
            if directory is not None:
                name = f"{path.stem}-{model}-throughput.svg"
                title = f"{model}: throughput, transfers included"
                (directory / name).write_text(lines(title, "contexts", "images/s", series))
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
