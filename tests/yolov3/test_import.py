"""What the package exports, and what importing it brings in."""

from __future__ import annotations

import subprocess
import sys

import trt_runtime.yolov3


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, trt_runtime.yolov3\n"
        "heavy = ('onnx', 'PIL', 'cv2', 'torch', 'tensorrt', 'cuda', 'onnxruntime')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "from trt_runtime.yolov3 import *\n"
        "print(to_onnx.__module__, Detector.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == [
        "[]",
        "trt_runtime.yolov3.export trt_runtime.yolov3.detector",
    ]


def test_every_exported_name_exists() -> None:
    assert sorted(trt_runtime.yolov3.__all__) == trt_runtime.yolov3.__all__
    for name in trt_runtime.yolov3.__all__:
        assert getattr(trt_runtime.yolov3, name) is not None
        assert name in dir(trt_runtime.yolov3)
    assert not hasattr(trt_runtime.yolov3, "nonsense")
