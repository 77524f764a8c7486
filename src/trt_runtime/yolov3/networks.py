"""The cfg texts of YOLOv3, YOLOv3-tiny and YOLOv3-SPP, composed from what was published of them.

Layers, filters and anchors: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, and the
networks that its authors published with it. Layers are numbered as there, so published weights fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import InputError

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
#: The 80 classes of COCO's detection task, in its order (2014).
COCO_NAMES = tuple(_COCO.split(","))

#: Width and height in pixels, clustered on COCO.
_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
_TINY_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"


def yolov3(side: int = 608, classes: int = 80) -> str:
    """YOLOv3: Darknet-53 and three heads, 62 million weights for 80 classes.

    Parameters
    ----------
    side : int
        Of the square image, in pixels; a multiple of 32.
    classes : int
    """
    return _large(side, classes, _Text.deepen)


def yolov3_spp(side: int = 608, classes: int = 80) -> str:
    """YOLOv3-SPP: spatial pyramid pooling before the first head; parameters as `yolov3`."""

    def pooled(text: _Text, filters: int) -> None:
        text.convolution(filters, 1)
        text.convolution(2 * filters, 3)
        text.convolution(filters, 1)
        for size, before in ((5, -2), (9, -4), (13, None)):
            text.section("maxpool", stride=1, size=size)
            if before is not None:
                text.section("route", layers=before)
        text.section("route", layers="-1,-3,-5,-6")
        text.convolution(filters, 1)
        text.convolution(2 * filters, 3)
        text.convolution(filters, 1)
        text.convolution(2 * filters, 3)

    return _large(side, classes, pooled)


def yolov3_tiny(side: int = 416, classes: int = 80) -> str:
    """YOLOv3-tiny: two heads, 8.9 million weights for 80 classes; parameters as `yolov3`."""
    text = _Text(side, classes, _TINY_ANCHORS)
    for filters in (16, 32, 64, 128, 256):
        text.convolution(filters, 3)
        text.section("maxpool", size=2, stride=2)
    text.convolution(512, 3)
    text.section("maxpool", size=2, stride=1)
    text.convolution(1024, 3)
    text.convolution(256, 1)
    text.convolution(512, 3)
    text.head(mask=(3, 4, 5))
    text.rise(128, beside=8)
    text.convolution(256, 3)
    text.head(mask=(0, 1, 2))
    return text.finish()


def _large(side: int, classes: int, deepen: Callable[[_Text, int], None]) -> str:
    """YOLOv3, with ``deepen`` making the layers between Darknet-53 and the first head."""
    text = _Text(side, classes, _ANCHORS)
    text.convolution(32, 3)
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        text.convolution(filters, 3, stride=2)
        for _ in range(blocks):
            text.convolution(filters // 2, 1)
            text.convolution(filters, 3)
            text.section("shortcut", **{"from": -3, "activation": "linear"})
    deepen(text, 512)
    text.head(mask=(6, 7, 8))
    text.rise(256, beside=61)
    text.deepen(256)
    text.head(mask=(3, 4, 5))
    text.rise(128, beside=36)
    text.deepen(128)
    text.head(mask=(0, 1, 2))
    return text.finish()


class _Text:
    """A cfg's text, growing section by section."""

    def __init__(self, side: int, classes: int, anchors: str) -> None:
        if side < 32 or side % 32:
            raise InputError(f"side is a positive multiple of 32, not {side!r}")
        if classes < 1:
            raise InputError(f"a network needs at least one class, not {classes!r}")
        self._sections: list[str] = []
        self._classes = classes
        self._anchors = anchors
        self.section("net", width=side, height=side, channels=3)

    def section(self, kind: str, **options: object) -> None:
        lines = [f"{key}={value}" for key, value in options.items()]
        self._sections.append("\n".join([f"[{kind}]", *lines, ""]))

    def convolution(self, filters: int, size: int, stride: int = 1) -> None:
        self.section(
            "convolutional",
            batch_normalize=1,
            filters=filters,
            size=size,
            stride=stride,
            pad=1,
            activation="leaky",
        )

    def deepen(self, filters: int) -> None:
        """Three pairs of narrow and wide, between a backbone or a joint and a head."""
        for _ in range(3):
            self.convolution(filters, 1)
            self.convolution(2 * filters, 3)

    def head(self, mask: Sequence[int]) -> None:
        filters = len(mask) * (5 + self._classes)
        self.section("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")
        self.section(
            "yolo",
            mask=",".join(map(str, mask)),
            anchors=self._anchors,
            classes=self._classes,
            num=self._anchors.count(",") // 2 + 1,
        )

    def rise(self, filters: int, beside: int) -> None:
        """From before a head to the next finer grid, joined with Darknet's layer ``beside``."""
        self.section("route", layers=-4)
        self.convolution(filters, 1)
        self.section("upsample", stride=2)
        self.section("route", layers=f"-1,{beside}")

    def finish(self) -> str:
        return "\n".join(self._sections)
