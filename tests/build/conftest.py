"""An engine cache to try, a count of its builds, and networks of one shape to put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_runtime import BindingSet, BuildConfig, Device, Engine, EngineCache, Stream
from trt_runtime.build import cache as cache_module
from trt_runtime.build.plan import build_reporting

from ..models import assert_matches, reference, static


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


class Builds:
    """Counts builds, and lets a test step in before and after one."""

    def __init__(self) -> None:
        self.configs: list[BuildConfig] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    @property
    def count(self) -> int:
        return len(self.configs)

    def build(self, model: Any, config: BuildConfig, **options: Any) -> bytes:
        self.configs.append(config)
        self.before()
        plan = build_reporting(model, config, **options)
        self.after()
        return plan


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(cache_module, "build_reporting", builds.build)
    return builds


def network(number: int = 0) -> onnx.ModelProto:
    """The static network with other weights for each number, and plans of one size."""
    model = onnx.ModelProto()
    model.CopyFrom(static().model)
    weights = model.graph.initializer[0]
    scaled = np.frombuffer(weights.raw_data, np.float32) * np.float32(1 + number)
    weights.raw_data = scaled.tobytes()
    return model


def check(engine: Engine, number: int = 0) -> None:
    """The engine is the one of that network: it gives its results."""
    feed = static().feeds[0]
    with (
        engine.create_execution_context() as context,
        Stream(engine.device) as stream,
        BindingSet(context) as bindings,
    ):
        bindings["x"].host[...] = feed["x"]
        got = context.execute(bindings, stream)
    assert_matches(got, reference(network(number), feed), 1e-4)


def use(cache: EngineCache, device: Device, number: int = 0, **options: Any) -> None:
    with cache.load_or_build(network(number), device=device, **options) as engine:
        check(engine, number)


def only(cache: EngineCache) -> Any:
    (entry,) = cache.entries(verify=True)
    return entry


def names(cache: EngineCache, suffix: str) -> list[str]:
    return sorted(path.name for path in cache.directory.iterdir() if path.suffix == suffix)
