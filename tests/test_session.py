"""`Session`: what it takes, whose the results are, and how it says no."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trt_runtime import (
    BindingSet,
    BuildConfig,
    ClosedError,
    Device,
    DtypeError,
    Engine,
    HostDeviceWarning,
    InputError,
    ModelError,
    NoDeviceError,
    NotAPlanError,
    Profile,
    Session,
    ShapeError,
    Stream,
    TrtRuntimeError,
    build_plan,
)
from trt_runtime.pipeline import KEPT_SHAPES
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.faults import Faults

from .conftest import open_engine, without_gpu
from .models import (
    assert_matches,
    booleans,
    dynamic,
    half,
    integers,
    make_model,
    nonzero,
    reference,
    reshape,
    scalar,
    several,
    static,
)


class Recorder(Faults):
    """Fails nothing, and remembers every platform call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def fails(self, call: str) -> bool:
        self.calls.append(call)
        return super().fails(call)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def host(recorder: Recorder) -> Iterator[Device]:
    """The host device, with its calls recorded."""
    platform = HostPlatform(recorder)
    with Device(platform) as device:
        yield device
    platform.host_driver.ledger.assert_empty()


@contextmanager
def open_session(device: Device, case: Any, **options: Any) -> Iterator[Session]:
    if device.kind == "cuda":
        with open_engine(device, case) as engine, Session(engine, **options) as session:
            yield session
    else:
        with Session(case.model, profiles=case.profiles, device=device, **options) as session:
            yield session


def image(seed: int = 0, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


# Results are the caller's -----------------------------------------------------------------------


def test_results_survive_a_hundred_later_calls(device: Device) -> None:
    case = static()
    with open_session(device, case) as session:
        results = [session.infer(image(seed))["y"] for seed in range(100)]
    addresses = {result.ctypes.data for result in results}
    assert len(addresses) == 100
    for seed, result in enumerate(results):
        assert_matches({"y": result}, reference(case.model, {"x": image(seed)}), case.tolerance)


def test_results_share_no_memory_with_each_other_or_the_inputs(host: Device) -> None:
    case = several()
    (feed,) = case.feeds
    with open_session(host, case) as session:
        first, second = session.infer(feed), session.infer(feed)
    arrays = [*first.values(), *second.values(), *feed.values()]
    for number, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[number + 1 :])


def test_results_can_be_written_to_without_disturbing_a_later_call(host: Device) -> None:
    case = static()
    with open_session(host, case) as session:
        session.infer(image())["y"][...] = np.nan
        assert_matches(
            session.infer(image()), reference(case.model, {"x": image()}), case.tolerance
        )


def test_results_come_in_the_engines_order(host: Device) -> None:
    with open_session(host, several()) as session:
        assert list(session.infer(several().feeds[0])) == ["sum", "product", "minus"]


def test_calling_the_session_infers(host: Device) -> None:
    with open_session(host, static()) as session:
        np.testing.assert_array_equal(session(image())["y"], session.infer(image())["y"])


# Output targets ---------------------------------------------------------------------------------


def targets() -> Iterator[tuple[str, np.ndarray]]:
    yield "plain", np.empty((1, 4, 8, 8), np.float32)
    yield "fortran", np.empty((1, 4, 8, 8), np.float32, order="F")
    yield "strided", np.empty((2, 4, 16, 8), np.float32)[:1, :, ::2]
    yield "reversed", np.empty((1, 4, 8, 8), np.float32)[:, ::-1, ::-1]
    yield "transposed", np.empty((8, 8, 4, 1), np.float32).transpose(3, 2, 0, 1)


@pytest.mark.parametrize("target", [pytest.param(t, id=name) for name, t in targets()])
def test_outputs_are_written_into_the_arrays_given(host: Device, target: np.ndarray) -> None:
    case = static()
    target[...] = np.nan
    with open_session(host, case) as session:
        outputs = session.infer(image(), outputs={"y": target})
    assert outputs["y"] is target
    assert_matches({"y": target}, reference(case.model, {"x": image()}), case.tolerance)


def test_outputs_that_are_not_named_are_new_arrays(host: Device) -> None:
    case = several()
    (feed,) = case.feeds
    product = np.zeros((2, 3), np.float32)
    with open_session(host, case) as session:
        outputs = session.infer(feed, outputs={"product": product})
    assert outputs["product"] is product
    assert_matches(outputs, reference(case.model, feed), case.tolerance)


def test_a_target_of_data_dependent_shape_is_filled_when_it_fits(host: Device) -> None:
    x = np.zeros((4, 5), np.float32)
    x[1, 2] = x[3, 4] = 1
    target = np.empty((2, 2), np.int64)
    with open_session(host, nonzero()) as session:
        assert session.infer(x, outputs={"where": target})["where"] is target
        np.testing.assert_array_equal(target, [[1, 3], [2, 4]])
        with pytest.raises(ShapeError, match=r"shape \[2, 2\].*this result \[2, 0\]"):
            session.infer(-x, outputs={"where": target})
        assert session.infer(x)["where"].shape == (2, 2)


READ_ONLY = np.zeros((2, 3), np.float32)
READ_ONLY.flags.writeable = False
TARGET = np.zeros((2, 3), np.float32)

WRONG_TARGETS: dict[str, tuple[Any, type[InputError], str]] = {
    "unknown name": ({"total": TARGET}, InputError, "no output 'total'.*'sum', 'product', 'minus'"),
    "an input's name": ({"first": TARGET}, InputError, "no output 'first'"),
    "dtype": ({"sum": np.zeros((2, 3))}, DtypeError, "must have dtype float32, not float64"),
    "shape": ({"sum": TARGET[:1]}, ShapeError, r"has shape \[1, 3\], and the output \[2, 3\]"),
    "rank": ({"sum": TARGET.ravel()}, ShapeError, r"has shape \[6\], and the output \[2, 3\]"),
    "read-only": ({"sum": READ_ONLY}, InputError, "read-only"),
    "a list": ({"sum": [[0.0] * 3] * 2}, InputError, "must be a NumPy array, not list"),
    "no mapping": ([TARGET], InputError, 'mapping of name to array, or "device", not list'),
    "no such place": ("host", InputError, "mapping of name to array, or \"device\", not 'host'"),
    "one array twice": ({"sum": TARGET, "minus": TARGET}, InputError, "shares memory"),
}


@pytest.mark.parametrize(("outputs", "kind", "message"), WRONG_TARGETS.values(), ids=WRONG_TARGETS)
def test_a_wrong_target_is_refused_before_anything_runs(
    host: Device, recorder: Recorder, outputs: Any, kind: type[InputError], message: str
) -> None:
    with open_session(host, several()) as session:
        refused(session, recorder, kind, message, several().feeds[0], outputs=outputs)
        assert_works(session, several())


def test_a_target_that_aliases_an_input_is_refused(host: Device, recorder: Recorder) -> None:
    first, second = (array.copy() for array in several().feeds[0].values())
    with open_session(host, several()) as session:
        refused(
            session,
            recorder,
            InputError,
            "shares memory with an input",
            first,
            second,
            outputs={"sum": first},
        )
        assert_works(session, several())


def test_a_target_for_another_batch_is_refused_before_anything_runs(
    host: Device, recorder: Recorder
) -> None:
    target = np.zeros((2, 4, 8, 8), np.float32)
    with open_session(host, dynamic()) as session:
        refused(
            session,
            recorder,
            ShapeError,
            r"\[2, 4, 8, 8\].*this result \[4, 4, 8, 8\]",
            image(batch=4),
            outputs={"y": target},
        )
        assert session.infer(image(batch=2), outputs={"y": target})["y"] is target


# Inputs -----------------------------------------------------------------------------------------


def test_inputs_go_by_position_by_name_and_as_a_mapping(device: Device) -> None:
    case = several()
    (feed,) = case.feeds
    want = reference(case.model, feed)
    second, first = feed["second"], feed["first"]
    with open_session(device, case) as session:
        for outputs in (
            session.infer(second, first),
            session.infer(first=first, second=second),
            session.infer({"first": first, "second": second}),
            session.infer(second, first=first),
            session.infer({"second": second}, first=first),
        ):
            assert_matches(outputs, want, case.tolerance)


def layouts() -> Iterator[tuple[str, Any]]:
    x = image()
    padded = np.zeros((2, 3, 16, 9), np.float32)
    padded[:1, :, ::2, 1:] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    yield "contiguous", x
    yield "fortran", np.asfortranarray(x)
    yield "strided", padded[:1, :, ::2, 1:]
    yield "negative strides", x[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1]
    yield "transposed", x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    yield "read-only", read_only
    yield "misaligned", misaligned
    yield "big-endian", x.astype(">f4")
    yield "float64", x.astype(np.float64)
    yield "a list", x.tolist()


@pytest.mark.parametrize("given", [pytest.param(g, id=name) for name, g in layouts()])
def test_an_input_may_have_any_layout(host: Device, given: Any) -> None:
    case = static()
    with open_session(host, case) as session:
        assert_matches(session.infer(given), reference(case.model, {"x": image()}), case.tolerance)


def test_a_broadcast_view_is_an_input_like_any_other(host: Device) -> None:
    case = static()
    x = np.broadcast_to(np.float32([1, 2, 3])[:, None, None], (1, 3, 8, 8))
    with open_session(host, case) as session:
        want = reference(case.model, {"x": np.ascontiguousarray(x)})
        assert_matches(session.infer(x), want, case.tolerance)


@pytest.mark.parametrize("value", [3.5, 3, True, np.float64(2.5), np.array(1, np.int8)])
def test_a_scalar_may_be_any_number(host: Device, value: Any) -> None:
    with open_session(host, scalar()) as session:
        y = session.infer(value)["y"]
    assert y.shape == ()
    assert y == float(value) ** 2


def test_whole_numbers_are_widened_and_narrowed_where_they_fit(host: Device) -> None:
    case = integers()
    a = np.arange(12).reshape(3, 4)
    with open_session(host, case) as session:
        for dtype in (np.int8, np.uint16, np.int32, np.uint64, np.bool_):
            given = a.astype(dtype)
            outputs = session.infer(given, a)
            np.testing.assert_array_equal(outputs["y"], given.astype(np.int64) + a)


def test_float32_may_be_given_where_float16_is_taken(host: Device) -> None:
    case = half()
    (feed,) = case.feeds
    with open_session(host, case) as session:
        outputs = session.infer(feed["x"].astype(np.float32))
    assert_matches(outputs, reference(case.model, feed), case.tolerance)


def test_the_values_of_a_shape_tensor_may_be_a_list(host: Device) -> None:
    x = reshape().feeds[0]["x"]
    with open_session(host, reshape()) as session:
        for shape in ([3, 4], np.array([12, 1], np.int32), (1, 12)):
            y = session.infer(x=x, shape=shape)["y"]
            np.testing.assert_array_equal(y, x.reshape(*shape))


# Wrong inputs -----------------------------------------------------------------------------------


def refused(
    session: Session,
    recorder: Recorder,
    kind: type[TrtRuntimeError],
    message: str,
    *arrays: Any,
    **named: Any,
) -> None:
    """The call raises exactly that, and neither copies nor runs anything."""
    recorder.calls.clear()
    with pytest.raises(kind, match=message) as caught:
        session.infer(*arrays, **named)
    assert type(caught.value) is kind
    work = [
        call
        for call in recorder.calls
        if call.startswith(("cuMemcpy", "cuMemset", "cuLaunch", "cuGraph"))
        or "execute" in call
        or "enqueue" in call
    ]
    assert not work


def assert_works(session: Session, case: Any) -> None:
    feed = case.feeds[0]
    assert_matches(session.infer(feed), reference(case.model, feed), case.tolerance)


X = image()
OBJECTS = np.full((1, 3, 8, 8), None)

WRONG_INPUTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[InputError], str]] = {
    "unknown name": ((), {"x": X, "z": X}, InputError, "unknown input 'z'; the engine takes 'x'"),
    "missing": ((), {}, InputError, r"missing input 'x'.*float32\[1, 3, 8, 8\]"),
    "misspelt": ((), {"X": X}, InputError, "unknown input 'X' and missing input 'x'"),
    "in a mapping": (({"z": X},), {}, InputError, "unknown input 'z' and missing input 'x'"),
    "too many": ((X, X), {}, InputError, "2 arrays were given and the engine has 1 inputs"),
    "given twice": ((X,), {"x": X}, InputError, "'x' was given twice"),
    "twice in a mapping": (({"x": X},), {"x": X}, InputError, "'x' was given twice"),
    "rank": ((X[0],), {}, ShapeError, r"has 4 dimensions.*came 3, \[3, 8, 8\]"),
    "fixed size": ((X[:, :, :7],), {}, ShapeError, r"\[1, 3, 8, 8\]; came .* differs at axis 2"),
    "ragged": (([[1.0], [1.0, 2.0]],), {}, InputError, "cannot be made an array"),
    "complex": ((X.astype(np.complex64),), {}, DtypeError, "complex64 would lose values"),
    "object": ((OBJECTS,), {}, DtypeError, "takes float32; object would lose"),
    "string": ((X.astype(str),), {}, DtypeError, "takes float32; str"),
    "bytes": ((X.astype("S4"),), {}, DtypeError, "takes float32; bytes"),
    "dates": ((np.zeros(X.shape, "M8[s]"),), {}, DtypeError, "takes float32; datetime"),
    "records": ((np.zeros(X.shape, [("a", "f4")]),), {}, DtypeError, "takes float32; void32"),
    "nothing": ((np.zeros((0, 3, 8, 8), np.float32),), {}, ShapeError, "differs at axis 0"),
}


@pytest.mark.parametrize(
    ("arrays", "named", "kind", "message"), WRONG_INPUTS.values(), ids=WRONG_INPUTS
)
def test_a_wrong_input_is_refused_before_anything_runs(
    host: Device,
    recorder: Recorder,
    arrays: tuple[Any, ...],
    named: dict[str, Any],
    kind: type[InputError],
    message: str,
) -> None:
    with open_session(host, static()) as session:
        refused(session, recorder, kind, message, *arrays, **named)
        assert_works(session, static())
        refused(session, recorder, kind, message, *arrays, **named)  # also once warm


WRONG_INTEGERS: dict[str, tuple[Any, str]] = {
    "float": (np.zeros((3, 4), np.float32), "takes int64; float32 would lose values"),
    "too large": (np.full((3, 4), 2**63, np.uint64), "values from 9223372036854775808 to"),
    "huge python ints": ([[2**70] * 4] * 3, "takes int64; object"),
}


@pytest.mark.parametrize(("a", "message"), WRONG_INTEGERS.values(), ids=WRONG_INTEGERS)
def test_whole_numbers_that_would_change_are_refused(
    host: Device, recorder: Recorder, a: Any, message: str
) -> None:
    b = np.zeros((3, 4), np.int64)
    with open_session(host, integers()) as session:
        refused(session, recorder, DtypeError, message, a, b)
        assert_works(session, integers())


def test_narrowing_is_refused_where_one_value_overflows(host: Device, recorder: Recorder) -> None:
    model = make_model(
        [helper.make_node("Mul", ["a", "a"], ["y"])],
        {"a": (TensorProto.INT32, [3])},
        {"y": (TensorProto.INT32, [3])},
    )
    with Session(model, device=host) as session:
        fits = np.array([0, -7, 2**31 - 1])
        assert session.infer(fits % 1000)["y"].dtype == np.int32
        for value in (2**31, -(2**31) - 1):
            refused(session, recorder, DtypeError, str(value), np.array([0, 1, value]))
        session.infer(fits * 0 - 1)


def test_numbers_are_no_truth_values(host: Device, recorder: Recorder) -> None:
    model = make_model(
        [helper.make_node("Not", ["a"], ["y"])],
        {"a": (TensorProto.BOOL, [3])},
        {"y": (TensorProto.BOOL, [3])},
    )
    with Session(model, device=host) as session:
        refused(session, recorder, DtypeError, "takes bool; int64", np.array([0, 1, 2]))
        np.testing.assert_array_equal(session.infer([True, False, True])["y"], [0, 1, 0])
    with open_session(host, booleans()) as session:
        assert_works(session, booleans())


@pytest.mark.parametrize("batch", [0, 17, 1000])
def test_a_shape_outside_every_profile_prints_their_ranges(
    host: Device, recorder: Recorder, batch: int
) -> None:
    x = np.zeros((batch, 3, 8, 8), np.float32)
    with open_session(host, dynamic()) as session:
        with pytest.raises(ShapeError) as caught:
            session.infer(x)
        message = str(caught.value)
        assert f"'x' [{batch}, 3, 8, 8]" in message
        assert "profile 0: 'x' [1, 3, 8, 8] .. [2, 3, 8, 8] .. [4, 3, 8, 8]" in message
        assert "profile 1: 'x' [1, 3, 8, 8] .. [16, 3, 8, 8] .. [16, 3, 8, 8]" in message
        refused(session, recorder, ShapeError, "no optimisation profile", x)
        assert_works(session, dynamic())


def test_shape_values_outside_the_profile_are_refused(host: Device, recorder: Recorder) -> None:
    x = reshape().feeds[0]["x"]
    with open_session(host, reshape()) as session:
        message = r"'shape' = \[13, 1\].*'shape' \[1, 1\] .. \[3, 4\] .. \[12, 12\]"
        refused(session, recorder, ShapeError, message, x=x, shape=[13, 1])
        refused(session, recorder, DtypeError, "would lose", x=x, shape=[3.0, 4.0])
        refused(session, recorder, ShapeError, "differs at axis 0", x=x, shape=[12])
        assert_works(session, reshape())


def test_an_object_that_will_not_be_an_array_is_refused(host: Device, recorder: Recorder) -> None:
    class OnTheGpu:
        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with open_session(host, static()) as session:
        refused(session, recorder, InputError, "cuda:0 device type", OnTheGpu())
        assert_works(session, static())


# What a session is made from --------------------------------------------------------------------


def test_a_session_opens_every_kind_of_model(host: Device, tmp_path: Path) -> None:
    case = static()
    onnx.save(case.model, tmp_path / "net.onnx")
    onnx.save(case.model, tmp_path / "net2.ONNX")
    plan = build_plan(case.model, device=host)
    for name in ("net.engine", "net.plan", "net"):
        (tmp_path / name).write_bytes(plan)
    models: list[Any] = [
        tmp_path / "net.onnx",
        str(tmp_path / "net.onnx"),
        tmp_path / "net2.ONNX",
        tmp_path / "net.engine",
        str(tmp_path / "net.plan"),
        tmp_path / "net",
        case.model,
        case.model.SerializeToString(),
        bytearray(case.model.SerializeToString()),
        plan,
        memoryview(plan),
    ]
    for model in models:
        with Session(model, device=host) as session:
            assert_works(session, case)


def test_a_borrowed_engine_stays_open(host: Device) -> None:
    with Engine.build(static().model, device=host) as engine:
        for _ in range(2):
            with Session(engine) as session:
                assert session.engine is engine
                assert session.device is host
                assert_works(session, static())
            assert not engine.closed


def test_a_session_releases_the_engine_and_device_it_opened(tmp_path: Path) -> None:
    onnx.save(static().model, tmp_path / "net.onnx")
    with Session(tmp_path / "net.onnx", device="host") as session:
        assert_works(session, static())
        engine, device = session.engine, session.device
    assert engine.closed
    assert device.closed
    with pytest.raises(ClosedError, match="Session 'net' is closed"):
        session.infer(image())


@pytest.mark.parametrize("contexts", [0, -1])
def test_a_session_without_contexts_is_refused(host: Device, contexts: int) -> None:
    with pytest.raises(InputError, match=f"at least one context, not {contexts}"):
        Session(static().model, device=host, contexts=contexts)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "host"},
        {"config": BuildConfig()},
        {"profiles": [Profile({"x": (1, 3, 8, 8)})]},
        {"tensorrt": "tensorrt_rtx"},
        {"lean_library": "libnvinfer_lean.so"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_an_engine_would_ignore_are_refused(
    host: Device, options: dict[str, Any]
) -> None:
    (name,) = options
    with Engine.build(static().model, device=host) as engine:
        with pytest.raises(InputError, match=f"{name} cannot be given with an Engine"):
            Session(engine, **options)
        plan = engine.serialize()
    if name in ("config", "profiles"):
        with pytest.raises(InputError, match=f"{name} cannot be given with a plan"):
            Session(plan, device=host, **options)


@pytest.mark.parametrize("name", ["no.onnx", "no.engine", "no"])
def test_a_missing_file_is_named(host: Device, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no .*{name}"):
        Session(tmp_path / name, device=host)


def test_a_folder_is_no_model(host: Device, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match=r"folder.onnx.*cannot be read"):
        Session(tmp_path / "folder.onnx", device=host)
    with pytest.raises(NotAPlanError, match=r"cannot be read.*directory"):
        Session(tmp_path, device=host)


def test_an_empty_file_is_no_model(host: Device, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    (tmp_path / "net.engine").touch()
    with pytest.raises(ModelError, match=r"cannot parse the ONNX model.*net\.onnx"):
        Session(tmp_path / "net.onnx", device=host)
    for model in (tmp_path / "net.engine", b""):
        with pytest.raises(NotAPlanError, match="it is empty"):
            Session(model, device=host)


@pytest.mark.parametrize("model", [None, 7, object(), [static().model]], ids=repr)
def test_something_else_is_no_model(host: Device, model: Any) -> None:
    with pytest.raises(InputError, match=r"a path, bytes or an onnx\.ModelProto, not"):
        Session(model, device=host)


# Memory for recent shapes -----------------------------------------------------------------------


def device_bytes(device: Device) -> int:
    free, total = device.memory_info()
    return total - free


def test_memory_is_kept_for_recent_shapes_only(host: Device) -> None:
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["n"])},
    )
    profile = Profile({"x": ((1,), (64,), (4096,))})
    with Session(model, profiles=[profile], device=host) as session:
        idle = device_bytes(host)
        sizes = [1024 + n for n in range(3 * KEPT_SHAPES)]
        for size in sizes:
            session.infer(np.ones(size, np.float32))
            used = device_bytes(host) - idle
            assert used <= KEPT_SHAPES * 2 * 4 * max(sizes)
        assert used == sum(2 * 4 * size for size in sizes[-KEPT_SHAPES:])
        # The least recently used goes: 1024 comes back, the oldest of the kept ones leaves.
        session.infer(np.ones(sizes[-KEPT_SHAPES], np.float32))
        session.infer(np.ones(1024, np.float32))
        kept = [1024, sizes[-KEPT_SHAPES], *sizes[1 - KEPT_SHAPES :][1:]]
        assert device_bytes(host) - idle == sum(2 * 4 * size for size in kept)
        y = session.infer(np.full(sizes[0], -1, np.float32))["y"]
        assert y.shape == (sizes[0],)
        assert not y.any()


def test_a_kept_shape_allocates_nothing(host: Device, recorder: Recorder) -> None:
    with open_session(host, dynamic()) as session:
        for batch in (1, 2, 16):
            session.infer(image(batch=batch))
        recorder.calls.clear()
        for batch in (2, 16, 1):
            session.infer(image(batch=batch))
    assert not [call for call in recorder.calls if "Alloc" in call]


# Which device -----------------------------------------------------------------------------------


@without_gpu
def test_auto_falls_back_to_the_host_device_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRT_RUNTIME_DEVICE", raising=False)
    for which in ({}, {"device": None}, {"device": "auto"}):
        with pytest.warns(HostDeviceWarning, match="timings mean nothing") as caught:
            session = Session(static().model, **which)
        with session:
            assert session.device.kind == "host"
            assert_works(session, static())
        assert len(caught) == 1


@without_gpu
def test_the_warning_names_the_users_line() -> None:
    with pytest.warns(HostDeviceWarning) as caught:
        Session(static().model, device="auto").close()
    assert caught[0].filename == __file__


@without_gpu
@pytest.mark.parametrize("which", ["cuda", "cuda:1", 0, 1])
def test_a_gpu_that_was_insisted_on_and_is_not_there_is_an_error(which: Any) -> None:
    with pytest.raises(NoDeviceError, match="device='host'"):
        Session(static().model, device=which)


def test_the_environment_chooses_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "host")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Session(static().model) as session:
            assert session.device.kind == "host"
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "gpu")
    with pytest.raises(InputError, match="device 'gpu' is not understood"):
        Session(static().model)
    with Session(static().model, device="host") as session:  # an argument goes before it
        assert session.device.kind == "host"


@pytest.mark.parametrize(
    "which",
    [
        "gpu",
        "CUDA",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "host:a",
        "",
        "cpu",
        1.0,
        True,
        b"host",
    ],
)
def test_an_unknown_device_is_refused(which: Any) -> None:
    with pytest.raises(InputError, match="expected 'auto', 'host', 'cuda', 'cuda:N' or N"):
        Device(which)


def test_a_host_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NoDeviceError, match="host:1 does not exist"):
        Session(static().model, device="host:1")


# The two programs of the architecture -----------------------------------------------------------


@pytest.fixture
def yolov3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A tiny ``yolov3.onnx`` with the sample's tensor names, in the working directory."""
    model = make_model(
        [
            helper.make_node("Conv", ["000_net", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("LeakyRelu", ["c"], ["082_convolutional"], alpha=0.1),
        ],
        {"000_net": (TensorProto.FLOAT, [1, 3, 16, 16])},
        {"082_convolutional": (TensorProto.FLOAT, [1, 255, 16, 16])},
        {"w": np.random.default_rng(0).standard_normal((255, 3, 3, 3)).astype(np.float32)},
        name="yolov3",
    )
    onnx.save(model, tmp_path / "yolov3.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "host")
    return np.random.default_rng(1).random((1, 3, 16, 16)).astype(np.float32)


def test_both_programs_of_the_architecture_run_as_written(yolov3: np.ndarray) -> None:
    img = image = yolov3

    with Session("yolov3.onnx") as s:
        outputs = s.infer(img)
        s.engine.save("yolov3.engine")

    want = reference(onnx.load("yolov3.onnx"), {"000_net": img})
    assert list(outputs) == ["082_convolutional"]
    assert_matches(outputs, want, 1e-4)

    with (
        Engine.load("yolov3.engine") as engine,
        engine.create_execution_context() as context,
        Stream() as stream,
        BindingSet(context) as bindings,
    ):
        bindings["000_net"].host[...] = image
        bindings.copy_to_device(stream)
        context.enqueue(bindings, stream)
        bindings.copy_to_host(stream)
        stream.synchronize()
        outputs = bindings.outputs()

    assert_matches(outputs, want, 1e-4)
