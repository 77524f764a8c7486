"""Every public operation, for the tests that make each platform call in it fail.

An operation opens what it needs, and gives a `Use`: what a program does with it again and again,
checking each result. The use returns what the library says that it went without, if it did: a
graph that could not be captured, say. Nothing fails in here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from trt_runtime import (
    BindingSet,
    BuildConfig,
    CudaGraph,
    Device,
    DeviceBuffer,
    Engine,
    EngineCache,
    Event,
    ExecutionContext,
    PinnedBuffer,
    Session,
    Stream,
    benchmark,
    build_plan,
    pipeline,
    profiling,
)
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.driver import Part
from trt_runtime.yolov3 import Detections, Detector

from .models import Case, Feed, assert_matches, dynamic, nonzero, reference, reshape, static
from .yolov3 import small

Use = Callable[[], str | None]
Operation = Callable[[Device], AbstractContextManager[Use]]


@cache
def plan(case: Callable[[], Case]) -> bytes:
    """The case's plan, built once and without faults."""
    with Device(HostPlatform()) as device:
        return build_plan(case().model, profiles=case().profiles, device=device)


@cache
def expected(case: Callable[[], Case], number: int) -> Feed:
    """What its feed of that number must give."""
    return reference(case().model, case().feeds[number])


def check(got: Any, case: Callable[[], Case], number: int) -> None:
    assert_matches(got, expected(case, number), 1e-4)


# The steps of an inference, each a visible object -----------------------------------------


@contextmanager
def _context(device: Device, plan_bytes: bytes) -> Iterator[tuple[ExecutionContext, Stream]]:
    with (
        Engine.load(plan_bytes, device=device) as engine,
        engine.create_execution_context(name="the one") as context,
        Stream(device) as stream,
    ):
        yield context, stream


@contextmanager
def _explicit(case: Callable[[], Case], steps: int, device: Device) -> Iterator[Use]:
    """The sample's own sequence."""
    with _context(device, plan(case)) as (context, stream):

        def use() -> None:
            for number, feed in enumerate(case().feeds[:steps]):
                shape_tensors = {s.name for s in context.engine.inputs if s.is_shape_tensor}
                shapes = {n: a.shape for n, a in feed.items() if n not in shape_tensors}
                values = {n: a for n, a in feed.items() if n in shape_tensors}
                with BindingSet(context, shapes, values) as bindings:
                    for name in shapes:
                        bindings[name].host[...] = feed[name]
                    check(context.execute(bindings, stream), case, number)

        yield use


@contextmanager
def switch_profiles(device: Device) -> Iterator[Use]:
    with (
        _context(device, plan(dynamic)) as (context, stream),
        BindingSet(context, {"x": (2, 3, 8, 8)}) as little,
        BindingSet(context, {"x": (16, 3, 8, 8)}) as large,
    ):
        assert (little.profile, large.profile) == (0, 1)

        def use() -> None:
            stream.synchronize()  # what an earlier use that failed has left
            for number, bindings in ((1, little), (4, large), (1, little)):
                bindings["x"].host[...] = dynamic().feeds[number]["x"]
                check(context.execute(bindings, stream), dynamic, number)

        yield use


@contextmanager
def capture_and_launch(device: Device) -> Iterator[Use]:
    (feed,) = static().feeds
    with _context(device, plan(static)) as (context, stream), BindingSet(context) as bindings:

        def use() -> None:
            stream.synchronize()  # what an earlier use that failed has left
            bindings["x"].host[...] = feed["x"]
            with CudaGraph(context, bindings, stream) as graph:
                for _ in range(2):
                    graph.launch(stream)
                    stream.synchronize()
                check(bindings.outputs(), static, 0)

        yield use


@contextmanager
def copy_between_streams(device: Device) -> Iterator[Use]:
    with (
        Stream(device) as first,
        Stream(device) as second,
        PinnedBuffer(16, np.int32, device=device) as source,
        PinnedBuffer(16, np.int32, device=device) as target,
        DeviceBuffer(16, np.int32, device=device) as memory,
        Event(device, timing=True) as start,
    ):

        def use() -> None:
            source.array[...] = range(16)
            start.record(first)
            memory.copy_from(source, stream=first)
            memory.copy_to(target, stream=second)  # on another stream: ordered by the buffer
            with second.record() as copied:
                first.wait(copied)
            second.synchronize()
            first.synchronize()
            assert list(target.array) == list(range(16))

        yield use


# Sessions ---------------------------------------------------------------------------------


@contextmanager
def infer(device: Device) -> Iterator[Use]:
    """Shapes that come and go, on two contexts; graphs are captured on the way."""
    with Session(plan(dynamic), device=device, contexts=2) as session:

        def use() -> str | None:
            for number in (0, 1, 1, 4):
                check(session.infer(dynamic().feeds[number]), dynamic, number)
            return session.graph_fallback

        yield use


@contextmanager
def infer_into(device: Device) -> Iterator[Use]:
    """Inputs in page-locked buffers of the session, outputs in arrays of the caller's."""
    with Session(plan(static), device=device) as session:

        def use() -> str | None:
            buffers = session.input_buffers()
            buffers["x"][...] = static().feeds[0]["x"]
            target = np.empty_like(expected(static, 0)["y"])
            for _ in range(3):
                assert session.infer(buffers, outputs={"y": target})["y"] is target
                check({"y": target}, static, 0)
            return session.graph_fallback

        yield use


@contextmanager
def infer_parts(device: Device) -> Iterator[Use]:
    """An input that crosses in two copies of every second row."""
    with (
        mock.patch.object(pipeline, "STAGED_BYTES", -1),  # no graph holds the copies
        Session(plan(static), device=device) as session,
    ):
        session._upload_only({"x": [Part(start, 32, 64, 4, 256, 3) for start in (0, 32)]})

        def use() -> str | None:
            for _ in range(3):
                check(session.infer(static().feeds[0]), static, 0)
            return session.graph_fallback

        yield use


@contextmanager
def infer_data_dependent(device: Device) -> Iterator[Use]:
    with Session(plan(nonzero), device=device) as session:

        def use() -> None:
            for number, feed in enumerate(nonzero().feeds):
                check(session.infer(feed), nonzero, number)

        yield use


@contextmanager
def infer_shape_values(device: Device) -> Iterator[Use]:
    with Session(plan(reshape), device=device) as session:

        def use() -> str | None:
            for number in (0, 1, 0):
                check(session.infer(reshape().feeds[number]), reshape, number)
            return session.graph_fallback

        yield use


@contextmanager
def infer_async(device: Device) -> Iterator[Use]:
    with Session(plan(static), device=device) as session:

        def use() -> str | None:
            for _ in range(4):  # one at a time, so that the calls come in one order every time
                check(session.infer_async(static().feeds[0]).result(), static, 0)
            return session.graph_fallback

        yield use


@contextmanager
def infer_many(device: Device) -> Iterator[Use]:
    feeds = dynamic().feeds
    with Session(plan(dynamic), device=device) as session:

        def use() -> str | None:
            with closing(session.infer_many(feeds * 2)) as many:
                for number, outputs in enumerate(many):
                    check(outputs, dynamic, number % len(feeds))
                    del outputs  # which would outlive the session, and what it shows with it
                    if number == 6:
                        break
            return session.graph_fallback

        yield use


@contextmanager
def infer_many_brief(device: Device) -> Iterator[Use]:
    with mock.patch.object(pipeline, "BRIEF_BYTES", 1 << 16), infer_many(device) as use:
        yield use


@contextmanager
def device_outputs(device: Device) -> Iterator[Use]:
    with Session(plan(static), device=device) as session:

        def use() -> str | None:
            for _ in range(4):
                with session.infer(static().feeds[0], outputs="device")["y"] as y:
                    check({"y": y.copy_to_host()}, static, 0)
                    with session.infer(static().feeds[0], outputs="device")["y"] as again:
                        taken = np.from_dlpack(again)
                        check({"y": taken}, static, 0)
                        del taken
            return session.graph_fallback

        yield use


@contextmanager
def device_inputs(device: Device) -> Iterator[Use]:
    """Inputs in device memory, for an engine that is captured and for one that cannot be."""
    x, some = static().feeds[0]["x"], nonzero().feeds[0]["x"]
    with (
        Session(plan(static), device=device) as session,
        Session(plan(nonzero), device=device) as plain,
        Stream(device) as stream,
        DeviceBuffer(x.shape, x.dtype, device=device) as memory,
        DeviceBuffer(some.shape, some.dtype, device=device) as other,
    ):

        def use() -> str | None:
            memory.copy_from(x, stream=stream)
            for _ in range(2):
                check(session.infer(memory), static, 0)
            with session.infer(memory, outputs="device")["y"] as y:
                check({"y": y.copy_to_host()}, static, 0)
            with closing(session.infer_many([memory] * 4)) as many:
                for outputs in many:
                    check(outputs, static, 0)
                    del outputs
            other.copy_from(some, stream=stream)
            outputs = plain.infer(other, outputs="device")
            check({name: array.copy_to_host() for name, array in outputs.items()}, nonzero, 0)
            return session.graph_fallback

        yield use


@contextmanager
def measure(device: Device) -> Iterator[Use]:
    """`Session.profile` and `Session.benchmark`, as short as they can be."""
    with (
        mock.patch.object(benchmark, "LEAST_CALLS", 1),
        mock.patch.object(profiling, "WARM_UP_RUNS", 0),
        Session(plan(static), device=device) as session,
    ):

        def use() -> str | None:
            assert session.profile(runs=1).layers
            report = session.benchmark(static().feeds[0], warm_up_ms=0, duration_s=1e-9)
            check(session.infer(static().feeds[0]), static, 0)
            no_floor = "no floor" if report.floor is None else None
            return session.graph_fallback or report.graph_fallback or no_floor

        yield use


# Builds, and what becomes of engines ------------------------------------------------------


@contextmanager
def build(device: Device) -> Iterator[Use]:
    case = dynamic()
    config = BuildConfig(
        profiles=case.profiles,
        precision="fp32",
        optimization_level=0,
        tactic_sources=("cudnn",),
    )

    def use() -> None:
        with Engine.build(case.model, config, device=device) as engine:
            assert engine.serialize()

    yield use


@contextmanager
def calibrate(device: Device) -> Iterator[Use]:
    """Examples in device memory, a timing cache, and other types at the border."""
    case = dynamic()
    batch = {"x": np.ones(case.profiles[0]["x"].opt, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        config = BuildConfig(
            profiles=case.profiles,
            precision="int8",
            io_types={"y": "float16"},
            timing_cache=f"{folder}/timing.cache",
        )

        def use() -> None:
            for _ in range(2):
                assert build_plan(case.model, config, calibration=[batch] * 2, device=device)

        yield use


@contextmanager
def build_session(device: Device) -> Iterator[Use]:
    """From ONNX to a result, through the cache of the test's own."""

    def use() -> str | None:
        with Session(static().model, device=device) as session:
            check(session.infer(static().feeds[0]), static, 0)
            return None if "cache_key" in session.engine.metadata else "not kept"

    yield use


@contextmanager
def build_into_cache(device: Device) -> Iterator[Use]:
    def use() -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            cache = EngineCache(Path(folder) / "engines")
            with cache.load_or_build(static().model, device=device) as engine:
                assert engine.inputs
                kept = "cache_key" in engine.metadata
            assert all(not entry.damage for entry in cache.entries(verify=True))
            return None if kept else "not kept"

    yield use


@cache
def _kept_engines() -> tempfile.TemporaryDirectory[str]:
    """A cache with an engine in it."""
    folder = tempfile.TemporaryDirectory()
    with Device(HostPlatform()) as device:
        EngineCache(Path(folder.name) / "engines").load_or_build(
            static().model, device=device
        ).close()
    return folder


@contextmanager
def load_from_cache(device: Device) -> Iterator[Use]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "engines"
        shutil.copytree(Path(_kept_engines().name) / "engines", directory)
        cache = EngineCache(directory)

        def use() -> str | None:
            assert cache.explain(static().model, device=device).key
            with cache.load_or_build(static().model, device=device) as engine:
                assert engine.inputs
                hit = engine.metadata.get("cache_hit")
            assert all(not entry.damage for entry in cache.entries(verify=True))
            return None if hit else "built again"

        yield use


@contextmanager
def refit(device: Device) -> Iterator[Use]:
    """New weights under an open session, a context and a graph, by the parser and by name."""
    (feed,) = static().feeds
    with (
        Engine.build(static().model, BuildConfig(refittable=True), device=device) as engine,
        Session(engine, graphs=False) as session,
        engine.create_execution_context() as context,
        Stream(device) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = feed["x"]
        module = engine._library.module

        def use() -> None:
            engine.refit(static().model)  # an earlier one that failed half way is made good
            for by_name in (False, True):
                with (
                    CudaGraph(context, bindings, stream) as graph,
                    mock.patch.object(module, "OnnxParserRefitter", module.OnnxParserRefitter),
                ):
                    if by_name:
                        del module.OnnxParserRefitter
                    graph.launch(stream)
                    engine.refit(static().model)
                    assert graph.closed
                check(context.execute(bindings, stream), static, 0)
                check(session.infer(feed), static, 0)
            assert engine.serialize()

        yield use


@contextmanager
def refit_stripped(device: Device) -> Iterator[Use]:
    config = BuildConfig(strip_weights=True, weight_streaming=True, precision="as-typed")
    with Engine.build(static().model, config, device=device) as engine:

        def use() -> None:
            engine.weight_streaming_budget = 0
            assert engine.weight_streaming_budget == 0
            assert engine.automatic_weight_streaming_budget() >= 0
            engine.refit(static().model)
            with Session(engine) as session:
                check(session.infer(static().feeds[0]), static, 0)

        yield use


@contextmanager
def inspect(device: Device) -> Iterator[Use]:
    with Engine.load(plan(static), device=device) as engine:

        def use() -> None:
            assert Engine.check(plan(static), device=device).usable
            for _ in range(2):
                assert engine.inspect().layers
            assert device.memory_info()[1] == device.total_memory
            assert device.name == "host"
            assert device.compute_capability == (0, 0)

        yield use


# The detector -----------------------------------------------------------------------------

_IMAGES = [small.image(), small.image(80, 70, 1)]


def _detector(device: Device, detector_plan: bytes) -> Detector:
    return Detector(
        detector_plan, cfg=small.network(), names=small.NAMES, device=device, threshold=0.4
    )


@cache
def _found() -> tuple[bytes, tuple[Detections, ...]]:
    """The plan, and what is to be found in each image."""
    with Device(HostPlatform()) as device:
        detector_plan = build_plan(small.model(), device=device)
        with _detector(device, detector_plan) as detector:
            return detector_plan, tuple(detector.detect(image) for image in _IMAGES)


def _same(got: Detections, want: Detections) -> bool:
    return len(want) > 0 and np.array_equal(got.boxes, want.boxes)


@contextmanager
def detect(device: Device) -> Iterator[Use]:
    detector_plan, wanted = _found()
    with _detector(device, detector_plan) as detector:

        def use() -> str | None:
            assert _same(detector.detect(_IMAGES[0]), wanted[0])
            with closing(detector.detect_many(_IMAGES * 2)) as many:
                for number, got in enumerate(many):
                    assert _same(got, wanted[number % 2])
            return detector.session.graph_fallback

        yield use


def _named(name: str, operation: Operation) -> Operation:
    operation.__name__ = name
    return operation


OPERATIONS: tuple[Operation, ...] = (
    _named("execute", partial(_explicit, static, 1)),
    _named("execute_data_dependent", partial(_explicit, nonzero, 3)),
    _named("execute_shape_values", partial(_explicit, reshape, 2)),
    switch_profiles,
    capture_and_launch,
    copy_between_streams,
    infer,
    infer_into,
    infer_parts,
    infer_data_dependent,
    infer_shape_values,
    infer_async,
    infer_many,
    infer_many_brief,
    device_outputs,
    device_inputs,
    measure,
    build,
    calibrate,
    build_session,
    build_into_cache,
    load_from_cache,
    refit,
    refit_stripped,
    inspect,
    detect,
)
