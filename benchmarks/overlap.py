"""Whether copies should overlap with compute on a context: `infer_many` both ways, and by hand.

    python -m benchmarks.overlap [--engines DIR] [--contexts N ...]

Overlapped, the copies of one inference run beside the compute of its neighbours on the same
context; whole, each inference is one graph. The third way is a loop by hand, a graph for each
context in turn. All three take turns, since a GPU's clock changes meanwhile.
`pipeline.OVERLAPPED_CONTEXTS` is what came of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.conftest import _driver_api
from benchmarks.models import NETWORKS
from benchmarks.raw import Lane, RawEngine, back_to_back, in_turns
from benchmarks.test_throughput import BUFFERS, last
from trt_runtime import BuildConfig, Device, EngineCache, Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=Path, help="a folder that keeps engines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", choices=NETWORKS, default="yolov3")
    parser.add_argument("--contexts", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6, 8])
    parser.add_argument("--count", type=int, default=600, help="inferences of a round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    network, count = NETWORKS[given.network], given.count
    with tempfile.TemporaryDirectory() as directory, Device(given.device) as device:
        precision = "fp16" if device.kind == "cuda" else "fp32"
        config = BuildConfig(precision=precision, optimization_level=1)
        cache = EngineCache(given.engines or directory)
        with cache.load_or_build(network.make(), config, device=device) as engine:
            library = device.platform.tensorrt()
            raw = RawEngine(_driver_api(device), library.module, engine.serialize())
            image = np.random.default_rng(0).random(network.shape, np.float32)
            lanes = [Lane(raw, {}) for _ in range(max(given.contexts))]
            for lane in lanes:
                lane.fill(image)
            for contexts in given.contexts:
                with Session(engine, contexts=contexts) as session:
                    ways = _ways(session, image, lanes[:contexts], count)
                    print(contexts, _in_turn(ways, count, given.rounds), flush=True)
            alone = {"compute alone": lambda: back_to_back(lanes[0], count)}
            print(_in_turn(alone, count, given.rounds))
            for lane in lanes:
                lane.close()
            raw.close()


def _ways(
    session: Session, image: np.ndarray, lanes: list[Lane], count: int
) -> dict[str, Callable[[], object]]:
    name = session.inputs[0].name
    buffers = [session.input_buffers()[name] for _ in range(BUFFERS)]
    for buffer in buffers:
        buffer[...] = image

    def many(overlaps: bool) -> object:
        with session._record as opened:
            opened.pipeline.overlaps = overlaps
        return last(session, (buffers[n % BUFFERS] for n in range(count)))

    return {
        "by hand": lambda: in_turns(lanes, count),
        "overlapped": lambda: many(True),
        "whole": lambda: many(False),
    }


def _in_turn(ways: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Images per second of each way: the median of the rounds after the first."""
    per_s: dict[str, deque[float]] = {way: deque(maxlen=rounds) for way in ways}
    for _ in range(rounds + 1):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            per_s[way].append(count / (time.perf_counter() - began))
    return {way: round(statistics.median(found), 1) for way, found in per_s.items()}


if __name__ == "__main__":
    main()
