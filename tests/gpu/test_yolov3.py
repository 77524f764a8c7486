"""Exported networks under a real TensorRT, against onnxruntime; the errors are printed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from trt_runtime import BuildConfig, Device, Engine, Profile, Session
from trt_runtime.yolov3 import Network, random_weights, to_onnx, yolov3, yolov3_spp, yolov3_tiny

from ..models import Feed, assert_matches, reference

pytestmark = pytest.mark.gpu

#: Of the largest value. Rounding the factors of every product to the 11 bits that TF32 and float16
#: have puts YOLOv3 off by 1.5e-3, computed on the host.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}


def images(network: Network, batch: int = 1) -> np.ndarray:
    shape = (batch, network.channels, network.height, network.width)
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.fixture(scope="module")
def full_size() -> tuple[bytes, Feed, Feed]:
    """YOLOv3-608 with random weights, an image, and what onnxruntime makes of it."""
    network = Network.parse(yolov3(608))
    model = to_onnx(network, random_weights(network))
    feed = {"000_net": images(network)}
    return model.SerializeToString(), feed, reference(model, feed)


def print_errors(title: str, got: Any, want: Feed) -> None:
    """A row of a table for each output: errors relative to the largest value and to the RMS."""
    for name, right in want.items():
        difference = got[name].astype(np.float64) - right
        largest = np.abs(difference).max() / np.abs(right).max()
        rms = np.sqrt(np.square(difference).mean() / np.square(right, dtype=np.float64).mean())
        print(f"| {title} | {name} | {largest:.1e} | {rms:.1e} |")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_full_size_yolov3_computes_what_onnxruntime_does(
    builder: Device, full_size: tuple[bytes, Feed, Feed], precision: Any
) -> None:
    model, feed, want = full_size
    config = BuildConfig(precision=precision, optimization_level=0)
    began = time.perf_counter()
    with Engine.build(model, config, device=builder) as engine, Session(engine) as session:
        print(f"built in {time.perf_counter() - began:.1f} s")
        got = session.infer(feed)
    print_errors(precision, got, want)
    assert {name: array.shape for name, array in got.items()} == {
        "082_convolutional": (1, 255, 19, 19),
        "094_convolutional": (1, 255, 38, 38),
        "106_convolutional": (1, 255, 76, 76),
    }
    assert_matches(got, want, TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("text", [yolov3_tiny, yolov3_spp], ids=lambda text: text.__name__)
def test_every_kind_of_layer_computes_what_onnxruntime_does(
    builder: Device, text: Any, precision: Any
) -> None:
    """Pools of stride one, padded on one side or on all, are of these two only."""
    network = Network.parse(text(160, classes=3))
    model = to_onnx(network, random_weights(network))
    feed = {"000_net": images(network)}
    want = reference(model, feed)
    config = BuildConfig(precision=precision, optimization_level=0)
    with Engine.build(model, config, device=builder) as engine, Session(engine) as session:
        got = session.infer(feed)
    print_errors(f"{text.__name__} {precision}", got, want)
    assert_matches(got, want, TOLERANCE[precision])


def test_a_dynamic_batch_computes_what_onnxruntime_does(builder: Device) -> None:
    network = Network.parse(yolov3_tiny(160, classes=3))
    model = to_onnx(network, random_weights(network), batch="batch")
    profile = Profile({"000_net": ((1, 3, 160, 160), (4, 3, 160, 160), (8, 3, 160, 160))})
    config = BuildConfig(profiles=(profile,), precision="fp32", optimization_level=0)
    with Engine.build(model, config, device=builder) as engine, Session(engine) as session:
        for batch in (1, 3, 8):
            feed = {"000_net": images(network, batch)}
            assert_matches(session.infer(feed), reference(model, feed), TOLERANCE["fp32"])
