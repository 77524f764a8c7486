"""Refitting: new weights in an engine that stays open, stripped plans, and weight streaming."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_runtime import (
    BindingSet,
    BuildConfig,
    BusyError,
    ClosedError,
    CudaGraph,
    Device,
    Engine,
    EngineError,
    ExecutionContext,
    InputError,
    ModelError,
    RefitError,
    Session,
    Stream,
    UnsupportedError,
    build_plan,
)
from trt_runtime.build.digest import content_digest
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults
from trt_runtime.platform.tensorrt import PlanEngine

from .models import Feed, assert_matches, bfloat16, dynamic, make_model, reference, static

REFITTABLE = BuildConfig(refittable=True)


def with_weights(model: onnx.ModelProto, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """The same network, each of its weights changed."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        array = change(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return changed


@cache
def two_weights() -> onnx.ModelProto:
    """``y = x * scale + shift``: a result tells which weights of each made it."""
    return make_model(
        [
            helper.make_node("Mul", ["x", "scale"], ["m"]),
            helper.make_node("Add", ["m", "shift"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [64])},
        {"y": (TensorProto.FLOAT, [64])},
        {"scale": np.full(64, 2, np.float32), "shift": np.full(64, 3, np.float32)},
    )


@cache
def other_weights() -> onnx.ModelProto:
    return with_weights(two_weights(), lambda array: array * 10)


def plan(model: onnx.ModelProto, config: BuildConfig = REFITTABLE) -> bytes:
    with Device(HostPlatform()) as device:
        return build_plan(model, config, device=device)


@pytest.fixture
def engine(host: Device) -> Iterator[Engine]:
    with Engine.build(two_weights(), REFITTABLE, device=host) as engine:
        yield engine


def infer(engine: Engine, feed: Feed) -> Feed:
    with Session(engine) as session:
        return session.infer(feed)


ONES: Feed = {"x": np.ones(64, np.float32)}
OLD, NEW = np.float32(5), np.float32(50)


# What it does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("give", ["proto", "bytes", "path"])
def test_a_refit_gives_the_results_of_the_new_model(
    host: Device, tmp_path: Path, give: str
) -> None:
    case = static()
    (feed,) = case.feeds
    new = with_weights(case.model, lambda array: array * -2 + 1)
    path = tmp_path / "new.onnx"
    onnx.save(new, path)
    model = {"proto": new, "bytes": new.SerializeToString(), "path": path}[give]
    with Engine.build(case.model, REFITTABLE, device=host) as engine:
        assert_matches(infer(engine, feed), reference(case.model, feed), case.tolerance)
        engine.refit(model)
        refitted = infer(engine, feed)
    with Engine.build(new, device=host) as fresh:
        built = infer(fresh, feed)
    assert_matches(refitted, reference(new, feed), case.tolerance)
    np.testing.assert_array_equal(refitted["y"], built["y"])


def test_what_is_open_goes_on_with_the_new_weights(host: Device, engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as bindings,
        Session(engine) as session,
    ):
        bindings["x"].host[...] = ONES["x"]
        for model, want in ((None, OLD), (other_weights(), NEW), (two_weights(), OLD)):
            if model is not None:
                engine.refit(model)
            assert (context.execute(bindings, stream)["y"] == want).all()
            for _ in range(4):  # often enough that the session runs graphs
                assert (session.infer(ONES)["y"] == want).all()


def test_work_that_is_enqueued_ends_with_the_old_weights(host: Device, engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = ONES["x"]
        bindings.copy_to_device(stream)
        context.enqueue(bindings, stream)
        engine.refit(other_weights())
        bindings.copy_to_host(stream)
        stream.synchronize()
        assert (bindings.outputs()["y"] == OLD).all()


def test_a_graph_is_closed_because_it_has_captured_the_old_addresses(
    host: Device, engine: Engine
) -> None:
    with (
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):
        bindings["x"].host[...] = ONES["x"]
        graph.launch(stream)
        engine.refit(other_weights())
        with pytest.raises(ClosedError):
            graph.launch(stream)
        with CudaGraph(context, bindings, stream) as anew:
            anew.launch(stream)
            stream.synchronize()
            assert (bindings.outputs()["y"] == NEW).all()


def test_what_is_saved_after_a_refit_has_the_new_weights_and_can_be_refitted(
    host: Device, engine: Engine, tmp_path: Path
) -> None:
    engine.refit(other_weights())
    engine.save(tmp_path / "new.engine")
    with Engine.load(tmp_path / "new.engine", device=host) as loaded:
        assert (infer(loaded, ONES)["y"] == NEW).all()
        loaded.refit(two_weights())
        assert (infer(loaded, ONES)["y"] == OLD).all()


def test_a_version_compatible_engine_does_not_keep_its_old_plan(host: Device) -> None:
    config = BuildConfig(refittable=True, version_compatible=True)
    with Engine.build(two_weights(), config, device=host) as engine:
        old = engine.serialize()
        engine.refit(other_weights())
        assert engine.serialize() != old


def test_external_weights_are_read_from_beside_the_model(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "new.onnx"
    onnx.save(
        with_weights(other_weights(), lambda array: array),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    engine.refit(path)
    assert (infer(engine, ONES)["y"] == NEW).all()
    with pytest.raises(ModelError, match="other files"):
        engine.refit(path.read_bytes())


def test_metadata_tells_what_it_was_refitted_with(engine: Engine) -> None:

    model = other_weights().SerializeToString()
    engine.refit(model)
    assert engine.metadata["refitted_with_digest"] == content_digest(model)


def by_name(engine: Engine) -> None:
    """Make TensorRT one without an ONNX parser that refits: 8.6, lean and dispatch."""
    del engine._library.module.OnnxParserRefitter


def pretend_release_8(engine: Engine) -> None:
    by_name(engine)
    with engine._record as handle:
        handle.generation = 8


@pytest.fixture(params=["parser", "by name", "by name in 8"])
def each_way(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    """An engine for each way in which releases are refitted."""
    if request.param == "by name":
        by_name(engine)
    if request.param == "by name in 8":
        pretend_release_8(engine)
    return engine


def test_a_release_without_a_parser_that_refits_is_given_weights_by_name(each_way: Engine) -> None:
    each_way.refit(other_weights())
    assert (infer(each_way, ONES)["y"] == NEW).all()


def test_types_that_numpy_lacks_are_given_by_name_too(host: Device) -> None:
    case = bfloat16()
    (feed,) = case.feeds
    with Engine.build(case.model, REFITTABLE, device=host) as engine:
        by_name(engine)
        engine.refit(with_weights(case.model, lambda array: np.zeros_like(array)))
        want = np.maximum(feed["x"].astype(np.float32), 0).astype(feed["x"].dtype)
        np.testing.assert_array_equal(infer(engine, feed)["y"], want)


def test_constants_of_nodes_count_as_weights(engine: Engine) -> None:
    """Exporters write weights as ``Constant`` nodes too; TensorRT names them by their output."""
    by_name(engine)
    scale = numpy_helper.from_array(np.full(64, 20, np.float32))
    model = make_model(
        [
            helper.make_node("Constant", [], ["scale"], value=scale),
            helper.make_node("Mul", ["x", "scale"], ["m"]),
            helper.make_node("Add", ["m", "shift"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [64])},
        {"y": (TensorProto.FLOAT, [64])},
        {"shift": np.full(64, 30, np.float32)},
    )
    engine.refit(model)
    assert (infer(engine, ONES)["y"] == NEW).all()


def test_doubles_become_floats_as_the_parser_makes_them(each_way: Engine) -> None:
    if hasattr(each_way._library.module, "OnnxParserRefitter"):
        pytest.skip("the parser's own business")
    doubled = with_weights(other_weights(), lambda array: array)
    for tensor in doubled.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    each_way.refit(doubled)
    assert (infer(each_way, ONES)["y"] == NEW).all()


# What is refused --------------------------------------------------------------------------------


def drop(name: str) -> onnx.ModelProto:
    """The network with an input in the place of a weight."""
    changed = with_weights(other_weights(), lambda array: array)
    kept = [tensor for tensor in changed.graph.initializer if tensor.name != name]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    changed.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]))
    return changed


def renamed() -> onnx.ModelProto:
    changed = with_weights(other_weights(), lambda array: array)
    changed.graph.initializer[0].name = "other"
    changed.graph.node[0].input[1] = "other"
    return changed


def of_dtype(dtype: Any) -> onnx.ModelProto:
    changed = with_weights(other_weights(), lambda array: array)
    for tensor in changed.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return changed


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (with_weights(two_weights(), lambda array: array[:32]), ["'scale'", "'shift'"]),
        (of_dtype(np.float16), ["'scale'", "'shift'"]),
        (drop("shift"), ["'shift'"]),
        (renamed(), ["'scale'"]),
    ],
    ids=["another shape", "another type", "missing", "renamed"],
)
def test_weights_that_do_not_fit_are_all_named_and_nothing_is_changed(
    each_way: Engine, model: onnx.ModelProto, names: list[str]
) -> None:
    with pytest.raises(RefitError) as caught:
        each_way.refit(model)
    for name in names:
        assert any(name in problem for problem in caught.value.problems), caught.value
    assert len(caught.value.problems) == len(names)
    assert (infer(each_way, ONES)["y"] == OLD).all()
    assert "refitted_with_digest" not in each_way.metadata


def test_weights_that_the_engine_does_not_list_are_not_needed(each_way: Engine) -> None:
    extra = with_weights(other_weights(), lambda array: array)
    extra.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    each_way.refit(extra)
    assert (infer(each_way, ONES)["y"] == NEW).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (static().model, r"has shape \[1, 3, 8, 8\], and the engine's \[64\]"),
        (
            make_model(
                [helper.make_node("Neg", ["z"], ["w"])],
                {"z": (TensorProto.FLOAT, [64])},
                {"w": (TensorProto.FLOAT, [64])},
            ),
            "it has no input 'x'",
        ),
    ],
    ids=["shapes", "names"],
)
def test_another_network_is_told_by_its_inputs_and_outputs(
    engine: Engine, model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(RefitError, match=message):
        engine.refit(model)


@pytest.mark.parametrize("model", [b"", b"garbage", bytes(1000)])
def test_bytes_that_are_no_model_are_refused(engine: Engine, model: bytes) -> None:
    with pytest.raises(ModelError, match="cannot parse"):
        engine.refit(model)


def test_a_missing_model_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.onnx"):
        engine.refit(tmp_path / "no.onnx")


def test_an_engine_that_was_not_built_for_it_says_how_to_build_one(host: Device) -> None:
    with (
        Engine.build(two_weights(), device=host) as engine,
        Session(engine),
        pytest.raises(RefitError, match=r"BuildConfig\(refittable=True\)"),
    ):
        engine.refit(other_weights())


def test_tensorrt_8_needs_its_contexts_closed(engine: Engine) -> None:
    pretend_release_8(engine)
    with Session(engine), pytest.raises(BusyError, match="1 execution contexts"):
        engine.refit(other_weights())
    engine.refit(other_weights())
    assert (infer(engine, ONES)["y"] == NEW).all()


def test_a_context_that_nobody_can_wait_for_is_refused(engine: Engine) -> None:
    with ExecutionContext(engine), pytest.raises(BusyError, match="was not made by Engine"):
        engine.refit(other_weights())
    engine.refit(other_weights())


def test_a_refit_from_inside_a_call_is_refused(host: Device, engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = ONES["x"]
        context.profiler = lambda layer, ms: engine.refit(other_weights())
        with pytest.raises(BusyError, match="inside its own callback"):
            context.execute(bindings, stream)
        context.profiler = None
        assert (context.execute(bindings, stream)["y"] == OLD).all()


def test_an_engine_of_another_release_is_not_refitted(engine: Engine) -> None:
    with engine._record as handle:
        handle._native = False
    with pytest.raises(UnsupportedError, match="of another release"):
        engine.refit(other_weights())
    with pytest.raises(UnsupportedError, match="of another release"):
        engine.weight_streaming_budget = 0


def test_an_engine_that_was_refitted_half_way_does_not_run_until_a_refit_succeeds() -> None:
    faults = Faults()
    platform = HostPlatform(faults)
    with (
        Device(platform) as device,
        Engine.build(two_weights(), REFITTABLE, device=device) as engine,
        Session(engine) as session,
    ):
        for _ in range(4):
            session.infer(ONES)
        faults.count = 0
        engine.refit(two_weights())
        calls = faults.count
        for number in range(1, calls + 1):
            faults.count, faults.fail_call, faults.failed = 0, number, []
            with pytest.raises(Exception) as caught:  # noqa: PT011
                engine.refit(other_weights())
            faults.fail_call = None
            if faults.failed == ["refit_cuda_engine"]:
                assert type(caught.value) is EngineError
                with pytest.raises(EngineError, match="failed half way"):
                    session.infer(ONES)
                with pytest.raises(EngineError, match="failed half way"):
                    engine.create_execution_context()
                break
            assert (session.infer(ONES)["y"] == OLD).all(), faults.failed
        else:
            pytest.fail("refit_cuda_engine was never called")
        engine.refit(other_weights())
        assert (session.infer(ONES)["y"] == NEW).all()
    platform.host_driver.ledger.assert_empty()


def test_a_closed_engine_cannot_be_changed(host: Device) -> None:
    engine = Engine.build(two_weights(), REFITTABLE, device=host)
    engine.close()
    with pytest.raises(ClosedError):
        engine.refit(other_weights())
    with pytest.raises(ClosedError):
        engine.weight_streaming_budget = 0


def test_the_callers_context_stays_current_and_a_new_thread_can_refit(engine: Engine) -> None:
    driver = engine.device._driver
    assert driver.current_context() == 0
    engine.refit(other_weights())
    assert driver.current_context() == 0
    thread = threading.Thread(target=engine.refit, args=[two_weights()])
    thread.start()
    thread.join(timeout=30)
    assert (infer(engine, ONES)["y"] == OLD).all()


# Under threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [1, 3])
def test_under_load_every_result_is_of_one_model_and_late_ones_of_the_last(
    host: Device, engine: Engine, contexts: int
) -> None:
    failures: list[BaseException] = []
    seen: set[float] = set()
    last = threading.Event()
    with Session(engine, contexts=contexts) as session:

        def work() -> None:
            try:
                while not last.is_set():
                    results = set(session.infer(ONES)["y"].tolist())
                    assert len(results) == 1, "old and new weights in one result"
                    seen.update(results)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(11):
            engine.refit(two_weights() if number % 2 else other_weights())
            want = OLD if number % 2 else NEW
            assert (session.infer(ONES)["y"] == want).all()
        last.set()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert failures == []
    assert seen <= {float(OLD), float(NEW)}


def test_contexts_and_sessions_come_and_go_while_the_engine_is_refitted(
    host: Device, engine: Engine
) -> None:
    failures: list[BaseException] = []
    last = threading.Event()

    def work() -> None:
        try:
            while not last.is_set():
                with Session(engine) as session:
                    results = set(session.infer(ONES)["y"].tolist())
                assert results in ({float(OLD)}, {float(NEW)})
                with engine.create_execution_context() as context:
                    assert context.profile == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(12):
        engine.refit(two_weights() if number % 2 else other_weights())
    last.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert failures == []


def test_closing_the_engine_waits_for_a_refit(host: Device) -> None:
    engine = Engine.build(two_weights(), REFITTABLE, device=host)
    inside, go_on = threading.Event(), threading.Event()
    refit = PlanEngine.refit

    def slow(self: PlanEngine, *arguments: Any) -> None:
        inside.set()
        assert go_on.wait(30)
        refit(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlanEngine, "refit", slow)
        refitting = threading.Thread(target=engine.refit, args=[other_weights()])
        refitting.start()
        assert inside.wait(30)
        closing = threading.Thread(target=engine.close)
        closing.start()
        go_on.set()
        for thread in (refitting, closing):
            thread.join(timeout=30)
            assert not thread.is_alive()
    with pytest.raises(ClosedError):
        engine.refit(other_weights())


# Stripped plans ---------------------------------------------------------------------------------

STRIPPED = BuildConfig(strip_weights=True)


def test_a_stripped_plan_is_smaller_and_runs_once_it_is_refitted(
    host: Device, tmp_path: Path
) -> None:
    assert len(plan(two_weights())) - len(plan(two_weights(), STRIPPED)) >= 2 * 64 * 4 - 64
    with Engine.load(plan(two_weights(), STRIPPED), device=host) as engine:
        assert engine.inspect().stripped
        with pytest.raises(EngineError, match=r"engine\.refit\("):
            engine.create_execution_context()
        with pytest.raises(EngineError, match=r"engine\.refit\("):
            Session(engine)
        engine.save(tmp_path / "stripped.engine")
        engine.refit(two_weights())
        assert (infer(engine, ONES)["y"] == OLD).all()
        engine.save(tmp_path / "whole.engine")
    with Engine.load(tmp_path / "whole.engine", device=host) as whole:
        assert not whole.inspect().stripped
        assert (infer(whole, ONES)["y"] == OLD).all()
        whole.refit(other_weights())
    with Engine.load(tmp_path / "stripped.engine", device=host) as engine:
        assert engine.inspect().stripped


def test_a_stripped_engine_needs_every_weight(host: Device) -> None:
    with Engine.load(plan(two_weights(), STRIPPED), device=host) as engine:
        with pytest.raises(RefitError, match="'shift'"):
            engine.refit(drop("shift"))
        with pytest.raises(EngineError, match=r"engine\.refit\("):
            engine.create_execution_context()


# Weight streaming -------------------------------------------------------------------------------

STREAMING = BuildConfig(weight_streaming=True, precision="as-typed")


def test_a_weight_streaming_budget_is_set_before_there_are_contexts(host: Device) -> None:
    with Engine.build(two_weights(), STREAMING, device=host) as engine:
        assert engine.streamable_weights_bytes == 2 * 64 * 4
        assert engine.weight_streaming_budget == 2 * 64 * 4
        engine.weight_streaming_budget = engine.automatic_weight_streaming_budget()
        assert engine.weight_streaming_budget == 64 * 4
        with Session(engine) as session:
            with pytest.raises(BusyError, match="before they and their sessions are made"):
                engine.weight_streaming_budget = 0
            assert (session.infer(ONES)["y"] == OLD).all()
        engine.weight_streaming_budget = 0
        assert engine.inspect().memory.streaming_budget == 0


@pytest.mark.parametrize("budget", [-1, 1.5, True, "1GiB", None])
def test_a_budget_is_a_number_of_bytes(host: Device, budget: Any) -> None:
    with (
        Engine.build(two_weights(), STREAMING, device=host) as engine,
        pytest.raises(InputError, match="number of bytes"),
    ):
        engine.weight_streaming_budget = budget


def test_an_engine_that_was_not_built_for_streaming_has_nothing_to_stream(engine: Engine) -> None:
    assert engine.streamable_weights_bytes == 0
    with pytest.raises(EngineError, match="refused a weight streaming budget of 5 bytes"):
        engine.weight_streaming_budget = 5


def test_tensorrt_8_has_no_weight_streaming(engine: Engine) -> None:
    pretend_release_8(engine)
    for ask in (
        lambda: engine.streamable_weights_bytes,
        lambda: engine.weight_streaming_budget,
        lambda: setattr(engine, "weight_streaming_budget", 1),
        engine.automatic_weight_streaming_budget,
    ):
        with pytest.raises(UnsupportedError, match="TensorRT 10 or later"):
            ask()


def test_an_automatic_budget_that_could_be_wrapped_round_is_not_told(
    host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_runtime.platform.host.tensorrt.engine import ICudaEngine

    size = property(lambda self: 1 << 31)
    with Engine.build(two_weights(), STREAMING, device=host) as engine:
        monkeypatch.setattr(ICudaEngine, "streamable_weights_size", size)
        with pytest.raises(UnsupportedError, match="2 GiB or more"):
            engine.automatic_weight_streaming_budget()


def test_a_dynamic_engine_is_refitted_for_all_its_profiles(host: Device) -> None:
    case = dynamic()
    new = with_weights(case.model, lambda array: -array)
    config = BuildConfig(profiles=case.profiles, refittable=True)
    with Engine.build(case.model, config, device=host) as engine, Session(engine) as session:
        for model in (case.model, new):
            engine.refit(model)
            for feed in case.feeds:
                assert_matches(session.infer(feed), reference(model, feed), case.tolerance)
