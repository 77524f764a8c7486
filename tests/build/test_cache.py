"""`EngineCache`: never the wrong engine, built once; and what it says about itself."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from trt_runtime import (
    BuildConfig,
    BuildError,
    Device,
    Engine,
    EngineCache,
    InputError,
    ModelError,
    Profile,
    TrtRuntimeError,
)
from trt_runtime.build.digest import content_digest
from trt_runtime.build.key import EngineKey
from trt_runtime.build.progress import BuildProgress
from trt_runtime.build.store import Store
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults

from ..models import dynamic, static
from .conftest import Builds, check, network, only, use

POSIX = hasattr(os, "getuid")


# Hit and miss -----------------------------------------------------------------------------


def test_an_engine_is_built_once_and_then_loaded(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    for _ in range(3):
        use(cache, host)
    assert builds.count == 1
    use(EngineCache(cache.directory), host)
    assert builds.count == 1


def test_it_works_on_every_device(cache: EngineCache, device: Device, builds: Builds) -> None:
    if not device.platform.tensorrt().has_builder:
        pytest.skip("this TensorRT cannot build")
    config = BuildConfig(precision="fp32", optimization_level=0)
    for _ in range(2):
        with cache.load_or_build(network(), config, device=device) as engine:
            check(engine)
    assert builds.count == 1
    assert only(cache).device == device.name


def test_networks_of_one_structure_and_other_weights_are_other_engines(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    for number in (0, 1, 2, 1, 0):
        use(cache, host, number)
    assert builds.count == 3
    assert len(cache.entries()) == 3


def test_a_file_that_changed_is_built_again_whatever_its_times(
    cache: EngineCache, host: Device, builds: Builds, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    for number in (0, 1):
        path.write_bytes(network(number).SerializeToString())
        os.utime(path, (1, 1))
        with cache.load_or_build(path, device=host) as engine:
            assert engine.name == "net"
            check(engine, number)
    assert builds.count == 2


def test_profiles_count_wherever_they_are_given(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    case = dynamic()
    cache.load_or_build(case.model, profiles=case.profiles, device=host).close()
    cache.load_or_build(case.model, BuildConfig(profiles=case.profiles), device=host).close()
    assert builds.count == 1
    cache.load_or_build(case.model, profiles=case.profiles[:1], device=host).close()
    assert builds.count == 2
    with pytest.raises(InputError, match="twice"):
        cache.load_or_build(
            case.model,
            BuildConfig(profiles=case.profiles),
            profiles=(Profile({"x": (1, 3, 8, 8)}),),
            device=host,
        )


def test_a_hit_gives_what_a_build_gives(cache: EngineCache, host: Device, tmp_path: Path) -> None:
    """The engine's name, and a plan that can be saved, version compatible ones included."""
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    config = BuildConfig(version_compatible=True)
    plans = []
    for _ in range(2):
        with cache.load_or_build(path, config, device=host) as engine:
            plans.append((engine.name, repr(engine), engine.serialize()))
            assert engine._plan == only(cache).path.read_bytes()  # TensorRT could not make it
    assert plans[0] == plans[1]


def test_an_engine_knows_what_it_was_built_from_and_where_it_is_kept(
    cache: EngineCache, host: Device
) -> None:
    config = BuildConfig(precision="fp32")
    told = []
    for _ in range(2):
        with cache.load_or_build(network(), config, device=host) as engine:
            told.append(dict(engine.metadata))
    assert [facts.pop("cache_hit") for facts in told] == [False, True]
    assert told[0] == told[1]
    assert told[0]["cache_key"] == only(cache).key
    assert told[0]["config"] == config.to_json()
    assert told[0]["model_digest"] == only(cache).parts["model"]
    with Engine.build(network(), config, device=host) as engine:
        assert dict(engine.metadata).items() <= told[0].items()


def test_a_device_opened_for_the_engine_is_closed_with_it(cache: EngineCache) -> None:
    for _ in range(2):
        engine = cache.load_or_build(network(), device="host")
        check(engine)
        engine.close()
        assert engine.device.closed


def test_a_model_that_cannot_be_built_is_an_error_each_time(
    cache: EngineCache, host: Device
) -> None:
    for _ in range(2):
        with pytest.raises(ModelError):
            cache.load_or_build(b"\x08no model", device=host)
    with pytest.raises(ModelError, match="there is no ONNX model"):
        cache.load_or_build("missing.onnx", device=host)
    assert cache.entries() == ()


def test_an_interrupted_build_leaves_nothing_and_no_lock(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    builds.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        use(cache, host)
    builds.before = lambda: None
    use(cache, host)
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("change", ["before", "after", "removed"])
def test_an_engine_whose_model_changed_meanwhile_is_not_kept(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    """TensorRT reads the files itself, and later than they were hashed."""
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    if change == "before":
        builds.before = lambda: path.write_bytes(network(1).SerializeToString())
    elif change == "after":
        builds.after = lambda: path.write_bytes(network(1).SerializeToString())
    else:
        builds.after = path.unlink
    cache.load_or_build(path, device=host).close()
    assert "changed while it was built" in caplog.text
    assert cache.entries() == ()


def test_calibration_data_counts_and_an_iterator_of_it_is_read_once(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    config = BuildConfig(precision="int8")
    feed = static().feeds[0]["x"]
    for scale in (1, 1, 2):
        data = iter([feed * np.float32(scale)])
        cache.load_or_build(network(), config, calibration=data, device=host).close()
    assert builds.count == 2
    explained = cache.explain(network(), config, calibration=[feed * np.float32(3)], device=host)
    assert [difference.part for difference in explained.differences] == ["calibration"]


def test_a_build_tells_its_progress_and_a_hit_has_none(cache: EngineCache, host: Device) -> None:
    told: list[BuildProgress] = []
    for _ in range(2):
        cache.load_or_build(network(), device=host, on_progress=told.append).close()
    assert [p.phase for p in told if p.phase in ("parse", "build", "load") and not p.step] == [
        "parse",
        "build",
        "load",
    ]
    assert (told[-1].phase, told[-1].step) == ("load", 1)


@pytest.mark.parametrize("phase", ["parse", "build", "load"])
def test_a_cancelled_build_leaves_nothing(
    cache: EngineCache, host: Device, builds: Builds, phase: str
) -> None:
    with pytest.raises(BuildError, match="cancelled"):
        cache.load_or_build(network(), device=host, on_progress=lambda p: p.phase != phase)
    assert cache.entries() == ()
    use(cache, host)
    assert builds.count == 2


def test_plugins_are_loaded_before_a_hit_is(
    cache: EngineCache, host: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan with plugins cannot be deserialised without them, whoever built it."""
    library = tmp_path / "plugins.so"
    library.write_bytes(b"plugins")
    steps: list[str] = []
    tensorrt = host.platform.tensorrt()
    monkeypatch.setattr(
        tensorrt, "load_plugins", lambda libraries=(): steps.extend(map(str, libraries))
    )
    load = Engine.load
    monkeypatch.setattr(Engine, "load", lambda *a, **o: steps.append("load") or load(*a, **o))
    config = BuildConfig(plugin_libraries=(str(library),))
    cache.load_or_build(network(), config, device=host).close()
    steps.clear()
    cache.load_or_build(network(), config, device=host).close()
    assert steps == [str(library), "load"]


def test_the_timing_cache_lies_beside_the_engines_unless_one_is_given(
    cache: EngineCache, host: Device, builds: Builds, tmp_path: Path
) -> None:
    use(cache, host)
    own = str(tmp_path / "own.cache")
    use(cache, host, 1, config=BuildConfig(timing_cache=own))
    paths = [str(config.timing_cache) for config in builds.configs]
    assert Path(paths[0]).parent == cache.directory
    assert all(part in paths[0] for part in ("tensorrt_host", "10.16.1", "0.0"))
    assert paths[1] == own
    use(cache, host, config=BuildConfig(timing_cache=own))
    assert builds.count == 2


# What lies on the disk --------------------------------------------------------------------


def test_an_entry_is_the_raw_plan_and_a_readable_sidecar(
    cache: EngineCache, host: Device, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    began = datetime.now(timezone.utc)
    cache.load_or_build(path, device=host).close()
    entry = only(cache)
    with Engine.load(entry.path, device=host) as engine:
        check(engine)
    sidecar = json.loads(entry.path.with_suffix(".json").read_text())
    plan = entry.path.read_bytes()
    assert sidecar["entry"]["plan_digest"] == content_digest(plan)
    assert sidecar["entry"]["parts"]["model"] == content_digest(path.read_bytes())
    assert entry.key == EngineKey(sidecar["entry"]["parts"]).digest
    assert (entry.model, entry.precision, entry.tensorrt) == (
        "net.onnx",
        "tf32",
        "tensorrt_host 10.16.1",
    )
    assert began <= entry.created <= datetime.now(timezone.utc)
    assert entry.nbytes == cache.size == len(plan) + len(json.dumps(sidecar, indent=1)) + 1
    assert "net.onnx" in str(entry)
    assert str(tmp_path) not in entry.path.with_suffix(".json").read_text()


@pytest.mark.skipif(not POSIX, reason="modes are POSIX's")
def test_directory_and_files_are_the_users_alone_whatever_the_umask(
    tmp_path: Path, host: Device
) -> None:
    cache = EngineCache(tmp_path / "a" / "b")
    before = os.umask(0)
    try:
        use(cache, host)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*")}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert modes.pop(cache.directory) == 0o700
    ours = {path: mode for path, mode in modes.items() if not path.name.startswith("timing-")}
    assert set(ours.values()) == {0o600}, ours


def test_the_directory_is_the_variables_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_RUNTIME_CACHE", str(tmp_path / "chosen"))
    assert EngineCache().directory == tmp_path / "chosen"
    assert EngineCache(tmp_path / "given").directory == tmp_path / "given"
    monkeypatch.delenv("TRT_RUNTIME_CACHE")
    assert EngineCache().directory.parts[-2:] == ("trt_runtime", "engines")
    assert not (tmp_path / "chosen").exists()


def test_a_directory_keeps_its_meaning_when_the_program_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = EngineCache("relative")
    monkeypatch.chdir("/")
    assert cache.directory == tmp_path / "relative"


# Explanations -----------------------------------------------------------------------------


def test_a_hit_is_explained_as_one_and_nothing_is_built(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    first = cache.explain(network(), device=host)
    assert not first.hit
    assert first.nearest is None
    assert "no other entry" in str(first)
    assert not cache.directory.exists()
    use(cache, host)
    second = cache.explain(network(), device=host)
    assert second.hit
    assert (second.key, second.reason, second.differences) == (first.key, "", ())
    assert "is in the cache" in str(second)
    assert builds.count == 1


def test_explaining_closes_the_device_that_it_opens(cache: EngineCache) -> None:
    cache.explain(network(), device="host")  # an open one would be reported, an error here


def _parts() -> list[str]:
    with Device(HostPlatform()) as device:
        wanted = EngineCache("nowhere")._wanted(
            dynamic().model, BuildConfig(profiles=dynamic().profiles), (), None, device, None
        )
        with wanted as (found, _):
            return list(found.key.parts)


@pytest.mark.parametrize("part", _parts())
def test_an_explanation_names_exactly_the_part_that_differs(
    cache: EngineCache, host: Device, part: str
) -> None:
    case = dynamic()
    cache.load_or_build(case.model, profiles=case.profiles, device=host).close()
    store, entry = Store(cache.directory), only(cache)
    parts = {**entry.parts, part: "quite another"}
    key = EngineKey(parts).digest
    store.write(key, entry.path.read_bytes(), replace(store.sidecar(entry.key), parts=parts))
    assert cache.forget(entry.key)
    explained = cache.explain(case.model, profiles=case.profiles, device=host)
    assert not explained.hit
    assert explained.nearest is not None
    assert explained.nearest.key == key
    (difference,) = explained.differences
    assert difference.part == part
    assert difference.ours == entry.parts[part]
    assert difference.theirs == "quite another"
    assert f"  {part}: " in str(explained)
    assert "quite another there" in str(explained)


def test_the_nearest_entry_is_one_of_the_same_model_first(cache: EngineCache, host: Device) -> None:
    use(cache, host, 1)
    config = BuildConfig(precision="fp32", optimization_level=1)
    cache.load_or_build(network(), config, device=host).close()
    explained = cache.explain(network(), device=host)
    assert {difference.part for difference in explained.differences} == {
        "precision",
        "optimization_level",
    }


def test_without_the_same_model_the_nearest_has_its_file_name(
    cache: EngineCache, host: Device, tmp_path: Path
) -> None:
    for name, number in (("other.onnx", 0), ("net.onnx", 1)):
        (tmp_path / name).write_bytes(network(number).SerializeToString())
    config = BuildConfig(precision="fp32")
    cache.load_or_build(tmp_path / "other.onnx", device=host).close()
    cache.load_or_build(tmp_path / "net.onnx", config, device=host).close()
    (tmp_path / "net.onnx").write_bytes(network(2).SerializeToString())
    explained = cache.explain(tmp_path / "net.onnx", device=host)
    assert explained.nearest is not None
    assert explained.nearest.model == "net.onnx"
    assert [difference.part for difference in explained.differences] == ["model", "precision"]


# Failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hit", [False, True], ids=["miss", "hit"])
def test_whichever_platform_call_fails_nothing_is_left_open(tmp_path: Path, hit: bool) -> None:
    failures = 0
    for number in range(1, 500):
        cache = EngineCache(tmp_path / (f"hit-{number}" if hit else f"miss-{number}"))
        if hit:
            with Device(HostPlatform()) as device:
                cache.load_or_build(network(), device=device).close()
        faults = Faults(number)
        platform = HostPlatform(faults)
        try:
            with Device(platform) as device:
                cache.load_or_build(network(), device=device).close()
        except TrtRuntimeError:
            failures += 1
        platform.host_driver.ledger.assert_empty()
        assert all(not entry.damage for entry in cache.entries(verify=True))
        with Device(HostPlatform()) as device:
            use(cache, device)
        if not faults.failed:
            break
    assert failures > 3
    assert not faults.failed
