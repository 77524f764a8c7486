"""What is measured, and on what: networks, their engine, and loops by hand over the same engine.

    python -m pytest benchmarks --benchmark-json=out.json
    python benchmarks/summarize.py out.json benchmarks/results/NAME

Engines are built once for each network and session; with ``--engines DIR`` once for good.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    BuildConfig,
    Device,
    Engine,
    EngineCache,
    NoDeviceError,
    NoTensorRTError,
    Session,
)
from trt_runtime.platform import HostPlatform

from .models import NETWORKS, Network
from .on_host import HostDriverApi
from .raw import Lane, RawEngine
from .summarize import FLOOR

#: Enough for a build: YOLOv3 takes TensorRT 8.6 one or two minutes.
BUILD_SECONDS = 900


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trt_runtime benchmarks")
    group.addoption(
        "--models",
        default="yolov3,identity",
        help=f"networks to measure, with commas between: {', '.join(NETWORKS)}",
    )
    group.addoption(
        "--optimization-level",
        type=int,
        default=int(os.environ.get("TRT_RUNTIME_BENCHMARK_LEVEL", "1")),
        help="of the builds; TRT_RUNTIME_BENCHMARK_LEVEL, or 1, by default",
    )
    group.addoption(
        "--precision", default="fp16", help="of the builds; fp16 by default, fp32 on the host"
    )
    group.addoption(
        "--engines",
        default=os.environ.get("TRT_RUNTIME_BENCHMARK_ENGINES"),
        help="a folder that keeps engines for the next run; TRT_RUNTIME_BENCHMARK_ENGINES",
    )
    group.addoption("--device", default="cuda", help="cuda, or host to try the benchmarks out")
    group.addoption(
        "--count", type=int, default=500, help="inferences of a measurement of throughput"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        names = metafunc.config.getoption("--models").split(",")
        unknown = [name for name in names if name not in NETWORKS]
        if unknown:
            raise pytest.UsageError(f"--models knows {', '.join(NETWORKS)}, not {unknown}")
        metafunc.parametrize("subject", names, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "subject" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.update(config.stash.get(_FACTS, {}))


_FACTS = pytest.StashKey[dict[str, Any]]()


class Subject:
    """A network's engine, sessions of it, and lanes by hand over the same plan.

    Attributes
    ----------
    image : ndarray
        The input, in ordinary memory.
    expected : dict of str to ndarray
        What a loop by hand makes of it; every other way must give the same bits.
    """

    def __init__(
        self, name: str, network: Network, engine: Engine, library: Any, stack: ExitStack
    ) -> None:
        self.name = name
        self.engine = engine
        self.plan = engine.serialize()
        (spec,) = engine.inputs
        self.input = spec.name
        self.shapes = {spec.name: network.shape} if spec.is_dynamic else {}
        self.image = np.random.default_rng(0).random(network.shape, np.float32)
        self.batch = network.shape[0] if len(network.shape) == 4 else 1
        self._stack = stack
        self._sessions: dict[tuple[int, bool], Session] = {}
        self._lanes: list[Lane] = []
        self._raw = RawEngine(_driver_api(engine.device), library.module, self.plan)
        stack.callback(self._raw.close)
        self.expected = self.lanes(1)[0].copies(self.image)
        for outcome in self.expected.values():
            assert np.isfinite(outcome).all()
            assert outcome.std() > 0

    @property
    def on_gpu(self) -> bool:
        return self.engine.device.kind == "cuda"

    def lanes(self, count: int) -> list[Lane]:
        while len(self._lanes) < count:
            lane = Lane(self._raw, self.shapes)
            self._stack.callback(lane.close)
            lane.fill(self.image)
            self._lanes.append(lane)
        return self._lanes[:count]

    @property
    def lane(self) -> Lane:
        return self.lanes(1)[0]

    def session(self, contexts: int = 1, *, graphs: bool = True) -> Session:
        key = contexts, graphs
        if key not in self._sessions:
            session = Session(self.engine, contexts=contexts, graphs=graphs)
            self._sessions[key] = self._stack.enter_context(session)
            if graphs:
                session.infer(self.image)
                session.infer(self.image)
                assert session.graph_fallback is None
        return self._sessions[key]

    def buffers(self) -> dict[str, np.ndarray]:
        """The input in page-locked memory."""
        buffers = self.session().input_buffers(self.shapes)
        buffers[self.input][...] = self.image
        return buffers

    def check(self, results: Mapping[str, np.ndarray]) -> None:
        """Raise unless these are the loop's results, bit for bit."""
        assert sorted(results) == sorted(self.expected)
        for name, want in self.expected.items():
            assert results[name].reshape(want.shape).tobytes() == want.tobytes(), name


def _driver_api(device: Device) -> Any:
    if isinstance(device.platform, HostPlatform):
        return HostDriverApi(device.platform)
    from cuda.bindings import driver

    return driver


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    try:
        opened = Device(request.config.getoption("--device"))
    except NoDeviceError as error:
        pytest.skip(f"needs a GPU: {error.message}")
    with opened:
        yield opened


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, device: Device) -> Iterator[Subject]:
    option = request.config.getoption
    network = NETWORKS[request.param]
    config = BuildConfig(
        precision=option("--precision") if device.kind == "cuda" else "fp32",
        optimization_level=option("--optimization-level"),
        profiles=(network.profile,) if network.profile else (),
    )
    try:
        library = device.platform.tensorrt()
    except NoTensorRTError as error:
        pytest.skip(error.message)
    request.config.stash[_FACTS] = {
        "gpu": device.name,
        "tensorrt": f"{library.name} {library.version}",
        "precision": config.precision,
        "optimization_level": config.optimization_level,
    }
    build = EngineCache(option("--engines")).load_or_build if option("--engines") else Engine.build
    with ExitStack() as stack:
        engine = stack.enter_context(build(network.make(), config, device=device))
        yield Subject(request.param, network, engine, library, stack)
        gc.collect()


@pytest.fixture
def polygraphy(subject: Subject) -> Iterator[Any]:
    """Polygraphy's runner over the same plan."""
    if not subject.on_gpu:
        pytest.skip("Polygraphy needs a GPU")
    pytest.importorskip("polygraphy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.logger import G_LOGGER

        G_LOGGER.module_severity = G_LOGGER.ERROR
        with TrtRunner(EngineFromBytes(subject.plan)) as runner:
            yield runner


@pytest.fixture
def measure(benchmark: Any, subject: Subject) -> Callable[..., Any]:
    """Time a way of inferring; ``count`` is how many inferences one call of it makes.

    A GPU's clock changes within seconds, so what a way is compared with is timed ``beside`` it:
    before each round. That is the floor, unless told otherwise.
    """

    def run(
        way: str,
        call: Callable[..., Any],
        *args: Any,
        count: int = 1,
        contexts: int = 1,
        beside: Mapping[str, Callable[[], object]] | None = None,
    ) -> Any:
        if beside is None:
            beside = {FLOOR: subject.lane.floor} if count == 1 else {}
        seconds: dict[str, list[float]] = {name: [] for name in beside}

        def before_each_round() -> None:
            for name, other in beside.items():
                started = time.perf_counter()
                other()
                seconds[name].append(time.perf_counter() - started)

        fast = subject.on_gpu
        if count > 1:
            settings = {"warmup_rounds": 1, "rounds": 5 if fast else 1}
        else:
            settings = {"warmup_rounds": 50 if fast else 2, "rounds": 300 if fast else 2}
        result = benchmark.pedantic(
            call, args=args, setup=before_each_round, iterations=1, **settings
        )
        rounds = settings["rounds"]
        benchmark.extra_info.update(
            {
                "model": subject.name,
                "way": way,
                "inferences": count,
                "contexts": contexts,
                "batch": subject.batch,
                "beside": {n: statistics.median(taken[-rounds:]) for n, taken in seconds.items()},
            }
        )
        return result

    return run
