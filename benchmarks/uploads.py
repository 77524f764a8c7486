"""A camera's image to the device: all of it, and only the rows that a resize reads.

    python -m benchmarks.uploads [--device cuda] [--rounds N]

For each size the copies that `Detector` makes for a letterboxed 608x608 network with
``image_size``, enqueued and waited for, beside one copy of the whole image, from page-locked memory
and from an ordinary array.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from trt_runtime import Device, DeviceBuffer, PinnedBuffer, Stream
from trt_runtime.platform.driver import Part
from trt_runtime.yolov3.in_graph import parts_read
from trt_runtime.yolov3.preprocess import Placement

SIZES = ((720, 1280), (1080, 1920), (1440, 2560), (2160, 3840))
NETWORK = (608, 608)


def microseconds(call: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median and minimum of a call."""
    times = []
    for _ in range(rounds + rounds // 10):
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / 1e3)
    times = times[rounds // 10 :]
    return statistics.median(times), min(times)


def compare(device: Device, stream: Stream, image: tuple[int, int], rounds: int) -> list[str]:
    """A row of the table."""
    driver, handle = device._driver, stream.handle
    nbytes = image[0] * image[1] * 3
    parts = parts_read(Placement.of(image, NETWORK, "letterbox"), 1) or [Part.whole(nbytes)]
    uploads = [driver.prepare_upload(part) for part in parts]
    cells = [f"{image[1]}x{image[0]}", str(len(parts))]
    cells += [f"{size / 1e6:.2f}" for size in (nbytes, sum(part.nbytes for part in parts))]
    ordinary = np.ones(nbytes, np.uint8)
    with (
        DeviceBuffer(nbytes, np.uint8, device=device) as memory,
        PinnedBuffer(nbytes, np.uint8, device=device) as pinned,
    ):
        pinned.array[...] = ordinary
        for source in (pinned.array, ordinary):
            host = source.ctypes.data

            def whole(host: int = host) -> None:
                driver.memcpy_htod_async(memory.address, host, nbytes, handle)
                driver.stream_synchronize(handle)

            def in_parts(host: int = host) -> None:
                for upload in uploads:
                    upload(memory.address, host, handle)
                driver.stream_synchronize(handle)

            for call in (whole, in_parts):
                cells += [f"{us:.1f}" for us in microseconds(call, rounds)]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    with Device(given.device) as device, Stream(device) as stream, device._primary.current():
        print(f"{device.name}; microseconds, medians and minima\n")
        print(
            "| image | copies | MB | of it | page-locked: all | | parts | | ordinary: all | ",
            end="",
        )
        print(f"| parts | |\n|{'---|' * 12}")
        for image in SIZES:
            print(f"| {' | '.join(compare(device, stream, image, given.rounds))} |", flush=True)


if __name__ == "__main__":
    main()
