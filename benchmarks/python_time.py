"""Python's own time of one `Session.infer`: one input, three outputs, everything below stubbed.

    python benchmarks/python_time.py [--floats N] [--calls N] [--profile]

A session of the host device is opened and has run a few times; then the driver's calls that an
inference makes are replaced by ones that do nothing. What is left is what Python costs.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper

from trt_runtime import Device, Session
from trt_runtime.platform import HostPlatform

ROUNDS = 7

#: What an inference calls of the driver, once its graph is captured.
_STUBBED = (
    "graph_launch",
    "memcpy_htod_async",
    "stream_poll",
    "stream_synchronize",
    "set_current_context",
)


def model(floats: int) -> onnx.ModelProto:
    """One input, and three outputs that are the same."""
    names = ["x", "y0", "y1", "y2"]
    x, *ys = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [floats]) for n in names]
    nodes = [helper.make_node("Identity", ["x"], [y.name]) for y in ys]
    graph = helper.make_graph(nodes, "three", [x], ys)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@contextmanager
def stubbed(platform: HostPlatform, device: Device) -> Iterator[None]:
    """The driver does nothing, and says that the device's context is current."""
    driver = platform.host_driver
    context = device._primary.handle
    before = driver.current_context()
    driver.set_current_context(context)
    calls: dict[str, Any] = dict.fromkeys(_STUBBED, lambda *_: None)
    with mock.patch.multiple(driver, current_context=lambda: context, **calls):
        yield
    driver.set_current_context(before)


def measure(session: Session, image: np.ndarray, calls: int) -> list[float]:
    """Microseconds of a call, the mean of each round."""
    infer, rounds = session.infer, []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            results = infer(image)
        rounds.append((time.perf_counter() - started) / calls * 1e6)
    del results
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--floats", type=int, default=16, help="elements of each tensor")
    parser.add_argument("--calls", type=int, default=20000, help="of a round")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    given = parser.parse_args()

    platform = HostPlatform()
    with Device(platform) as device, Session(model(given.floats), device=device) as session:
        image = np.ones(given.floats, np.float32)
        for _ in range(5):  # until the graphs are captured
            session.infer(image)
        with stubbed(platform, device):
            rounds = measure(session, image, given.calls)
            print(
                f"{min(rounds):.2f} µs fastest, {statistics.median(rounds):.2f} µs median of "
                f"{ROUNDS} rounds of {given.calls} calls"
            )
            if given.profile:
                with cProfile.Profile() as profile:
                    measure(session, image, given.calls)
                pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
