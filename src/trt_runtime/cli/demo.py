"""``trt-runtime demo``: the shipped detector on the shipped picture. It needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_runtime.cli import options as shared
from trt_runtime.cli.detect import SHIPPED, Report, save_picture
from trt_runtime.cli.progress import build_display
from trt_runtime.cli.saving import require_writable
from trt_runtime.yolov3.digits import SAMPLE
from trt_runtime.yolov3.images import load_image

EXAMPLES = """\
Examples:

  trt-runtime demo

  trt-runtime demo --device cuda --save found.png
"""


def demo(
    save: Annotated[
        Path, typer.Option(help="The annotated picture, .png or .jpg.", metavar="FILE")
    ] = Path("trt-runtime-demo.png"),
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    no_cache: shared.NoCache = False,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Detect handwritten digits in a picture that comes with this package.

    The network, YOLOv3's shape at a hundredth of its size, comes with it too. The picture with the
    boxes drawn onto it is written into this folder.
    """
    from trt_runtime.yolov3 import Detector  # it needs onnx, which would slow every --help down

    require_writable(save, force=True)
    image = load_image(SAMPLE)
    with (
        build_display() as display,
        Detector(
            device=shared.device_of(device),
            tensorrt=tensorrt,
            cache=not no_cache and (cache_dir or True),
            on_progress=display,
        ) as detector,
    ):
        found = detector.detect(image)
        report = Report.of(SHIPPED, detector)
    save_picture(found.draw(image), save)
    report.add(Path(SAMPLE.name), found, save)
    report.print(as_json=json)
