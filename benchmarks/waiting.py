"""How fast Python is right after a wait for the GPU, by how it waited.

    python -m benchmarks.waiting [--rounds N]

A millisecond of copies within the device is enqueued and waited for; then what `Detector` does with
an inference's results is timed: many small calls of NumPy, on a hundred candidates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from cuda.bindings import driver as cu

from benchmarks.raw import must
from trt_runtime.yolov3 import Layout, Network, yolov3
from trt_runtime.yolov3.in_graph import SELECTED, read_selected
from trt_runtime.yolov3.preprocess import Placement

NBYTES = 1 << 28
CANDIDATES, PASSING = 100, 40


def work() -> Callable[[], object]:
    """As the results of YOLOv3-608 with in-graph decoding become boxes."""
    layout = Layout.of(Network.parse(yolov3(608)))
    places = layout.places
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((1, CANDIDATES, 5 + len(layout.names)), np.float32)
    numbers[0, :, 4] = np.where(np.arange(CANDIDATES) < PASSING, 1, -1)
    numbers[0, :, 5] = 6
    cells = rng.choice(len(places), (1, CANDIDATES), replace=False).astype(np.int32)
    outputs = dict(zip(SELECTED, (numbers, cells), strict=True))
    placement = Placement.of((1080, 1920), (608, 608), "letterbox")

    def boxes() -> object:
        (found,) = read_selected(outputs, places)
        return placement.to_image(found.suppressed(0.5).boxes)

    return boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    must(cu.cuInit(0))
    device = must(cu.cuDeviceGet(0))
    must(cu.cuCtxSetCurrent(must(cu.cuDevicePrimaryCtxRetain(device))))
    stream = must(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)))
    source, target = must(cu.cuMemAlloc(NBYTES)), must(cu.cuMemAlloc(NBYTES))
    busy = cu.CUresult.CUDA_ERROR_NOT_READY
    call = work()

    def enqueue(copies: int) -> None:
        for _ in range(copies):
            must(cu.cuMemcpyDtoDAsync(target, source, NBYTES, stream))

    def in_the_driver() -> None:
        must(cu.cuStreamSynchronize(stream))

    def by_asking() -> None:
        while cu.cuStreamQuery(stream)[0] == busy:
            pass

    def rehearsing() -> None:
        while cu.cuStreamQuery(stream)[0] == busy:
            call()

    enqueue(3)
    in_the_driver()
    began = time.perf_counter()
    enqueue(20)
    in_the_driver()
    copies = max(1, round(1e-3 / ((time.perf_counter() - began) / 20)))
    print("| waited | µs, median | minimum | p90 |\n|---|---|---|---|")
    for name, wait in {
        "not at all": None,
        "in the driver": in_the_driver,
        "by asking": by_asking,
        "by asking, and doing the same meanwhile": rehearsing,
    }.items():
        times = []
        for _ in range(rounds):
            if wait is not None:
                enqueue(copies)
                wait()
            began_ns = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - began_ns) / 1e3)
        times = sorted(times[rounds // 8 :])
        print(
            f"| {name} | {statistics.median(times):.1f} | {times[0]:.1f} | "
            f"{times[int(0.9 * len(times))]:.1f} |"
        )


if __name__ == "__main__":
    main()
