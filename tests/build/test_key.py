"""What decides which engine it is, part by part; and what does not."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform as system
import shutil
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt_runtime import BuildConfig, Device, InputError, ModelError, Profile
from trt_runtime.build import digest as digest_module
from trt_runtime.build import key as key_module
from trt_runtime.build.digest import content_digest, file_digest, read_digested
from trt_runtime.build.key import EngineKey, contents_of, differences, engine_key
from trt_runtime.build.known import KnownModels
from trt_runtime.build.model import read_model
from trt_runtime.build.store import Store
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults

from ..models import dynamic, static

MODEL = static().model.SerializeToString()

#: For each field of a configuration two values that ask for different engines.
VARIANTS: dict[str, tuple[Any, Any]] = {
    "profiles": ((), (Profile({"x": (1, 3, 8, 8)}),)),
    "precision": ("tf32", "fp16"),
    "float32_layers": ((), ("*",)),
    "reduced_io": (False, True),
    "optimization_level": (None, 3),
    "workspace_bytes": (None, 1 << 20),
    "memory_pools": ({}, {"tactic_dram": 1 << 20}),
    "tactic_sources": (None, ("cublas",)),
    "sparse_weights": (False, True),
    "io_types": ({}, {"x": "float16"}),
    "io_formats": ({}, {"x": "chw2"}),
    "version_compatible": (False, True),
    "embed_lean_runtime": (True, False),
    "hardware_compatible": (None, "ampere+"),
    "refittable": (False, True),
    "strip_weights": (False, True),
    "weight_streaming": (False, True),
    "max_aux_streams": (None, 2),
    "dla_core": (None, 0),
    "gpu_fallback": (False, True),
    "verbosity": ("names", "detailed"),
    "compute_capabilities": (("8.6",), ("8.9",)),
}

#: Fields that are paths, and have tests of their own.
PATHS = {"timing_cache", "plugin_libraries"}

#: What another field must say for this one to be allowed.
TOGETHER: dict[str, dict[str, Any]] = {
    "reduced_io": {"precision": "fp16"},
    "embed_lean_runtime": {"version_compatible": True},
    "gpu_fallback": {"dla_core": 0},
}


@pytest.fixture
def key(host: Device, tmp_path: Path) -> Any:
    """The key of a model, by default the static one, for the host device."""

    known = KnownModels(Store(tmp_path / "memos"))

    def make(
        model: Any = MODEL, config: BuildConfig | None = None, device: Device = host, **more: Any
    ) -> EngineKey:
        on_disk = isinstance(model, (str, os.PathLike))
        contents = known.contents(model) if on_disk else contents_of(read_model(model)[0])
        library = device.platform.tensorrt()
        return engine_key(contents, config or BuildConfig(), library=library, device=device, **more)

    return make


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with its weights in two other files."""
    proto = onnx.ModelProto()
    proto.CopyFrom(static().model)
    weights = proto.graph.initializer[0]
    second = proto.graph.initializer.add()
    second.CopyFrom(weights)
    second.name = "unused"
    folder = tmp_path / "model"
    folder.mkdir()
    for number, tensor in enumerate(proto.graph.initializer):
        (folder / f"w{number}.bin").write_bytes(tensor.raw_data[:-1] + bytes([number]))
        onnx.external_data_helper.set_external_data(tensor, f"w{number}.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def changed(one: EngineKey, other: EngineKey) -> list[str]:
    """The names of the parts that differ; the digests must agree on whether any do."""
    parts = [difference.part for difference in differences(one.parts, other.parts)]
    assert (one.digest != other.digest) == bool(parts)
    return parts


# The model --------------------------------------------------------------------------------


def test_path_bytes_and_proto_of_one_model_have_one_key(key: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(MODEL)
    keys = {key(model).digest for model in (path, str(path), MODEL, onnx.load(path))}
    assert len(keys) == 1


def test_every_byte_of_the_model_counts(key: Any) -> None:
    original = key()

    @given(st.integers(0, len(MODEL) - 1), st.integers(0, 7))
    @settings(deadline=None)
    def flip(position: int, bit: int) -> None:
        other = bytearray(MODEL)
        other[position] ^= 1 << bit
        assert changed(original, key(bytes(other))) == ["model"]

    flip()


def test_every_weight_counts(key: Any) -> None:
    weights = static().model.graph.initializer[0].raw_data
    start = MODEL.index(weights)
    digests = {key().digest}
    for position in range(start, start + len(weights), 7):
        other = bytearray(MODEL)
        other[position] ^= 1
        digests.add(key(bytes(other)).digest)
    assert len(digests) == 1 + len(range(0, len(weights), 7))


def test_path_and_times_of_the_model_do_not_count(key: Any, tmp_path: Path, external: Path) -> None:
    original = key(external)
    moved = shutil.copytree(external.parent, tmp_path / "elsewhere")
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    assert changed(original, key(moved / external.name)) == []


def test_every_external_file_counts_by_content(key: Any, external: Path) -> None:
    original = key(external)
    assert len(original.parts["external data"]) == 2
    for name in ("w0.bin", "w1.bin"):
        file = external.with_name(name)
        content, times = file.read_bytes(), file.stat()
        for position in (0, len(content) // 2, len(content) - 1):
            other = bytearray(content)
            other[position] ^= 0x80
            file.write_bytes(other)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert changed(original, key(external)) == ["external data"]
        file.write_bytes(content)
    assert changed(original, key(external)) == []


def test_external_files_that_changed_places_count(key: Any, external: Path) -> None:
    original = key(external)
    first, second = external.with_name("w0.bin"), external.with_name("w1.bin")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert changed(original, key(external)) == ["external data"]


def test_missing_external_data_is_an_error_and_no_key(key: Any, external: Path) -> None:
    external.with_name("w1.bin").unlink()
    with pytest.raises(ModelError, match=r"w1\.bin"):
        key(external)


@pytest.mark.parametrize("size", [1, 7, 256, 1000, 9 * 256, 9 * 256 + 1])
def test_a_file_is_hashed_whole_however_large_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(digest_module, "PIECE_BYTES", size)
    monkeypatch.setattr(digest_module, "_READ_BYTES", 100)
    content = bytes(range(256)) * 9
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    whole = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert content_digest(content) == hashlib.sha256(whole).hexdigest()
    for data in (content, content[:-1], b""):
        (tmp_path / "file").write_bytes(data)
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert file_digest(file) == content_digest(data)
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert read_digested(file) == (data, content_digest(data))


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what happened to be in memory."""
    (tmp_path / "file").write_bytes(bytes(1000))
    monkeypatch.setattr(digest_module, "PIECE_BYTES", 100)
    monkeypatch.setattr(digest_module, "_size", lambda file: 1001)
    for read in (file_digest, read_digested):
        with (
            open(tmp_path / "file", "rb", buffering=0) as file,
            pytest.raises(OSError, match="shorter"),
        ):
            read(file)


def test_after_an_error_the_rest_of_a_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    monkeypatch.setattr(digest_module, "PIECE_BYTES", 100)
    read: list[int] = []

    def read_at(file: object, start: int, room: object) -> None:
        read.append(start)
        if start == 500:
            raise OSError("no more")
        time.sleep(0.01)

    monkeypatch.setattr(digest_module, "_read_at", read_at)
    for digest in (file_digest, read_digested):
        read.clear()
        with (
            open(tmp_path / "file", "rb", buffering=0) as file,
            pytest.raises(OSError, match="no more"),
        ):
            digest(file)
        assert len(read) < 500


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="read otherwise there")
def test_a_file_that_is_read_in_short_pieces_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give less than it is asked for."""
    content = bytes(range(256)) * 9
    (tmp_path / "file").write_bytes(content)
    monkeypatch.setattr(digest_module, "PIECE_BYTES", 100)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: real(fd, [into[0][:7]], at))
    for read in (file_digest, lambda file: read_digested(file)[1]):
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert read(file) == content_digest(content)


def test_where_files_have_one_position_only_each_piece_is_read_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 9
    (tmp_path / "file").write_bytes(content)
    monkeypatch.setattr(digest_module, "PIECE_BYTES", 100)
    monkeypatch.delattr(os, "preadv", raising=False)
    with open(tmp_path / "file", "rb", buffering=0) as file:
        assert read_digested(file) == (content, content_digest(content))
        assert file_digest(file) == content_digest(content)


def test_bytes_that_were_digested_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_module, "PIECE_BYTES", 100)
    for size in (10, 1000):
        (tmp_path / "file").write_bytes(bytes(size))
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert memoryview(read_digested(file)[0]).readonly


# The configuration ------------------------------------------------------------------------


def test_every_field_of_a_configuration_is_tried_here() -> None:
    assert {field.name for field in dataclasses.fields(BuildConfig)} == set(VARIANTS) | PATHS


@pytest.mark.parametrize("field", VARIANTS)
def test_every_field_counts(key: Any, field: str) -> None:
    needed = TOGETHER.get(field, {})
    one, other = (key(config=BuildConfig(**needed, **{field: value})) for value in VARIANTS[field])
    parts = changed(one, other)
    if field == "profiles":
        assert parts == ["profiles[0]", "profiles[0]['x']"]
    else:
        assert parts == [field]


def test_the_order_of_a_mapping_does_not_count(key: Any) -> None:
    pairs = [("x", "float16"), ("y", "float32"), ("a", "int32")]
    one, other = (key(config=BuildConfig(io_types=dict(order))) for order in (pairs, pairs[::-1]))
    assert changed(one, other) == []


def test_where_the_timing_cache_lies_does_not_count(key: Any, tmp_path: Path) -> None:
    assert changed(key(), key(config=BuildConfig(timing_cache=tmp_path / "t.cache"))) == []


def test_a_plugin_library_counts_by_content(key: Any, tmp_path: Path) -> None:
    libraries = [tmp_path / name for name in ("a.so", "b.so")]
    for library in libraries:
        library.write_bytes(b"the same")
    one, other = (key(config=BuildConfig(plugin_libraries=(str(path),))) for path in libraries)
    assert changed(one, other) == []
    assert changed(one, key()) == ["plugin libraries"]
    libraries[0].write_bytes(b"another")
    after = key(config=BuildConfig(plugin_libraries=(str(libraries[0]),)))
    assert changed(one, after) == ["plugin libraries"]


def test_a_plugin_library_that_is_missing_is_named(key: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.so"):
        key(config=BuildConfig(plugin_libraries=(str(tmp_path / "missing.so"),)))


def test_calibration_data_counts(key: Any) -> None:
    assert changed(key(calibration="0" * 64), key(calibration="1" * 64)) == ["calibration"]
    assert changed(key(), key(calibration="1" * 64)) == ["calibration"]


BOUNDS = [(1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)]


@pytest.mark.parametrize("which", range(3), ids=("min", "opt", "max"))
@pytest.mark.parametrize("axis", range(4))
def test_every_bound_of_a_profile_counts(key: Any, which: int, axis: int) -> None:
    def profiled(bounds: list[tuple[int, ...]]) -> EngineKey:
        first = Profile({"x": ((1, 3, 8, 8),) * 3})
        result: EngineKey = key(
            dynamic().model, BuildConfig(profiles=(first, Profile({"x": bounds})))
        )
        return result

    wide = [(1, 1, 1, 1), (4, 4, 9, 9), (9, 9, 17, 17)]
    other = [list(shape) for shape in wide]
    other[which][axis] += 1
    assert changed(profiled(wide), profiled([tuple(shape) for shape in other])) == [
        "profiles[1]['x']"
    ]


def test_the_order_of_profiles_counts_and_that_of_their_inputs_does_not(key: Any) -> None:
    small, large = Profile({"a": (1,), "b": (2,)}), Profile({"a": (5,), "b": (6,)})
    turned = Profile({"b": (2,), "a": (1,)})
    original = key(config=BuildConfig(profiles=(small, large)))
    assert changed(original, key(config=BuildConfig(profiles=(turned, large)))) == []
    assert changed(original, key(config=BuildConfig(profiles=(large, small)))) == [
        f"profiles[{number}]['{name}']" for number in (0, 1) for name in "ab"
    ]


# What builds, and for what ----------------------------------------------------------------


def test_the_release_of_tensorrt_counts(key: Any) -> None:
    with Device(HostPlatform(version="10.16.2")) as other:
        assert changed(key(), key(device=other)) == ["tensorrt version"]


def test_the_flavour_of_tensorrt_counts(key: Any, host: Device, monkeypatch: Any) -> None:
    original = key()
    monkeypatch.setattr(host.platform.tensorrt(), "name", "tensorrt")
    assert changed(original, key()) == ["tensorrt"]


@pytest.mark.parametrize(
    ("method", "value", "part"),
    [
        ("driver_version", 13010, "cuda"),
        ("device_name", "another", "device"),
        ("compute_capability", (9, 0), "compute capability"),
        ("multiprocessor_count", 132, "multiprocessors"),
        ("total_memory", 1 << 37, "device memory"),
    ],
)
def test_everything_about_the_device_counts(
    key: Any,
    platform: HostPlatform,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    value: Any,
    part: str,
) -> None:
    original = key()
    monkeypatch.setattr(platform.host_driver, method, lambda *_: value)
    assert changed(original, key()) == [part]


def test_parts_read_as_people_write_them(
    key: Any, platform: HostPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform.host_driver, "driver_version", lambda: 12080)
    monkeypatch.setattr(platform.host_driver, "compute_capability", lambda _: (9, 0))
    parts = key().parts
    assert (parts["cuda"], parts["compute capability"]) == ("12.8", "9.0")


@pytest.mark.parametrize(
    ("call", "part"), [("system", "operating system"), ("machine", "architecture")]
)
def test_the_machine_counts(
    key: Any, monkeypatch: pytest.MonkeyPatch, call: str, part: str
) -> None:
    original = key()
    monkeypatch.setattr(system, call, lambda: "another")
    assert changed(original, key()) == [part]


def test_which_of_several_like_devices_does_not_count(key: Any) -> None:
    platform = HostPlatform(devices=2)
    with Device(platform, 0) as one, Device(platform, 1) as other:
        assert changed(key(device=one), key(device=other)) == []


def test_for_chosen_gpus_the_one_at_hand_does_not_count(key: Any) -> None:
    config = BuildConfig(compute_capabilities=("8.6",))
    with Device(HostPlatform(Faults(device_memory=1 << 30))) as other:
        assert changed(key(config=config), key(config=config, device=other)) == []
        assert changed(key(), key(device=other)) == ["device memory"]
    assert key(config=config).parts["device"] == "any of compute_capabilities"


def test_the_schema_counts(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = key()
    monkeypatch.setattr(key_module, "SCHEMA", key_module.SCHEMA + 1)
    assert changed(original, key()) == ["key schema"]


def test_keys_are_the_same_in_another_process(key: Any) -> None:
    """No hash that Python salts, no order that it does not promise: the value is fixed."""
    parts = {"b": [1, {"y": None, "x": True}], "a": "é"}
    assert EngineKey(parts).digest == (
        hashlib.sha256(b'{"a":"\\u00e9","b":[1,{"x":true,"y":null}]}').hexdigest()
    )
