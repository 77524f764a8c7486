"""What building costs and what it does to the numbers: precisions, the timing cache, a cache hit.

python benchmarks/builds.py DIRECTORY [--level N] [NETWORK ...]

For every network and precision: seconds to build, size of the plan, milliseconds of an inference,
and the error against onnxruntime on the CPU. Then how much sooner a second build is done with a
timing cache, and how much later than a bare load a session from the engine cache gives its first
result. Writes ``builds.json`` and ``builds.md`` into the directory.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.models import resnet50, yolov3
from benchmarks.raw import RawEngine, must
from trt_runtime import BuildConfig, Device, Engine, EngineCache, Session, UnsupportedError

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {"resnet50": resnet50, "yolov3": yolov3}
PRECISIONS = ("fp32", "tf32", "fp16", "int8")
CALIBRATION_BATCHES = 8
PARTS = ("precisions", "hit", "second")

Arrays = Mapping[str, np.ndarray]


def images(shape: Sequence[int], count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Smooth random pictures, values 0 to 1: noise alone looks the same to every filter."""
    rng = np.random.default_rng(seed)
    batch, channels, height, width = shape
    for _ in range(count):
        coarse = rng.random((batch, channels, height // 16, width // 16), np.float32)
        fine = rng.random((batch, channels, height, width), np.float32)
        yield 0.8 * coarse.repeat(16, 2).repeat(16, 3) + 0.2 * fine


def reference(model: bytes, inputs: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def errors(got: Arrays, want: Arrays) -> dict[str, float]:
    """The worst output's errors, relative to its largest value and to its root mean square."""
    largest = rms = 0.0
    cosine = 1.0
    for name, right in want.items():
        difference = got[name].astype(np.float64) - right
        scale = float(np.sqrt(np.mean(np.square(right, dtype=np.float64))))
        largest = max(largest, float(np.abs(difference).max() / np.abs(right).max()))
        rms = max(rms, float(np.sqrt(np.mean(difference**2)) / scale))
        a, b = got[name].astype(np.float64).ravel(), right.astype(np.float64).ravel()
        cosine = min(cosine, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return {"max": largest, "rms": rms, "cosine": cosine}


def precisions(
    model: onnx.ModelProto, device: Device, level: int, timings: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each precision's figures, each with a timing cache of its own that is empty at first."""
    data = model.SerializeToString()
    spec = model.graph.input[0]
    shape = [dimension.dim_value for dimension in spec.type.tensor_type.shape.dim]
    (image,) = images(shape, 1, seed=99)
    want = reference(data, {spec.name: image})
    for precision in PRECISIONS:
        config = BuildConfig(
            precision=precision,
            optimization_level=level,
            timing_cache=str(timings / f"{precision}.cache"),
        )
        batches = images(shape, CALIBRATION_BATCHES) if precision == "int8" else None
        began = time.perf_counter()
        try:
            engine = Engine.build(data, config, calibration=batches, device=device)
        except UnsupportedError as error:
            yield precision, {"refused": str(error)}
            continue
        seconds = time.perf_counter() - began
        with engine, Session(engine) as session:
            got = session.infer(image)
            figures = errors(got, want)
            page_locked = session.input_buffers()
            page_locked[spec.name][...] = image
            times = []
            for _ in range(60):
                began = time.perf_counter()
                session.infer(page_locked)
                times.append(time.perf_counter() - began)
            yield (
                precision,
                {
                    "build_s": seconds,
                    "plan_bytes": len(engine.serialize()),
                    "infer_ms": statistics.median(times[10:]) * 1e3,
                    **figures,
                },
            )
            del got, page_locked


def second_build(
    model: onnx.ModelProto, device: Device, level: int, timings: Path
) -> dict[str, float]:
    """Seconds of two builds, of which the second has the first's timing cache."""
    data, seconds = model.SerializeToString(), []
    config = BuildConfig(
        precision="fp16", optimization_level=level, timing_cache=str(timings / "second.cache")
    )
    for _ in range(2):
        began = time.perf_counter()
        Engine.build(data, config, device=device).close()
        seconds.append(time.perf_counter() - began)
    return {"level": level, "first_s": seconds[0], "second_s": seconds[1]}


def keep_model(name: str, model: onnx.ModelProto, directory: Path) -> Path:
    """The model as a file, which stays as it is once it is there."""
    path = directory / f"{name}.onnx"
    if not path.exists():
        path.write_bytes(model.SerializeToString())
    return path


def cache_hit(
    path: Path, device: Device, config: BuildConfig, cache: EngineCache, repetitions: int = 9
) -> dict[str, float]:
    """Seconds to the first result: of a bare load and enqueue, and of a session from the cache.

    Of a model that has just been written the cache reads all, of one that has been there for a
    minute nothing: ``age_s`` tells which it was.
    """
    plan_path = path.with_suffix(".engine")
    with Session(path, config=config, cache=cache, device=device) as session:
        session.engine.save(plan_path)
        image = np.zeros(session.inputs[0].shape, np.float32)
    age = time.time() - path.stat().st_mtime

    def cached() -> float:
        with Session(path, config=config, cache=cache, device=device) as session:
            session.infer(image)
            return time.perf_counter()

    found: dict[str, list[float]] = {"bare": [], "cached": []}
    for _ in range(repetitions):
        gc.collect()
        began = time.perf_counter()
        found["bare"].append(_bare_first_result(device, plan_path, image) - began)
        gc.collect()
        began = time.perf_counter()
        found["cached"].append(cached() - began)
    medians = {f"{name}_s": statistics.median(times) for name, times in found.items()}
    return {**medians, "ratio": medians["cached_s"] / medians["bare_s"], "age_s": age}


def _bare_first_result(device: Device, plan: Path, image: np.ndarray) -> float:
    """By hand: read, deserialise, allocate, copy, enqueue, copy, synchronise; when it was done."""
    if device.kind == "host":
        with Engine.load(plan, device=device) as engine, Session(engine) as session:
            session.infer(image)
        return time.perf_counter()
    from cuda.bindings import driver as cu

    raw = RawEngine(cu, device.platform.tensorrt().module, plan.read_bytes())
    engine, context = raw.engine, raw.engine.create_execution_context()
    stream = must(cu.cuStreamCreate(int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)))
    allocated, downloads = [], []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        nbytes = 4 * math.prod(context.get_tensor_shape(name))
        memory = must(cu.cuMemAlloc(nbytes))
        allocated.append(memory)
        context.set_tensor_address(name, int(memory))
        if engine.get_tensor_mode(name) == raw.trt.TensorIOMode.INPUT:
            must(cu.cuMemcpyHtoDAsync(memory, image.ctypes.data, nbytes, stream))
        else:
            downloads.append((np.empty(nbytes, np.uint8), memory))
    assert context.execute_async_v3(int(stream))
    for result, memory in downloads:
        must(cu.cuMemcpyDtoHAsync(result.ctypes.data, memory, result.nbytes, stream))
    must(cu.cuStreamSynchronize(stream))
    done = time.perf_counter()
    for memory in allocated:
        must(cu.cuMemFree(memory))
    must(cu.cuStreamDestroy(stream))
    del context, engine
    raw.close()
    return done


def table(found: Mapping[str, Any]) -> str:
    lines = []
    for name, figures in found["networks"].items():
        lines += [
            f"### {name}",
            "",
            "| precision | build s | plan MB | infer ms | max error | rms error | cosine |",
            "|---|---|---|---|---|---|---|",
        ]
        for precision, row in figures["precisions"].items():
            if "refused" in row:
                lines.append(f"| {precision} | refused: {row['refused']} | | | | | |")
                continue
            lines.append(
                f"| {precision} | {row['build_s']:.1f} | {row['plan_bytes'] / 1e6:.1f} | "
                f"{row['infer_ms']:.3f} | {row['max']:.1e} | {row['rms']:.1e} | "
                f"{row['cosine']:.6f} |"
            )
        lines.append("")
        if builds := figures.get("second_build"):
            first, second = builds["first_s"], builds["second_s"]
            lines += [
                f"Timing cache, fp16, optimisation level {builds['level']}: {first:.1f} s, then "
                f"{second:.1f} s ({first / second:.1f} times as fast).",
                "",
            ]
        if hit := figures.get("cache_hit"):
            lines += [
                f"Engine cache, fp16: the first result after {hit['cached_s']:.3f} s, "
                f"{hit['ratio']:.2f} of a bare load and enqueue ({hit['bare_s']:.3f} s).",
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--level", type=int, default=1, help="TensorRT's optimisation level")
    parser.add_argument(
        "--timing-level", type=int, default=3, help="of the two builds with a timing cache"
    )
    parser.add_argument("--engines", type=Path, help="a folder that keeps models and engines")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=PARTS,
        default=PARTS,
        help="what to measure; all by default. A hit counts when its model is a minute old",
    )
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        device = stack.enter_context(Device())
        kept = arguments.engines or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {
            "device": device.name,
            "tensorrt": f"{device.tensorrt_name} {device.tensorrt_version}",
            "level": arguments.level,
            "networks": {},
        }

        def keep(*line: object) -> None:
            print(*line, flush=True)
            (arguments.directory / "builds.json").write_text(json.dumps(found, indent=1) + "\n")

        for name in arguments.networks:
            model = NETWORKS[name]()
            figures: dict[str, Any] = {"precisions": {}}
            found["networks"][name] = figures
            path = keep_model(name, model, kept)
            with tempfile.TemporaryDirectory() as timings:
                level = arguments.level
                if "precisions" in arguments.only:
                    for precision, row in precisions(model, device, level, Path(timings)):
                        figures["precisions"][precision] = row
                        keep(name, precision, row)
                if "hit" in arguments.only:
                    config = BuildConfig(precision="fp16", optimization_level=level)
                    figures["cache_hit"] = cache_hit(path, device, config, EngineCache(kept))
                    keep(name, "cache hit", figures["cache_hit"])
                if "second" in arguments.only:
                    figures["second_build"] = second_build(
                        model, device, arguments.timing_level, Path(timings)
                    )
                    keep(name, "second build", figures["second_build"])
    (arguments.directory / "builds.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
