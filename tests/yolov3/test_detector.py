"""`Detector`: its models, its images, its lifetime; every way finds the same."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_runtime import (
    BuildConfig,
    ClosedError,
    Device,
    Engine,
    InputError,
    ModelError,
    Profile,
    ShapeError,
    build_plan,
)
from trt_runtime.platform import HostPlatform
from trt_runtime.yolov3 import Detections, Detector, surround, write_weights
from trt_runtime.yolov3.decode import decode
from trt_runtime.yolov3.preprocess import preprocess
from trt_runtime.yolov3.suppress import suppress

from ..models import reference
from ..test_session import Recorder
from ..together import run_together
from . import small

OPTIONS: dict[str, Any] = {"threshold": 0.4, "nms_threshold": 0.4}


def expected(image: np.ndarray) -> Detections:
    """What the parts give, put together by hand."""
    seen, placement = preprocess(image, (64, 96))
    heads = reference(small.model(), {"000_net": seen[None]})
    (candidates,) = decode(heads, small.layout(), threshold=0.4)
    boxes, scores, classes = candidates.boxes, candidates.scores, candidates.classes
    best = suppress(boxes, scores, classes, 0.4)
    inside = placement.to_image(boxes[best])
    best = best[(inside[:, 2:] > inside[:, :2]).all(axis=1)]
    return Detections(
        placement.to_image(boxes[best]),
        scores[best],
        classes[best],
        small.NAMES,
        image.shape[:2],
    )


def assert_same(got: Detections, want: Detections, tolerance: float = 0.05) -> None:
    assert len(want) > 5
    assert [found.name for found in got] == [found.name for found in want]
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-3)
    np.testing.assert_allclose(got.boxes, want.boxes, atol=tolerance)
    assert got.image_size == want.image_size


@pytest.fixture
def detector(host: Device) -> Iterator[Detector]:
    with Detector(small.model(), device=host, **OPTIONS) as detector:
        yield detector


IMAGES = [small.image(40 + 20 * seed, 150 - 30 * seed, seed) for seed in range(4)]

# One image ---------------------------------------------------------------------------------------


def test_an_image_gives_its_boxes_as_a_path_an_array_or_a_pillow_image(
    detector: Detector, tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for number, image in enumerate(IMAGES):
        want = expected(image)
        path = tmp_path / f"{number}.png"
        pillow.fromarray(image).save(path)
        for given in (image, image[..., ::-1].copy()[..., ::-1], path, str(path)):
            assert_same(detector.detect(given), want)
        assert_same(detector(pillow.fromarray(image)), want)


def test_results_stay_as_they_were(detector: Detector) -> None:
    first = detector.detect(IMAGES[0])
    for image in IMAGES:
        detector.detect(image)
    assert_same(first, expected(IMAGES[0]))


def test_boxes_lie_in_the_image_and_are_not_empty(detector: Detector) -> None:
    for seed in range(20):
        image = small.image(20 + 7 * seed, 160 - 7 * seed, seed)
        boxes = detector.detect(image).boxes
        height, width = image.shape[:2]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_thresholds_are_kept(host: Device) -> None:
    found = []
    for threshold, nms_threshold in ((0.3, 1), (0.3, 0.3), (0.7, 0.3)):
        with Detector(
            small.model(), threshold=threshold, nms_threshold=nms_threshold, device=host
        ) as detector:
            detections = detector.detect(IMAGES[0])
            assert (detections.scores >= threshold).all()
            assert (np.diff(detections.scores) <= 0).all()
            found.append(len(detections))
    assert found[0] > found[1] > found[2] > 0


def test_stretching_finds_other_boxes(host: Device) -> None:
    image = small.image(40, 160)
    with Detector(small.model(), fit="stretch", device=host, **OPTIONS) as detector:
        got = detector.detect(image)
    seen, placement = preprocess(image, (64, 96), fit="stretch")
    heads = reference(small.model(), {"000_net": seen[None]})
    (candidates,) = decode(heads, small.layout(), threshold=0.4)
    best = suppress(candidates.boxes, candidates.scores, candidates.classes, 0.4)
    np.testing.assert_allclose(got.boxes, placement.to_image(candidates.boxes[best]), atol=0.05)


# Many --------------------------------------------------------------------------------------------


def test_many_images_come_back_in_order(detector: Detector) -> None:
    images = [small.image(50 + seed, 90 - seed, seed) for seed in range(12)]
    found = list(detector.detect_many(iter(images)))
    assert len(found) == len(images)
    for got, image in zip(found, images, strict=True):
        assert_same(got, expected(image))


def test_a_folder_is_searched_in_the_order_of_its_names(detector: Detector, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for number, image in enumerate(IMAGES):
        pillow.fromarray(image).save(tmp_path / f"{number}.png")
    for got, image in zip(detector.detect_many(tmp_path), IMAGES, strict=True):
        assert_same(got, expected(image))


def test_a_video_is_searched_frame_by_frame(detector: Detector, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (100, 60))
    for seed in range(5):
        writer.write(np.ascontiguousarray(small.image(seed=seed)[..., ::-1]))
    writer.release()
    found = list(detector.detect_many(path))
    assert [one.image_size for one in found] == [(60, 100)] * 5
    assert len({tuple(one.scores.tolist()) for one in found}) == 5


def test_a_bad_image_raises_where_its_detections_would_have_been(detector: Detector) -> None:
    images = [IMAGES[0], IMAGES[1], "gone.png", IMAGES[2]]
    found = detector.detect_many(images)
    assert_same(next(found), expected(IMAGES[0]))
    assert_same(next(found), expected(IMAGES[1]))
    with pytest.raises(InputError, match=r"gone\.png"):
        next(found)
    assert_same(detector.detect(IMAGES[3]), expected(IMAGES[3]))


def test_stopping_early_closes_the_source_and_leaves_the_detector_usable(
    detector: Detector,
) -> None:
    closed = []

    def images() -> Iterator[np.ndarray]:
        try:
            yield from IMAGES * 5
        finally:
            closed.append(True)

    source = images()
    found = detector.detect_many(source)
    next(found)
    found.close()
    del source
    assert closed
    assert_same(detector.detect(IMAGES[3]), expected(IMAGES[3]))


def test_a_model_that_suppresses_is_recognised(host: Device) -> None:
    model = surround(
        small.model(),
        small.layout(),
        image=(60, 100),
        candidates=300,
        nms=True,
        nms_threshold=0.4,
    )
    with Detector(model, device=host, **OPTIONS) as detector:
        assert_same(detector.detect(small.image()), expected(small.image()))


def test_no_images_give_nothing(detector: Detector) -> None:
    assert list(detector.detect_many([])) == []


def test_images_are_read_no_faster_than_detections_are_taken(detector: Detector) -> None:
    read = []

    def images() -> Iterator[np.ndarray]:
        for number in range(100):
            read.append(number)
            yield IMAGES[0]

    found = detector.detect_many(images())
    next(found)
    assert len(read) < 10
    found.close()


# Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_a_batch_is_filled_and_what_is_left_of_it_ignored(host: Device, count: int) -> None:
    images = [IMAGES[number % 4] for number in range(count)]
    with Detector(small.model(3), device=host, **OPTIONS) as detector:
        assert_same(detector.detect(IMAGES[2]), expected(IMAGES[2]))
        found = list(detector.detect_many(images))
    assert len(found) == count
    for got, image in zip(found, images, strict=True):
        assert_same(got, expected(image))


def test_a_dynamic_batch_is_as_large_as_its_profile_allows(host: Device) -> None:
    shapes = [(n, 3, 64, 96) for n in (1, 2, 4)]
    profile = Profile({"000_net": tuple(shapes)})
    model = small.model("images")
    with Detector(model, profiles=[profile], device=host, **OPTIONS) as detector:
        for got, image in zip(detector.detect_many(IMAGES * 2), IMAGES * 2, strict=True):
            assert_same(got, expected(image))
        assert_same(detector.detect(IMAGES[1]), expected(IMAGES[1]))


def test_a_bad_image_in_a_batch_raises_after_those_before_it(host: Device) -> None:
    with Detector(small.model(3), device=host, **OPTIONS) as detector:
        found = detector.detect_many([IMAGES[0], "gone.png"])
        assert_same(next(found), expected(IMAGES[0]))
        with pytest.raises(InputError, match=r"gone\.png"):
            next(found)


# In the graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_graph", [True, "nms"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_graph_finds_what_numpy_finds(host: Device, in_graph: Any, batch: int) -> None:
    images = [small.image(seed=seed) for seed in range(3)]
    options = {**OPTIONS, "in_graph": in_graph, "candidates": 300, "device": host}
    with Detector(small.model(batch), image_size=(60, 100), **options) as detector:
        for got, image in zip(detector.detect_many(images), images, strict=True):
            assert_same(got, expected(image))
        assert_same(detector.detect(np.asfortranarray(images[0])), expected(images[0]))
        with pytest.raises(ShapeError, match="60 high and 100 wide, not 61 and 100"):
            detector.detect(small.image(61, 100))
        found = detector.detect_many([images[0], small.image(61, 100)])
        assert_same(next(found), expected(images[0]))
        with pytest.raises(ShapeError, match="not 61 and 100"):
            next(found)
    with Detector(small.model(batch), **options) as detector:
        for image in IMAGES:  # rounded to bytes on the way
            got, want = detector.detect(image), expected(image)
            common = min(len(got), len(want), 5)
            np.testing.assert_allclose(got.scores[:common], want.scores[:common], atol=0.02)


@pytest.mark.parametrize("in_graph", [True, "nms"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("page_locked", [True, False])
def test_of_a_large_image_only_the_rows_that_are_read_cross(
    in_graph: Any, batch: int, page_locked: bool
) -> None:
    """One in five of two, of 300 rows that become 60."""
    recorder = Recorder()
    size = (300, 480)
    image = small.image(*size)
    read = np.zeros(300, bool)
    read[2::5] = read[3::5] = True
    with (
        Device(HostPlatform(recorder)) as device,
        Detector(
            small.model(batch=batch), in_graph=in_graph, image_size=size, device=device, **OPTIONS
        ) as detector,
    ):
        assert_same(detector.detect(image), expected(image), tolerance=0.5)
        given = image
        if page_locked and batch == 1:
            given = detector.session.input_buffers()["image"][0]
            given[...] = image
        want = detector.detect(given)
        given[~read] = 255
        recorder.calls.clear()
        assert_same(detector.detect(given), want, tolerance=0)
        assert recorder.calls.count("cuMemcpy3DAsync") == batch
        assert "cuMemcpyHtoDAsync" not in recorder.calls
        many = list(detector.detect_many([given] * 5))
        for found in many:
            assert_same(found, want, tolerance=0)


def test_an_engine_that_was_made_elsewhere_is_given_whole_images(host: Device) -> None:
    size = (300, 480)
    graph = surround(small.model(), small.layout(), image=size)
    image = small.image(*size)
    with Detector(graph, device=host, **OPTIONS) as detector:
        assert not detector.session._record.handle.pipeline.parts
        assert_same(detector.detect(image), expected(image), tolerance=0.5)


def test_boxes_that_the_graph_makes_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BuildConfig] = []

    def opened(model: Any, *, config: BuildConfig, **_: Any) -> Any:
        asked.append(config)
        raise KeyError

    monkeypatch.setattr("trt_runtime.yolov3.detector.Session", opened)
    for config in (None, BuildConfig(precision="fp16", float32_layers=("a",))):
        with pytest.raises(KeyError):
            Detector(small.model(), in_graph="nms", config=config)
    with pytest.raises(KeyError):
        Detector(small.model(), in_graph="nms", config=BuildConfig(precision="as-typed"))
    layers = ("trt_runtime/boxes/*",)
    assert [config.float32_layers for config in asked] == [layers, ("a", *layers), ()]


def test_an_image_in_page_locked_memory_is_searched_where_it_is(host: Device) -> None:
    with Detector(
        small.model(),
        in_graph=True,
        image_size=(60, 100),
        candidates=300,
        device=host,
        **OPTIONS,
    ) as detector:
        buffer = detector.session.input_buffers()["image"]
        buffer[0] = small.image()
        for found in detector.detect_many([buffer[0]] * 3):
            assert_same(found, expected(small.image()))


# Models ------------------------------------------------------------------------------------------


def test_darknets_files_are_a_model(host: Device, tmp_path: Path) -> None:
    from trt_runtime.yolov3 import random_weights, to_onnx

    cfg, weights, names = (tmp_path / f"small.{suffix}" for suffix in ("cfg", "weights", "names"))
    cfg.write_text(small.CFG)
    names.write_text("\n".join(small.NAMES))
    write_weights(weights, small.network(), random_weights(small.network(), 5))
    options = {"threshold": 0.2, "device": host}
    with Detector(weights, cfg=cfg, names=names, **options) as detector:
        got = detector.detect(IMAGES[0])
        assert detector.layout.names == small.NAMES
    model = to_onnx(small.network(), random_weights(small.network(), 5))
    with Detector(model, names=list(small.NAMES), **options) as detector:
        assert_same(got, detector.detect(IMAGES[0]))
    with Detector(weights, cfg=small.network(), batch=2, **options) as detector:
        assert detector.session.inputs[0].shape == (2, 3, 64, 96)
        assert len(list(detector.detect_many(IMAGES[:3]))) == 3


@pytest.mark.parametrize("in_graph", [False, True])
def test_an_onnx_file_says_itself_what_its_boxes_are(
    host: Device, tmp_path: Path, in_graph: bool
) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(small.model(), path)
    for model in (path, str(path), path.read_bytes()):
        with Detector(
            model,
            in_graph=in_graph,
            image_size=(60, 100) if in_graph else None,
            candidates=300,
            device=host,
            **OPTIONS,
        ) as detector:
            assert_same(detector.detect(small.image()), expected(small.image()))


def test_weights_in_a_file_of_their_own_come_along(host: Device, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small.model())
    path = tmp_path / "small.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with Detector(path, in_graph=True, candidates=300, device=host, **OPTIONS) as detector:
        got = detector.detect(small.image(64, 96))
    assert_same(got, expected(small.image(64, 96)))


@pytest.mark.parametrize("surrounded", [False, True])
def test_an_engine_needs_its_cfg_and_says_itself_what_is_in_its_graph(
    host: Device, tmp_path: Path, surrounded: bool
) -> None:
    model = small.model()
    if surrounded:
        model = surround(model, small.layout(), image=(60, 100), candidates=300)
    path = tmp_path / "small.engine"
    path.write_bytes(build_plan(model, device=host))
    with pytest.raises(InputError, match="cfg="):
        Detector(path, device=host)
    with Detector(path, cfg=small.network(), names=small.NAMES, device=host, **OPTIONS) as detector:
        assert_same(detector.detect(small.image()), expected(small.image()))
    with Engine.load(path, device=host) as engine:
        with Detector(engine, cfg=small.network(), names=small.NAMES, **OPTIONS) as detector:
            assert_same(detector.detect(small.image()), expected(small.image()))
        assert not engine.closed


@pytest.mark.parametrize(
    ("model", "options", "kind", "says"),
    [
        ("small.weights", {}, InputError, "give its network with cfg="),
        (lambda: small.model(), {"names": ["one"]}, InputError, "3 classes need as many names"),
        (lambda: small.model(), {"threshold": 2}, InputError, "from 0 to 1, not 2"),
        (lambda: small.model(), {"nms_threshold": -1}, InputError, "from 0 to 1, not -1"),
        (lambda: small.model(), {"fit": "crop"}, InputError, "'crop'"),
        (lambda: small.model(), {"image_size": (60, 100)}, InputError, "in_graph=True"),
        (lambda: small.model(), {"batch": 2}, InputError, "batch of its own"),
        (None, {"cfg": "small.cfg"}, InputError, "give the model as well"),
        (b"\x08\x08rubbish", {}, ModelError, "no ONNX"),
        ("gone.onnx", {}, ModelError, "gone.onnx"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    host: Device, model: Any, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        Detector(model() if callable(model) else model, device=host, **options)


def test_another_networks_engine_is_refused(host: Device) -> None:
    from trt_runtime.yolov3 import Network

    wider = Network.parse(small.CFG.replace("width=96", "width=128"))
    with pytest.raises(InputError, match=r"\[batch, 3, 64, 128\].*\[1, 3, 64, 96\]"):
        Detector(small.model(), cfg=wider, device=host)
    deeper = Network.parse(small.CFG.replace("[route]", "[route]\nlayers=-3\n[route]"))
    with pytest.raises(InputError, match="heads are"):
        Detector(small.model(), cfg=deeper, device=host)


def test_an_engine_cannot_be_given_a_graph_afterwards(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "small.engine"
    path.write_bytes(build_plan(small.model(), device=host))
    with pytest.raises(InputError, match="in_graph"):
        Detector(path, cfg=small.network(), in_graph=True, device=host)


# Lifetime ----------------------------------------------------------------------------------------


def test_closing_it_closes_its_session(host: Device) -> None:
    detector = Detector(small.model(), device=host)
    session = detector.session
    assert "96x64, 3 classes" in repr(detector)
    detector.close()
    detector.close()
    assert detector.closed
    assert session.closed
    assert repr(detector) == "<Detector closed>"
    with pytest.raises(ClosedError, match="Detector"):
        detector.detect(IMAGES[0])
    with pytest.raises(ClosedError):
        list(detector.detect_many(IMAGES))


def test_closing_its_device_closes_it(host: Device) -> None:
    with Device("host") as device:
        detector = Detector(small.model(), device=device)
    assert detector.closed
    assert detector.session.closed


def test_a_forgotten_detector_is_released_and_reported_once(host: Device) -> None:
    detector = Detector(small.model(), device=host)
    detector.detect(IMAGES[0])
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        del detector
        gc.collect()
    assert [str(warning.message) for warning in reported] == ["unclosed Detector 'engine'"]


def test_closing_it_amid_many_images_is_an_error_of_theirs(host: Device) -> None:
    with Detector(small.model(), device=host, **OPTIONS) as detector:
        found = detector.detect_many(IMAGES * 10)
        next(found)
        detector.close()
        with pytest.raises(ClosedError):
            list(found)


def test_a_detector_that_cannot_open_leaves_nothing_behind(host: Device) -> None:
    from trt_runtime.yolov3 import Network

    deeper = Network.parse(small.CFG.replace("[route]", "[route]\nlayers=-3\n[route]"))
    with pytest.raises(InputError):
        Detector(small.model(), cfg=deeper, device=host)


def test_threads_share_a_detector(host: Device) -> None:
    wants = [expected(image) for image in IMAGES]
    with Detector(small.model(), contexts=2, device=host, **OPTIONS) as detector:

        def work(number: int) -> None:
            for _ in range(10):
                assert_same(detector.detect(IMAGES[number % 4]), wants[number % 4])

        assert run_together(8, work) == []
