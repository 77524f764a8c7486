"""`Engine`: saving and loading, what is refused and why, and what a build is told."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trt_runtime import (
    BuildConfig,
    BuildError,
    BuildProgress,
    CorruptPlanError,
    Device,
    Engine,
    InputError,
    MissingProfileError,
    ModelError,
    NotAPlanError,
    PlanError,
    PlanVersionError,
    Profile,
    Range,
    Session,
    TensorSpec,
    UnsupportedError,
    UntrustedPlanError,
    build_plan,
)
from trt_runtime.platform import HostPlatform

from .models import assert_matches, dynamic, make_model, reference, reshape, several, static


@pytest.fixture
def plan(host: Device) -> bytes:
    return build_plan(static().model, device=host)


@pytest.fixture
def engine(host: Device, plan: bytes) -> Iterator[Engine]:
    with Engine.load(plan, device=host) as engine:
        yield engine


# Saving and loading -----------------------------------------------------------------------------


def test_a_saved_engine_loads_and_computes_the_same(device: Device, tmp_path: Path) -> None:
    case = static()
    (feed,) = case.feeds
    path = tmp_path / "net.engine"
    if not device.platform.tensorrt().has_builder:
        pytest.skip(f"{device.tensorrt_name} cannot build")
    with Engine.build(case.model, device=device) as built:
        built.save(path)
        tensors = dict(built.tensors)
    with Engine.load(path, device=device) as loaded, Session(loaded) as session:
        assert loaded.name == "net"
        assert dict(loaded.tensors) == tensors
        assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)


def test_serialize_gives_what_load_takes(host: Device, engine: Engine) -> None:
    with Engine.load(engine.serialize(), device=host) as again:
        assert again.serialize() == engine.serialize()
    with Engine.load(memoryview(engine.serialize()), device=host) as again:  # type: ignore[arg-type]
        assert again.tensors == engine.tensors


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(b"old")
    engine.save(path)
    engine.save(str(path))
    assert path.read_bytes() == engine.serialize()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_saved_engine_has_the_mode_of_any_new_file(engine: Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "net.engine")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_beside_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        engine.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_where_no_file_can_be_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        engine.save(tmp_path / "missing" / "net.engine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        engine.save(tmp_path / "folder")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


# Plans that cannot be used ----------------------------------------------------------------------


def refuse(plan: Any, device: Device, kind: type[PlanError]) -> PlanError:
    with pytest.raises(kind) as caught:
        Engine.load(plan, device=device)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize("garbage", [b"\0", b"garbage", bytes(range(256)) * 16, b"\xff" * 100])
def test_garbage_is_not_a_plan(host: Device, garbage: bytes) -> None:
    error = refuse(garbage, host, NotAPlanError)
    assert f"{len(garbage)} bytes" in str(error)
    assert error.log_lines
    assert error.log_lines[0] in str(error)


def test_nothing_is_not_a_plan(host: Device) -> None:
    assert "it is empty" in str(refuse(b"", host, NotAPlanError))


def test_a_model_is_not_a_plan_and_the_error_says_where_it_goes(host: Device) -> None:
    error = refuse(static().model.SerializeToString(), host, NotAPlanError)
    assert "Engine.build" in str(error)


def test_a_truncated_plan_is_refused_at_every_length(host: Device, plan: bytes) -> None:
    lengths = sorted({*range(1, 64), *range(64, len(plan), 97), len(plan) - 32, len(plan) - 1})
    for length in lengths:
        kind = CorruptPlanError if length >= 8 else NotAPlanError  # the host's magic has 8 bytes
        assert refuse(plan[:length], host, kind).log_lines


def test_a_flipped_bit_is_noticed_wherever_it_is(host: Device, plan: bytes) -> None:
    for position in (*range(0, 40), *range(40, len(plan), 101), len(plan) - 1):
        damaged = bytearray(plan)
        damaged[position] ^= 1 << position % 8
        kind = NotAPlanError if position < 8 else CorruptPlanError
        assert refuse(bytes(damaged), host, kind).log_lines


def test_bytes_after_the_plan_are_noticed(host: Device, plan: bytes) -> None:
    refuse(plan + b"\0", host, CorruptPlanError)


def test_another_releases_plan_is_refused_by_version(plan: bytes) -> None:
    with Device(HostPlatform(version="11.4.0")) as newer:
        error = refuse(plan, newer, PlanVersionError)
    assert "11.4.0" in str(error)
    assert "10.16.1" in "".join(error.log_lines)


def test_a_version_compatible_plan_runs_under_a_later_release_once_trusted(host: Device) -> None:
    case = static()
    (feed,) = case.feeds
    plan = build_plan(case.model, BuildConfig(version_compatible=True), device=host)
    with Device(HostPlatform(version="11.4.0")) as newer:
        assert "trust_host_code=True" in str(refuse(plan, newer, UntrustedPlanError))
        with Session(plan, device=newer, trust_host_code=True) as session:
            assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)
    lean = BuildConfig(version_compatible=True, embed_lean_runtime=False)
    with Engine.load(build_plan(case.model, lean, device=host), device=host):
        pass  # it carries no code, so there is nothing to trust


def test_a_missing_or_unreadable_engine_file_is_named(host: Device, tmp_path: Path) -> None:
    message = str(refuse(tmp_path / "no.engine", host, NotAPlanError))
    assert "no.engine" in message
    assert "No such file" in message
    assert "directory" in str(refuse(tmp_path, host, NotAPlanError))


@pytest.mark.parametrize("plan", [None, 3, static().model], ids=["None", "int", "ModelProto"])
def test_something_else_is_no_plan(host: Device, plan: Any) -> None:
    with pytest.raises(InputError, match="a plan is a path or bytes, not"):
        Engine.load(plan, device=host)


def test_an_engine_is_not_made_by_calling_its_class() -> None:
    with pytest.raises(TypeError, match=r"Engine\.load\(plan\) or Engine\.build"):
        Engine()


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx", "tensorrt_lean", "nonsense"])
def test_the_host_device_has_no_other_tensorrt(host: Device, plan: bytes, flavour: str) -> None:
    with pytest.raises(UnsupportedError, match=flavour):
        Engine.load(plan, device=host, tensorrt=flavour)
    with pytest.raises(UnsupportedError, match=flavour):
        Engine.build(static().model, device=host, tensorrt=flavour)


def test_the_environments_tensorrt_is_for_gpus(
    host: Device, plan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRT_RUNTIME_TENSORRT", "tensorrt_rtx")
    with Engine.load(plan, device=host) as engine:
        assert engine.tensorrt_name == "tensorrt_host"


# What an engine tells ---------------------------------------------------------------------------


def test_profiles_tell_what_each_allows(host: Device) -> None:
    case = dynamic()
    with Engine.build(case.model, profiles=case.profiles, device=host) as engine:
        assert [dict(p) for p in engine.profiles] == [dict(p) for p in case.profiles]
    case = reshape()
    with Engine.build(case.model, profiles=case.profiles, device=host) as engine:
        (profile,) = engine.profiles
        assert profile["shape"] == Range((1, 1), (3, 4), (12, 12))
        assert profile["x"] == Range((2, 6), (2, 6), (2, 6))
    with Engine.build(static().model, device=host) as engine:
        assert [dict(p) for p in engine.profiles] == [{"x": Range(*[(1, 3, 8, 8)] * 3)}]


def test_an_engine_tells_its_name_and_its_tensorrt(host: Device, tmp_path: Path) -> None:
    onnx.save(several().model, tmp_path / "adder.onnx")
    with Engine.build(tmp_path / "adder.onnx", device=host) as engine:
        assert engine.name == "adder"
        assert (engine.tensorrt_name, engine.tensorrt_version) == ("tensorrt_host", "10.16.1")
        assert "'adder' on host:0 ('second': float32[2, 3]" in repr(engine)


def test_a_spec_tells_its_size_and_prints_short() -> None:
    spec = TensorSpec("x", np.dtype(np.float16), (-1, 3), "input")
    assert spec.nbytes((5, 3)) == 30
    assert spec.nbytes((0, 3)) == 0
    assert (spec.is_input, spec.is_dynamic, spec.is_shape_tensor) == (True, True, False)
    assert str(spec) == "'x': float16[?, 3]"
    host = TensorSpec("s", np.dtype(np.int64), (), "output", "host")
    assert (host.is_input, host.is_dynamic, host.is_shape_tensor) == (False, False, True)
    assert str(host) == "'s': int64[], on the host"


# Profile and BuildConfig ------------------------------------------------------------------------


def test_a_profile_takes_three_shapes_or_one() -> None:
    profile = Profile(
        {"x": ((1, 3), (2, 3), (4, 3)), "y": [7, 8], "z": (), "n": (np.int64(2), np.int32(3))}
    )
    assert list(profile) == ["x", "y", "z", "n"]
    assert profile["x"] == Range((1, 3), (2, 3), (4, 3))
    assert profile["y"] == Range((7, 8), (7, 8), (7, 8))
    assert profile["z"] == Range((), (), ())
    assert profile["n"].max == (2, 3)
    assert all(type(n) is int for n in profile["n"].max)


def test_equal_profiles_are_one_key() -> None:
    one, same = Profile({"x": (1, 2)}), Profile({"x": ((1, 2), (1, 2), (1, 2))})
    assert one == same
    assert len({one, same, Profile({"x": (1, 3)})}) == 2
    assert one != {"x": (1, 2)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (((1, 3), (4, 3)), r"expected \(min, opt, max\)"),
        (((1, 3),) * 4, r"expected \(min, opt, max\)"),
        (((1,), (2, 2), (3, 3)), "differ in rank"),
        (((2,), (1,), (3,)), "min <= opt <= max"),
        (((1, 5), (2, 5), (3, 4)), "min <= opt <= max"),
        (((1.5,), (2,), (3,)), r"expected \(min, opt, max\)"),
        ((1.0, 2.0), r"expected \(min, opt, max\)"),
        (None, r"expected \(min, opt, max\)"),
        (3, r"expected \(min, opt, max\)"),
        ("123", r"expected \(min, opt, max\)"),
    ],
)
def test_a_profile_that_is_no_range_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"profile of 'x': .*{message}"):
        Profile({"x": value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is not known"),
        ({"optimization_level": 6}, "0 to 5, not 6"),
        ({"optimization_level": -1}, "0 to 5, not -1"),
        ({"optimization_level": "3"}, "0 to 5, not '3'"),
        ({"workspace_bytes": 0}, "positive int, not 0"),
        ({"workspace_bytes": -1}, "positive int, not -1"),
        ({"workspace_bytes": "1G"}, "positive int, not '1G'"),
        ({"profiles": Profile({"x": (1,)})}, "sequence of Profile"),
        ({"profiles": [{"x": (1,)}]}, "sequence of Profile"),
        ({"compute_capabilities": "8.6"}, "sequence of texts"),
        ({"compute_capabilities": [8.6]}, "sequence of texts"),
    ],
    ids=str,
)
def test_a_wrong_build_option_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildConfig(**options)


# Builds that fail -------------------------------------------------------------------------------


def test_a_missing_model_is_named(host: Device, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no ONNX model .*no\.onnx"):
        Engine.build(tmp_path / "no.onnx", device=host)


@pytest.mark.parametrize("model", [b"", b"garbage", b"\x08\x07", bytes(1000)])
def test_bytes_that_are_no_model_are_refused(host: Device, model: bytes) -> None:
    with pytest.raises(ModelError, match="cannot parse the ONNX model") as caught:
        Engine.build(model, device=host)
    assert caught.value.problems


def unsupported() -> onnx.ModelProto:
    """Two nodes that no TensorRT knows, and one without a name."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"], name="fine"),
            helper.make_node("Frobnicate", ["r"], ["s"], name="odd one", domain="made.up"),
            helper.make_node("Transmogrify", ["s"], ["y"], domain="made.up"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_unsupported_operators_are_listed_with_their_nodes(host: Device) -> None:
    with pytest.raises(ModelError) as caught:
        Engine.build(unsupported(), device=host)
    first, second = caught.value.problems
    assert "node 1 'odd one' (Frobnicate)" in first
    assert "node 2" in second
    assert "(Transmogrify)" in second
    assert all(problem in str(caught.value) for problem in (first, second))


@pytest.mark.parametrize("make", [dynamic, reshape], ids=["dynamic", "reshape"])
def test_a_missing_profile_is_told_with_one_to_paste(host: Device, make: Any) -> None:
    model = make().model
    with pytest.raises(MissingProfileError) as caught:
        Engine.build(model, device=host)
    assert set(caught.value.inputs) <= {spec.name for spec in model.graph.input}
    told = str(caught.value)
    profiles = eval(told[told.index("profiles=[") + len("profiles=") :], {"Profile": Profile})
    with Engine.build(model, profiles=profiles, device=host) as engine:
        assert len(engine.profiles) == 1


def test_a_half_profile_is_told_with_a_whole_one_to_paste(host: Device) -> None:
    model = make_model(
        [helper.make_node("Relu", ["a"], ["c"]), helper.make_node("Relu", ["b"], ["d"])],
        {"a": (TensorProto.FLOAT, ["n"]), "b": (TensorProto.FLOAT, ["m", 3])},
        {"c": (TensorProto.FLOAT, ["n"]), "d": (TensorProto.FLOAT, ["m", 3])},
    )
    with pytest.raises(
        MissingProfileError, match=r"'b' of shape \[\?, 3\]; profile 0 gives none"
    ) as caught:
        Engine.build(model, profiles=[Profile({"a": ((2,), (3,), (5,))})], device=host)
    told = str(caught.value)
    profiles = eval(told[told.index("profiles=[") + len("profiles=") :], {"Profile": Profile})
    with Engine.build(model, profiles=profiles, device=host) as engine:
        assert engine.profiles[0]["a"] == Range((2,), (3,), (5,))


def test_a_profile_of_an_unknown_input_is_refused(host: Device) -> None:
    profile = Profile({"x": (1, 3, 8, 8), "image": (1, 3)})
    with pytest.raises(InputError, match="profile 0 names 'image', but the model's inputs are 'x'"):
        Engine.build(dynamic().model, profiles=[profile], device=host)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8)], ids=["size", "rank"])
def test_a_profile_that_contradicts_the_model_is_refused(host: Device, shape: Any) -> None:
    with pytest.raises(BuildError) as caught:
        Engine.build(dynamic().model, profiles=[Profile({"x": shape})], device=host)
    assert any("do not match" in line for line in caught.value.log_lines)


def test_a_negative_size_in_a_profile_is_refused(host: Device) -> None:
    profile = Profile({"x": ((-1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))})
    with pytest.raises(InputError, match=r"profile 0: TensorRT refused .* for 'x'"):
        Engine.build(dynamic().model, profiles=[profile], device=host)


def test_profiles_given_twice_are_refused(host: Device) -> None:
    config = BuildConfig(profiles=dynamic().profiles)
    with pytest.raises(InputError, match="given twice"):
        Engine.build(dynamic().model, config, profiles=dynamic().profiles, device=host)


def test_weights_beside_the_model_are_found_there(
    host: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = static()
    (feed,) = case.feeds
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    (tmp_path / "models").mkdir()
    onnx.save(
        model,
        tmp_path / "models" / "net.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (tmp_path / "models" / "weights.bin").exists()
    monkeypatch.chdir(tmp_path)
    with Session("models/net.onnx", device=host) as session:
        assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)
    (tmp_path / "models" / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        Session("models/net.onnx", device=host)


# Progress ---------------------------------------------------------------------------------------


def test_progress_is_told_and_none_goes_on(host: Device) -> None:
    seen: list[BuildProgress] = []
    build_plan(static().model, device=host, on_progress=seen.append)
    assert seen
    assert all(0 <= told.step <= told.steps for told in seen)
    assert any(told.step == told.steps for told in seen)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_false_cancels_the_build(host: Device, after: int) -> None:
    calls: list[str] = []

    def on_progress(told: BuildProgress) -> bool:
        calls.append(told.phase)
        return len(calls) < after

    with pytest.raises(BuildError, match="cancelled by on_progress"):
        build_plan(static().model, device=host, on_progress=on_progress)
    assert len(calls) == after


@pytest.mark.parametrize("kind", [RuntimeError, LookupError, KeyboardInterrupt])
def test_an_exception_in_on_progress_comes_out_of_the_build(
    host: Device, kind: type[BaseException]
) -> None:
    def on_progress(told: BuildProgress) -> bool:
        raise kind("stop")

    with pytest.raises(kind, match=r"^stop$"):
        build_plan(static().model, device=host, on_progress=on_progress)
