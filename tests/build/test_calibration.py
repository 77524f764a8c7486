"""Calibration: the examples reach the device, once for each data and model, and nothing leaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_runtime import (
    BuildConfig,
    Calibration,
    Device,
    DtypeError,
    Engine,
    InputError,
    Profile,
    ShapeError,
    UnsupportedError,
    build_plan,
)

from ..models import Feed, dynamic, int8, reshape, several, static

INT8 = BuildConfig(precision="int8")


def header(plan: bytes) -> Any:
    """What the host's plan says of itself."""
    length = int.from_bytes(plan[8:16], "little")
    return json.loads(plan[16 : 16 + length])


def images(count: int, scale: float = 1.0) -> list[Feed]:
    draw = np.random.default_rng(count)
    return [{"x": (draw.standard_normal((1, 3, 8, 8)) * scale).astype("f4")} for _ in range(count)]


class Counted:
    """Data that counts how often it is gone through."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data
        self.begun = 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(self.data)


def test_every_batch_reaches_the_builder(host: Device) -> None:
    data = images(5)
    data[3]["x"][0, 0, 0, 0] = -77.0
    ranges = header(build_plan(static().model, INT8, calibration=data, device=host))
    assert ranges["calibrated_ranges"]["x"] == 77.0
    assert ranges["calibrated_ranges"]["y"] > 0


def test_a_model_with_one_input_takes_arrays(host: Device) -> None:
    named = build_plan(static().model, INT8, calibration=images(2), device=host)
    bare = [batch["x"] for batch in images(2)]
    assert build_plan(static().model, INT8, calibration=bare, device=host) == named
    assert build_plan(static().model, INT8, calibration=iter(bare), device=host) == named


def test_several_inputs_are_told_apart_by_name(host: Device) -> None:
    data = [{"first": np.full((2, 3), 3.0), "second": np.full((2, 3), 7.0)}]
    plan = build_plan(several().model, INT8, calibration=data, device=host)
    ranges = header(plan)["calibrated_ranges"]
    assert (ranges["first"], ranges["second"]) == (3.0, 7.0)


def test_a_dynamic_model_is_calibrated_at_the_first_optimum(host: Device) -> None:
    case = dynamic()
    shape = case.profiles[0]["x"].opt
    data = [np.full(shape, 5, np.float32)]
    with Engine.build(
        case.model, INT8, profiles=case.profiles, calibration=data, device=host
    ) as engine:
        assert len(engine.profiles) == len(case.profiles)
    with pytest.raises(ShapeError, match=r"'x' has shape \[1, 3, 8, 8\], .* at \[2, 3, 8, 8\]"):
        build_plan(
            case.model,
            INT8,
            profiles=case.profiles,
            calibration=[np.zeros((1, 3, 8, 8), np.float32)],
            device=host,
        )


def test_the_same_data_and_model_are_calibrated_once(host: Device) -> None:
    data = Counted(images(3))
    calibration = Calibration(data)
    first = build_plan(static().model, INT8, calibration=calibration, device=host)
    begun = data.begun
    assert build_plan(static().model, INT8, calibration=calibration, device=host) == first
    assert data.begun - begun <= 2  # a look at the first batch, and an iterator that is not used
    other = build_plan(
        dynamic().model,
        INT8,
        profiles=[Profile({"x": (1, 3, 8, 8)})],
        calibration=calibration,
        device=host,
    )
    assert header(other)["calibrated_ranges"]["x"] > 0


def test_a_table_file_serves_equal_data_in_another_object(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "tables" / "int8.json"
    build_plan(static().model, INT8, calibration=Calibration(images(3), table=path), device=host)
    told = json.loads(path.read_text())
    (key,) = told["tables"]
    again = Calibration(images(3), table=path)
    table = again.table(key)
    assert table is not None
    build_plan(static().model, INT8, calibration=again, device=host)
    assert json.loads(path.read_text()) == told
    build_plan(static().model, INT8, calibration=Calibration(images(4), table=path), device=host)
    assert len(json.loads(path.read_text())["tables"]) == 2


def test_a_damaged_table_file_is_replaced(
    host: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "int8.json"
    path.write_text("no tables")
    calibration = Calibration(images(1), table=path)
    assert build_plan(static().model, INT8, calibration=calibration, device=host)
    assert "holds no calibration tables" in caplog.text
    assert json.loads(path.read_text())["tables"]


@pytest.mark.parametrize("where", [0, 17, 191])
def test_the_digest_is_of_every_value(where: int) -> None:
    data = images(2)
    digest = Calibration(data).digest
    assert Calibration(images(2)).digest == digest
    data[1]["x"].reshape(-1)[where] += 1
    assert Calibration(data).digest != digest


def test_the_digest_is_of_names_types_shapes_and_order_too() -> None:
    x = np.zeros((2, 3), np.float32)
    digests = {
        Calibration(data).digest
        for data in (
            [{"a": x}],
            [{"b": x}],
            [{"a": x}, {"a": x}],
            [{"a": x.reshape(3, 2)}],
            [{"a": x.astype(np.int32)}],
            [],
        )
    }
    assert len(digests) == 6
    one, two = {"a": x, "b": x + 1}, {"b": x + 1, "a": x}
    assert Calibration([one]).digest == Calibration([two]).digest


@pytest.mark.parametrize(
    ("data", "kind", "told"),
    [
        ([], InputError, "the iterable is empty"),
        ([{"y": np.zeros(1)}], InputError, "batch 0 has 'y'; the model's inputs are 'x'"),
        ([np.zeros((2, 3, 8, 8))], ShapeError, r"has shape \[2, 3, 8, 8\]"),
        ([np.zeros((1, 3, 8, 8), complex)], DtypeError, "takes float32, and complex128"),
        ([np.array([object()])], InputError, "batch 0"),
    ],
    ids=["empty", "name", "shape", "dtype", "object"],
)
def test_data_that_does_not_fit_is_refused(
    host: Device, data: Any, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        build_plan(static().model, INT8, calibration=data, device=host)


@pytest.mark.parametrize("data", [{"x": np.zeros(1)}, b"bytes", 3])
def test_what_is_no_iterable_of_batches_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="takes an iterable of batches"):
        Calibration(data)


def test_a_later_batch_that_does_not_fit_comes_out_of_the_build(host: Device) -> None:
    data = [*images(2), {"x": np.zeros((1, 3, 8, 9), np.float32)}]
    with pytest.raises(ShapeError, match="calibration batch 2"):
        build_plan(static().model, INT8, calibration=Counted(data), device=host)


def test_what_the_data_raises_comes_out_of_the_build(host: Device) -> None:
    def broken() -> Iterator[Feed]:
        yield from images(1)
        raise LookupError("disk full")

    class Broken:
        def __iter__(self) -> Iterator[Feed]:
            return broken()

    with pytest.raises(LookupError, match="disk full"):
        build_plan(static().model, INT8, calibration=Broken(), device=host)


def test_shape_tensors_cannot_be_calibrated(host: Device) -> None:
    case = reshape()
    with pytest.raises(UnsupportedError, match="'shape' is a shape tensor"):
        build_plan(
            case.model, INT8, profiles=case.profiles, calibration=[case.feeds[0]], device=host
        )


def test_calibrated_inputs_keep_the_models_types(host: Device) -> None:
    config = BuildConfig(precision="int8", io_types={"x": "float16"})
    with pytest.raises(InputError, match=r"leave 'x' out of io_types"):
        build_plan(static().model, config, calibration=images(1), device=host)


def test_int8_needs_data_or_a_quantised_model(host: Device) -> None:
    with pytest.raises(InputError, match=r"needs a model with QuantizeLinear.*calibration="):
        build_plan(static().model, INT8, device=host)
    assert build_plan(int8().model, INT8, device=host)
    with pytest.raises(InputError, match="ignore the calibration"):
        build_plan(int8().model, INT8, calibration=int8().feeds, device=host)
