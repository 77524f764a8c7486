"""The three networks that come as code, held against what was published of them."""

from __future__ import annotations

import pytest

from trt_runtime import InputError
from trt_runtime.yolov3 import COCO_NAMES, Layout, Network, yolov3, yolov3_spp, yolov3_tiny
from trt_runtime.yolov3.cfg import Convolutional, MaxPool, Route, Shortcut, Upsample, Yolo


@pytest.mark.parametrize(
    ("text", "file_bytes", "layers", "outputs"),
    [
        (
            yolov3,
            248_007_048,
            107,
            {"082_convolutional": 19, "094_convolutional": 38, "106_convolutional": 76},
        ),
        (yolov3_tiny, 35_434_956, 24, {"016_convolutional": 19, "023_convolutional": 38}),
        (
            yolov3_spp,
            252_209_544,
            114,
            {"089_convolutional": 19, "101_convolutional": 38, "113_convolutional": 76},
        ),
    ],
    ids=["yolov3", "yolov3_tiny", "yolov3_spp"],
)
def test_a_network_takes_the_published_weights(
    text: object, file_bytes: int, layers: int, outputs: dict[str, int]
) -> None:
    network = Network.parse(text(608))  # type: ignore[operator]
    assert 20 + 4 * network.parameters == file_bytes  # of the authors' .weights file
    assert len(network.layers) == layers
    assert {head.output: head.grid for head in network.heads} == {
        name: (side, side) for name, side in outputs.items()
    }
    assert all(head.channels == 255 for head in network.heads)


def test_yolov3_has_the_published_layers() -> None:
    network = Network.parse(yolov3())
    kinds = [type(layer) for layer in network.layers]
    counts = {Convolutional: 75, Shortcut: 23, Route: 4, Upsample: 2, Yolo: 3}
    assert {kind: kinds.count(kind) for kind in set(kinds)} == counts
    # Darknet's numbers, which its cfg names: the backbone's stages, and where the heads join them.
    assert network.layers[36].shape == (256, 76, 76)
    assert network.layers[61].shape == (512, 38, 38)
    assert network.layers[74].shape == (1024, 19, 19)
    assert network.layers[86].sources == (86, 62)
    assert network.layers[98].sources == (98, 37)
    assert network.heads[0].anchors == ((116, 90), (156, 198), (373, 326))
    assert network.heads[2].anchors == ((10, 13), (16, 30), (33, 23))


def test_yolov3_spp_pools_one_layer_at_three_sizes() -> None:
    network = Network.parse(yolov3_spp())
    pools = [layer for layer in network.layers if isinstance(layer, MaxPool)]
    assert [(pool.size, pool.stride) for pool in pools] == [(5, 1), (9, 1), (13, 1)]
    (joint,) = (
        layer for layer in network.layers if isinstance(layer, Route) and len(layer.sources) == 4
    )
    assert joint.shape == (2048, 19, 19)
    # Each route but the last stands for the convolution before the first pool.
    starts = {network.layers[pool.sources[0] - 1] for pool in pools[1:]}
    assert all(isinstance(start, Route) for start in starts)
    assert {start.sources for start in starts} == {pools[0].sources} == {joint.sources[-1:]}


def test_yolov3_tiny_has_the_published_anchors() -> None:
    network = Network.parse(yolov3_tiny())
    assert (network.width, network.height) == (416, 416)
    assert network.heads[0].anchors == ((81, 82), (135, 169), (344, 319))
    assert network.heads[1].anchors == ((10, 14), (23, 27), (37, 58))


@pytest.mark.parametrize("text", [yolov3, yolov3_tiny, yolov3_spp])
def test_a_network_of_other_classes_has_other_heads_only(text: object) -> None:
    few = Network.parse(text(320, classes=3))  # type: ignore[operator]
    many = Network.parse(text(320))  # type: ignore[operator]
    assert {head.channels for head in few.heads} == {24}
    assert few.heads[0].grid == many.heads[0].grid == (10, 10)
    heads = {head.output for head in few.heads}
    backbone = [layer for layer in few.convolutions if layer.name not in heads]
    assert backbone == [layer for layer in many.convolutions if layer.name not in heads]


@pytest.mark.parametrize(("side", "classes"), [(0, 1), (-32, 1), (100, 1), (608, 0)])
def test_a_network_that_cannot_be_is_refused(side: int, classes: int) -> None:
    with pytest.raises(InputError):
        yolov3(side, classes)


def test_eighty_classes_are_those_of_coco() -> None:
    assert len(set(COCO_NAMES)) == 80
    assert Layout.of(Network.parse(yolov3_tiny())).names == COCO_NAMES
    assert (COCO_NAMES[0], COCO_NAMES[16], COCO_NAMES[79]) == ("person", "dog", "toothbrush")
