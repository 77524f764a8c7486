"""Detection on a GPU: the same boxes as on the host, however they come about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trt_runtime import BuildConfig, Device
from trt_runtime.yolov3 import Detections, Detector

from ..yolov3 import small

pytestmark = pytest.mark.gpu

IMAGES = [small.image(seed=seed) for seed in range(6)]
FP32 = BuildConfig(precision="fp32", optimization_level=0)
FP16 = BuildConfig(precision="fp16", optimization_level=0)
OPTIONS: dict[str, Any] = {"threshold": 0.4, "nms_threshold": 0.4}


@pytest.fixture(scope="module")
def expected() -> list[Detections]:
    """What the host device finds."""
    with Detector(small.model(), device="host", cache=False, **OPTIONS) as detector:
        found = list(detector.detect_many(IMAGES))
    assert min(map(len, found)) > 5
    return found


def assert_same(got: Detections, want: Detections, tolerance: float = 0.05) -> None:
    assert [found.name for found in got] == [found.name for found in want]
    np.testing.assert_allclose(got.scores, want.scores, atol=2e-3)
    np.testing.assert_allclose(got.boxes, want.boxes, atol=tolerance)


def matched(got: Detections, want: Detections, score: float, pixels: float) -> int:
    """How many of ``want`` have one of ``got`` that is nearly the same."""
    return sum(
        bool(
            (
                (np.abs(got.boxes - box).max(axis=1) <= pixels)
                & (got.classes == number)
                & (np.abs(got.scores - sure) <= score)
            ).any()
        )
        for box, number, sure in zip(want.boxes, want.classes, want.scores, strict=True)
    )


def test_the_boxes_are_the_hosts(builder: Device, expected: list[Detections]) -> None:
    with Detector(small.model(), device=builder, config=FP32, **OPTIONS) as detector:
        for got, want in zip(detector.detect_many(IMAGES), expected, strict=True):
            assert_same(got, want)
        assert_same(detector.detect(IMAGES[0]), expected[0])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("in_graph", [True, "nms"])
def test_the_graphs_boxes_are_the_hosts(
    builder: Device, expected: list[Detections], in_graph: Any, batch: int
) -> None:
    with Detector(
        small.model(batch),
        in_graph=in_graph,
        image_size=(60, 100),
        candidates=300,
        device=builder,
        config=FP32,
        **OPTIONS,
    ) as detector:
        for _ in range(3):
            for got, want in zip(detector.detect_many(IMAGES), expected, strict=True):
                assert_same(got, want)
        assert detector.session.graph_fallback is None


@pytest.mark.parametrize("config", [FP32, FP16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("in_graph", [True, "nms"])
def test_the_same_image_gives_the_same_bits_each_time(
    builder: Device, in_graph: Any, config: BuildConfig
) -> None:
    """TensorRT 8.6.0 computes another form of the graph's suppression differently each time."""
    with Detector(
        small.model(),
        in_graph=in_graph,
        image_size=(60, 100),
        candidates=100,
        device=builder,
        config=config,
        **OPTIONS,
    ) as detector:
        for image in IMAGES:
            first, *others = (detector.session.infer(image[None]) for _ in range(20))
            for outputs in others:
                for name, array in outputs.items():
                    np.testing.assert_array_equal(array, first[name])


def test_an_image_in_page_locked_memory_is_searched_where_it_is(
    builder: Device, expected: list[Detections]
) -> None:
    with Detector(
        small.model(),
        in_graph=True,
        image_size=(60, 100),
        candidates=300,
        device=builder,
        config=FP32,
        **OPTIONS,
    ) as detector:
        buffer = detector.session.input_buffers()["image"]
        for image, want in zip(IMAGES, expected, strict=True):
            buffer[0] = image
            assert_same(detector.detect(buffer[0]), want)


@pytest.mark.parametrize("page_locked", [True, False])
@pytest.mark.parametrize("in_graph", [True, "nms"])
def test_of_a_large_image_the_rows_that_are_read_are_enough(
    builder: Device, in_graph: Any, page_locked: bool
) -> None:
    size = (300, 480)
    images = [small.image(*size, seed=seed) for seed in range(6)]
    with Detector(small.model(), device="host", cache=False, **OPTIONS) as detector:
        expected = list(detector.detect_many(images))
    with Detector(
        small.model(),
        in_graph=in_graph,
        image_size=size,
        candidates=960,  # all that there are
        device=builder,
        config=FP32,
        **OPTIONS,
    ) as detector:
        assert detector.session._record.handle.pipeline.parts["image"]
        if page_locked:
            buffers = [detector.session.input_buffers()["image"] for _ in images]
            for buffer, image in zip(buffers, images, strict=True):
                buffer[0] = image
            images = [buffer[0] for buffer in buffers]
        for _ in range(2):
            for image, want in zip(images, expected, strict=True):
                assert_same(detector.detect(image), want, tolerance=0.25)
            for got, want in zip(detector.detect_many(images), expected, strict=True):
                assert_same(got, want, tolerance=0.25)


@pytest.mark.parametrize("in_graph", [False, True, "nms"])
def test_float16_moves_boxes_by_a_fraction_of_a_pixel(
    builder: Device, expected: list[Detections], in_graph: Any
) -> None:
    with Detector(
        small.model(),
        in_graph=in_graph,
        image_size=(60, 100) if in_graph else None,
        candidates=300,
        device=builder,
        config=FP16,
        **OPTIONS,
    ) as detector:
        found = list(detector.detect_many(IMAGES))
    total = sum(map(len, expected))
    same = sum(matched(*both, 0.05, 0.5) for both in zip(found, expected, strict=True))
    # A few are at the threshold, or of two that overlap the other one wins.
    assert same >= 0.9 * total, (same, total)
