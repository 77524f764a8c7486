"""What is put around a network, each part alone and in the forms that were tried.

python -m benchmarks.parts OUT.json [--device cuda] [--only PART ...] [--check]

Parts: choosing the likeliest cells of YOLOv3-608's heads, suppressing their boxes as well, and
bytes to what its first layers take, at the network's size and of 1920x1080. Each form is an engine
of its own in float16, between the layers that are beside it in the network, so that forms of one
part can be compared and nothing else. Prints microseconds of launches back to back, how many of 20
runs gave the same, and the time of each added layer by TensorRT's profiler.
With ``--check`` onnxruntime says instead how far each form's results are from the first form's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.conftest import _driver_api
from benchmarks.raw import Lane, RawEngine, back_to_back
from trt_runtime import BuildConfig, Device, Engine, Session
from trt_runtime.yolov3 import Layout, Network, in_graph, yolov3
from trt_runtime.yolov3.in_graph import INPUT, _Graph, _table
from trt_runtime.yolov3.preprocess import PADDING, Placement

COUNT = 100
CAMERA = (1080, 1920)
LAUNCHES, ROUNDS = 300, 7

# Choosing ----------------------------------------------------------------------------------------


def one_search(graph: _Graph, layout: Layout, batch: int, count: int) -> tuple[str, str]:
    """Objectness gathered from all numbers, and one search of it."""
    flat, table = _flat(graph, layout), _table(layout)
    values = graph.node("Gather", [flat, graph.constant(table[:, 4], np.int32)], axis=1)
    _, best = graph.nodes_of("TopK", [values, graph.constant([count])], 2, axis=1)
    return _rows(graph, flat, table, best), best


def one_search_of_slices(graph: _Graph, layout: Layout, batch: int, count: int) -> tuple[str, str]:
    """As `in_graph._select`, with one search."""
    values = graph.node("Concat", _columns(graph, layout), axis=1)
    _, best = graph.nodes_of("TopK", [values, graph.constant([count])], 2, axis=1)
    return _rows(graph, _flat(graph, layout), _table(layout), best), best


def every_anchor(graph: _Graph, layout: Layout, batch: int, count: int) -> tuple[str, str]:
    """One search of each place's best anchor; all three of the chosen places come out."""
    places, members, start = [], [], 0
    for column, head in zip(_columns(graph, layout), layout.heads, strict=True):
        anchors, cells = len(head.anchors), head.grid[0] * head.grid[1]
        by_anchor = graph.node("Reshape", [column, graph.constant([batch, anchors, cells])])
        places.append(graph.maximum(by_anchor, 1))
        members.append((np.arange(anchors * cells).reshape(anchors, cells) + start).T)
        start += anchors * cells
    values = graph.node("Concat", places, axis=1)
    _, best = graph.nodes_of("TopK", [values, graph.constant([count])], 2, axis=1)
    best = graph.node("Gather", [graph.constant(np.concatenate(members)), best], axis=0)
    best = graph.node("Reshape", [best, graph.constant([batch, -1])])
    return _rows(graph, _flat(graph, layout), _table(layout), best), best


def head_by_head(graph: _Graph, layout: Layout, batch: int, count: int) -> tuple[str, str]:
    """As `in_graph._select`, with the numbers taken from each head and not from all in one."""
    values = graph.node("Concat", _columns(graph, layout), axis=1)
    table = _table(layout)
    best = in_graph._highest(graph, values, batch, len(table), count)
    where = graph.node("Gather", [graph.constant(table, np.int32), best], axis=0)
    chosen, start = "", 0
    for head in layout.heads:
        size = head.channels * head.grid[0] * head.grid[1]
        flat = graph.node("Reshape", [head.output, graph.constant([-1])])
        at = graph.node("Sub", [where, graph.constant(start, np.int32)])
        low, high = graph.constant(0, np.int32), graph.constant(size - 1, np.int32)
        inside = graph.node("Min", [graph.node("Max", [at, low]), high])
        numbers = graph.node("Gather", [flat, inside], axis=0)
        if chosen:
            later = graph.node("Less", [graph.constant(start - 1, np.int32), where])
            numbers = graph.node("Where", [later, numbers, chosen])
        chosen, start = numbers, start + size
    return chosen, best


def _flat(graph: _Graph, layout: Layout) -> str:
    shape = graph.constant([1, -1])
    heads = [graph.node("Reshape", [head.output, shape]) for head in layout.heads]
    return graph.node("Concat", heads, axis=1)


def _columns(graph: _Graph, layout: Layout) -> list[str]:
    columns = []
    for head in layout.heads:
        shape = [1, len(head.anchors), 5 + head.classes, head.grid[0] * head.grid[1]]
        numbers = graph.node("Reshape", [head.output, graph.constant(shape)])
        column = graph.part(numbers, 4, 5)
        columns.append(graph.node("Reshape", [column, graph.constant([1, shape[1] * shape[3]])]))
    return columns


def _rows(graph: _Graph, flat: str, table: np.ndarray, best: str) -> str:
    where = graph.node("Gather", [graph.constant(table, np.int32), best], axis=0)
    every = graph.node("Reshape", [flat, graph.constant([-1])])
    return graph.node("Gather", [every, where], axis=0)


def choosing(form: Callable[..., tuple[str, ...]], side: int) -> onnx.ModelProto:
    """Each head's last convolution, and what comes behind them."""
    layout = Layout.of(Network.parse(yolov3(side)))
    rng = np.random.default_rng(1)
    inputs, nodes, constants = [], [], []
    for number, (head, channels) in enumerate(zip(layout.heads, (128, 64, 32), strict=True)):
        shape = [1, channels, *head.grid]
        inputs.append(helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, shape))
        kernel = rng.normal(size=(head.channels, channels, 1, 1)).astype(np.float32) / 10
        constants.append(numpy_helper.from_array(kernel, f"kernel{number}"))
        nodes.append(helper.make_node("Conv", [f"x{number}", f"kernel{number}"], [head.output]))
    graph = _Graph()
    names = form(graph, layout, 1, COUNT)
    if names != in_graph.SUPPRESSED:
        graph.node("Identity", names[:1], "numbers")
        graph.node("Cast", names[1:], "cells", to=TensorProto.INT32)
        names = ("numbers", "cells")
    kinds = {"cells": TensorProto.INT32}
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
        for name in names
    ]
    return _model([*nodes, *graph.nodes], inputs, outputs, [*constants, *graph.constants])


def suppressing(
    graph: _Graph, layout: Layout, batch: int, count: int, **instead: Callable[..., Any]
) -> tuple[str, ...]:
    """As `surround` has it; ``instead`` has other functions for those of `in_graph`."""
    numbers, best = in_graph._select(graph, layout, batch, count)
    whole = Placement(*[(layout.height, layout.width)] * 2, (0, 0))
    with ExitStack() as stack:
        for name, function in instead.items():
            stack.enter_context(mock.patch.object(in_graph, name, function))
        in_graph._suppress(graph, layout, whole, numbers, best, batch, count, 0.5)
    return in_graph.SUPPRESSED


def _not_apart(graph: _Graph, values: str, shape: Any) -> str:
    return values


def _broadcast(graph: _Graph, boxes: str, count: int) -> tuple[list[str], list[str], list[str]]:
    one = [graph.part(boxes, n, n + 1) for n in range(6)]
    across = graph.constant([0, 1, count])
    other = [graph.node("Reshape", [column, across]) for column in one]
    rank = np.arange(count)
    return one, other, [graph.constant(r, np.float32) for r in (rank[:, None], rank[None])]


def _compared(graph: _Graph, logits: str) -> tuple[str, str]:
    """As `in_graph._likeliest`, without a search."""
    classes = 80
    highest = graph.maximum(logits, 2, keep=True)
    same = graph.node("Cast", [graph.node("Equal", [logits, highest])], to=TensorProto.FLOAT)
    left = graph.constant(np.arange(classes, 0, -1), np.float32)  # the first counts the most
    first = graph.maximum(graph.node("Mul", [same, left]), 2, keep=True)
    return highest, graph.node("Sub", [graph.constant(classes, np.float32), first])


# Preprocessing -----------------------------------------------------------------------------------


def gathered(*place: Any) -> None:
    """Channels first by one gather of all pixels."""
    graph, _, network, target = place
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    pixels = graph.node("Reshape", [pixels, graph.constant([1, -1])])
    where = np.arange(network[0] * network[1] * 3).reshape(*network, 3).transpose(2, 0, 1)
    pixels = graph.node("Gather", [pixels, graph.constant(where, np.int32)], axis=1)
    graph.node("Mul", [pixels, graph.constant(1 / 255, np.float32)], target)


def scaled_first(*place: Any) -> None:
    graph, *_, target = place
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    pixels = graph.node("Mul", [pixels, graph.constant(1 / 255, np.float32)])
    graph.node("Transpose", [pixels], target, perm=[0, 3, 1, 2])


def channels_gathered(*place: Any) -> None:
    """As `in_graph._preprocess` behind a gather that changes nothing."""
    graph, *_, target = place
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    pixels = graph.node("Gather", [pixels, graph.constant([0, 1, 2], np.int32)], axis=3)
    pixels = graph.node("Transpose", [pixels], perm=[0, 3, 1, 2])
    graph.node("Mul", [pixels, graph.constant(1 / 255, np.float32)], target)


def resized(*place: Any, transpose_first: bool = False) -> None:
    """By the operators that are made for it."""
    graph, placement, network, target = place
    (top, left), (rows, columns) = placement.offset, placement.size
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    order, sizes = [0, 3, 1, 2], [1, rows, columns, 3]
    if transpose_first:
        pixels = graph.node("Transpose", [pixels], perm=order)
        sizes = [1, 3, rows, columns]
    pixels = graph.node(
        "Resize",
        [pixels, "", "", graph.constant(sizes)],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    if not transpose_first:
        pixels = graph.node("Transpose", [pixels], perm=order)
    pixels = graph.node("Mul", [pixels, graph.constant(1 / 255, np.float32)])
    pads = [0, 0, top, left, 0, 0, network[0] - rows - top, network[1] - columns - left]
    graph.node("Pad", [pixels, graph.constant(pads), graph.constant(PADDING, np.float32)], target)


def lines_first(*place: Any) -> None:
    """As `in_graph._preprocess`, on rows whose channels are not apart."""
    graph, placement, network, target = place
    height, width = placement.image
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    pixels = graph.node("Reshape", [pixels, graph.constant([1, height, width * 3])])
    channels = np.arange(3)[:, None]
    insides = []
    for axis in range(2):
        first, second, share, inside = in_graph._between(placement, network, axis)
        sum_ = ""
        for at, weight in ((first, inside * (1 - share)), (second, inside * share)):
            if axis == 0:
                weight = weight.reshape(1, -1, 1)
            else:
                at = at * 3 + channels
            end = graph.node("Gather", [pixels, graph.constant(at, np.int32)], axis=axis + 1)
            end = graph.node("Mul", [end, graph.constant(weight, np.float32)])
            sum_ = graph.node("Add", [sum_, end]) if sum_ else end
        pixels = sum_
        insides.append(inside)
    padding = PADDING * (1 - insides[0][:, None] * insides[1])
    pixels = graph.node("Transpose", [pixels], perm=[0, 2, 1, 3])
    pixels = graph.node("Mul", [pixels, graph.constant(1 / 255, np.float32)])
    graph.node("Add", [pixels, graph.constant(padding, np.float32)], target)


def matrices(*place: Any) -> None:
    """Resizing, scaling and padding as two matrix products, for tensor cores."""
    graph, placement, network, target = place
    height, width = placement.image
    both, insides = [], []
    for axis in range(2):
        first, second, share, inside = in_graph._between(placement, network, axis)
        matrix = np.zeros((network[axis], placement.image[axis]))
        rows = np.arange(network[axis])
        np.add.at(matrix, (rows, first), inside * (1 - share))
        np.add.at(matrix, (rows, second), inside * share)
        both.append(matrix)
        insides.append(inside)
    padding = PADDING * (1 - insides[0][:, None] * insides[1])
    down, across = graph.constant(both[0], np.float32), both[1].T / 255
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    lines = graph.node("Reshape", [pixels, graph.constant([1, height, width * 3])])
    lines = graph.node("MatMul", [down, lines])
    pixels = graph.node("Reshape", [lines, graph.constant([1, network[0], width, 3])])
    pixels = graph.node("Transpose", [pixels], perm=[0, 3, 1, 2])
    pixels = graph.node("MatMul", [pixels, graph.constant(across, np.float32)])
    graph.node("Add", [pixels, graph.constant(padding, np.float32)], target)


def preprocessing(form: Callable[..., None], side: int, image: tuple[int, int]) -> onnx.ModelProto:
    """What comes before the network, and its first layers."""
    network, graph = (side, side), _Graph()
    form(graph, Placement.of(image, network, "letterbox"), network, "pixels")
    rng = np.random.default_rng(1)
    first = rng.normal(size=(32, 3, 3, 3)).astype(np.float32) / 5
    second = rng.normal(size=(64, 32, 3, 3)).astype(np.float32) / 17
    kernels = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    nodes = [
        helper.make_node("Conv", ["pixels", "first"], ["a"], pads=[1] * 4),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("MaxPool", ["c"], ["out"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, *image, 3])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    return _model([*graph.nodes, *nodes], inputs, outputs, [*graph.constants, *kernels])


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "part", inputs, outputs, constants)
    opset = helper.make_opsetid("", 13)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


# Measuring ---------------------------------------------------------------------------------------

#: Forms by part; the first is what `surround` makes.
FORMS: dict[str, dict[str, Callable[..., Any]]] = {
    "suppressing": {
        "pairs gathered, apart from choosing": suppressing,
        "classes compared": partial(suppressing, _likeliest=_compared),
        "pairs gathered, not apart": partial(suppressing, _apart=_not_apart),
        "pairs broadcast, apart": partial(suppressing, _pairs=_broadcast),
        "pairs broadcast, not apart": partial(suppressing, _apart=_not_apart, _pairs=_broadcast),
    },
    "choosing": {
        "groups, then cells": in_graph._select,
        "numbers from each head": head_by_head,
        "every anchor of a place": every_anchor,
        "one search": one_search_of_slices,
        "one search, objectness gathered": one_search,
    },
    "network's size": {
        "cast, transpose, scale": in_graph._preprocess,
        "cast, scale, transpose": scaled_first,
        "all pixels gathered": gathered,
        "channels gathered": channels_gathered,
    },
    "camera's size": {
        "rows and columns gathered": in_graph._preprocess,
        "rows of all channels gathered": lines_first,
        "resize, transpose, pad": resized,
        "transpose, resize, pad": partial(resized, transpose_first=True),
        "two matrix products": matrices,
    },
}


def model_of(part: str, form: Callable[..., Any], side: int) -> onnx.ModelProto:
    if part in ("choosing", "suppressing"):
        return choosing(form, side)
    return preprocessing(form, side, CAMERA if part.startswith("camera") else (side, side))


def _feed(name: str, shape: list[int], is_bytes: bool) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    if is_bytes:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, np.float32)


def measure(model: onnx.ModelProto, device: Device, level: int) -> dict[str, Any]:
    precision = "fp16" if device.kind == "cuda" else "fp32"
    suppresses = model.graph.output[0].name in in_graph.SUPPRESSED
    layers = in_graph.FLOAT32_LAYERS if suppresses else ()
    config = BuildConfig(precision=precision, optimization_level=level, float32_layers=layers)
    with Engine.build(model, config, device=device) as engine:
        with Session(engine) as session:
            profile = session.profile(runs=50)
        plan = engine.serialize()
    raw = RawEngine(_driver_api(device), device.platform.tensorrt().module, plan)
    lane = Lane(raw, {})
    for tensor in lane.inputs:
        array = tensor.array
        array[...] = _feed(tensor.name, list(array.shape), array.dtype == np.uint8)
    lane.pinned()
    back_to_back(lane, LAUNCHES)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        back_to_back(lane, LAUNCHES)
        times.append((time.perf_counter() - began) / LAUNCHES * 1e6)
    after = [_after(lane) for _ in range(20)]
    lane.close()
    raw.close()
    layers = [(layer.name, layer.ms * 1e3) for layer in profile.layers]
    return {
        "us": statistics.median(times),
        "minimum_us": min(times),
        "same": sum(all(map(np.array_equal, arrays, after[0])) for arrays in after),
        "layers_us": layers,
    }


def _after(lane: Lane) -> list[np.ndarray]:
    lane.pinned()
    return list(lane.results().values())


def results(model: onnx.ModelProto) -> list[np.ndarray]:
    """By onnxruntime; cells in their own order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {i.name: _feed(i.name, i.shape, "uint8" in i.type) for i in session.get_inputs()}
    first, *cells = session.run(None, feed)
    if not cells:
        return [first]
    order = np.argsort(cells[0].ravel())
    return [first.reshape(order.size, -1)[order], cells[0].ravel()[order]]


def check(part: str, side: int) -> None:
    forms = iter(FORMS[part].items())
    name, form = next(forms)
    want = results(model_of(part, form, side))
    for name, form in forms:
        got = results(model_of(part, form, side))
        if part == "choosing":
            rows = np.isin(got[1], want[1])
            assert np.array_equal(got[1][rows], want[1]), name
            got = [array[rows] for array in got]
        apart = max(np.abs(g - w).max() for g, w in zip(got, want, strict=True))
        print(f"{part}, {name}: {apart}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="where the JSON goes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=608, help="the network's input")
    parser.add_argument("--level", type=int, default=1, help="optimisation level")
    parser.add_argument("--only", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--check", action="store_true", help="compare results, with onnxruntime")
    arguments = parser.parse_args()
    if arguments.check:
        for part in arguments.only:
            check(part, arguments.side)
        return
    found: dict[str, Any] = {}
    with Device(arguments.device) as device:
        print(f"{device.name}, {device.platform.tensorrt().version}")
        for part in arguments.only:
            print(f"\n| {part} | µs, median | minimum | the same, of 20 | added layers |")
            print("|---|---|---|---|---|")
            for name, form in FORMS[part].items():
                model = model_of(part, form, arguments.side)
                found[f"{part}: {name}"] = ms = measure(model, device, arguments.level)
                added = " + ".join(f"{us:.0f}" for at, us in ms["layers_us"] if "trt_runtime" in at)
                times = f"{ms['us']:.1f} | {ms['minimum_us']:.1f}"
                print(f"| {name} | {times} | {ms['same']} | {added} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
