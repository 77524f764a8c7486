"""YOLOv3: Darknet's ``.cfg`` and ``.weights`` to ONNX, an image in, boxes out.

    from trt_runtime.yolov3 import Detector

    with Detector("yolov3.weights", cfg="yolov3.cfg") as detector:
        for box, score, name in detector.detect("street.jpg"):
            print(name, score, box)

    from trt_runtime.yolov3 import Network, read_weights, to_onnx

    network = Network.load("yolov3.cfg")
    model = to_onnx(network, read_weights("yolov3.weights", network))

The steps of a `Detector` can be used alone: they are in `preprocess`, `decode`, `suppress`, `draw`
and `images`. Importing this package imports neither TensorRT nor CUDA; what needs ``onnx`` comes in
on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .cfg import Head, Network
from .detections import Detection, Detections
from .layout import Layout, read_names
from .networks import COCO_NAMES, yolov3, yolov3_spp, yolov3_tiny
from .preprocess import Placement
from .weights import ConvolutionWeights, Weights, random_weights, read_weights, write_weights

if TYPE_CHECKING:
    from .detector import Detector
    from .export import to_onnx
    from .in_graph import surround

__all__ = [
    "COCO_NAMES",
    "ConvolutionWeights",
    "Detection",
    "Detections",
    "Detector",
    "Head",
    "Layout",
    "Network",
    "Placement",
    "Weights",
    "random_weights",
    "read_names",
    "read_weights",
    "surround",
    "to_onnx",
    "write_weights",
    "yolov3",
    "yolov3_spp",
    "yolov3_tiny",
]

#: What needs ``onnx``, and the module that has it.
_ON_FIRST_USE = {"Detector": ".detector", "surround": ".in_graph", "to_onnx": ".export"}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
