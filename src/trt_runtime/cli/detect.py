"""``trt-runtime detect``: what is in images, as a table, annotated copies and JSON."""

from __future__ import annotations

import json as json_format
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from trt_runtime import BuildConfig, InputError
from trt_runtime.cli import options as shared
from trt_runtime.cli import output
from trt_runtime.cli.progress import build_display
from trt_runtime.cli.saving import write_whole
from trt_runtime.yolov3 import Detections
from trt_runtime.yolov3.images import find_images, load_image

if TYPE_CHECKING:
    from trt_runtime.yolov3 import Detector

_NETWORK = "The network"

#: What a table calls the model that comes with the package.
SHIPPED = "the shipped detector of handwritten digits"

EXAMPLES = """\
Examples:

  trt-runtime detect digits.jpg

  trt-runtime detect photos/ --model yolov3.weights --cfg yolov3.cfg --names coco.names

  trt-runtime detect street.jpg --model yolov3.onnx --precision fp16 --save found --json
"""


def detect(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Image files, and folders of them."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="A .weights, .onnx, .engine or .plan file; by default the detector of handwritten "
            "digits that comes with this package.",
            metavar="MODEL",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    cfg: Annotated[
        Path | None,
        typer.Option(
            help="Darknet's description of the network, for .weights and engines; by default the "
            ".cfg beside MODEL.",
            metavar="FILE",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="The classes' names, one on each line; by default the .names beside MODEL, if "
            "there is one.",
            metavar="FILE",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="The lowest score: objectness times the class's."),
    ] = 0.6,
    nms_threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Of two boxes of one class that overlap more, the better one stays."
        ),
    ] = 0.5,
    fit: Annotated[
        str,
        typer.Option(
            help="letterbox keeps the aspect ratio, stretch does not.",
            metavar="letterbox|stretch",
        ),
    ] = "letterbox",
    in_graph: Annotated[
        bool,
        typer.Option("--in-graph", help="Preprocess and decode in the engine, not in NumPy."),
    ] = False,
    save: Annotated[
        Path,
        typer.Option(help="Where annotated copies and detections.json are written.", metavar="DIR"),
    ] = Path("detections"),
    precision: Annotated[
        str | None,
        typer.Option(
            help="What to build for: tf32 (the default), fp32, fp16 or bf16.", metavar="TYPE"
        ),
    ] = None,
    device: shared.Device = None,
    tensorrt: shared.TensorRT = None,
    cache_dir: shared.CacheDirectory = None,
    no_cache: shared.NoCache = False,
    trust_host_code: shared.TrustHostCode = False,
    lean_library: shared.LeanLibrary = None,
    plugin: shared.Plugins = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Detect objects in each IMAGE with a YOLOv3 network."""
    from trt_runtime.yolov3 import Detector  # it needs onnx, which would slow every --help down

    files = _files(images)
    if model is not None and not model.is_file():
        raise InputError(f"--model: there is no file {str(model)!r}.")
    if model is not None and model.suffix.lower() != ".onnx":
        cfg = cfg or _beside(model, ".cfg")
    if model is not None:
        names = names or _beside(model, ".names")
    _make_folder(save)
    with build_display() as display:
        detector = Detector(
            model,
            cfg=cfg,
            names=names,
            threshold=threshold,
            nms_threshold=nms_threshold,
            fit=fit,  # type: ignore[arg-type]  # it checks
            in_graph=in_graph,
            config=BuildConfig(precision=precision) if precision else None,  # type: ignore[arg-type]
            device=shared.device_of(device),
            tensorrt=tensorrt,
            cache=not no_cache and (cache_dir or True),
            trust_host_code=trust_host_code,
            lean_library=lean_library,
            plugin_libraries=plugin or (),
            on_progress=display,
        )
    with detector:
        report = Report.of(str(model or SHIPPED), detector)
        targets = _targets(files, save)
        for file, target, (image, found) in zip(
            files, targets, _searched(detector, files), strict=True
        ):
            save_picture(found.draw(image), target)
            report.add(file, found, target)
    listing = save / "detections.json"
    report.saved.append(str(listing))
    text = json_format.dumps({"model": report.model, "images": report.images}, indent=2)
    write_whole(listing, lambda stream: stream.write(f"{text}\n".encode()))
    report.print(as_json=json)


@dataclass(frozen=True)
class Report:
    """What was found, for a person or a program.

    Attributes
    ----------
    images : list of dict
        For each: ``image``, ``width``, ``height``, ``detections`` and ``annotated``, the copy.
    """

    model: str
    device: dict[str, str]
    tensorrt: dict[str, str]
    images: list[dict[str, Any]]
    saved: list[str]

    @classmethod
    def of(cls, model: str, detector: Detector) -> Report:
        session = detector.session
        return cls(
            model,
            {"name": session.device.name, "kind": session.device.kind},
            {"name": session.engine.tensorrt_name, "version": session.engine.tensorrt_version},
            [],
            [],
        )

    def add(self, file: Path, found: Detections, annotated: Path) -> None:
        height, width = found.image_size
        self.images.append(
            {
                "image": str(file),
                "width": width,
                "height": height,
                "detections": found.to_json(),
                "annotated": str(annotated),
            }
        )
        self.saved.append(str(annotated))

    def print(self, *, as_json: bool) -> None:
        if as_json:
            output.document(
                {
                    "model": self.model,
                    "device": self.device,
                    "tensorrt": self.tensorrt,
                    "images": self.images,
                    "saved": self.saved,
                }
            )
            return
        output.line(f"{self.model} on {self.device['name']}")
        output.line(f"{self.tensorrt['name']} {self.tensorrt['version']}")
        rows = [
            (
                image["image"],
                found["name"],
                f"{found['score']:.3f}",
                *(f"{edge:.1f}" for edge in found["box"]),
            )
            for image in self.images
            for found in image["detections"]
        ]
        output.table(("image", "object", "score", "left", "top", "right", "bottom"), rows)
        objects, images = len(rows), len(self.images)
        output.line(
            f"{objects} object{'s' * (objects != 1)} in {images} image{'s' * (images != 1)}"
        )
        output.line(f"saved {', '.join(self.saved)}")


def save_picture(picture: Any, target: Path) -> None:
    """Write a Pillow image as what its name says: JPEG or PNG."""
    kind = "JPEG" if target.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    write_whole(target, lambda file: picture.save(file, kind, quality=90))


def _files(images: Sequence[Path]) -> list[Path]:
    """The files named and those of the folders named; whether they are images is seen later."""
    files: list[Path] = []
    for path in images:
        if path.is_dir():
            files += find_images(path)
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"there is no file or folder {str(path)!r}.")
    return files


def _beside(model: Path, suffix: str) -> Path | None:
    file = model.with_suffix(suffix)
    return file if file.is_file() else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--save takes a folder, and {str(folder)!r} cannot be one: {error.strerror}."
        ) from error


def _targets(files: Sequence[Path], folder: Path) -> list[Path]:
    """For each file its annotated copy, whose name no image has that a camera or a user made."""
    targets: list[Path] = []
    taken = set()
    for number, file in enumerate(files):
        suffix = file.suffix if file.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name = f"{file.stem}.detected{suffix}"
        if name.lower() in taken:
            name = f"{file.stem}.{number}.detected{suffix}"
        taken.add(name.lower())
        targets.append(folder / name)
    return targets


def _searched(
    detector: Detector, files: Sequence[Path]
) -> Iterator[tuple[NDArray[Any], Detections]]:
    """Each image and what was found in it; the detector reads a few images ahead."""
    waiting: deque[NDArray[Any]] = deque()

    def read() -> Iterator[NDArray[Any]]:
        for file in files:
            waiting.append(load_image(file))
            yield waiting[-1]

    for found in detector.detect_many(read()):
        yield waiting.popleft(), found
