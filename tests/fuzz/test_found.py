"""What fuzzing found: each input that once got past the errors of ours, by hand and by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from trt_runtime import (
    Device,
    Engine,
    EngineCache,
    InputError,
    ModelError,
    NotAPlanError,
    Session,
    TrtRuntimeError,
    build_plan,
)
from trt_runtime.build.key import SCHEMA, canonical_json
from trt_runtime.build.model import external_files
from trt_runtime.build.store import DamagedEntry, Sidecar, Store, sealed
from trt_runtime.cli.onnx_file import input_specs, inspect_onnx
from trt_runtime.errors import CorruptPlanError
from trt_runtime.platform.host.tensorrt import plan as host_plan
from trt_runtime.session import _share_memory

from ..models import static
from . import seeds
from .targets import Foreign

# Plans and models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array", [np.empty((2, 0), np.uint8), np.array(1.0), np.zeros((2, 2), ">f4")]
)
def test_memory_of_any_shape_is_a_plan_or_none(array: Any, host: Device) -> None:
    for use in (Engine.load, Session):
        with pytest.raises(TrtRuntimeError):
            use(memoryview(array), device=host)
    assert Engine.check(memoryview(array), device=host).verdict == "invalid"


def test_a_path_with_a_zero_byte_is_refused(host: Device) -> None:
    with pytest.raises(NotAPlanError, match="cannot be read"):
        Engine.load("a\0b", device=host)
    with pytest.raises(ModelError, match="cannot be read"):
        build_plan("a\0b.onnx", device=host)


@pytest.mark.parametrize(
    "change",
    [
        {"engine_capability": None},
        {"profiling_verbosity": 99},
        {"flags": "x"},
        {"device": 7},
        {"tensors": [{}]},
        {"profiles": [{"shapes": {}, "values": {}}]},
        {"name": None},
    ],
)
def test_a_plan_with_a_right_checksum_and_a_wrong_header_is_corrupt(
    change: dict[str, Any], host: Device
) -> None:
    content = seeds.plan("static")
    start = len(host_plan.MAGIC) + 8
    length = int.from_bytes(content[start - 8 : start], "little")
    header = json.loads(content[start : start + length])
    forged = host_plan.pack({**header, **change}, content[start + length : -32])
    with pytest.raises(TrtRuntimeError):
        Engine.load(forged, device=host)


@pytest.mark.parametrize("header", [b"[]", b"{}", b"{", b"\xff", b"[" * 100_000])
def test_a_plan_whose_header_is_none_is_corrupt(header: bytes, host: Device) -> None:
    body = host_plan.MAGIC + len(header).to_bytes(8, "little") + header
    with pytest.raises(CorruptPlanError):
        Engine.load(body + hashlib.sha256(body).digest(), device=host)


@pytest.mark.parametrize("number", ["", " 5", "1_0", "-1", "1e3", "\u0663", "9" * 30])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_number_of_bytes_is_one_for_every_reader(key: str, number: str, tmp_path: Path) -> None:
    serialised, data = seeds.external_model()
    (tmp_path / "weights.bin").write_bytes(data)
    model = onnx.ModelProto.FromString(serialised)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = number
    with pytest.raises(ModelError) as refused:
        external_files(model.SerializeToString(), tmp_path / "model.onnx")
    assert "is no number" in refused.value.problems[0]


def _in_latin_1(model: bytes, text: bytes) -> bytes:
    """The model, in which the text is no UTF-8 any more; protobuf then gives it as bytes."""
    assert text in model
    return model.replace(text, b"\xe9" * len(text))


def test_text_in_another_encoding_is_told_and_refused(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    serialised, data = seeds.external_model()
    (tmp_path / "weights.bin").write_bytes(data)
    path.write_bytes(_in_latin_1(serialised, b"weights.bin"))
    with pytest.raises(ModelError) as refused:
        external_files(path.read_bytes(), path)
    assert "utf-8" in refused.value.problems[0].lower()
    path.write_bytes(_in_latin_1(seeds.model("static"), b"Conv"))
    assert "\\xe9" * 4 in inspect_onnx(path).operators
    with pytest.raises(ModelError):
        Engine.build(path, device=host)


@pytest.mark.parametrize("number", [0, 999])
def test_an_input_of_a_type_that_is_none_is_told_and_refused(
    number: int, host: Device, tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(static().model)
    model.graph.input[0].type.tensor_type.elem_type = number
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert inspect_onnx(path).inputs[0].dtype in ("undefined", "type 999")
    with pytest.raises(ModelError, match="of which there are no arrays"):
        input_specs(path)
    with pytest.raises(ModelError):
        Engine.build(path, device=host)


# The engine cache ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"parts": ["model"]},
        {"plan_bytes": "12"},
        {"plan_bytes": True},
        {"model": None},
        {"build_seconds": "x"},
        {"created": "2020-01-01"},
    ],
)
def test_a_sidecar_with_a_right_checksum_and_wrong_types_is_damaged(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (name,) = (name for name in seeds.cached() if name.endswith(".json"))
    entry = {**json.loads(seeds.cached()[name])["entry"], **change}
    key = hashlib.sha256(canonical_json(entry["parts"])).hexdigest()
    with pytest.raises(DamagedEntry, match="cannot be read"):
        Sidecar.from_bytes(sealed(SCHEMA, entry), key)
    cache = EngineCache(tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / f"{key}.json").write_bytes(sealed(SCHEMA, entry))
    (tmp_path / f"{key}.plan").write_bytes(b"")
    (kept,) = cache.entries()
    assert kept.damage


@pytest.mark.parametrize("seconds", [2**40, -(2**40), 2.0**62, float("inf")])
def test_a_time_that_no_calendar_has_is_long_ago(
    seconds: float, host: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.load_or_build(static().model, device=host).close()
    scan = Store._scan
    monkeypatch.setattr(Store, "_scan", lambda self: [_Dated(f, seconds) for f in scan(self)])
    (entry,) = cache.entries(verify=True)
    assert not entry.damage
    assert entry.last_used is not None
    assert entry.last_used.year == 1970
    assert cache.prune(0)


class _Dated:
    """A file of a directory, with a time that only some file systems keep."""

    def __init__(self, found: os.DirEntry[str], seconds: float) -> None:
        self.name, self.path = found.name, found.path
        self._status = found.stat()
        self._seconds = seconds

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        return SimpleNamespace(st_size=self._status.st_size, st_mtime=self._seconds, st_mtime_ns=0)


# Arrays ----------------------------------------------------------------------------------------


def _raises() -> Any:
    raise RuntimeError("of its own")


@pytest.mark.parametrize(
    "values",
    [
        {"__dlpack_device__": _raises},
        {"__dlpack_device__": lambda: _raises},
        {"__dlpack_device__": lambda: lambda: ()},
        {"__dlpack_device__": lambda: lambda: None},
        {"__dlpack_device__": lambda: lambda: (2, 0)},
        {"__dlpack_device__": lambda: lambda: ("x", 0), "shape": lambda: (2, 3, 16, 16)},
        {"__dlpack_device__": lambda: lambda: (2, 0), "shape": _raises},
        {"__dlpack_device__": lambda: lambda: (2, 0), "__dlpack__": _raises},
        {"__cuda_array_interface__": lambda: None},
        {"__cuda_array_interface__": lambda: {}},
        {"__cuda_array_interface__": lambda: {"shape": "x"}},
        {"__cuda_array_interface__": _raises},
    ],
)
def test_an_object_that_fails_to_describe_itself_is_an_input_error(
    values: dict[str, Callable[[], Any]], host: Device
) -> None:
    with Session(seeds.plan("static"), device=host) as session:
        with pytest.raises(InputError):
            session.infer(Foreign(values))
        session.infer(static().feeds[0])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None},
        {"shape": (-1,)},
        {"typestr": None},
        {"typestr": "<f3"},
        {"data": None},
        {"data": ()},
        {"data": (-1, False)},
        {"data": (2**70, False)},
        {"strides": (4,)},
        {"strides": ()},
        {"strides": "x"},
        {"stream": "x"},
        {"stream": -7},
        {"stream": 2**70},
    ],
)
def test_a_cuda_array_interface_with_anything_in_it_is_an_input_error(
    change: dict[str, Any], host: Device
) -> None:
    shape = static().feeds[0]["x"].shape
    described = {"shape": shape, "typestr": "<f4", "data": (1 << 40, False), "version": 3}
    value = Foreign(
        {
            "shape": lambda: shape,
            "__cuda_array_interface__": lambda: {**described, **change},
        }
    )
    with Session(seeds.plan("static"), device=host) as session:
        with pytest.raises(InputError):
            session.infer(value)
        session.infer(static().feeds[0])


def test_arrays_whose_overlap_is_hard_to_tell_count_as_overlapping(host: Device) -> None:
    """NumPy's exact answer takes time that is exponential in the rank."""
    memory = np.zeros(1 << 20, np.float32)
    strides = tuple(4 * n for n in (6997, 5003, 3001, 1009, 503, 101, 53, 7))
    one = np.lib.stride_tricks.as_strided(memory, (3,) * 8, strides)
    other = np.lib.stride_tricks.as_strided(memory[1:], (3,) * 8, strides[::-1])
    assert _share_memory(one, one)
    assert isinstance(_share_memory(one, other), bool)
    assert not _share_memory(memory[:10], memory[10:20])


def test_an_output_that_shows_its_memory_several_times_is_refused(host: Device) -> None:
    with Session(static().model, device=host) as session:
        feed = static().feeds[0]
        spec = session.outputs[0]
        one = np.zeros(1, spec.dtype)
        target = np.lib.stride_tricks.as_strided(one, spec.shape, (0,) * len(spec.shape))
        with pytest.raises(InputError, match="several times"):
            session.infer(feed, outputs={spec.name: target})


def test_an_output_without_elements_shows_no_memory_several_times(host: Device) -> None:
    """NumPy gives such an array strides of 0."""
    nothing = {"x": -np.ones((4, 5), np.float32)}
    with Session(seeds.plan("nonzero"), device=host) as session:
        where = session.outputs[0]
        target = np.empty((2, 0), where.dtype)
        assert session.infer(nothing, outputs={where.name: target})[where.name] is target


def test_an_object_that_leaves_the_device_while_it_is_looked_at_is_refused(host: Device) -> None:
    class Leaving:
        """In device memory when it is asked first, and on the host after that."""

        shape = static().feeds[0]["x"].shape
        asked = 0

        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            self.asked += 1
            if self.asked > 1:
                raise AttributeError
            return {"shape": self.shape, "typestr": "<f4", "data": (1 << 40, False), "version": 3}

    with Session(static().model, device=host) as session:
        with pytest.raises(InputError):
            session.infer(Leaving())
        session.infer(static().feeds[0])
