"""Good files of every kind, from which bad ones are made; each is made once."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from trt_runtime import EngineCache, build_plan
from trt_runtime.build.known import KnownModels
from trt_runtime.build.store import Store
from trt_runtime.yolov3 import Network, random_weights, write_weights

from .. import models
from ..yolov3.small import CFG
from .promise import host

CASES = ("static", "dynamic", "nonzero", "reshape", "integers", "empty", "scalar")

IMAGE_KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")


@cache
def case(name: str) -> models.Case:
    made: models.Case = getattr(models, name)()
    return made


@cache
def plan(name: str) -> bytes:
    with host() as device:
        return build_plan(case(name).model, profiles=case(name).profiles, device=device)


@cache
def model(name: str) -> bytes:
    return bytes(case(name).model.SerializeToString())


@cache
def external_model() -> tuple[bytes, bytes]:
    """A model, and the file ``weights.bin`` beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(
            onnx.ModelProto.FromString(model("static")),
            path,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        return path.read_bytes(), path.with_name("weights.bin").read_bytes()


@cache
def cached() -> dict[str, bytes]:
    """The files of an engine cache with one entry, by their names."""
    with tempfile.TemporaryDirectory() as folder, host() as device:
        EngineCache(folder).load_or_build(case("static").model, device=device).close()
        return {
            path.name: path.read_bytes()
            for path in Path(folder).iterdir()
            if path.suffix in (".plan", ".json")
        }


@cache
def memo(path: Path) -> bytes:
    """What a cache would remember of the model at that path, had it not changed for long."""
    from trt_runtime.build import known

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        knows = KnownModels(store)
        made, _ = known._read(path)
        knows._remember(made)
        return store.memo_path(made.place.name).read_bytes()


@cache
def weights() -> bytes:
    network = Network.parse(CFG)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.weights"
        write_weights(path, network, random_weights(network))
        return path.read_bytes()


@cache
def image(kind: str) -> bytes:
    from PIL import Image

    pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
