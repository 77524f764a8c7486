"""From an image of a camera to boxes: NumPy before and after the engine, and both in its graph.

python -m benchmarks.detect OUT.json [--level N] [--engines DIR] [--device host --side 96 ...]

YOLOv3-608 with random weights, FP16, one decoded 1920x1080 image. For each way the whole, its
parts, and its ratio to F: one CUDA graph of copy, compute and copy of the plain float network on
page-locked memory, and a synchronisation, timed before each call, or as many before calls in a row;
"suppressed" is with the boxes made and suppressed in the graph as well. Then images in a second
with `Detector.detect_many`.
Prints a table and writes everything measured. ``--device host`` tries it without a GPU, on any
network and image size; timings of that mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.conftest import _driver_api
from benchmarks.raw import Lane, RawEngine
from trt_runtime import BuildConfig, Device, EngineCache
from trt_runtime.yolov3 import (
    Detections,
    Detector,
    Network,
    Weights,
    in_graph,
    random_weights,
    to_onnx,
    yolov3,
    yolov3_tiny,
)
from trt_runtime.yolov3.cfg import Yolo
from trt_runtime.yolov3.decode import decode
from trt_runtime.yolov3.preprocess import preprocess, resize

#: Cells that pass the threshold on the image: what a street with a dozen objects has.
PASSING = 40
THRESHOLD = 0.6
#: Page-locked images that `detect_many` reads in turn: more than are in flight at once.
BUFFERS = 32

NETWORKS = {"yolov3": yolov3, "yolov3_tiny": yolov3_tiny}
Milliseconds = dict[str, float]


def street(height: int, width: int) -> np.ndarray:
    """A smooth random picture: noise alone looks the same to every filter."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
    large = coarse.repeat(40, 0).repeat(40, 1)[:height, :width]
    fine = rng.integers(0, 64, (height, width, 3), dtype=np.uint8)
    return (large // 4 * 3 + fine).astype(np.uint8)


def sparse(network: Network, image: np.ndarray) -> onnx.ModelProto:
    """The network with random weights, which sees `PASSING` objects in the image, not thousands."""
    import onnxruntime

    weights = random_weights(network)
    seen, _ = preprocess(image, (network.height, network.width))
    model = to_onnx(network, weights).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    heads = session.run([head.output for head in network.heads], {network.INPUT: seen[None]})
    objectness = np.concatenate(
        [
            array.reshape(len(head.anchors), 5 + head.classes, -1)[:, 4].ravel()
            for head, array in zip(network.heads, heads, strict=True)
        ]
    )
    last = np.sort(objectness)[-min(PASSING, len(objectness) // 4)]
    shift = np.float32(np.log(THRESHOLD / (1 - THRESHOLD)) - last)
    layers = dict(weights.layers)
    for layer in network.layers:
        if isinstance(layer, Yolo):
            (source,) = layer.sources
            bias = layers[source].bias.copy()
            bias[4 :: 5 + layer.classes] += shift
            layers[source] = replace(layers[source], bias=bias)
    return to_onnx(network, Weights(layers))


def ways(camera: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """The detector's options for each way."""
    every: dict[str, dict[str, Any]] = {"numpy": {}}
    for label, kind in (("graph", True), ("graph, suppressed", "nms")):
        for at, size in (("network's size", None), ("camera's size", camera)):
            every[f"{label}, {at}"] = {"in_graph": kind, "image_size": size}
    return every


class Clock:
    """Times calls, and F before each of them: a GPU's clock changes within seconds.

    F is of the plain network; until `plain` has its engine there is none.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._floor: Callable[[], object] = lambda: None

    @contextmanager
    def plain(self, detector: Detector, image: np.ndarray) -> Iterator[None]:
        """Within it, F is of this detector's engine, on this image."""
        with lane_of(detector, image) as lane:
            self._floor = lane.floor
            yield

    def measure(self, call: Callable[[], object], in_a_row: int = 1) -> Milliseconds:
        """Figures of a call; in a row, what F leaves in the caches slows the first one only."""
        for _ in range(max(3, self.rounds // 10)):
            call()
        times, floors = [], []
        in_a_row = min(in_a_row, self.rounds)
        for _ in range(max(self.rounds // in_a_row, 3)):
            floors += [_milliseconds(self._floor) for _ in range(in_a_row)]
            times += [_milliseconds(call) for _ in range(in_a_row)]
        return {
            "median": statistics.median(times),
            "minimum": min(times),
            "p90": sorted(times)[int(0.9 * len(times))],
            "floor": statistics.median(floors),
        }


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


@contextmanager
def lane_of(detector: Detector, image: np.ndarray) -> Iterator[Lane]:
    """The detector's engine in a loop by hand, with the image as its input."""
    device = detector.session.device
    raw = RawEngine(
        _driver_api(device), device.platform.tensorrt().module, detector.session.engine.serialize()
    )
    with ExitStack() as stack:
        stack.callback(raw.close)
        lane = Lane(raw, {})
        stack.callback(lane.close)
        target, size = lane.inputs[0].array[0], (detector.layout.height, detector.layout.width)
        if target.dtype != np.uint8:
            preprocess(image, size, out=target)
        elif target.shape == image.shape:
            target[...] = image
        else:
            resize(image, size, out=target)
        yield lane


def images_per_second(detector: Detector, images: Sequence[np.ndarray], count: int) -> float:
    """The best of three streams of ``count`` images, which are read in turn."""
    seconds = []
    for _ in range(3):
        stream = itertools.islice(itertools.cycle(images), count)
        began = time.perf_counter()
        found = sum(1 for _ in detector.detect_many(stream))
        seconds.append(time.perf_counter() - began)
        assert found == count
    return count / min(seconds)


def bare(detector: Detector, image: np.ndarray, clock: Clock) -> dict[str, Milliseconds]:
    """The detector's engine in a loop by hand: as one graph, and without the copies."""
    with lane_of(detector, image) as lane:

        def compute() -> None:
            lane.cu.cuGraphLaunch(lane.compute, lane.stream)
            lane.wait()

        return {"graph": clock.measure(lane.floor), "compute": clock.measure(compute)}


def steadiness(detector: Detector, image: np.ndarray, count: int) -> dict[str, int]:
    """How many of so many inferences gave the first one's bits, and left boxes to the host."""
    group = detector._prepare([image], [])  # type: ignore[arg-type]
    results = [detector.session.infer(group.array) for _ in range(count)]
    same = [all(map(np.array_equal, each.values(), results[0].values())) for each in results]
    (name,) = in_graph.SUPPRESSED
    undecided = [each[name][0, 0, -1] >= detector.threshold for each in results if name in each]
    return {"inferences": count, "same": sum(same), "undecided": int(np.sum(undecided))}


def difference(got: Detections, want: Detections) -> dict[str, Any]:
    """How far the same objects' boxes are apart, in pixels of the image."""
    near = [
        float(np.abs(want.boxes[want.classes == number] - box).max(axis=1).min(initial=np.inf))
        for box, number in zip(got.boxes, got.classes, strict=True)
    ]
    matched = [distance for distance in near if distance < 20]
    return {
        "boxes": len(got),
        "boxes_in_float32": len(want),
        "matched": len(matched),
        "largest_px": max(matched, default=None),
    }


def added_layers(detector: Detector, runs: int) -> dict[str, float] | None:
    """Milliseconds of the layers that are in the graph for pre- and postprocessing."""
    profile = detector.session.profile(runs=runs)
    return {layer.name: layer.ms for layer in profile.layers if "trt_runtime" in layer.name}


# Ways to detect ----------------------------------------------------------------------------------


def by_numpy(detector: Detector, image: np.ndarray, clock: Clock) -> dict[str, Milliseconds]:
    layout, session = detector.layout, detector.session
    buffer = session.input_buffers()[session.inputs[0].name]
    size = (layout.height, layout.width)
    _, placement = preprocess(image, size, out=buffer[0])
    heads = session.infer(buffer)

    def after() -> Detections:
        (candidates,) = decode(heads, layout, threshold=detector.threshold)
        return detector._place(candidates.suppressed(detector.nms_threshold), placement)

    return {
        "whole, ordinary array": clock.measure(lambda: detector.detect(image)),
        "pre": clock.measure(lambda: preprocess(image, size, out=buffer[0])),
        "infer": clock.measure(lambda: session.infer(buffer)),
        "post": clock.measure(after),
    }


def in_the_graph(
    detector: Detector, image: np.ndarray, clock: Clock, *, camera: bool
) -> dict[str, Milliseconds]:
    session, layout = detector.session, detector.layout
    buffer = session.input_buffers()[in_graph.INPUT]
    figures = {"whole, ordinary array": clock.measure(lambda: detector.detect(image))}
    if camera:
        buffer[0] = image
    else:
        size = (layout.height, layout.width)
        figures["pre"] = clock.measure(lambda: resize(image, size, out=buffer[0]))
    # Written beforehand, as by a camera's driver or a decoder, into page-locked memory.
    figures["whole, page-locked"] = clock.measure(lambda: detector.detect(buffer[0]))
    for count in (10, 100):
        figures[f"whole, page-locked, {count} in a row"] = clock.measure(
            lambda: detector.detect(buffer[0]), count
        )
    outputs = session.infer(buffer)
    group = detector._prepare([buffer[0]], [])  # type: ignore[arg-type]
    figures["infer"] = clock.measure(lambda: session.infer(buffer))
    figures["post"] = clock.measure(lambda: detector._interpret(outputs, group.placements))
    return figures


def stream(
    detector: Detector, image: np.ndarray, count: int, *, camera: bool
) -> Iterator[tuple[str, float]]:
    ordinary = [image.copy() for _ in range(min(BUFFERS, count))]
    yield "ordinary arrays", images_per_second(detector, ordinary, count)
    if camera:
        locked = [detector.session.input_buffers()[in_graph.INPUT][0] for _ in ordinary]
        for buffer in locked:
            buffer[...] = image
        yield "page-locked", images_per_second(detector, locked, count)


def table(found: Mapping[str, Any]) -> str:
    floor = statistics.median(
        ms["floor"] for figures in found["ways"].values() for ms in figures["steps"].values()
    )
    lines = [
        f"{found['network']} {found['side']}x{found['side']}, {found['precision']}, optimisation "
        f"level {found['level']}; {found['gpu']}, {found['tensorrt']}; image {found['image'][1]}x"
        f"{found['image'][0]}. F = {floor:.3f} ms.",
        "",
        "| way | step | ms, median | minimum | of F |",
        "|---|---|---|---|---|",
    ]
    for way, figures in found["ways"].items():
        for step, ms in {**figures["steps"], **figures.get("bare", {})}.items():
            lines.append(
                f"| {way} | {step} | {ms['median']:.3f} | {ms['minimum']:.3f} | "
                f"{ms['median'] / ms['floor']:.3f} |"
            )
    lines += ["", "| way | contexts | images | images per second |", "|---|---|---|---|"]
    for row in found["throughput"]:
        lines.append(f"| {row['way']} | {row['contexts']} | {row['images']} | {row['per_s']:.0f} |")
    lines += ["", "Boxes against those of the host device in float32, found the NumPy way:"]
    lines += [f"- {way}: {f['same']}, {f.get('steady', '')}" for way, f in found["ways"].items()]
    for way, figures in found["ways"].items():
        if figures.get("added"):
            total = sum(figures["added"].values())
            lines += ["", f"Layers added by {way}, {total:.4f} ms together:"]
            slowest = sorted(figures["added"].items(), key=lambda item: -item[1])
            lines += [f"- {ms:.4f} {name}" for name, ms in slowest]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", choices=NETWORKS, default="yolov3")
    parser.add_argument("--side", type=int, default=608)
    parser.add_argument("--image", type=int, nargs=2, default=(1080, 1920), help="height and width")
    parser.add_argument("--level", type=int, default=1, help="TensorRT's optimisation level")
    parser.add_argument("--engines", type=Path, help="a folder that keeps engines")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--count", type=int, default=300, help="images of a stream")
    parser.add_argument("--contexts", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", help="ways, as the table names them")
    arguments = parser.parse_args()
    rounds, size = arguments.rounds, tuple(arguments.image)

    image = street(*size)
    network = Network.parse(NETWORKS[arguments.network](arguments.side))
    plain = sparse(network, image)
    with ExitStack() as stack:
        device = stack.enter_context(Device(arguments.device))
        engines = arguments.engines or stack.enter_context(tempfile.TemporaryDirectory())
        precision = "fp16" if device.kind == "cuda" else "fp32"
        library = device.platform.tensorrt()
        options: dict[str, Any] = {
            "threshold": THRESHOLD,
            "device": device,
            "cache": EngineCache(engines),
            "config": BuildConfig(precision=precision, optimization_level=arguments.level),
        }
        found: dict[str, Any] = {
            "network": arguments.network,
            "side": arguments.side,
            "image": size,
            "precision": precision,
            "level": arguments.level,
            "gpu": device.name,
            "tensorrt": f"{library.name} {library.version}",
            "ways": {},
            "throughput": [],
        }
        with Detector(plain, threshold=THRESHOLD, device="host") as exact:
            want = exact.detect(image)
        clock = Clock(rounds)
        plain_detector = stack.enter_context(Detector(plain, **options))
        stack.enter_context(clock.plain(plain_detector, image))
        for way, mine in ways((int(size[0]), int(size[1]))).items():
            if arguments.only and way not in arguments.only:
                continue
            began = time.perf_counter()
            is_camera = "camera" in way
            with Detector(plain, **mine, **options) as detector:
                figures: dict[str, Any] = {"open_s": time.perf_counter() - began}
                found["ways"][way] = figures
                detector.detect(image)
                figures["same"] = difference(detector.detect(image), want)
                if way != "numpy":
                    figures["steady"] = steadiness(detector, image, min(rounds, 50))
                if way == "numpy":
                    figures["steps"] = by_numpy(detector, image, clock)
                else:
                    figures["steps"] = in_the_graph(detector, image, clock, camera=is_camera)
                figures["fallback"] = detector.session.graph_fallback
                figures["bare"] = bare(detector, image, clock)
                if way != "numpy":
                    figures["added"] = added_layers(detector, min(rounds, 50))
            for contexts in arguments.contexts:
                with Detector(plain, contexts=contexts, **mine, **options) as detector:
                    streams = stream(detector, image, arguments.count, camera=is_camera)
                    for images, per_s in streams:
                        row = {"way": way, "contexts": contexts, "images": images, "per_s": per_s}
                        found["throughput"].append(row)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
