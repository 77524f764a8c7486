"""Training of the digit detector: what PyTorch learns is what the exported network computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trt_runtime.yolov3 import Detector, Layout, Network, read_weights, to_onnx, write_weights
from trt_runtime.yolov3.decode import decode
from trt_runtime.yolov3.digits.scenes import draw_scene, load_digits

torch = pytest.importorskip("torch")
training = pytest.importorskip("trt_runtime.yolov3.digits.training")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For arrays this small, several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load(training.CFG)


def test_exported_weights_compute_what_the_trained_module_does(
    network: Network, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = training.Darknet(network)
    images = torch.rand(4, 3, 320, 320)
    with torch.no_grad():
        for _ in range(3):
            model(images)  # in training mode: normalisation takes on their mean and variance
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        expected = model.eval()(images[:1])
    write_weights(tmp_path / "w.weights", network, model.weights())
    onnx = to_onnx(network, read_weights(tmp_path / "w.weights", network))
    session = onnxruntime.InferenceSession(
        onnx.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = session.run(list(expected), {"000_net": images[:1].numpy()})
    found = dict(zip(expected, outputs, strict=True))
    assert list(found) == [head.output for head in network.heads]
    for name, array in found.items():
        right = expected[name].numpy()
        assert np.abs(array - right).max() <= 1e-4 * np.abs(right).max()


def test_predictions_that_decode_to_the_truth_have_no_loss_of_position_shape_and_class(
    network: Network,
) -> None:
    layout = Layout.of(network)
    loss = training.Loss(layout)
    scene = draw_scene(np.random.default_rng(3), load_digits("training"), count=6)
    boxes = torch.zeros(1, 12, 4)
    classes = torch.full((1, 12), -1)
    boxes[0, : len(scene.boxes)] = torch.from_numpy(scene.boxes)
    classes[0, : len(scene.boxes)] = torch.from_numpy(scene.classes)
    outputs = {
        head.output: torch.full((1, head.channels, *head.grid), -20.0).requires_grad_()
        for head in layout.heads
    }
    optimizer = torch.optim.Adam(outputs.values(), lr=1.0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1.0 if step < 300 else 0.05
        optimizer.zero_grad()
        sum(loss(outputs, boxes, classes).values()).backward()
        optimizer.step()
    parts = loss(outputs, boxes, classes)
    assert parts["shape"] < 1e-3
    assert parts["class"] < 1e-3
    assert parts["objectness"] < 1e-2
    (candidates,) = decode(
        {n: o.detach().numpy() for n, o in outputs.items()}, layout, threshold=0.6
    )
    for box, kind in zip(scene.boxes, scene.classes, strict=True):
        errors = np.abs(candidates.boxes - box).max(axis=1)
        nearest = errors.argmin()
        assert errors[nearest] < 0.5
        assert candidates.classes[nearest] == kind


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the workers use NumPy alone
def test_a_run_writes_weights_that_the_detector_takes(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--device cpu --workers 1 --steps 2 --batch 2 --capacity 32 --held-out 2"
    training.main(["--output", str(tmp_path), *options.split()])
    told = capsys.readouterr().out
    assert "mAP@0.5" in told
    assert (tmp_path / "training.log").read_text() == told
    with Detector(tmp_path / "digits.weights", cfg=training.CFG, device="host") as detector:
        assert len(detector.detect(np.zeros((320, 320, 3), np.uint8))) == 0


def test_a_run_without_workers_is_repeatable(network: Network, tmp_path: Path) -> None:
    plan = training.Plan(steps=1, batch=2, capacity=32, held_out=1)
    runs = [training.train(plan, tmp_path, torch.device("cpu")).state_dict() for _ in range(2)]
    for first, second in zip(runs[0].values(), runs[1].values(), strict=True):
        assert torch.equal(first, second)


def test_anchors_are_the_middles_of_clusters() -> None:
    generator = np.random.default_rng(0)
    middles = np.array([[10, 20], [40, 40], [90, 60]], np.float32)
    sizes = np.repeat(middles, 50, axis=0) + generator.normal(0, 0.5, (150, 2)).astype(np.float32)
    found = training.cluster(generator.permutation(sizes), 3)
    np.testing.assert_allclose(found, middles, atol=0.5)
