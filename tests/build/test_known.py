"""When a model is read, and when what is known of it is believed: never when it may be another."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import Device, EngineCache, ModelError
from trt_runtime.build import known as known_module
from trt_runtime.build import store as store_module
from trt_runtime.build.digest import content_digest
from trt_runtime.build.known import Identity, KnownFile, KnownModels, Memo, Place
from trt_runtime.build.store import MAX_MEMOS, DamagedEntry, Store, sealed

from .conftest import Builds, check, network, only, use

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is remembered there")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def known(directory: Path) -> KnownModels:
    return KnownModels(Store(directory))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not be old to be remembered, and lie where their times tell of changes."""
    monkeypatch.setattr(known_module, "SETTLED_SECONDS", 0)
    monkeypatch.setattr(known_module, "_tells_changes", lambda _: True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, but for plans."""
    names: list[str] = []

    def watch(name: str) -> None:
        real = getattr(known_module, name)

        def watched(file: Any) -> Any:
            names.append(Path(file.name).name)
            return real(file)

        monkeypatch.setattr(known_module, name, watched)

    watch("read_digested")
    watch("file_digest")
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(network().SerializeToString())
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with weights in two other files."""
    return outside(tmp_path / "model", "b.bin", "a.bin")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """The same, with a third location that leads to the first file."""
    return outside(tmp_path / "model", "b.bin", "a.bin", "link.bin")


def outside(folder: Path, *locations: str) -> Path:
    """A model in that folder with weights at these locations; link.bin leads to b.bin."""
    proto = network()
    weights = proto.graph.initializer[0]
    folder.mkdir()
    for number, location in enumerate(locations):
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(weights)
        tensor.name = f"unused{number}"
        if location == "link.bin":
            (folder / location).symlink_to("b.bin")
        else:
            (folder / location).write_bytes(tensor.raw_data[:-1] + bytes([number]))
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def rewrite(path: Path, change: Callable[[bytearray], object] | None = None) -> None:
    """Change one byte and put the time of modification back, as late as the clock needs."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with open(path, "r+b") as file:  # in place: the inode stays
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_mtime_ns == before.st_mtime_ns


def memo_of(known: KnownModels, path: Path) -> Path:
    return known._store.memo_path(Place.of(path).name)


def bytes_read() -> int:
    """By this process, in all its calls of the system."""
    counted = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert counted is not None
    return int(counted[1])


# What is known ----------------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
def test_an_unchanged_model_is_read_once(known: KnownModels, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(b"\0" * (9 << 20))
    began = bytes_read()
    contents = known.contents(path)
    read = bytes_read()
    assert read - began >= 9 << 20
    assert known.contents(path) == contents
    assert bytes_read() - read < 1 << 16
    assert contents.model == content_digest(path.read_bytes())


@pytest.mark.usefixtures("settled")
def test_external_data_is_known_without_parsing_the_model(
    known: KnownModels, linked: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = known.contents(linked)
    assert sorted(reads) == ["a.bin", "b.bin", "net.onnx"]
    assert contents.model == content_digest(linked.read_bytes())
    assert contents.external_data == tuple(
        content_digest(linked.with_name(name).read_bytes()) for name in ("b.bin", "a.bin")
    )
    reads.clear()
    monkeypatch.setattr(known_module, "external_files", None)
    for path in (linked, str(linked), linked.parent / ".." / "model" / "net.onnx"):
        assert known.contents(path) == contents
    assert reads == []


@pytest.mark.usefixtures("settled")
def test_a_hit_reads_no_model_and_what_is_known_outlives_the_cache_object(
    cache: EngineCache, host: Device, builds: Builds, external: Path, reads: list[str]
) -> None:
    """The first load reads it twice: when it asks, and when the engine is there to be kept."""
    for _ in range(3):
        with EngineCache(cache.directory).load_or_build(external, device=host) as engine:
            check(engine)
    assert builds.count == 1
    assert sorted(reads) == ["a.bin"] * 2 + ["b.bin"] * 2 + ["net.onnx"] * 2
    assert cache.explain(external, device=host).hit
    assert len(reads) == 6


@pytest.mark.usefixtures("settled")
def test_what_is_in_memory_is_hashed_and_not_remembered(cache: EngineCache, host: Device) -> None:
    use(cache, host)
    use(cache, host)
    assert list(cache.directory.glob("*.known")) == []


# What changed -----------------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
def test_a_changed_byte_is_noticed_though_the_time_was_put_back(
    known: KnownModels, model: Path
) -> None:
    before = known.contents(model)
    rewrite(model)
    after = known.contents(model)
    assert after != before
    assert after.model == content_digest(model.read_bytes())


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", ["a.bin", "b.bin", "net.onnx"])
def test_a_changed_byte_of_any_file_is_noticed_though_the_time_was_put_back(
    known: KnownModels, external: Path, name: str
) -> None:
    before = known.contents(external)
    rewrite(external.with_name(name))
    after = known.contents(external)
    assert (after.model != before.model) == (name == "net.onnx")
    assert [a != b for a, b in zip(after.external_data, before.external_data, strict=True)] == [
        name == "b.bin",
        name == "a.bin",
    ]


@pytest.mark.usefixtures("settled")
def test_the_engine_of_a_changed_model_is_another(
    cache: EngineCache, host: Device, builds: Builds, model: Path
) -> None:
    first = network().SerializeToString()
    weights = network().graph.initializer[0].raw_data
    changed = network(1).graph.initializer[0].raw_data
    second = first.replace(weights, changed)
    for number, data in enumerate([first, second]):
        before = model.stat()
        model.write_bytes(data)
        os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
        for _ in range(2):
            with cache.load_or_build(model, device=host) as engine:
                check(engine, number)
    assert builds.count == 2


@pytest.mark.usefixtures("settled")
def test_a_file_of_the_same_size_and_times_in_its_place_is_noticed(
    known: KnownModels, model: Path
) -> None:
    before = known.contents(model)
    other = model.with_suffix(".new")
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    times = model.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, model)
    assert known.contents(model) != before


@pytest.mark.usefixtures("settled")
def test_a_link_that_leads_elsewhere_is_noticed(known: KnownModels, tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"v{number}").mkdir()
        (tmp_path / f"v{number}" / "net.onnx").write_bytes(network(number).SerializeToString())
    file, folder = tmp_path / "net.onnx", tmp_path / "current"
    seen = []
    for number in (0, 1, 0):
        for link, target in ((file, f"v{number}/net.onnx"), (folder, f"v{number}")):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        expected = content_digest(network(number).SerializeToString())
        seen += [known.contents(file).model, known.contents(folder / "net.onnx").model]
        assert seen[-2:] == [expected] * 2


@pytest.mark.usefixtures("settled")
def test_a_model_that_is_linked_has_the_external_data_beside_the_link(
    known: KnownModels, linked: Path, tmp_path: Path, reads: list[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("a.bin", "b.bin", "link.bin"):
        (elsewhere / name).write_bytes(linked.with_name(name).read_bytes()[::-1])
    (elsewhere / "net.onnx").symlink_to(linked)
    for _ in range(2):
        there, here = known.contents(linked), known.contents(elsewhere / "net.onnx")
        assert there.model == here.model
        assert len(there.external_data) == 2
        assert len(here.external_data) == 3
        assert not set(there.external_data) & set(here.external_data)
    assert len(reads) == 7


@pytest.mark.usefixtures("settled")
def test_a_location_that_leads_to_another_file_is_noticed(
    known: KnownModels, linked: Path, tmp_path: Path
) -> None:
    before = known.contents(linked)
    link = linked.with_name("link.bin")
    other = linked.with_name("c.bin")
    other.write_bytes(linked.with_name("b.bin").read_bytes()[::-1])
    link.unlink()
    link.symlink_to(other.name)
    after = known.contents(linked)
    assert after.external_data == (*before.external_data, content_digest(other.read_bytes()))
    outside = tmp_path / "b.bin"
    os.link(linked.with_name("b.bin"), outside)  # even to that very file
    known.contents(linked)
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        known.contents(linked)


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_gone_is_an_error(known: KnownModels, external: Path) -> None:
    known.contents(external)
    external.with_name("a.bin").unlink()
    with pytest.raises(ModelError, match=r"there is no file .*a\.bin"):
        known.contents(external)
    external.unlink()
    with pytest.raises(ModelError, match="there is no ONNX model"):
        known.contents(external)


@pytest.mark.usefixtures("settled")
def test_an_engine_is_kept_only_if_the_files_themselves_are_as_before(
    cache: EngineCache,
    host: Device,
    builds: Builds,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a memo says: TensorRT may have read something else."""
    cache.load_or_build(model, device=host).close()
    assert cache.forget(only(cache).key)
    monkeypatch.setattr(Memo, "holds", lambda self: True)
    builds.after = lambda: rewrite(model)
    cache.load_or_build(model, device=host).close()
    assert cache.entries() == ()


# What is not remembered -------------------------------------------------------------------


def test_a_young_file_is_read_each_time(
    known: KnownModels, model: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times may stay as they are when it is written once more."""
    monkeypatch.setattr(known_module, "_tells_changes", lambda _: True)
    os.utime(model, (1, 1))  # the time of modification can be set; that of change cannot
    changed = model.stat().st_ctime_ns
    for later, read in ((0, 1), (59, 2), (61, 3), (62, 3)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: changed + later * 10**9)
        known.contents(model)
        assert len(reads) == read, f"{later} s after the change"
        assert memo_of(known, model).exists() == (later > 60)


@pytest.mark.usefixtures("settled")
def test_a_file_of_the_future_is_read_each_time(
    known: KnownModels, model: Path, reads: list[str]
) -> None:
    hour = time.time() + 3600
    os.utime(model, (hour, hour))
    for count in (1, 2):
        known.contents(model)
        assert len(reads) == count


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", ["a.bin", "net.onnx"])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    known: KnownModels, external: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for function in ("read_digested", "file_digest"):
        real = getattr(known_module, function)

        def read_then_change(file: Any, real: Any = real) -> Any:
            result = real(file)
            if Path(file.name).name == name and len(reads) <= 3:
                rewrite(Path(file.name))
            return result

        monkeypatch.setattr(known_module, function, read_then_change)
    known.contents(external)
    assert not memo_of(known, external).exists()
    assert known.contents(external) == known.contents_now(external)
    assert len(reads) == 9


def test_files_are_remembered_only_where_their_times_tell_of_every_change(
    known: KnownModels, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Path("/dev/shm")
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if not any(m[4] == str(memory) and m[m.index("-") + 1] == "tmpfs" for m in mounts):
        pytest.skip("/dev/shm is no tmpfs")
    monkeypatch.setattr(known_module, "SETTLED_SECONDS", 0)
    model = memory / f"trt_runtime_{os.getpid()}.onnx"
    model.write_bytes(network().SerializeToString())
    try:
        for count in (1, 2):
            known.contents(model)
            assert len(reads) == count
        monkeypatch.setattr(known_module, "_FILE_SYSTEMS", {"tmpfs"})
        for _ in range(2):
            known.contents(model)
            assert len(reads) == 3
    finally:
        model.unlink()


@pytest.mark.parametrize(
    ("mount", "tells"),
    [
        ("ext4 /dev/vda rw,discard", True),
        ("nfs4 server:/models rw,hard", True),
        ("nfs4 server:/models rw,nocto,hard", False),
        ("fuse.sshfs server: rw", False),
        ("9p host rw", False),
    ],
)
def test_file_systems_are_known_by_the_mount_that_a_file_was_opened_in(
    model: Path, monkeypatch: pytest.MonkeyPatch, mount: str, tells: bool
) -> None:
    mounts = f"7 1 0:1 / / rw - tmpfs tmpfs rw\n77 7 0:2 / /a rw shared:1 master:2 - {mount}\n"
    told = {"fdinfo": "pos:\t0\nmnt_id:\t77\n", "self": mounts}
    monkeypatch.setattr(Path, "read_text", lambda path: told[path.parent.name])
    with open(model, "rb", buffering=0) as file:
        assert known_module._tells_changes(file) == tells
        told["fdinfo"] = "pos:\t0\n"  # as a system might say that is not Linux quite
        assert not known_module._tells_changes(file)


def test_what_is_no_file_is_read_from_its_beginning(known: KnownModels, tmp_path: Path) -> None:
    """A pipe has no size, and its content is another each time."""
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for number in (0, 1):
        data = network(number).SerializeToString()
        writer = subprocess.Popen([sys.executable, "-c", WRITE, str(pipe)], stdin=subprocess.PIPE)
        writer.stdin.write(data)  # type: ignore[union-attr]
        writer.stdin.close()  # type: ignore[union-attr]
        assert known.contents(pipe).model == content_digest(data)
        assert writer.wait(60) == 0


WRITE = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"


# Memos ------------------------------------------------------------------------------------


def _edit(**changes: Any) -> Callable[[Path], object]:
    """Other values in a memo that is otherwise whole."""

    def edit(path: Path) -> None:
        entry = json.loads(path.read_text())["entry"]
        path.write_bytes(sealed(known_module.MEMO_SCHEMA, {**entry, **changes}))

    return edit


def _wrong_digest(path: Path) -> None:
    text = path.read_text()
    digest = json.loads(text)["entry"]["files"][0]["digest"]
    path.write_text(text.replace(digest, digest[::-1]))


def _of_schema(schema: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        _wrong_digest(path)
        path.write_bytes(sealed(schema, json.loads(path.read_text())["entry"]))

    return write


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another digest": _wrong_digest,
    "half": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(b"\xff\0"),
    "a list": lambda path: path.write_text("[]"),
    "a deep list": lambda path: path.write_text("[" * 100_000),
    "an older release's": _of_schema(known_module.MEMO_SCHEMA - 1),
    "a later release's": _of_schema(known_module.MEMO_SCHEMA + 1),
    "another model's": _edit(place={"folder": "/", "file": "/net.onnx"}),
    "of the future": _edit(read=time.time_ns() + 10**13),
    "read too early": _edit(read=0),
    "without files": _edit(files=[]),
    "without times": _edit(files=[{"location": "", "path": "", "identity": [], "digest": ""}]),
    "of other fields": _edit(files=[{"size": 1}]),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_memo_that_cannot_be_believed_is_replaced(
    known: KnownModels, model: Path, reads: list[str], damage: str
) -> None:
    expected = known.contents(model)
    whole = memo_of(known, model).read_bytes()
    DAMAGES[damage](memo_of(known, model))
    assert memo_of(known, model).read_bytes() != whole
    reads.clear()
    assert known.contents(model) == expected
    assert known.contents(model) == expected
    assert reads == ["net.onnx"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("field", Identity._fields)
def test_every_part_of_a_files_identity_counts(
    known: KnownModels, external: Path, field: str
) -> None:
    known.contents(external)
    path = memo_of(known, external)
    memo = Memo.from_bytes(path.read_bytes(), Place.of(external))
    assert memo.holds()
    for number, file in enumerate(memo.files):
        found = os.stat(file.path)
        assert file.identity == (
            *(found.st_dev, found.st_ino, found.st_size),
            *(found.st_mtime_ns, found.st_ctime_ns),
        )
        other = file.identity._replace(**{field: getattr(file.identity, field) - 1})
        files = list(memo.files)
        files[number] = replace(file, identity=other)
        assert not replace(memo, files=tuple(files)).holds()


def test_any_bit_of_a_memo_counts(tmp_path: Path) -> None:
    place = Place("/models", "/models/é.onnx")
    file = KnownFile("", place.file, Identity(1, 2, 3, 4, 5), "0" * 64)
    memo = Memo(place, 6, (file,))
    data = memo.to_bytes()
    assert Memo.from_bytes(data, place) == memo

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(data) * 8 - 1))
    def flip(bit: int) -> None:
        other = bytearray(data)
        other[bit // 8] ^= 1 << (bit % 8)
        with suppress(DamagedEntry):  # else it says the same: \u00e9 is \u00E9
            assert Memo.from_bytes(bytes(other), place) == memo

    flip()


@pytest.mark.usefixtures("settled")
def test_where_nothing_can_be_written_memos_are_believed_and_not_missed(
    known: KnownModels,
    directory: Path,
    model: Path,
    tmp_path: Path,
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = known.contents(model)
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes())
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **options)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_module.os, "open", read_only)
    monkeypatch.setattr(store_module.os, "utime", refuse)
    for _ in range(2):
        assert known.contents(model) == known.contents(other) == expected
    assert reads == ["net.onnx", "other.onnx", "other.onnx"]


@pytest.mark.usefixtures("settled")
def test_memos_in_a_directory_that_others_may_write_are_not_believed(
    known: KnownModels, directory: Path, model: Path, reads: list[str]
) -> None:
    known.contents(model)
    directory.chmod(0o770)
    known.contents(model)
    assert len(reads) == 2
    directory.chmod(0o700)
    known.contents(model)
    assert len(reads) == 2


@pytest.mark.usefixtures("settled")
def test_without_a_directory_nothing_is_made(
    known: KnownModels, directory: Path, model: Path
) -> None:
    directory.rmdir()
    assert known.contents(model) == known.contents(model)
    assert not directory.exists()


@pytest.mark.usefixtures("settled")
def test_memos_are_the_users_alone_whatever_the_umask(known: KnownModels, model: Path) -> None:
    before = os.umask(0)
    try:
        known.contents(model)
    finally:
        os.umask(before)
    assert memo_of(known, model).stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("settled")
def test_the_memos_that_were_used_last_stay(
    known: KnownModels, model: Path, reads: list[str]
) -> None:
    store = known._store
    names = [f"{number:064x}" for number in range(MAX_MEMOS)]
    for number, name in enumerate(names):
        store.memo_path(name).write_bytes(b"")
        os.utime(store.memo_path(name), (number + 2, number + 2))
    known.contents(model)
    kept = sorted(path.stem for path in store.directory.glob("*.known"))
    assert kept == sorted([*names[1:], Place.of(model).name])
    os.utime(memo_of(known, model), (1, 1))
    known.contents(model)  # used, though not written
    store.write_memo("f" * 64, b"")
    assert memo_of(known, model).exists()
    assert not store.memo_path(names[1]).exists()
    assert len(reads) == 1


@pytest.mark.usefixtures("settled")
def test_memos_are_no_entries_and_go_with_them(
    cache: EngineCache, host: Device, model: Path, reads: list[str]
) -> None:
    cache.load_or_build(model, device=host).close()
    memo = memo_of(cache._known, model)
    part = memo.with_name(f".{memo.stem}.0123.known.part")
    part.write_bytes(b"")
    entry = only(cache)
    assert cache.size == entry.nbytes
    cache.prune()
    assert memo.exists()
    assert not part.exists()
    assert cache.forget(entry.key)
    assert memo.exists()  # of the model, and not of one engine
    cache.clear()
    assert not memo.exists()


RACE = """
import sys
from pathlib import Path
from trt_runtime.build import known
from trt_runtime.build.store import Store
known.SETTLED_SECONDS = 0
known._tells_changes = lambda _: True
models = known.KnownModels(Store(Path(sys.argv[1])))
for number in range(200):
    if number % 3 == 0:
        models.contents_now(sys.argv[2])
    print(models.contents(sys.argv[2]).model)
"""


@pytest.mark.usefixtures("settled")
def test_processes_that_read_one_model_at_once_all_get_it_right(
    known: KnownModels, directory: Path, model: Path, reads: list[str]
) -> None:
    command = [sys.executable, "-c", RACE, str(directory), str(model)]
    racing = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=60)[0].split() for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    expected = content_digest(model.read_bytes())
    assert [set(words) for words in told] == [{expected}, {expected}]
    assert known.contents(model).model == expected
    assert reads == []
    assert [path.name for path in directory.iterdir()] == [memo_of(known, model).name]
