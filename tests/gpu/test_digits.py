"""The shipped detector on a GPU: it is as good as on the host device, in every precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from trt_runtime import BuildConfig, Device
from trt_runtime.yolov3 import Detector
from trt_runtime.yolov3.digits import MEAN_AVERAGE_PRECISION
from trt_runtime.yolov3.digits.scenes import SIDE, draw_scene, load_digits
from trt_runtime.yolov3.preprocess import preprocess

from ..yolov3.digits import measure

pytestmark = pytest.mark.gpu

#: Of mean average precision, below what is stated. int8 has 255 steps from end to end.
LOSS = {"fp32": 0.005, "tf32": 0.005, "fp16": 0.01, "int8": 0.05}


class Scenes:
    """Preprocessed scenes of digits to train on, each time the same, as calibration needs them."""

    def __iter__(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng(1)
        for _ in range(128):
            scene = draw_scene(generator, load_digits("training"))
            array, _ = preprocess(scene.image, (SIDE, SIDE))
            yield array[None]


@pytest.mark.parametrize("precision", LOSS)
@pytest.mark.parametrize("in_graph", [False, True], ids=["numpy", "in-graph"])
def test_it_is_as_precise_as_stated(builder: Device, precision: str, in_graph: bool) -> None:
    if precision == "int8":
        if builder.platform.tensorrt().flavour.typed_only:
            pytest.skip("quantises what the model says")
        if in_graph:
            pytest.skip("decoding in int8 would round boxes to 255 places")
    with Detector(
        device=builder,
        # Of the lowest level, whose builds are the quickest.
        config=BuildConfig(precision=precision, optimization_level=0),  # type: ignore[arg-type]
        calibration=Scenes() if precision == "int8" else None,
        cache=False,
        threshold=0.01,
        in_graph=in_graph,
        candidates=400,  # of so low a threshold many pass
    ) as detector:
        result = measure(detector)
    figure = result.mean_average_precision
    print(f"mAP@0.5 in {precision}: {figure:.4f} (stated {MEAN_AVERAGE_PRECISION:.4f})")
    assert figure >= MEAN_AVERAGE_PRECISION - LOSS[precision]
