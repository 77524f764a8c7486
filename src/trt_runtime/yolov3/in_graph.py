"""Preprocessing and decoding as a part of the model: bytes go in, a few boxes come out.

`surround` puts both around a network. What it adds has fixed shapes, so that inferences can be
captured in CUDA graphs, and is few operators, each of them a kernel of a few microseconds. The
network's likeliest cells are chosen in the graph and come down as the heads' own numbers, in
float32: a float16 places a box at pixel 600 within half a pixel only, and TensorRT may compute in
float16 what it likes. `read_selected` makes boxes of them, as `decode` does of whole heads. With
``nms=True`` the boxes are made and suppressed in the graph too, in layers that are to stay in
float32, and `read_suppressed` has little left to do.

Everything parses under TensorRT 8.6, which takes uint8 for a network's input only, with a Cast
right behind it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import InputError, ModelError
from ..platform.driver import Part
from .decode import LARGEST_EXPONENT, Candidates, CutOff, lowest_logit, places_in_image, score
from .detections import BoxTable
from .layout import Layout
from .preprocess import PADDING, Fit, Placement, neighbours
from .suppress import check_nms_threshold

logger = logging.getLogger("trt_runtime")

#: The input, uint8 (batch, height, width, 3), RGB.
INPUT = "image"
#: The outputs: numbers float32 (batch, candidates, 5 + classes), and which cells they are of, int32
#: (batch, candidates), as `Layout.places` counts them.
SELECTED = ("candidates", "cells")
#: The output with ``nms=True``, float32 (batch, 11, candidates + 2), for each box: its score,
#: negated unless a better box hides it or nothing of it is within; left, top, right and bottom in
#: pixels of `INPUT`, cut off at its borders; the score; the class; and the four ends as they were.
#: Of the two that are no boxes the first numbers are the lowest objectness that was looked at, and
#: the best score for which `_settle` did not decide, or 0.
SUPPRESSED = ("detections",)
_QUANTITIES = 11

_PREFIX = "trt_runtime/"
_BOXES = f"{_PREFIX}boxes/"
#: The nodes that make boxes and suppress them, for `BuildConfig.float32_layers`.
FLOAT32_LAYERS = (f"{_BOXES}*",)

#: TensorRT's TopK gives no more.
_MOST_CANDIDATES = 3840
#: With suppression: two indices and a few bytes are kept for every two of them.
_MOST_SUPPRESSED = 1024
#: How often it is looked at which boxes are hidden: once more for each that is hidden by one that
#: is hidden itself, and so on. Where that does not settle it, the host does.
_STEPS = 3
#: What a copy costs beside its bytes, in bytes: 4 µs at the 50 GB/s of an H100's link.
_COPY_BYTES = 200_000
#: From here on the operators below have the form that they are used in.
_OLDEST_OPSET = 13


def surround(
    model: onnx.ModelProto,
    layout: Layout,
    *,
    image: tuple[int, int] | None = None,
    fit: Fit = "letterbox",
    candidates: int = 100,
    nms: bool = False,
    nms_threshold: float = 0.5,
) -> onnx.ModelProto:
    """A network with preprocessing before it and decoding behind it.

    Parameters
    ----------
    model : onnx.ModelProto
        As `to_onnx` makes it, with a fixed batch. Not changed.
    layout : Layout
    image : tuple of int, optional
        Height and width of the images, which are then resized in the graph. By default they have
        the network's size.
    fit : {"letterbox", "stretch"}
    candidates : int
        How many cells are looked at, up to 3840, and 1024 with ``nms``: those of the highest
        objectness. If more of them pass the threshold, boxes are missing, and the log says so.
    nms : bool
        Whether the boxes are made and suppressed in the graph as well. Where TensorRT may compute
        in fewer bits, `FLOAT32_LAYERS` belong into the `BuildConfig`; `Detector` sees to that.
    nms_threshold : float
        For ``nms``, as `Detector`; it becomes a part of the graph.

    Returns
    -------
    onnx.ModelProto
        Its input is `INPUT`, its outputs `SELECTED`, or `SUPPRESSED` with ``nms``; its metadata is
        the model's.

    Raises
    ------
    InputError
        The model is not as above, or an argument is out of its range.
    """
    check_nms_threshold(nms_threshold)
    most = _MOST_SUPPRESSED if nms else _MOST_CANDIDATES
    if not 1 <= candidates <= most:
        raise InputError(f"candidates are from 1 to {most}, not {candidates}")
    count = min(candidates, _count_cells(layout))
    source, batch, opset = _check(model, layout)
    network = (layout.height, layout.width)
    placement = Placement.of(image or network, network, fit)

    graph = _Graph(opset)
    _preprocess(graph, placement, network, source)
    numbers, best = _select(graph, layout, batch, count)
    if nms:
        _suppress(graph, layout, placement, numbers, best, batch, count, nms_threshold)
        shape = [batch, _QUANTITIES, count + 2]
        outputs = [helper.make_tensor_value_info(SUPPRESSED[0], TensorProto.FLOAT, shape)]
    else:
        graph.node("Identity", [numbers], SELECTED[0])
        graph.node("Cast", [best], SELECTED[1], to=TensorProto.INT32)
        shape = [batch, count, 5 + len(layout.names)]
        outputs = [
            helper.make_tensor_value_info(SELECTED[0], TensorProto.FLOAT, shape),
            helper.make_tensor_value_info(SELECTED[1], TensorProto.INT32, [batch, count]),
        ]
    return _joined(model, graph, [batch, *placement.image, 3], source, outputs)


def parts_read(placement: Placement, batch: int) -> list[Part]:
    """The copies that bring what the graph reads of its images; none if the whole had better cross.

    Resizing to less than half reads two neighbouring rows for each that it makes, and leaves others
    out. That repeats: of 1080 rows to 342, every 60 become 19. The pairs at equal distances within
    a period are one copy in all periods, here three for an image; one for each pair would take
    eight times as long as the image (benchmarks/results/2026-11-28-h100-copies.md).
    """
    height, width = placement.image
    first, second, _ = neighbours(height, placement.size[0])
    periods = math.gcd(height, placement.size[0])
    lines, row = height // periods, width * 3
    starts = first.reshape(periods, -1)
    begins = np.arange(0, height, lines)[:, None]
    if not ((starts == starts[0] + begins).all() and (second == first + 1).all()):
        return []
    parts = []
    at = starts[0].tolist()
    while at:
        step = at[1] - at[0] if len(at) > 1 else lines
        run = 1
        while run < len(at) and at[run] - at[run - 1] == step:
            run += 1
        if step < 2 or lines % step:
            return []
        parts.append(Part(at[0] * row, 2 * row, step * row, run, lines * row, periods))
        del at[:run]
    left_out = height * row - sum(part.nbytes for part in parts)
    if left_out < len(parts) * _COPY_BYTES:
        return []
    images = range(0, batch * height * row, height * row)
    return [part._replace(offset=part.offset + image) for image in images for part in parts]


def read_selected(
    outputs: Mapping[str, NDArray[Any]], places: NDArray[np.float32], *, threshold: float = 0.6
) -> list[Candidates]:
    """The boxes of each image whose score is at least ``threshold``, as `decode` gives them.

    Parameters
    ----------
    outputs : mapping of str to ndarray
        `SELECTED`.
    places : ndarray of float32, (boxes, 6)
        As `score` has them.
    threshold : float
        From 0 to 1.
    """
    least = lowest_logit(threshold)
    found = []
    for numbers, cells in zip(*(outputs[name] for name in SELECTED), strict=True):
        (passing,) = (numbers[:, 4] >= least).nonzero()
        if len(passing) == len(numbers) < len(places):
            _warn_of_missing(len(passing))
        chosen = numbers.take(passing, axis=0)
        found.append(score(chosen, cells.take(passing), places, threshold))
    return found


def read_suppressed(
    outputs: Mapping[str, NDArray[Any]],
    cells: int,
    *,
    threshold: float = 0.6,
    nms_threshold: float = 0.5,
) -> list[BoxTable]:
    """The boxes of each image that stay and whose score is at least ``threshold``, best first.

    Of boxes with the same score that of the higher objectness is the better one here; `suppress`
    of `decode`'s boxes goes by the heads' order then.

    Parameters
    ----------
    outputs : mapping of str to ndarray
        `SUPPRESSED`.
    cells : int
        Of all heads.
    threshold : float
        From 0 to 1.
    nms_threshold : float
        What the graph was made with.
    """
    found: list[BoxTable] = []
    for rows in outputs[SUPPRESSED[0]]:
        # In few and simple steps: each of NumPy's takes 1 µs, or several after a wait, above all
        # where it computes.
        count = rows.shape[1] - 2
        if rows.item(count) >= threshold and count < cells:
            _warn_of_missing(count)
        undecided = rows.item(count + 1)
        if not undecided < threshold:  # what is worse does not matter to what is better
            found.append(_suppressed_here(rows[:, :count], threshold, nms_threshold))
            continue
        # The threshold is above 0 here: the two that are no boxes come behind all that passes. What
        # is not a number comes last.
        ordered = rows.take(rows[0].argsort(kind="stable"), axis=1)
        passing = ordered[0].searchsorted(-threshold, side="right")
        found.append(CutOff(ordered[1:7, :passing]))
    return found


def _suppressed_here(
    rows: NDArray[np.float32], threshold: float, nms_threshold: float
) -> Candidates:
    """The boxes that stay where the graph did not find out which."""
    best = (-rows[5]).argsort(kind="stable")[: np.count_nonzero(rows[5] >= threshold)]
    chosen = rows.take(best, axis=1)
    return Candidates(np.concatenate([chosen[7:], chosen[5:7]])).suppressed(nms_threshold)


def _warn_of_missing(count: int) -> None:
    logger.warning(
        "all of the %d candidates pass the threshold, so there may be more, which are missing; "
        "raise candidates= or the threshold",
        count,
    )


class _Graph:
    """Nodes and constants that are added; every name is their own."""

    def __init__(self, opset: int = _OLDEST_OPSET) -> None:
        self.opset = opset
        #: What the names begin with.
        self.prefix = _PREFIX
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(
        self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        """Add an operator of one output; its name."""
        return self.nodes_of(operator, inputs, 1, [output] if output else None, **attributes)[0]

    def nodes_of(
        self,
        operator: str,
        inputs: Sequence[str],
        count: int,
        outputs: list[str] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Add an operator of several outputs; their names."""
        name = f"{self.prefix}{len(self.nodes)}_{operator}"
        outputs = outputs or [f"{name}_{number}" for number in range(count)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def constant(self, values: Any, dtype: type = np.int64) -> str:
        name = f"{_PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def maximum(self, source: str, axis: int, *, keep: bool = False) -> str:
        """Along one axis, which goes, or becomes 1."""
        if self.opset < 18:
            return self.node("ReduceMax", [source], axes=[axis], keepdims=int(keep))
        return self.node("ReduceMax", [source, self.constant([axis])], keepdims=int(keep))

    def part(self, source: str, start: int, end: int, axis: int = 2) -> str:
        """``source[..., start:end]``."""
        ends = [self.constant([number]) for number in (start, end, axis)]
        return self.node("Slice", [source, *ends])


def _check(model: onnx.ModelProto, layout: Layout) -> tuple[str, int, int]:
    """The model's input, its batch and its opset."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"the model must have one input, the image, and has {len(inputs)}")
    kind = inputs[0].type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT or dims[1:] != [3, layout.height, layout.width]:
        shape = [dim or "?" for dim in dims]
        raise InputError(
            f"the model must take float32 [batch, 3, {layout.height}, {layout.width}]; its input "
            f"{inputs[0].name!r} is {TensorProto.DataType.Name(kind.elem_type).lower()} {shape}"
        )
    if not dims[0]:
        raise InputError("the model's batch must be fixed to be decoded in the graph, to 1 say")
    missing = {head.output for head in layout.heads} - {v.name for v in model.graph.output}
    if missing:
        raise InputError(f"the model has no output {', '.join(map(repr, sorted(missing)))}")
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if opset < _OLDEST_OPSET:
        raise InputError(
            f"the model has opset {opset}, and {_OLDEST_OPSET} is needed; "
            "onnx.version_converter.convert_version makes it newer"
        )
    return inputs[0].name, dims[0], opset


def _preprocess(graph: _Graph, placement: Placement, network: tuple[int, int], target: str) -> None:
    """From bytes, channels last, to what the network takes."""
    pixels = graph.node("Cast", [INPUT], to=TensorProto.FLOAT)
    padding: NDArray[np.floating] = np.zeros(())
    if not placement.is_whole:
        # By gathering: 77 µs for a 1920x1080 image and the layers behind it, and 99 by Resize and
        # Pad (benchmarks/results/2026-11-24-h200-parts.md).
        insides = []
        for axis in range(2):
            first, second, share, inside = _between(placement, network, axis)
            ends = [
                graph.node("Gather", [pixels, graph.constant(at, np.int32)], axis=axis + 1)
                for at in (first, second)
            ]
            across = (1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1)
            weights = [inside * (1 - share), inside * share]
            pixels = graph.node(
                "Add",
                [
                    graph.node("Mul", [end, graph.constant(weight.reshape(across), np.float32)])
                    for end, weight in zip(ends, weights, strict=True)
                ],
            )
            insides.append(inside)
        padding = PADDING * (1 - insides[0][:, None] * insides[1])
    pixels = graph.node("Transpose", [pixels], perm=[0, 3, 1, 2])
    scale = graph.constant(1 / 255, np.float32)
    if padding.any():
        pixels = graph.node("Mul", [pixels, scale])
        graph.node("Add", [pixels, graph.constant(padding, np.float32)], target)
    else:
        graph.node("Mul", [pixels, scale], target)


def _between(
    placement: Placement, network: tuple[int, int], axis: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Which of the image's rows, or columns, each of the network's lies between.

    As `neighbours` has them, and 1 within the image's copy and 0 beside it.
    """
    count, before = placement.size[axis], placement.offset[axis]
    beside = (before, network[axis] - count - before)
    first, second, share = neighbours(placement.image[axis], count)
    inside = np.ones(count, np.float32)
    return (
        np.pad(first, beside, mode="edge"),
        np.pad(second, beside, mode="edge"),
        np.pad(share, beside),
        np.pad(inside, beside),
    )


def _select(graph: _Graph, layout: Layout, batch: int, count: int) -> tuple[str, str]:
    """The numbers of the likeliest cells, (batch, count, 5 + classes), and which cells they are."""
    objectness, flat, sizes = [], [], []
    for head in layout.heads:
        anchors, cells = len(head.anchors), head.grid[0] * head.grid[1]
        shape = graph.constant([batch, anchors, 5 + head.classes, cells])
        column = graph.part(graph.node("Reshape", [head.output, shape]), 4, 5)
        shape = graph.constant([batch, anchors * cells])
        objectness.append(graph.node("Reshape", [column, shape]))
        sizes.append(head.channels * cells)
        flat.append(graph.node("Reshape", [head.output, graph.constant([batch, sizes[-1]])]))
    values = graph.node("Concat", objectness, axis=1)
    best = _highest(graph, values, batch, _count_cells(layout), count)
    # Looked up, not computed: one kernel, for as many bytes in the engine as the heads have.
    where = graph.node("Gather", [graph.constant(_table(layout), np.int32), best], axis=0)
    if batch > 1:
        starts = np.arange(batch).reshape(-1, 1, 1) * sum(sizes)
        where = graph.node("Add", [where, graph.constant(starts, np.int32)])
    every = graph.node("Concat", flat, axis=1)
    every = graph.node("Reshape", [every, graph.constant([-1])])
    return graph.node("Gather", [every, where], axis=0), best


def _highest(graph: _Graph, values: str, batch: int, length: int, count: int) -> str:
    """Where the highest of (batch, length) are, (batch, count), the highest first.

    They are in the groups of the highest maxima, and two searches of few are faster than one of
    many: 42 µs for the best 100 of 22,743 and what is beside that, not 69
    (benchmarks/results/2026-11-24-h200-parts.md).
    """
    size = _group_size(length, count)
    if size == 1:
        return graph.nodes_of("TopK", [values, graph.constant([count])], 2, axis=1)[1]
    groups = length // size
    few = min(count, groups)
    grouped = graph.node("Reshape", [values, graph.constant([batch, groups, size])])
    maxima = graph.maximum(grouped, 2)
    _, best = graph.nodes_of("TopK", [maxima, graph.constant([few])], 2, axis=1)
    table = graph.constant(np.arange(length).reshape(groups, size))
    members = graph.node("Gather", [table, best], axis=0)
    members = graph.node("Reshape", [members, graph.constant([batch, few * size])])
    chosen = _taken(graph, values, members, batch, length)
    _, best = graph.nodes_of("TopK", [chosen, graph.constant([count])], 2, axis=1)
    return _taken(graph, members, best, batch, few * size)


def _group_size(length: int, count: int) -> int:
    """A divisor of ``length``, so that the best ``count`` groups have about as many members."""
    at_most = max(int(2 * math.sqrt(length / count)), 1)
    return next(size for size in range(at_most, 0, -1) if length % size == 0)


def _taken(graph: _Graph, values: str, where: str, batch: int, width: int) -> str:
    """Of (batch, width) for each row those at ``where``, (batch, n)."""
    if batch > 1:
        starts = graph.constant(np.arange(batch).reshape(-1, 1) * width)
        where = graph.node("Add", [where, starts])
    return graph.node(
        "Gather", [graph.node("Reshape", [values, graph.constant([-1])]), where], axis=0
    )


def _suppress(
    graph: _Graph,
    layout: Layout,
    placement: Placement,
    numbers: str,
    cells: str,
    batch: int,
    count: int,
    nms_threshold: float,
) -> None:
    """The boxes, and which of those that overlap stay."""
    numbers = _apart(graph, numbers, [batch, count, 5 + len(layout.names)])
    graph.prefix = _BOXES
    boxes = _boxes(graph, layout, placement, numbers, cells)
    stays, undecided = _settle(graph, _hides(graph, boxes, batch, count, nms_threshold), count)
    ends, scores, kind = (graph.part(boxes, *columns) for columns in ((0, 4), (4, 5), (5, 6)))
    cut_off, extended = _cut_off(graph, ends, placement)
    shown = graph.node("Mul", [stays, extended])
    # 1 becomes -1 and 0 becomes 1.
    sign = graph.node("Add", [shown, shown])
    sign = graph.node("Sub", [graph.constant(1, np.float32), sign])
    signed = graph.node("Mul", [scores, sign])
    rows = graph.node("Concat", [signed, cut_off, scores, kind, ends], axis=2)
    rows = graph.node("Transpose", [rows], perm=[0, 2, 1])
    least = graph.node("Sigmoid", [graph.part(graph.part(numbers, -1, count, 1), 4, 5)])
    best_undecided = graph.maximum(graph.node("Mul", [undecided, scores]), 1, keep=True)
    about = graph.node("Concat", [least, best_undecided], axis=2)
    rest = graph.constant(np.zeros((batch, _QUANTITIES - 1, 2)), np.float32)
    about = graph.node("Concat", [about, rest], axis=1)
    graph.node("Concat", [rows, about], SUPPRESSED[0], axis=2)


def _cut_off(graph: _Graph, ends: str, placement: Placement) -> tuple[str, str]:
    """The boxes within the image, and 1 for each of which something is, or 0."""
    height, width = placement.image
    nothing = graph.constant(0, np.float32)
    limits = graph.constant([width, height, width, height], np.float32)
    within = graph.node("Min", [graph.node("Max", [ends, nothing]), limits])
    left, top, right, bottom = (graph.part(within, n, n + 1) for n in range(4))
    sides = [graph.node("Greater", pair) for pair in ([right, left], [bottom, top])]
    extended = graph.node("Cast", [graph.node("And", sides)], to=TensorProto.FLOAT)
    return within, extended


def _apart(graph: _Graph, values: str, shape: Sequence[int]) -> str:
    """The same values, which TensorRT makes before it begins with what reads them.

    It fuses everything else here, and gives all of it one precision then: the selection, too, and
    the heads' convolutions would be in float32. A pooling layer it leaves alone (61 µs for both
    parts and the heads, not 75; benchmarks/results/2026-11-24-h200-parts.md).
    """
    batch, *rest = shape
    image = graph.node("Reshape", [values, graph.constant([batch, 1, *rest])])
    image = graph.node("MaxPool", [image], kernel_shape=[1, 1])
    return graph.node("Reshape", [image, graph.constant(shape)])


def _boxes(graph: _Graph, layout: Layout, placement: Placement, numbers: str, cells: str) -> str:
    """Left, top, right, bottom, score and class, (batch, candidates, 6), as `score` makes them."""
    classes = len(layout.names)
    places = graph.constant(places_in_image(layout.places, placement), np.float32)
    places = graph.node("Gather", [places, cells], axis=0)
    offsets = graph.node("Sigmoid", [graph.part(numbers, 0, 2)])
    centres = graph.node("Add", [offsets, graph.part(places, 0, 2)])
    centres = graph.node("Mul", [centres, graph.part(places, 2, 4)])
    limit = graph.constant(LARGEST_EXPONENT, np.float32)
    exponents = graph.node("Min", [graph.part(numbers, 2, 4), limit])
    halves = graph.node("Mul", [graph.node("Exp", [exponents]), graph.part(places, 4, 6)])
    ends = [graph.node(operator, [centres, halves]) for operator in ("Sub", "Add")]
    likeliest, kind = _likeliest(graph, graph.part(numbers, 5, 5 + classes))
    sigmoids = [graph.node("Sigmoid", [x]) for x in (graph.part(numbers, 4, 5), likeliest)]
    return graph.node("Concat", [*ends, graph.node("Mul", sigmoids), kind], axis=2)


def _likeliest(graph: _Graph, logits: str) -> tuple[str, str]:
    """The highest of each (batch, candidates, classes), and which one it is."""
    highest, number = graph.nodes_of("TopK", [logits, graph.constant([1])], 2, axis=2)
    return highest, graph.node("Cast", [number], to=TensorProto.FLOAT)


def _hides(graph: _Graph, boxes: str, batch: int, count: int, nms_threshold: float) -> str:
    """1 where a box is hidden should another one stay, or 0: (batch, hidden, other)."""
    one, other, ranks = _pairs(graph, boxes, count)
    first = [graph.node("Max", [one[n], other[n]]) for n in (0, 1)]
    last = [graph.node("Min", [one[n], other[n]]) for n in (2, 3)]
    shared = _area(graph, [*first, *last])
    areas = graph.node("Add", [_area(graph, one[:4]), _area(graph, other[:4])])
    union = graph.node("Sub", [areas, shared])
    limit = graph.node("Mul", [union, graph.constant(nms_threshold, np.float32)])
    over = graph.node("Greater", [shared, limit])
    same = graph.node("Equal", [one[5], other[5]])
    # Of equal scores the first is the better one: that of the higher objectness.
    later = graph.node("Greater", ranks)
    equal = graph.node("Equal", [one[4], other[4]])
    worse = graph.node("Less", [one[4], other[4]])
    worse = graph.node("Or", [worse, graph.node("And", [equal, later])])
    hides = graph.node("And", [graph.node("And", [over, same]), worse])
    hides = graph.node("Cast", [hides], to=TensorProto.FLOAT)
    return graph.node("Reshape", [hides, graph.constant([batch, count, count])])


def _pairs(graph: _Graph, boxes: str, count: int) -> tuple[list[str], list[str], list[str]]:
    """Each box with each: the columns of both, (batch, pairs, 1), and their ranks.

    Gathered, not broadcast: from (candidates, 1) and its reshaping (1, candidates) TensorRT 8.6.0
    computes something else, and not twice the same (benchmarks/results/2026-11-24-h200-parts.md).
    """
    pair = np.divmod(np.arange(count * count), count)
    both = [graph.node("Gather", [boxes, graph.constant(at, np.int32)], axis=1) for at in pair]
    one, other = ([graph.part(each, n, n + 1) for n in range(6)] for each in both)
    return one, other, [graph.constant(rank[:, None], np.float32) for rank in pair]


def _area(graph: _Graph, corners: Sequence[str]) -> str:
    """Of boxes; 0 where the right or lower end is not behind the other."""
    nothing = graph.constant(0, np.float32)
    sides = [
        graph.node("Max", [graph.node("Sub", [corners[n + 2], corners[n]]), nothing])
        for n in range(2)
    ]
    return graph.node("Mul", sides)


def _settle(graph: _Graph, hides: str, count: int) -> tuple[str, str]:
    """1 for each box that stays, or 0, and 1 where that may be wrong: (batch, candidates, 1) both.

    A box stays unless a better one stays that hides it: only one choice of boxes is like that.
    To begin with all of them stay, which is too many, and each step applies the rule to the one
    before it: of too many too few stay, and of too few too many. So where two steps agree they are
    right.
    """
    one = graph.constant(1, np.float32)
    stays = graph.node("Sub", [one, graph.maximum(hides, 2, keep=True)])
    before = stays
    for _ in range(_STEPS - 1):
        others = graph.node("Reshape", [stays, graph.constant([0, 1, count])])
        hidden = graph.maximum(graph.node("Mul", [hides, others]), 2, keep=True)
        before, stays = stays, graph.node("Sub", [one, hidden])
    return stays, graph.node("Abs", [graph.node("Sub", [stays, before])])


def _count_cells(layout: Layout) -> int:
    return sum(len(head.anchors) * head.grid[0] * head.grid[1] for head in layout.heads)


def _table(layout: Layout) -> NDArray[np.int32]:
    """Where each cell's numbers are among those of all heads, (cells, 5 + classes)."""
    parts, start = [], 0
    for head in layout.heads:
        shape = (len(head.anchors), 5 + head.classes, head.grid[0] * head.grid[1])
        indices = np.arange(start, start + np.prod(shape), dtype=np.int32).reshape(shape)
        parts.append(indices.transpose(0, 2, 1).reshape(-1, shape[1]))
        start += indices.size
    return np.concatenate(parts)


def _joined(
    model: onnx.ModelProto,
    graph: _Graph,
    shape: Sequence[int],
    source: str,
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """The model with the nodes that make its input before its own, and the others behind."""
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    first = next(n for n, node in enumerate(graph.nodes) if source in node.output) + 1
    nodes = [*graph.nodes[:first], *joined.graph.node, *graph.nodes[first:]]
    del joined.graph.node[:], joined.graph.input[:], joined.graph.output[:]
    joined.graph.node.extend(nodes)
    joined.graph.initializer.extend(graph.constants)
    joined.graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    joined.graph.output.extend(outputs)
    try:
        onnx.checker.check_model(joined)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"the model cannot be surrounded: {error}") from error
    return joined
