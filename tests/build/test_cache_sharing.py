"""Several users of one engine cache: who builds, who waits, who dies, and what goes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from trt_runtime import (
    Device,
    EngineCache,
    InputError,
)

from .conftest import Builds, check, names, network, only, use

ROOT = Path(__file__).parents[2]


# Several at once --------------------------------------------------------------------------


class Worker:
    """A process of `cache_worker`."""

    def __init__(self, cache: EngineCache, model: Path, marker: Path, where: str = "") -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.build.cache_worker",
                str(cache.directory),
                str(model),
                str(marker),
                where,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    return path


def test_eight_processes_that_want_one_engine_build_it_once(
    cache: EngineCache, model: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    workers = [Worker(cache, model, marker, "building") for _ in range(8)]
    try:
        assert [worker.hears() for worker in workers] == ["ready"] * 8
        for worker in workers:
            worker.go_on()
        said = {worker: worker.hears() for worker in workers}
        assert sorted(said.values()) == ["building"] + ["waiting"] * 7
        (builder,) = (worker for worker, word in said.items() if word == "building")
        builder.go_on()
        results = {worker.hears() for worker in workers}
    finally:
        for worker in workers:
            worker.__exit__()
    assert len(results) == 1
    assert results.pop().startswith("done ")
    assert len(marker.read_text().splitlines()) == 1
    assert not only(cache).damage


@pytest.mark.parametrize("where", ["building", "writing", "between"])
def test_a_process_killed_in_the_middle_leaves_the_cache_usable(
    cache: EngineCache, host: Device, builds: Builds, model: Path, tmp_path: Path, where: str
) -> None:
    with Worker(cache, model, tmp_path / "marker", where) as worker:
        assert worker.hears() == "ready"
        worker.go_on()
        assert worker.hears() == where
    left = {"building": [], "writing": [".part"], "between": [".part", ".plan"]}[where]
    assert sorted({p.suffix for p in cache.directory.iterdir()} & {".part", ".plan", ".json"}) == (
        [suffix for suffix in left if suffix != ".part" or where == "writing"]
    )
    with cache.load_or_build(model, device=host) as engine:
        check(engine)
    assert builds.count == 1
    assert names(cache, ".part") == []
    cache.load_or_build(model, device=host).close()
    assert builds.count == 1
    assert not only(cache).damage


def test_who_waits_for_a_process_that_is_killed_builds(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    model: Path,
    tmp_path: Path,
) -> None:
    with Worker(cache, model, tmp_path / "marker", "building") as worker, waiting() as is_waiting:
        worker.hears()
        worker.go_on()
        assert worker.hears() == "building"
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(cache.load_or_build, model, device=host)
            assert is_waiting.acquire(timeout=60)
            assert builds.count == 0
            worker.process.kill()
            with loading.result(60) as engine:
                check(engine)
    assert builds.count == 1


@contextmanager
def waiting() -> Iterator[threading.Semaphore]:
    """Released once for each line that says that somebody waits."""
    said = threading.Semaphore(0)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for another build" in record.getMessage():
                said.release()

    logger, handler = logging.getLogger("trt_runtime"), Handler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_threads_that_want_one_engine_build_it_once(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    go_on = threading.Event()
    builds.before = lambda: go_on.wait(60)
    caches = [cache, cache, EngineCache(cache.directory), EngineCache(cache.directory)]
    with waiting() as is_waiting, ThreadPoolExecutor(4) as pool:
        loading = [pool.submit(c.load_or_build, network(), device=host) for c in caches]
        for _ in range(3):
            assert is_waiting.acquire(timeout=60)
        go_on.set()
        for future in loading:
            with future.result(60) as engine:
                check(engine)
    assert builds.count == 1


def test_builds_of_other_engines_do_not_wait(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    cache._store.prepare()
    with cache._store.lock(cache.explain(network(1), device=host).key):
        use(cache, host)
    assert builds.count == 1


# What goes --------------------------------------------------------------------------------


def filled(cache: EngineCache, device: Device, count: int) -> list[str]:
    """That many engines in the cache, used in the order of their numbers; their keys."""
    keys = []
    for number in range(count):
        use(cache, device, number)
        keys.append(cache.explain(network(number), device=device).key)
        os.utime(cache.directory / f"{keys[-1]}.json", (number + 1, number + 1))
    return keys


def test_the_least_recently_used_goes_first(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    keys = filled(cache, host, 3)
    assert [entry.key for entry in cache.entries()] == keys
    use(cache, host, 0)  # now the most recently used
    assert [entry.key for entry in cache.entries()] == [keys[1], keys[2], keys[0]]
    cache.max_bytes = cache.size
    use(cache, host, 3)
    left = [entry.key for entry in cache.entries()]
    assert left[:2] == [keys[2], keys[0]]
    assert len(left) == 3
    assert cache.size <= cache.max_bytes
    assert builds.count == 4


def test_what_was_just_written_stays_however_small_the_bound(
    tmp_path: Path, host: Device, builds: Builds
) -> None:
    cache = EngineCache(tmp_path / "cache", max_bytes=0)
    for number in (0, 1):
        use(cache, host, number)
        use(cache, host, number)
        assert len(cache.entries()) == 1
    assert builds.count == 2


def test_an_entry_that_somebody_builds_stays(cache: EngineCache, host: Device) -> None:
    keys = filled(cache, host, 3)
    with cache._store.lock(keys[0]):
        assert cache.prune(0) == (keys[1], keys[2])
        assert not cache.forget(keys[0])
    assert only(cache).key == keys[0]
    assert cache.forget(keys[0])
    assert cache.entries() == ()


def test_prune_goes_by_size_and_by_age(cache: EngineCache, host: Device) -> None:
    keys = filled(cache, host, 4)
    one = cache.size // 4
    assert cache.prune() == ()
    assert cache.prune(one * 3 + one // 2) == (keys[0],)
    os.utime(cache.directory / f"{keys[3]}.json")
    assert cache.prune(older_than=timedelta(days=1)) == (keys[1], keys[2])
    assert only(cache).key == keys[3]


def test_processes_that_prune_at_once_remove_no_more_than_needed(
    cache: EngineCache, host: Device
) -> None:
    filled(cache, host, 8)
    bound = cache.size // 2
    with ThreadPoolExecutor(4) as pool:
        removed = list(pool.map(lambda _: EngineCache(cache.directory).prune(bound), range(4)))
    assert sum(map(len, removed)) == 4
    assert len(cache.entries()) == 4


def test_clear_and_forget_leave_no_entry_and_engines_that_are_open_stay_so(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    with cache.load_or_build(network(), device=host) as engine:
        key = only(cache).key
        assert cache.clear() == (key,)
        check(engine)
    assert cache.entries() == ()
    assert names(cache, ".cache") == []
    use(cache, host)
    assert cache.forget(key)
    use(cache, host)
    assert builds.count == 3
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        cache.forget("../" + "0" * 61)


def test_files_of_others_in_the_directory_stay(cache: EngineCache, host: Device) -> None:
    use(cache, host)
    strangers = [cache.directory / name for name in ("mine.plan", "notes.json", ".hidden.part")]
    for stranger in strangers:
        stranger.write_text("precious")
    assert len(cache.entries()) == 1
    cache.clear()
    assert all(stranger.read_text() == "precious" for stranger in strangers)


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(
    cache: EngineCache, host: Device
) -> None:
    use(cache, host)
    dead, living = "a" * 64, "b" * 64
    for key in (dead, living):
        (cache.directory / f".{key}.0123456789abcdef.part").write_bytes(b"half")
        (cache.directory / f"{key}.plan").write_bytes(b"whole")
    with cache._store.lock(living):
        cache.prune()
    left = {path.name for path in cache.directory.iterdir() if path.name.lstrip(".")[0] in "ab"}
    assert f".{living}.0123456789abcdef.part" in left
    assert f"{living}.plan" in left
    assert f".{dead}.0123456789abcdef.part" not in left
    assert f"{dead}.plan" not in left
    assert {entry.damage for entry in cache.entries()} >= {"the sidecar is missing"}


def test_eviction_while_others_use_the_cache_gives_right_engines(
    cache: EngineCache, host: Device
) -> None:
    use(cache, host)
    bound = cache.size * 2

    def load(number: int) -> None:
        use(EngineCache(cache.directory, max_bytes=bound), host, number % 4)

    def disturb() -> None:
        other = EngineCache(cache.directory)
        while not done.is_set():
            other.prune(bound // 2)
            other.entries(verify=True)

    done = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        disturbing = pool.submit(disturb)
        try:
            for future in [pool.submit(load, number) for number in range(32)]:
                future.result(60)
        finally:
            done.set()
        disturbing.result(60)
    assert all(not entry.damage for entry in cache.entries(verify=True))
