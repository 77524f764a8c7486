"""What only a GPU and a real TensorRT can show."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from trt_runtime import (
    BindingSet,
    BuildConfig,
    ClosedError,
    CorruptPlanError,
    CudaGraph,
    Device,
    DeviceBuffer,
    Engine,
    NotAPlanError,
    OutOfMemoryError,
    PinnedBuffer,
    PlanError,
    PlanVersionError,
    Session,
    ShapeError,
    Stream,
    UnsupportedError,
    UntrustedPlanError,
)

from ..conftest import PLANS, open_engine, plan_of, plan_path
from ..models import assert_matches, dynamic, light, nonzero, reference, static
from ..together import run_together

pytestmark = pytest.mark.gpu


def test_the_explicit_program_runs_squeezenet(gpu: Device) -> None:
    case, expected = light("squeezenet")
    (feed,) = case.feeds
    ((name, image),) = feed.items()
    with (
        open_engine(gpu, case) as engine,
        engine.create_execution_context() as context,
        Stream(gpu) as stream,
        BindingSet(context) as bindings,
    ):
        bindings[name].host[...] = image
        bindings.copy_to_device(stream)
        context.enqueue(bindings, stream)
        bindings.copy_to_host(stream)
        stream.synchronize()
        outputs = bindings.outputs()
        print(engine, context, stream, bindings, bindings[name], sep="\n")
    assert_matches(outputs, expected, 1e-3)


def test_a_thousand_open_infer_close_cycles_leave_the_memory_as_it_was(gpu: Device) -> None:
    case = static()
    plan = plan_of(gpu, case)
    (feed,) = case.feeds
    want = reference(case.model, feed)

    def cycle() -> None:
        with Session(plan, device=gpu, trust_host_code=True) as session:
            assert_matches(session.infer(feed), want, case.tolerance)

    for _ in range(20):
        cycle()
    start, _ = gpu.memory_info()
    for _ in range(1000):
        cycle()
    end, _ = gpu.memory_info()
    print(f"free device memory before and after 1,000 cycles: {start} and {end} bytes")
    assert end == start


def test_cycles_of_everything_leave_the_memory_as_it_was(gpu: Device) -> None:
    """Dynamic shapes, two profiles, data-dependent outputs, graphs, buffers, events."""
    has_builder = gpu.platform.tensorrt().has_builder
    cases = (dynamic(), nonzero()) if has_builder else (dynamic(),)
    plans = [plan_of(gpu, case) for case in cases]

    def cycle() -> None:
        for case, plan in zip(cases, plans, strict=True):
            with Session(plan, device=gpu, trust_host_code=True, contexts=2) as session:
                for feed in case.feeds:
                    session.infer(feed)
        with (
            Engine.load(plans[0], device=gpu, trust_host_code=True) as engine,
            engine.create_execution_context() as context,
            Stream(gpu) as stream,
            BindingSet(context, {"x": (4, 3, 8, 8)}) as bindings,
            CudaGraph(context, bindings, stream) as graph,
            DeviceBuffer(1 << 20, device=gpu) as buffer,
            PinnedBuffer(1 << 20, device=gpu) as pinned,
        ):
            graph.launch(stream)
            buffer.copy_from(pinned, stream=stream)
            stream.synchronize()

    for _ in range(10):
        cycle()
    start, _ = gpu.memory_info()
    for _ in range(100):
        cycle()
    end, _ = gpu.memory_info()
    print(f"free device memory before and after 100 cycles: {start} and {end} bytes")
    assert end == start


@pytest.mark.parametrize("contexts", [1, 4])
def test_thirty_two_threads_share_one_session(gpu: Device, contexts: int) -> None:
    case = static()
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(32)]
    wants = [reference(case.model, feed) for feed in feeds]

    with open_engine(gpu, case) as engine, Session(engine, contexts=contexts) as session:

        def work(number: int) -> None:
            for _ in range(50):
                assert_matches(session.infer(feeds[number]), wants[number], case.tolerance)

        assert run_together(32, work) == []


def test_closing_while_threads_infer_gives_results_or_closed_errors(gpu: Device) -> None:
    case = static()
    (feed,) = case.feeds
    want = reference(case.model, feed)
    failures: list[BaseException] = []
    with open_engine(gpu, case) as engine:
        session = Session(engine, contexts=2)
        begun = threading.Barrier(9)

        def work() -> None:
            begun.wait()
            try:
                while True:
                    assert_matches(session.infer(feed), want, case.tolerance)
            except ClosedError:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        begun.wait()
        session.close()
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert failures == []


def test_garbage_is_not_a_plan(gpu: Device) -> None:
    with pytest.raises(NotAPlanError) as caught:
        Engine.load(b"not a plan at all, only text" * 100, device=gpu)
    print(caught.value)
    with pytest.raises(NotAPlanError):
        Engine.load(b"", device=gpu)


def test_a_truncated_plan_is_a_plan_error(gpu: Device) -> None:
    plan = plan_of(gpu, static())
    for length in (8, 64, 1000, len(plan) // 2):
        with pytest.raises(PlanError) as caught:
            Engine.load(plan[:length], device=gpu, trust_host_code=True)
        print(length, type(caught.value).__name__, caught.value)
        assert isinstance(caught.value, (CorruptPlanError, NotAPlanError, PlanVersionError))


def test_a_plan_of_another_release_is_refused_by_name(gpu: Device) -> None:
    """A plan that is not version compatible, built by a run with a builder."""
    folder = Path(PLANS or ".")
    native = folder / "native_8.6.engine"
    if gpu.platform.tensorrt().has_builder:
        if PLANS is None:
            pytest.skip("no folder of plans to leave one in")
        folder.mkdir(parents=True, exist_ok=True)
        config = BuildConfig(optimization_level=0)
        with Engine.build(static().model, config, device=gpu) as engine:
            engine.save(native)
            print("version", engine.tensorrt_version, "begins with", native.read_bytes()[:32])
        return
    if not native.exists():
        pytest.skip("no plan of another release was left here")
    with pytest.raises(PlanVersionError) as caught:
        Engine.load(native, device=gpu)
    print(caught.value)


def test_a_plan_with_host_code_runs_only_when_trusted(gpu: Device) -> None:
    if PLANS is None:
        pytest.skip("no version-compatible plans")
    plan = plan_of(gpu, static())
    with pytest.raises(UntrustedPlanError) as caught:
        Engine.load(plan, device=gpu)
    print(caught.value, plan[:64])


def test_a_plan_without_its_runtime_takes_a_supplied_one(gpu: Device) -> None:
    library = os.environ.get("TRT_LEAN_86")
    if library is None or PLANS is None:
        pytest.skip("no lean library or no folder of plans")
    path = Path(PLANS) / "leanless.engine"
    case = static()
    if gpu.platform.tensorrt().has_builder:
        from trt_runtime import build_plan

        config = BuildConfig(
            precision="fp32",
            optimization_level=0,
            version_compatible=True,
            embed_lean_runtime=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(build_plan(case.model, config, device=gpu))
    if not path.exists():
        pytest.skip("no such plan was left here")
    (feed,) = case.feeds
    with Session(path, device=gpu, lean_library=library) as session:
        assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)


def test_an_old_engine_whose_shapes_depend_on_the_data_is_refused_by_a_later_release(
    gpu: Device,
) -> None:
    """Its release cannot call the later one's allocators; trying would crash the process."""
    path = plan_path(nonzero())
    if gpu.platform.tensorrt().has_builder or path is None or not path.exists():
        pytest.skip("needs a runtime of a later release, and the plan")
    with (
        Engine.load(path, device=gpu, trust_host_code=True) as engine,
        engine.create_execution_context() as context,
        pytest.raises(UnsupportedError, match="'where' depends on the data"),
    ):
        BindingSet(context)


def test_a_shape_outside_the_profiles_is_refused_before_tensorrt_sees_it(gpu: Device) -> None:
    with open_engine(gpu, dynamic()) as engine, Session(engine) as session:
        with pytest.raises(ShapeError, match="no optimisation profile allows"):
            session.infer(np.zeros((17, 3, 8, 8), np.float32))
        assert session.infer(np.zeros((16, 3, 8, 8), np.float32))["y"].shape == (16, 4, 8, 8)


def test_more_memory_than_there_is_is_an_out_of_memory_error(gpu: Device) -> None:
    _, total = gpu.memory_info()
    with pytest.raises(OutOfMemoryError, match="cuMemAlloc"):
        DeviceBuffer(total * 2, device=gpu)


def test_buffers_round_trip(gpu: Device) -> None:
    data = np.arange(1 << 16, dtype=np.float32)
    back = np.empty_like(data)
    with (
        Stream(gpu) as stream,
        PinnedBuffer(data.shape, data.dtype, device=gpu) as pinned,
        DeviceBuffer(data.shape, data.dtype, device=gpu) as buffer,
    ):
        pinned.array[...] = data
        buffer.copy_from(pinned, stream=stream)
        buffer.copy_to(back, stream=stream)
        stream.synchronize()
        kept = pinned.array
    np.testing.assert_array_equal(back, data)
    np.testing.assert_array_equal(kept, data)  # outlives the buffer


def test_shares_the_primary_context_with_pytorch(gpu: Device) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    case = static()
    (feed,) = case.feeds
    want = reference(case.model, feed)
    before = torch.arange(1000, device="cuda", dtype=torch.float32)
    with open_engine(gpu, case) as engine, Session(engine) as session:
        assert_matches(session.infer(feed), want, case.tolerance)
        during = before * 2
        assert_matches(session.infer(feed), want, case.tolerance)
    assert torch.equal((during - before).cpu(), torch.arange(1000, dtype=torch.float32))


def test_a_thread_that_never_touched_cuda_can_infer(gpu: Device) -> None:
    case = static()
    (feed,) = case.feeds
    results = []
    with open_engine(gpu, case) as engine, Session(engine) as session:
        thread = threading.Thread(target=lambda: results.append(session.infer(feed)))
        thread.start()
        thread.join()
    assert_matches(results[0], reference(case.model, feed), case.tolerance)


def test_what_ran(gpu: Device) -> None:
    """Leaves in the log which machine and which versions the other tests ran on."""
    print(
        f"Python {sys.version.split()[0]}, {gpu.tensorrt_name} {gpu.tensorrt_version}, {gpu.name}, "
        f"compute capability {gpu.compute_capability}, driver CUDA "
        f"{gpu.platform.driver.driver_version()}"
    )
    assert gpu.total_memory > 0
