"""How good the digit detector is, for tests on any device."""

from __future__ import annotations

from trt_runtime.yolov3 import Detector
from trt_runtime.yolov3.digits.scenes import held_out_scenes
from trt_runtime.yolov3.evaluation import Evaluation, evaluate

#: What is in the sample picture.
SAMPLE_DIGITS = "012334556789"


def measure(detector: Detector) -> Evaluation:
    """Detect in all held-out scenes and compare with what is there; a threshold of 0.01 is due."""
    scenes = list(held_out_scenes())
    found = list(detector.detect_many(scene.image for scene in scenes))
    return evaluate(found, scenes, classes=10)
