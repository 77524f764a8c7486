"""What an engine cache does about damage, and about a directory that it cannot use."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import (
    CacheWarning,
    Device,
    Engine,
    EngineCache,
    build_plan,
)
from trt_runtime.build import store as store_module
from trt_runtime.build.digest import content_digest
from trt_runtime.build.key import SCHEMA, EngineKey
from trt_runtime.build.store import DamagedEntry, Sidecar, Store
from trt_runtime.platform import HostPlatform

from .conftest import Builds, check, names, network, only, use

POSIX = hasattr(os, "getuid")


# Damage -----------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _exchange(path: Path) -> None:
    """Put the other entry's file in its place."""
    (other,) = (p for p in path.parent.glob(f"*{path.suffix}") if p != path)
    path.write_bytes(other.read_bytes())


def _age(path: Path) -> None:
    written = json.loads(path.read_bytes())
    path.write_text(json.dumps({**written, "schema": written["schema"] - 1}))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (".plan", _flip, "SHA-256"),
    (".plan", _truncate, "bytes, not"),
    (".plan", lambda path: path.write_bytes(b""), "0 bytes, not"),
    (".plan", _exchange, "SHA-256"),
    (".plan", Path.unlink, "the plan is missing"),
    (".json", _flip, "sidecar"),
    (".json", lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
    (".json", lambda path: path.write_bytes(b""), "cannot be read"),
    (".json", lambda path: path.write_bytes(b"\xff\x00"), "cannot be read"),
    (".json", lambda path: path.write_text("[]"), "cannot be read"),
    (".json", lambda path: path.write_text("{}"), "cannot be read"),
    (".json", lambda path: path.write_text("[" * 100_000), "cannot be read"),
    (".json", _exchange, "another entry's"),
    (".json", _age, f"written with schema {SCHEMA - 1}, and this one is {SCHEMA}"),
]


@pytest.mark.parametrize(("suffix", "damage", "reason"), DAMAGES)
def test_a_damaged_entry_is_said_and_built_again(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    use(cache, host)
    good = only(cache)
    whole = good.path.read_bytes()
    use(cache, host, 1)
    damage(good.path.with_suffix(suffix))
    (now,) = (entry for entry in cache.entries(verify=True) if entry.key == good.key)
    assert reason in now.damage or suffix == ".plan"
    assert now.damage
    explained = cache.explain(network(), device=host)
    assert not explained.hit
    assert reason in explained.reason
    assert reason in str(explained)
    loaded: list[bytes] = []
    load = Engine.load
    monkeypatch.setattr(Engine, "load", lambda plan, **o: loaded.append(plan) or load(plan, **o))
    use(cache, host)
    assert loaded == [whole], "a plan was deserialised that is not the one that was written"
    assert builds.count == 3
    assert f"{good.key[:12]} is built again" in caplog.text
    assert reason in caplog.text
    use(cache, host)
    assert builds.count == 3
    assert all(not entry.damage for entry in cache.entries(verify=True))


def test_any_bit_of_a_sidecar_counts() -> None:
    parts = {"key schema": 1, "model": "0" * 64, "profiles[0]['x']": [[1], [2], [3]]}
    created = datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc)
    sidecar = Sidecar(parts, "1" * 64, 1234, created, "é.onnx", 1.5)
    key, data = EngineKey(parts).digest, sidecar.to_bytes()
    assert Sidecar.from_bytes(data, key) == sidecar

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(data) * 8 - 1))
    def flip(bit: int) -> None:
        other = bytearray(data)
        other[bit // 8] ^= 1 << (bit % 8)
        with suppress(DamagedEntry):  # else it says the same: \u00e9 is \u00E9
            assert Sidecar.from_bytes(bytes(other), key) == sidecar

    flip()


def test_files_are_on_the_disk_before_they_have_their_names_and_the_sidecar_comes_last(
    cache: EngineCache, host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace_file = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        steps.append("sync")
        fsync(descriptor)

    def renaming(source: Any, target: Any) -> None:
        steps.append(Path(target).suffix)
        assert Path(source).parent == Path(target).parent
        replace_file(source, target)

    use(cache, host)
    entry = only(cache)
    store = Store(cache.directory)
    plan, sidecar = entry.path.read_bytes(), store.sidecar(entry.key)
    monkeypatch.setattr(store_module.os, "fsync", syncing)
    monkeypatch.setattr(store_module.os, "replace", renaming)
    store.write(entry.key, plan, sidecar)
    assert steps == ["sync", ".plan", "sync", ".json"]


@pytest.mark.parametrize("failing", [".plan", ".json"])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    parts = {"key schema": 1}
    plan = b"plan"
    sidecar = Sidecar(parts, content_digest(plan), 4, datetime.now(timezone.utc))
    store = Store(tmp_path)
    replace_file = os.replace

    def renaming(source: Any, target: Any) -> None:
        if Path(target).suffix == failing:
            _refuse(errno.ENOSPC)()
        replace_file(source, target)

    monkeypatch.setattr(store_module.os, "replace", renaming)
    with pytest.raises(OSError, match=r"[Nn]o space"):
        store.write(EngineKey(parts).digest, plan, sidecar)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_tensorrt_refuses_is_built_again(
    cache: EngineCache, host: Device, builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    use(cache, host)
    key = only(cache).key
    with Device(HostPlatform(version="10.15.0")) as older:
        foreign = build_plan(network(), device=older)
    store = Store(cache.directory)
    sidecar = replace(
        store.sidecar(key),
        plan_digest=content_digest(foreign),
        plan_bytes=len(foreign),
    )
    store.write(key, foreign, sidecar)
    use(cache, host)
    assert builds.count == 2
    assert "is built again" in caplog.text
    use(cache, host)
    assert builds.count == 2


def test_the_bytes_that_are_checked_are_the_bytes_that_are_loaded(
    cache: EngineCache, host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is exchanged after it was read: it must not be read a second time."""
    use(cache, host)
    path = only(cache).path
    real = Store.plan

    def read_then_exchange(self: Store, key: str, sidecar: Sidecar) -> bytes:
        plan = real(self, key, sidecar)
        path.write_bytes(b"evil")
        return plan

    monkeypatch.setattr(Store, "plan", read_then_exchange)
    use(cache, host)


# Without a cache --------------------------------------------------------------------------


def without_cache(cache: EngineCache, device: Device, reason: str) -> None:
    """Engines are built each time, with one warning in all, and nothing is left behind."""
    with pytest.warns(CacheWarning, match=reason) as caught:
        use(cache, device)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "conftest.py", "not the caller's line"
    with cache.load_or_build(network(), device=device) as engine:
        check(engine)
        assert "cache_key" not in engine.metadata
    with pytest.warns(CacheWarning, match=reason):  # another cache says it as well
        use(EngineCache(cache.directory), device)


def test_a_directory_that_cannot_be_made_is_done_without(
    tmp_path: Path, host: Device, builds: Builds
) -> None:
    (tmp_path / "file").write_text("")
    cache = EngineCache(tmp_path / "file" / "cache")
    without_cache(cache, host, "[Nn]ot a directory|File exists|cannot find")
    assert builds.count == 3
    assert cache.unusable()


def test_a_file_in_the_directorys_place_is_done_without(
    tmp_path: Path, host: Device, builds: Builds
) -> None:
    (tmp_path / "cache").write_text("precious")
    without_cache(EngineCache(tmp_path / "cache"), host, "is no directory")
    assert builds.count == 3
    assert (tmp_path / "cache").read_text() == "precious"


def test_a_read_only_directory_is_done_without_but_its_engines_are_used(
    cache: EngineCache, host: Device, builds: Builds
) -> None:
    use(cache, host, 1)
    cache.directory.chmod(0o500)
    try:
        if os.access(cache.directory, os.W_OK):
            pytest.skip("mode bits do not bind this user")
        without_cache(cache, host, "[Pp]ermission")
        assert builds.count == 4
        use(cache, host, 1)
        assert builds.count == 4
    finally:
        cache.directory.chmod(0o700)


def _refuse(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_where_no_lock_can_be_made_engines_that_are_there_are_used(
    cache: EngineCache, host: Device, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(cache, host, 1)
    monkeypatch.setattr(FileLock, "acquire", _refuse(errno.EROFS))
    monkeypatch.setattr(store_module.os, "utime", _refuse(errno.EROFS))
    without_cache(cache, host, "[Rr]ead-only")
    assert builds.count == 4
    use(cache, host, 1)
    assert builds.count == 4


@pytest.mark.parametrize("failing", [1, 2], ids=["plan", "sidecar"])
def test_a_full_disk_is_done_without_and_leaves_nothing(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
) -> None:
    real = Store._fill
    full = ".plan" if failing == 1 else ".json"

    def fill(self: Store, file: Any, data: bytes) -> None:
        is_plan = not data.startswith(b"{")
        if is_plan == (full == ".plan"):
            file.write(data[:10])
            _refuse(errno.ENOSPC)()
        real(self, file, data)

    monkeypatch.setattr(Store, "_fill", fill)
    without_cache(cache, host, "[Nn]o space")
    assert builds.count == 3
    assert names(cache, ".part") == names(cache, ".plan") == names(cache, ".json") == []
    monkeypatch.undo()
    use(cache, host)
    assert not only(cache).damage


def test_a_warning_that_is_an_error_leaves_nothing_open(tmp_path: Path, host: Device) -> None:
    """The ledger of ``host`` must be empty afterwards."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheWarning):
        use(EngineCache(tmp_path / "cache"), host)


def test_a_warning_after_the_build_that_is_an_error_leaves_nothing_open(
    cache: EngineCache, host: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "_fill", _refuse(errno.ENOSPC))
    with pytest.raises(CacheWarning):
        use(cache, host)


@pytest.mark.skipif(not POSIX, reason="owners and modes are POSIX's")
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_may_write_is_refused(
    cache: EngineCache, host: Device, builds: Builds, mode: int
) -> None:
    use(cache, host)
    cache.directory.chmod(mode)
    without_cache(cache, host, f"can be written by others .mode {mode:04o}.*chmod 700")
    assert builds.count == 4
    assert "others" in (cache.unusable() or "")
    cache.directory.chmod(0o755)
    use(EngineCache(cache.directory), host)
    assert builds.count == 4


@pytest.mark.skipif(not POSIX, reason="owners and modes are POSIX's")
def test_a_directory_of_another_user_is_refused(
    cache: EngineCache, host: Device, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(cache, host)
    me = os.getuid()
    monkeypatch.setattr(store_module.os, "getuid", lambda: me + 1)
    without_cache(cache, host, f"belongs to user {me}, not to {me + 1}")
    assert builds.count == 4
    assert not cache.explain(network(), device=host).hit


@pytest.mark.skipif(not POSIX, reason="owners and modes are POSIX's")
def test_a_link_is_followed_only_if_it_is_ones_own(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(cache, host)
    link = tmp_path / "link"
    link.symlink_to(cache.directory)
    linked = EngineCache(link)
    use(linked, host)
    assert builds.count == 1
    real = os.lstat

    def lstat(path: Any, **options: Any) -> Any:
        status = real(path, **options)
        if Path(path) == link:
            return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))
        return status

    monkeypatch.setattr(store_module.os, "lstat", lstat)
    with pytest.warns(CacheWarning, match="belongs to user"):
        use(linked, host)
    assert builds.count == 2


def test_maintenance_of_a_cache_that_cannot_be_used_warns_and_touches_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cache"
    path.write_text("precious")
    for action in (
        lambda cache: cache.prune(0),
        lambda cache: cache.clear(),
        lambda cache: cache.forget("0" * 64),
        lambda cache: cache.entries(),
    ):
        with pytest.warns(CacheWarning):
            assert not action(EngineCache(path))
    assert EngineCache(path).size == 0
    assert path.read_text() == "precious"


def test_maintenance_of_a_cache_that_is_not_there_does_nothing(cache: EngineCache) -> None:
    assert cache.entries() == cache.prune(0) == cache.clear() == ()
    assert cache.forget("0" * 64)
    assert cache.size == 0
    assert cache.unusable() is None
    assert not cache.directory.exists()
