"""Turn a pytest-benchmark JSON file into a table: medians, and their ratio to the floor F."""

from __future__ import annotations

import json
import sys
from collections import defaultdict


def main(path: str) -> None:
    with open(path) as file:
        benchmarks = json.load(file)["benchmarks"]
    tables: dict[str, dict[str, float]] = defaultdict(dict)
    for benchmark in benchmarks:
        name, _, subject = benchmark["name"].removeprefix("test_").partition("[")
        tables[subject.rstrip("]")][name.replace("_", " ")] = benchmark["stats"]["median"] * 1e3
    for subject, medians in tables.items():
        floor = medians["floor"]
        print(f"\n### {subject}\n\n| way | median ms | of F |\n|---|---|---|")
        for name, median in sorted(medians.items(), key=lambda item: item[1]):
            print(f"| {name} | {median:.4f} | {median / floor:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
