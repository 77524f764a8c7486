"""Networks of every kind, both ways in, against onnxruntime; and graphs, profilers and names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trt_runtime import (
    BindingSet,
    BusyError,
    CudaGraph,
    Device,
    Engine,
    EngineError,
    InputError,
    Session,
    StaleGraphError,
    Stream,
    TrtRuntimeError,
    UnsupportedError,
)
from trt_runtime.platform import HostPlatform

from .conftest import open_engine
from .models import (
    LIGHT,
    SMALL,
    Case,
    Feed,
    assert_matches,
    dynamic,
    empty,
    expand,
    half_dynamic,
    light,
    nonzero,
    reshape,
    several,
    static,
    varied,
)

Make = Callable[[], Case]

every_small_case = pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
static_cases = pytest.mark.parametrize(
    "make",
    [make for make in SMALL if not make().profiles and make is not nonzero],
    ids=lambda make: make.__name__,
)


@pytest.fixture
def engine(device: Device, make: Make) -> Iterator[Engine]:
    with open_engine(device, make()) as engine:
        yield engine


def bindings_for(engine: Engine, context: object, feed: Feed) -> BindingSet:
    """A binding set for that input, filled with it."""
    shapes = {s.name: feed[s.name].shape for s in engine.inputs if not s.is_shape_tensor}
    values = {s.name: feed[s.name] for s in engine.inputs if s.is_shape_tensor}
    bindings = BindingSet(context, shapes, values)  # type: ignore[arg-type]
    fill(bindings, feed)
    return bindings


def fill(bindings: BindingSet, feed: Feed) -> None:
    for name, array in feed.items():
        if not bindings[name].spec.is_shape_tensor:
            bindings[name].host[...] = array


@every_small_case
def test_a_session_computes_what_onnxruntime_does(engine: Engine, make: Make) -> None:
    case = make()
    with Session(engine) as session:
        for feed in case.feeds:
            assert_matches(session.infer(feed), case.expected(feed), case.tolerance)


@every_small_case
def test_the_explicit_program_computes_what_onnxruntime_does(engine: Engine, make: Make) -> None:
    case = make()
    with engine.create_execution_context() as context, Stream(engine.device) as stream:
        for feed in case.feeds:
            with bindings_for(engine, context, feed) as bindings:
                bindings.copy_to_device(stream)
                context.enqueue(bindings, stream)
                bindings.copy_to_host(stream)
                stream.synchronize()
                assert_matches(bindings.outputs(), case.expected(feed), case.tolerance)


@every_small_case
def test_binding_sets_of_one_context_may_take_turns(engine: Engine, make: Make) -> None:
    case = make()
    with engine.create_execution_context() as context, Stream(engine.device) as stream:
        sets = [bindings_for(engine, context, feed) for feed in case.feeds]
        for _ in range(2):
            for bindings, feed in zip(sets, case.feeds, strict=True):
                outputs = context.execute(bindings, stream)
                assert_matches(outputs, case.expected(feed), case.tolerance)


@every_small_case
def test_an_engine_tells_names_modes_and_dtypes_of_the_model(engine: Engine, make: Make) -> None:
    case = make()
    (feed, *_) = case.feeds
    want = case.expected(feed)
    assert sorted(spec.name for spec in engine.inputs) == sorted(feed)
    assert sorted(spec.name for spec in engine.outputs) == sorted(want)
    for spec in engine.tensors.values():
        dtype = (feed if spec.is_input else want)[spec.name].dtype
        # TensorRT 8.6 has no int64 and makes it int32.
        assert spec.dtype == dtype or (dtype, spec.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("make", [dynamic], ids=["dynamic"])
def test_the_profile_in_use_is_the_tightest_that_fits(engine: Engine) -> None:
    assert len(engine.profiles) == 2
    with engine.create_execution_context() as context, Stream(engine.device) as stream:
        for batch, profile in [(1, 0), (2, 0), (16, 1), (4, 0), (5, 1), (1, 0)]:
            with BindingSet(context, {"x": (batch, 3, 8, 8)}) as bindings:
                assert bindings.profile == profile
                bindings["x"].host[...] = 0
                context.execute(bindings, stream)
                assert context.profile == profile
                assert context.shapes["x"] == (batch, 3, 8, 8)
                assert context.shapes["y"] == (batch, 4, 8, 8)


@pytest.mark.parametrize("make", [dynamic], ids=["dynamic"])
def test_a_session_switches_profiles_with_the_shape(engine: Engine) -> None:
    with Session(engine, graphs=False) as session:
        slot = session._record.handle.pipeline.slots[0]
        for batch, profile in [(1, 0), (2, 0), (4, 0), (5, 1), (16, 1), (1, 0)]:
            session.infer(np.zeros((batch, 3, 8, 8), np.float32))
            assert slot.context.profile == profile


@pytest.mark.parametrize("make", [nonzero], ids=["nonzero"])
def test_data_dependent_results_shrink_and_grow_with_the_data(engine: Engine) -> None:
    with Session(engine) as session:
        for found in (0, 20, 3, 0, 1, 20):
            x = np.zeros((4, 5), np.float32)
            x.flat[:found] = 1
            outputs = session.infer(x)
            assert outputs["where"].shape == (2, found)
            np.testing.assert_array_equal(outputs["where"], np.stack(np.nonzero(x)))


@pytest.mark.parametrize("make", [nonzero], ids=["nonzero"])
def test_a_data_dependent_result_that_another_set_overwrote_is_refused(engine: Engine) -> None:
    x = np.ones((4, 5), np.float32)
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context) as first,
        BindingSet(context) as second,
    ):
        for bindings in (first, second):
            bindings["x"].host[...] = x
            bindings.copy_to_device(stream)
            context.enqueue(bindings, stream)
        with pytest.raises(BusyError, match="overwritten by another binding set"):
            first.copy_to_host(stream)
        second.copy_to_host(stream)
        stream.synchronize()
        np.testing.assert_array_equal(second["where"].host, np.stack(np.nonzero(x)))


def test_a_data_dependent_result_is_not_copied_after_a_later_inference_failed(
    platform: HostPlatform, host: Device
) -> None:
    x = np.ones((4, 5), np.float32)
    with (
        Engine.build(nonzero().model, device=host) as engine,
        engine.create_execution_context() as context,
        Stream(host) as stream,
        BindingSet(context) as first,
        BindingSet(context) as second,
    ):
        first["x"].host[...] = x
        first.copy_to_device(stream)
        context.enqueue(first, stream)
        faults = platform.host_driver.faults
        faults.fail_call, faults.persistent = faults.count + 1, True
        with pytest.raises(TrtRuntimeError):
            context._run(context._record.handle, second, stream.handle)
        faults.fail_call = None
        with pytest.raises(BusyError, match="by one that failed"):
            first.copy_to_host(stream)


def test_data_dependent_results_are_right_where_tensorrt_asks_and_tells_less(
    host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call for memory while the last is large enough, and an old shape once there was a run."""
    from trt_runtime.platform.host.tensorrt import context as imitated

    handed: dict[int, tuple[int, int]] = {}
    ask, tell = imitated._reallocate, imitated.IExecutionContext.get_tensor_shape

    def ask_less(allocator: Any, name: str, memory: int, nbytes: int, stream: int) -> int:
        address, capacity = handed.get(id(allocator), (0, 0))
        if nbytes > capacity or not address:
            address = ask(allocator, name, memory, nbytes, stream)
            handed[id(allocator)] = (address, nbytes)
        return address

    def tell_less(self: Any, name: str) -> Any:
        return (2, 0) if name == "where" and self.get_output_allocator(name) else tell(self, name)

    monkeypatch.setattr(imitated, "_reallocate", ask_less)
    monkeypatch.setattr(imitated.IExecutionContext, "get_tensor_shape", tell_less)
    case = nonzero()
    with (
        Engine.build(case.model, device=host) as engine,
        engine.create_execution_context() as context,
        Stream(host) as stream,
    ):
        for feed in case.feeds * 2:
            with bindings_for(engine, context, feed) as bindings:
                got = context.execute(bindings, stream)
                assert_matches(got, case.expected(feed), case.tolerance)


@pytest.mark.parametrize("make", [nonzero], ids=["nonzero"])
def test_a_larger_result_cannot_be_read_before_its_copy(engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context) as bindings,
    ):
        with pytest.raises(EngineError, match="depends on the data"):
            bindings["where"].host  # noqa: B018
        bindings["x"].host[...] = [[1] + [0] * 4] * 4
        assert context.execute(bindings, stream)["where"].shape == (2, 4)
        bindings["x"].host[...] = 1
        bindings.copy_to_device(stream)
        context.enqueue(bindings, stream)
        stream.synchronize()
        with pytest.raises(EngineError, match="copy_to_host"):
            bindings["where"].host  # noqa: B018
        bindings.copy_to_host(stream)
        stream.synchronize()
        assert bindings.outputs()["where"].shape == (2, 20)


@pytest.mark.parametrize("make", [reshape, expand], ids=["reshape", "expand"])
def test_shape_tensors_live_on_the_host_and_are_read_only(engine: Engine, make: Make) -> None:
    (feed, *_) = make().feeds
    assert engine.tensors["shape"].is_shape_tensor
    with (
        engine.create_execution_context() as context,
        bindings_for(engine, context, feed) as bindings,
    ):
        assert bindings["shape"].device_address == 0
        assert not bindings["shape"].host.flags.writeable
        np.testing.assert_array_equal(bindings["shape"].host, feed["shape"])


@pytest.mark.parametrize("name", LIGHT)
def test_a_classic_network_gives_its_reference_output(device: Device, name: str) -> None:
    case, expected = light(name)
    with open_engine(device, case) as engine, Session(engine) as session:
        assert_matches(session.infer(case.feeds[0]), expected, 1e-3)


@pytest.mark.parametrize("name", ["squeezenet", "resnet50"])
def test_a_classic_network_of_random_weights_follows_its_input(device: Device, name: str) -> None:
    case = varied(name)
    (output, first), *_ = case.expected(case.feeds[0]).items()
    second = case.expected(case.feeds[1])[output]
    # Or else a lost input would go unnoticed.
    assert np.abs(first - second).max() > 50 * case.tolerance * first.max()
    with open_engine(device, case) as engine, Session(engine) as session:
        for feed, want in zip(case.feeds, (first, second), strict=True):
            assert_matches(session.infer(feed), {output: want}, case.tolerance)


# Any shape --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_session() -> Iterator[Session]:
    """One session for every example; hypothesis runs many."""
    case = half_dynamic()
    with (
        Device(HostPlatform()) as device,
        Session(case.model, profiles=case.profiles, device=device) as session,
    ):
        yield session


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_inside_the_profile_gives_the_right_float16(
    half_session: Session, shape: tuple[int, ...], seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    (y,) = half_session.infer(x).values()
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, np.maximum(x * np.float16(2), 0))


# CUDA graphs ------------------------------------------------------------------------------------


@static_cases
def test_a_graph_replays_what_the_ordinary_path_computes(engine: Engine, make: Make) -> None:
    case = make()
    (feed,) = case.feeds
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        bindings_for(engine, context, feed) as bindings,
    ):
        ordinary = context.execute(bindings, stream)
        with CudaGraph(context, bindings, stream) as graph:
            for output in bindings.values():
                if not output.spec.is_input:
                    output.host.reshape(-1).view(np.uint8)[...] = 0x55
            graph.launch(stream)
            stream.synchronize()
            replayed = bindings.outputs()
    assert_matches(replayed, case.expected(feed), case.tolerance)
    for name, array in ordinary.items():
        assert array.tobytes() == replayed[name].tobytes(), name


@pytest.mark.parametrize("make", [static, several], ids=["static", "several"])
def test_a_graph_follows_new_inputs(engine: Engine, make: Make) -> None:
    case = make()
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        bindings_for(engine, context, case.feeds[0]) as bindings,
        CudaGraph(context, bindings, stream) as graph,
    ):
        for factor in (2, -1, 0.5):
            feed = {
                name: (array * factor).astype(array.dtype) for name, array in case.feeds[0].items()
            }
            fill(bindings, feed)
            graph.launch(stream)
            stream.synchronize()
            assert_matches(bindings.outputs(), case.expected(feed), case.tolerance)


@pytest.mark.parametrize("make", [dynamic], ids=["dynamic"])
def test_a_graph_is_stale_once_its_context_had_other_shapes(engine: Engine, make: Make) -> None:
    case = make()
    small, large = case.feeds[1], case.feeds[2]
    with engine.create_execution_context() as context, Stream(engine.device) as stream:
        bindings, again, other = (bindings_for(engine, context, f) for f in (small, small, large))
        with CudaGraph(context, bindings, stream) as graph:
            context.execute(again, stream)  # other addresses are no other shapes
            graph.launch(stream)
            stream.synchronize()
            assert_matches(bindings.outputs(), case.expected(small), case.tolerance)
            context.execute(other, stream)
            with pytest.raises(StaleGraphError, match="with other shapes"):
                graph.launch(stream)
            context.execute(bindings, stream)  # and back: what it had is gone all the same
            with pytest.raises(StaleGraphError):
                graph.launch(stream)
        with CudaGraph(context, bindings, stream) as graph:
            graph.launch(stream)
            stream.synchronize()
            assert_matches(bindings.outputs(), case.expected(small), case.tolerance)


@pytest.mark.parametrize("make", [reshape], ids=["reshape"])
def test_a_graph_is_stale_once_its_context_read_other_shape_tensors(
    engine: Engine, make: Make
) -> None:
    feed = make().feeds[0]
    with engine.create_execution_context() as context, Stream(engine.device) as stream:
        bindings, again = (bindings_for(engine, context, feed) for _ in range(2))
        with CudaGraph(context, bindings, stream) as graph:
            graph.launch(stream)
            stream.synchronize()
            context.execute(again, stream)
            with pytest.raises(StaleGraphError):
                graph.launch(stream)


@pytest.mark.parametrize("make", [dynamic], ids=["dynamic"])
def test_graphs_of_two_shapes_each_with_a_context_do_not_disturb_each_other(
    engine: Engine, make: Make
) -> None:
    case = make()
    feeds = case.feeds[1], case.feeds[2]
    with ExitStack() as stack:
        stream = stack.enter_context(Stream(engine.device))
        contexts = [stack.enter_context(engine.create_execution_context()) for _ in feeds]
        sets = [
            bindings_for(engine, context, feed)
            for context, feed in zip(contexts, feeds, strict=True)
        ]
        graphs = [
            stack.enter_context(CudaGraph(context, bindings, stream))
            for context, bindings in zip(contexts, sets, strict=True)
        ]
        for _ in range(2):
            for graph, bindings, feed in zip(graphs, sets, feeds, strict=True):
                graph.launch(stream)
                stream.synchronize()
                assert_matches(bindings.outputs(), case.expected(feed), case.tolerance)


@pytest.mark.parametrize("make", [nonzero], ids=["nonzero"])
@pytest.mark.parametrize("run_before", [False, True], ids=["unused", "used"])
def test_a_graph_of_data_dependent_shapes_is_refused(
    engine: Engine, make: Make, run_before: bool
) -> None:
    case = make()
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        bindings_for(engine, context, case.feeds[0]) as bindings,
    ):
        if run_before:
            context.execute(bindings, stream)
        with pytest.raises(UnsupportedError, match=r"'where'.*depend on the data"):
            CudaGraph(context, bindings, stream)
        outputs = context.execute(bindings, stream)  # the context is as good as before
        assert_matches(outputs, case.expected(case.feeds[0]), case.tolerance)


@pytest.mark.parametrize("make", [static], ids=["static"])
def test_a_graph_of_another_contexts_bindings_is_refused(engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        engine.create_execution_context() as other,
        Stream(engine.device) as stream,
        BindingSet(other) as bindings,
        pytest.raises(InputError, match="another context"),
    ):
        CudaGraph(context, bindings, stream)


# Profiler and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [static], ids=["static"])
def test_a_profiler_gets_every_layer_until_it_is_taken_off(engine: Engine) -> None:
    seen: list[tuple[str, float]] = []
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = 1
        context.profiler = lambda layer, milliseconds: seen.append((layer, milliseconds))
        context.execute(bindings, stream)
        once = len(seen)
        assert once >= 1
        assert all(layer and milliseconds >= 0 for layer, milliseconds in seen)
        context.execute(bindings, stream)
        assert len(seen) == 2 * once
        context.profiler = None
        context.execute(bindings, stream)
        assert len(seen) == 2 * once


@pytest.mark.parametrize("make", [static], ids=["static"])
def test_an_exception_in_a_profiler_is_raised_from_the_enqueue(engine: Engine, make: Make) -> None:
    case = make()

    def profiler(layer: str, milliseconds: float) -> None:
        raise LookupError(layer)

    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        bindings_for(engine, context, case.feeds[0]) as bindings,
    ):
        context.profiler = profiler
        bindings.copy_to_device(stream)
        with pytest.raises(LookupError):
            context.enqueue(bindings, stream)
        context.profiler = None
        outputs = context.execute(bindings, stream)
        assert_matches(outputs, case.expected(case.feeds[0]), case.tolerance)


@pytest.mark.parametrize("make", [static], ids=["static"])
def test_a_profiler_that_cannot_be_called_is_refused(engine: Engine) -> None:
    with (
        engine.create_execution_context() as context,
        pytest.raises(InputError, match="callable"),
    ):
        context.profiler = "layer times"  # type: ignore[assignment]


@pytest.mark.parametrize("make", [static], ids=["static"])
def test_a_contexts_name_is_shown(engine: Engine) -> None:
    with engine.create_execution_context(name="detector") as context:
        assert context.name == "detector"
        assert "'detector'" in repr(context)


@pytest.mark.parametrize("make", [empty], ids=["empty"])
def test_zero_elements_need_no_copy(engine: Engine) -> None:
    with Session(engine) as session:
        (y,) = session.infer(np.empty((0, 4), np.float32)).values()
        assert y.shape == (0, 4)
