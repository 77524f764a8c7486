"""What an inference costs beyond F, and how much of that is where its memory happens to lie.

    python -m benchmarks.beyond OUT.json [--engines DIR | --plan FILE] [--rounds N]

YOLOv3-608 on one engine, or any other of one input. Every way takes its turn in each round, in an
order that changes, since a GPU's clock drifts; what is told is the difference to the first loop by
hand in the same round. Other loops by hand, which differ from the first in nothing but their
context, stream and memory, show what is chance.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conftest import _driver_api
from benchmarks.models import NETWORKS
from benchmarks.raw import Lane, RawEngine, must
from trt_runtime import (
    BindingSet,
    BuildConfig,
    CudaGraph,
    Device,
    Engine,
    EngineCache,
    Session,
    Stream,
)

FLOOR = "F: raw graph 1"
Ways = dict[str, Callable[[], object]]


def by_hand(lanes: list[Lane], stack: ExitStack) -> Ways:
    first, cu = lanes[0], lanes[0].cu

    def copy_beside() -> None:
        """The copy in as a call of its own, before a graph of the rest."""
        for tensor in first.inputs:
            must(
                first.cu.cuMemcpyHtoDAsync(tensor.device, tensor.host, tensor.nbytes, first.stream)
            )
        must(cu.cuGraphLaunch(rest, first.stream))
        first.wait()

    def enqueue_rest() -> None:
        first.enqueue_compute()
        for tensor in first.outputs:
            must(
                first.cu.cuMemcpyDtoHAsync(tensor.host, tensor.device, tensor.nbytes, first.stream)
            )

    rest = first._capture(enqueue_rest)
    stack.callback(cu.cuGraphExecDestroy, rest)
    others = {f"raw graph {n}": lane.floor for n, lane in enumerate(lanes[1:], 2)}
    return {FLOOR: first.floor, **others, "raw copy in, raw graph of the rest": copy_beside}


def with_the_package(engine: Engine, image: np.ndarray, name: str, stack: ExitStack) -> Ways:
    context = stack.enter_context(engine.create_execution_context())
    stream = stack.enter_context(Stream(engine.device))
    bindings = stack.enter_context(BindingSet(context))
    graph = stack.enter_context(CudaGraph(context, bindings, stream))
    bindings[name].host[...] = image

    def launch() -> None:
        graph.launch(stream)
        stream.synchronize()

    ways: Ways = {"CudaGraph.launch, synchronize": launch}
    for number in (1, 2):
        session = stack.enter_context(Session(engine))
        buffer = session.input_buffers()[name]
        buffer[...] = image
        kept: list[Any] = []

        def dropped(session: Session = session, buffer: np.ndarray = buffer) -> None:
            session.infer(buffer)

        def held(
            session: Session = session, buffer: np.ndarray = buffer, kept: list[Any] = kept
        ) -> None:
            kept[:] = [session.infer(buffer)]

        ways[f"infer {number}, input page-locked"] = dropped
        ways[f"infer {number}, input page-locked, the last results held"] = held
    return ways


def measure(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call."""
    order, taken = list(ways), {name: [] for name in ways}
    shuffled = random.Random(0)
    for number in range(rounds + 20):
        shuffled.shuffle(order)
        for name in order:
            began = time.perf_counter_ns()
            ways[name]()
            if number >= 20:
                taken[name].append((time.perf_counter_ns() - began) / 1e6)
    return taken


def table(taken: dict[str, list[float]]) -> str:
    floors = taken[FLOOR]
    lines = ["| way | of F | beyond F, µs | ms, median |", "|---|---|---|---|"]
    for name, times in taken.items():
        beyond = statistics.median(t - f for t, f in zip(times, floors, strict=True))
        ratio = 1 + beyond / statistics.median(floors)
        lines.append(
            f"| {name} | {ratio:.3f} | {beyond * 1e3:.1f} | {statistics.median(times):.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--engines", type=Path, help="a folder that keeps engines")
    parser.add_argument("--plan", type=Path, help="an engine that is there already")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", choices=NETWORKS, default="yolov3")
    parser.add_argument("--rounds", type=int, default=500)
    given = parser.parse_args()

    network = NETWORKS[given.network]
    with ExitStack() as stack:
        directory = given.engines or stack.enter_context(tempfile.TemporaryDirectory())
        device = stack.enter_context(Device(given.device))
        precision = "fp16" if device.kind == "cuda" else "fp32"
        config = BuildConfig(precision=precision, optimization_level=1)
        engine = stack.enter_context(
            Engine.load(given.plan, device=device)
            if given.plan
            else EngineCache(directory).load_or_build(network.make(), config, device=device)
        )
        image = np.random.default_rng(0).random(engine.inputs[0].shape, np.float32)
        library = device.platform.tensorrt()
        lanes = []
        for _ in range(2):  # two lanes each of two engines made of one plan
            raw = RawEngine(_driver_api(device), library.module, engine.serialize())
            stack.callback(raw.close)
            for _ in range(2):
                lanes.append(Lane(raw, {}))
                stack.callback(lanes[-1].close)
                lanes[-1].fill(image)
        ways = {
            **by_hand(lanes, stack),
            **with_the_package(engine, image, engine.inputs[0].name, stack),
        }
        taken = measure(ways, given.rounds)
        given.out.write_text(json.dumps({"gpu": device.name, "ms": taken}) + "\n")
        print(table(taken))


if __name__ == "__main__":
    main()
