"""Exported networks against Darknet's arithmetic, computed from the same files by other code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import (
    BuildConfig,
    CfgError,
    Device,
    InputError,
    Profile,
    Session,
    WeightsError,
    build_plan,
)
from trt_runtime.yolov3 import (
    Layout,
    Network,
    Weights,
    random_weights,
    read_weights,
    to_onnx,
    write_weights,
    yolov3,
    yolov3_spp,
    yolov3_tiny,
)

from ..models import assert_matches, reference
from .darknet import Heads, numpy_heads, torch_heads

TOLERANCE = 1e-4


def images(network: Network, batch: int = 1, seed: int = 0) -> np.ndarray:
    shape = (batch, network.channels, network.height, network.width)
    return np.random.default_rng(seed).random(shape, np.float32)


def files(text: str, folder: Path, seed: int = 0) -> tuple[Network, Path]:
    """The cfg and random weights for it, through the file that Darknet would read."""
    network, path = Network.parse(text), folder / "random.weights"
    write_weights(path, network, random_weights(network, seed))
    return network, path


# The three networks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """One of the three networks at a small side, what Darknet would read, and what it computes."""

    cfg: str
    weights: bytes
    image: np.ndarray
    heads: Heads


@pytest.fixture(scope="module", params=[yolov3, yolov3_tiny, yolov3_spp], ids=lambda t: t.__name__)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    cfg = request.param(64)
    network, path = files(cfg, tmp_path_factory.mktemp("exported"))
    data = path.read_bytes()
    path.unlink()  # pytest keeps the folders of several runs
    image = images(network, batch=2)
    heads = reference(to_onnx(network, read_weights(data, network), batch=2), {"000_net": image})
    return Exported(cfg, data, image, heads)


def test_an_exported_network_computes_what_darknet_does(exported: Exported) -> None:
    want = numpy_heads(exported.cfg, exported.weights, exported.image)
    assert_matches(exported.heads, want, TOLERANCE)


def test_an_exported_network_computes_what_pytorch_does(exported: Exported) -> None:
    pytest.importorskip("torch")
    want = torch_heads(exported.cfg, exported.weights, exported.image)
    assert_matches(exported.heads, want, TOLERANCE)


def test_full_size_yolov3_runs_in_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lines that a user writes, with a model of 248 MB."""
    cfg = yolov3(608)
    network, path = files(cfg, tmp_path)
    assert path.stat().st_size == 248_007_048  # that of the published yolov3.weights
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "host")
    onnx.save(to_onnx(network, read_weights(path, network)), "yolov3.onnx")
    img = images(network)
    try:
        with Session("yolov3.onnx", cache=False) as s:
            outputs = s.infer(img)
        assert {name: array.shape for name, array in outputs.items()} == {
            "082_convolutional": (1, 255, 19, 19),
            "094_convolutional": (1, 255, 38, 38),
            "106_convolutional": (1, 255, 76, 76),
        }
        want = numpy_heads(cfg, path.read_bytes(), img, np.float32)
        assert_matches(outputs, want, TOLERANCE)
    finally:
        for file in tmp_path.iterdir():  # pytest keeps folders of several runs
            file.unlink()


# Layers in every combination --------------------------------------------------------------------


@st.composite
def cfgs(draw: st.DrawFn) -> str:
    """Small networks: any layers, in any order, with any options that fit."""
    height, width, channels = draw(st.integers(5, 12)), draw(st.integers(5, 12)), 2
    text = f"[net]\nwidth={width}\nheight={height}\nchannels={channels}\n"
    head = "[convolutional]\nfilters=7\nsize=1\nactivation=linear\n[yolo]\nanchors=3,4\nclasses=2\n"

    def fits(more: str) -> bool:
        try:
            Network.parse(text + more + head)
        except CfgError:
            return False
        return True

    def numbers(least: int, most: int) -> st.SearchStrategy[int]:
        return st.integers(least, most)

    for index in range(draw(st.integers(1, 8))):
        kinds = ["convolutional", "maxpool", "upsample"] + (index > 0) * ["shortcut", "route"]
        kind = draw(st.sampled_from(kinds))
        section = f"[{kind}]\n"
        if kind == "convolutional":
            section += (
                f"filters={draw(numbers(1, 4))}\nsize={draw(numbers(1, 4))}\n"
                f"stride={draw(numbers(1, 3))}\nbatch_normalize={draw(numbers(0, 1))}\n"
                f"activation={draw(st.sampled_from(['leaky', 'linear']))}\n"
                f"{draw(st.sampled_from(['pad=1', 'pad=0', 'padding=1', 'padding=2']))}\n"
            )
        elif kind == "maxpool":
            size = draw(numbers(1, 5))
            padding = draw(st.one_of(st.none(), st.integers(0, size - 1)))
            section += f"size={size}\nstride={draw(numbers(1, 3))}\n"
            section += "" if padding is None else f"padding={padding}\n"
        elif kind == "upsample":
            section += f"stride={draw(numbers(1, 2))}\n"
        else:
            places = st.integers(-index, index - 1)
            if kind == "shortcut":
                section += f"from={draw(places)}\n"
            else:
                chosen = draw(st.lists(places, min_size=1, max_size=3))
                section += f"layers={','.join(map(str, chosen))}\n"
        if fits(section):
            text += section
        else:
            text += "[upsample]\nstride=1\n"
    return text + head


@given(cfg=cfgs(), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_any_network_of_these_layers_computes_what_darknet_does(
    cfg: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network, path = files(cfg, tmp_path_factory.getbasetemp(), seed)
    image = images(network, seed=seed) - np.float32(0.5)
    model = to_onnx(network, read_weights(path, network))
    got = reference(model, {"000_net": image})
    assert_matches(got, numpy_heads(cfg, path.read_bytes(), image), TOLERANCE)


def test_a_pool_of_stride_one_sees_nothing_outside_of_the_image() -> None:
    """YOLOv3-tiny's: padded below and on the right, and not with zeros."""
    cfg = (
        "[net]\nwidth=3\nheight=3\nchannels=1\n[maxpool]\nsize=2\nstride=1\n"
        "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nanchors=1,1\nclasses=1\n"
    )
    network = Network.parse(cfg)
    weights = random_weights(network)
    weights[2].kernel[...] = 1
    weights[2].bias[...] = 0
    image = -np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    got = reference(to_onnx(network, weights), {"000_net": image})
    want = [[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]]
    np.testing.assert_array_equal(got["002_convolutional"][0, 0], want)


# The model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Network:
    return Network.parse(yolov3_tiny(64, classes=2))


@pytest.fixture(scope="module")
def weights(tiny: Network) -> Weights:
    return random_weights(tiny)


def test_a_dynamic_batch_gives_each_image_its_own_result(
    host: Device, tiny: Network, weights: Weights
) -> None:
    model = to_onnx(tiny, weights, batch="batch")
    batch = images(tiny, batch=3)
    profile = Profile({"000_net": tuple((n, *batch.shape[1:]) for n in (1, 2, 4))})
    fixed = to_onnx(tiny, weights)
    with Session(model, device=host, profiles=[profile]) as session:
        assert session.inputs[0].shape == (-1, 3, 64, 64)
        together = session.infer(batch)
        for index in range(3):
            alone = reference(fixed, {"000_net": batch[index : index + 1]})
            assert_matches(
                {name: array[index : index + 1] for name, array in together.items()}, alone, 1e-5
            )


def test_a_model_alone_tells_what_its_outputs_mean(
    tiny: Network, weights: Weights, tmp_path: Path
) -> None:
    model = to_onnx(tiny, weights, names=["cat", "dög"])
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    for source in (model, model.SerializeToString(), path, str(path)):
        layout = Layout.from_onnx(source)
        assert layout == Layout.of(tiny, ["cat", "dög"])
        outputs = [output.name for output in model.graph.output]
        assert [head.output for head in layout.heads] == outputs


@pytest.mark.parametrize("text", [yolov3_tiny, yolov3_spp], ids=lambda text: text.__name__)
def test_a_real_tensorrt_builds_it(text: Callable[..., str]) -> None:
    """Every kind of layer, through NVIDIA's parser; TensorRT for RTX builds without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    network = Network.parse(text(64, classes=2))
    model = to_onnx(network, random_weights(network), batch="batch")
    profile = Profile({"000_net": ((1, 3, 64, 64), (1, 3, 64, 64), (4, 3, 64, 64))})
    config = BuildConfig(compute_capabilities=("8.6",), profiles=(profile,))
    assert len(build_plan(model, config, tensorrt="tensorrt_rtx")) > 4 * network.parameters


@pytest.mark.parametrize("batch", [0, -1, 2**31, True, 1.5, "", "a b", None])
def test_a_batch_that_is_none_is_refused(tiny: Network, weights: Weights, batch: Any) -> None:
    with pytest.raises(InputError, match="batch is a positive integer or the name"):
        to_onnx(tiny, weights, batch=batch)


def test_weights_of_another_network_are_refused(tiny: Network, weights: Weights) -> None:
    other = random_weights(Network.parse(yolov3_tiny(64, classes=3)))
    with pytest.raises(InputError, match=r"bias of 016_convolutional must have shape \(21,\)"):
        to_onnx(tiny, other)
    with pytest.raises(InputError, match="none for 001_convolutional"):
        to_onnx(tiny, Weights({}))
    plain = replace(weights[1], scale=None)
    with pytest.raises(InputError, match="scale of 001_convolutional"):
        to_onnx(tiny, Weights({**weights.layers, 1: plain}))


def test_weights_that_overflow_when_folded_are_refused(tiny: Network, weights: Weights) -> None:
    one = weights[1]
    assert one.scale is not None
    large = replace(one, scale=np.full_like(one.scale, 3e38), kernel=one.kernel * np.float32(1e3))
    with pytest.raises(WeightsError, match="001_convolutional leave float32"):
        to_onnx(tiny, Weights({**weights.layers, 1: large}))
