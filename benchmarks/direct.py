"""Outputs that a graph copies to page-locked memory, and outputs that layers write there.

    python -m benchmarks.direct [--device cuda] [--rounds N]

A convolution of one input, whose output has more and more bytes: one graph of it and the copies, or
one in which TensorRT was given the page-locked address for the output, each launched and waited
for, in turns. `pipeline.DIRECT_BYTES` is what came of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.conftest import _driver_api
from benchmarks.raw import Lane, RawEngine, must
from trt_runtime import BuildConfig, Device, Engine

#: Pixels of a square; 256 bytes come out for each.
SIDES = (2, 4, 8, 16, 32, 64, 128)
CHANNELS_IN, CHANNELS = 16, 64


def convolution(side: int) -> onnx.ModelProto:
    rng = np.random.default_rng(side)
    kernel = rng.standard_normal((CHANNELS, CHANNELS_IN, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])]
        for name, channels in (("x", CHANNELS_IN), ("y", CHANNELS))
    ]
    constants = [numpy_helper.from_array(kernel, "kernel")]
    graph = helper.make_graph([node], "convolution", *ends, constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


class Written(Lane):
    """A lane whose outputs TensorRT writes to page-locked memory itself."""

    def __init__(self, raw: RawEngine) -> None:
        super().__init__(raw, {})
        for tensor in self.outputs:
            self.context.set_tensor_address(tensor.name, int(tensor.host))
        self._upload_and_run()
        self.wait()
        must(self.cu.cuGraphExecDestroy(self.whole))
        self.whole = self._capture(self._upload_and_run)

    def _upload_and_run(self) -> None:
        for _, _, host, device, nbytes in self.inputs:
            must(self.cu.cuMemcpyHtoDAsync(device, host, nbytes, self.stream))
        self.enqueue_compute()


def measure(raw: RawEngine, rounds: int) -> dict[str, Any]:
    lanes = {"copied": Lane(raw, {}), "written": Written(raw)}
    times: dict[str, list[float]] = {way: [] for way in lanes}
    results = []
    for lane in lanes.values():
        image = np.random.default_rng(0).standard_normal(lane.inputs[0].array.shape, np.float32)
        lane.fill(image)
        lane.outputs[0].array[...] = np.nan
        for _ in range(20):
            lane.floor()
        results.append(lane.results()["y"])
    for _ in range(rounds):
        for way, lane in lanes.items():
            began = time.perf_counter_ns()
            lane.floor()
            times[way].append((time.perf_counter_ns() - began) / 1e3)
    for lane in lanes.values():
        lane.close()
    return {"same": np.array_equal(*results), **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    with Device(given.device) as device:
        library = device.platform.tensorrt()
        precision = "fp16" if device.kind == "cuda" else "fp32"
        config = BuildConfig(precision=precision, optimization_level=1)
        print(f"{device.name}, {library.name} {library.version}, {precision}\n")
        print("| output, KiB | copied, µs, median | minimum | written | minimum | the same |")
        print("|---|---|---|---|---|---|")
        for side in SIDES:
            with Engine.build(convolution(side), config, device=device) as engine:
                raw = RawEngine(_driver_api(device), library.module, engine.serialize())
                found = measure(raw, given.rounds)
                raw.close()
            cells = [f"{CHANNELS * side * side * 4 / 1024:g}"]
            for way in ("copied", "written"):
                cells += [f"{statistics.median(found[way]):.1f}", f"{min(found[way]):.1f}"]
            print(f"| {' | '.join(cells)} | {found['same']} |", flush=True)


if __name__ == "__main__":
    main()
