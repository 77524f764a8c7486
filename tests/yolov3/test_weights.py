"""Reading and writing ``.weights`` files: versions, order, exact length, byte offsets."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trt_runtime import InputError, WeightsError
from trt_runtime.yolov3 import (
    Network,
    Weights,
    random_weights,
    read_weights,
    to_onnx,
    write_weights,
    yolov3,
    yolov3_tiny,
)

from ..models import reference

#: 3 filters of 1x2x2 with batch normalisation, then 6 filters of 3x1x1 without: 24 + 24 numbers.
NETWORK = Network.parse(
    "[net]\nwidth=4\nheight=4\nchannels=1\n"
    "[convolutional]\nfilters=3\nsize=2\nbatch_normalize=1\nactivation=leaky\n"
    "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n"
    "[yolo]\nanchors=1,1\nclasses=1\n",
    "small.cfg",
)
COUNT = 48
VALUES = np.arange(COUNT, dtype="<f4").tobytes()
HEADER = struct.pack("<3iq", 0, 2, 5, 7)


def test_values_are_bias_scale_mean_variance_kernel() -> None:
    weights = read_weights(HEADER + VALUES, NETWORK)
    first, second = weights[1], weights[2]
    assert first.scale is not None
    assert first.mean is not None
    assert first.variance is not None
    np.testing.assert_array_equal(first.bias, [0, 1, 2])
    np.testing.assert_array_equal(first.scale, [3, 4, 5])
    np.testing.assert_array_equal(first.mean, [6, 7, 8])
    np.testing.assert_array_equal(first.variance, [9, 10, 11])
    np.testing.assert_array_equal(first.kernel, np.arange(12, 24).reshape(3, 1, 2, 2))
    np.testing.assert_array_equal(second.bias, np.arange(24, 30))
    np.testing.assert_array_equal(second.kernel, np.arange(30, 48).reshape(6, 3, 1, 1))
    assert second.scale is second.mean is second.variance is None


@pytest.mark.parametrize(
    ("header", "version", "seen"),
    [
        (struct.pack("<3ii", 0, 1, 0, 2**31 - 1), (0, 1, 0), 2**31 - 1),
        (struct.pack("<3iq", 0, 2, 0, 2**40), (0, 2, 0), 2**40),
        (struct.pack("<3iq", 0, 2, 5, 32013312), (0, 2, 5), 32013312),
        (struct.pack("<3iq", 1, 0, 0, 3), (1, 0, 0), 3),
    ],
)
def test_images_seen_are_of_the_versions_width(
    header: bytes, version: tuple[int, int, int], seen: int, tmp_path: Path
) -> None:
    weights = read_weights(header + VALUES, NETWORK)
    assert (weights.version, weights.seen) == (version, seen)
    assert weights[1].bias[1] == 1
    path = tmp_path / "again.weights"
    write_weights(path, NETWORK, weights)
    assert path.read_bytes() == header + VALUES


@pytest.mark.parametrize("source", ["path", "str", "bytes", "bytearray", "memoryview"])
def test_what_was_written_is_read(source: str, tmp_path: Path) -> None:
    path = tmp_path / "random.weights"
    wrote = random_weights(NETWORK, seed=3)
    write_weights(path, NETWORK, wrote)
    sources: dict[str, Any] = {"path": path, "str": str(path)}
    for kind in (bytes, bytearray, memoryview):
        sources[kind.__name__] = kind(path.read_bytes())
    read = read_weights(sources[source], NETWORK)
    for index in (1, 2):
        for part in ("bias", "scale", "mean", "variance", "kernel"):
            one, other = getattr(wrote[index], part), getattr(read[index], part)
            assert (one is None) is (other is None)
            if one is not None:
                assert other.dtype == np.float32
                np.testing.assert_array_equal(one, other)


# Wrong files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (b"", 0, "ends within the header of 20 bytes"),
        (HEADER[:11], 11, "ends within the header of 20 bytes"),
        (HEADER[:19], 19, "ends within the header of 20 bytes"),
        (struct.pack("<3ih", 0, 1, 0, 0), 14, "ends within the header of 16 bytes"),
        (struct.pack("<3iq", -1, 2, 0, 0) + VALUES, 0, "no Darknet .weights file: version -1.2.0"),
        (b"PK\3\4" + HEADER[4:] + VALUES, 0, "it is no Darknet .weights file"),
        (struct.pack("<3iq", 0, 1000, 0, 0) + VALUES, 4, "it is no Darknet .weights file"),
        (HEADER, 20, "the file ends within the bias of 001_convolutional (line 5 of the cfg), 192"),
        (HEADER + VALUES[:50], 70, "within the kernel of 001_convolutional"),
        (
            HEADER + VALUES[:-1],
            211,
            "the kernel of 002_convolutional (line 10 of the cfg), 1 bytes",
        ),
        (HEADER + VALUES + b"\0", 212, "the file goes on for 1 more"),
        (HEADER + VALUES * 2, 212, "the file goes on for 192 more"),
        # An old header and new values, or the other way round: four bytes too many or too few.
        (struct.pack("<3iq", 0, 1, 0, 0) + VALUES, 208, "goes on for 4 more"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "bytes"])
def test_a_wrong_file_is_refused_at_its_byte(
    kind: str, data: bytes, offset: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.weights"
    path.write_bytes(data)
    source = str(path) if kind == "file" else "the weights"
    with pytest.raises(WeightsError) as caught:
        read_weights(path if kind == "file" else data, NETWORK)
    assert message in caught.value.message
    assert caught.value.offset == offset
    assert caught.value.source == source
    assert str(caught.value).startswith(f"{source}, byte {offset}: ")


def test_a_wrong_length_names_what_is_needed() -> None:
    with pytest.raises(
        WeightsError, match=r"small\.cfg needs 212 bytes, 20 of header and 4 for each of 48"
    ):
        read_weights(HEADER, NETWORK)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (4, np.nan, "the scale of 001_convolutional has nan here, where a finite number"),
        (9, -1, "the variance of 001_convolutional has -1.0 here, where a finite number from 0"),
        (9, np.inf, "the variance of 001_convolutional has inf"),
        (47, -np.inf, "the kernel of 002_convolutional has -inf"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_its_byte(
    index: int, value: float, message: str
) -> None:
    values = np.arange(COUNT, dtype="<f4")
    values[index] = value
    with pytest.raises(WeightsError) as caught:
        read_weights(HEADER + values.tobytes(), NETWORK)
    assert message in caught.value.message
    assert caught.value.offset == 20 + 4 * index


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no such file \(in "):
        read_weights(tmp_path / "none.weights", NETWORK)
    for wrong in (tmp_path, "a\0b"):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_weights(wrong, NETWORK)
        with pytest.raises(WeightsError, match="cannot be written"):
            write_weights(wrong, NETWORK, random_weights(NETWORK))


def test_weights_of_another_network_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "w"
    weights = random_weights(NETWORK)
    flat = replace(weights[1], kernel=weights[1].kernel.ravel())
    normalized = replace(weights[2], scale=np.ones(6, np.float32))
    for wrong, message in (
        (Weights({}), "the weights have none for 001_convolutional of small.cfg"),
        (Weights({**weights.layers, 1: flat}), r"kernel .* must have shape \(3, 1, 2, 2\)"),
        (Weights({**weights.layers, 2: normalized}), "scale of 002_convolutional must be None"),
        (replace(weights, seen=2**63), "do not fit into a header"),
        (replace(weights, version=(0, 1, 0), seen=2**31), "do not fit into a header"),
    ):
        with pytest.raises(InputError, match=message):
            write_weights(path, NETWORK, wrong)
    assert not path.exists()


@given(st.binary(max_size=260))
@example(HEADER + b"\xff" * 4 * COUNT)
@example(HEADER + b"\x7f" * 4 * COUNT)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_weights_or_an_error(data: bytes) -> None:
    read_anything(data)


@given(values=st.binary(min_size=4 * COUNT, max_size=4 * COUNT))
@example(values=np.full(COUNT, 3e38, "<f4").tobytes())
def test_any_values_of_the_right_length_are_weights_or_an_error(values: bytes) -> None:
    read_anything(HEADER + values)


def read_anything(data: bytes) -> None:
    try:
        model = to_onnx(NETWORK, read_weights(data, NETWORK))
    except WeightsError as error:
        if error.offset is None or 0 <= error.offset <= len(data):
            return
        raise
    for tensor in model.graph.initializer:
        assert np.isfinite(np.frombuffer(tensor.raw_data, np.float32)).all()


def test_a_large_network_and_a_small_file_cost_no_memory(tmp_path: Path) -> None:
    network = Network.parse(yolov3().replace("filters=1024", "filters=10000"))
    assert 4 * network.parameters > 1_000_000_000
    path = tmp_path / "small.weights"
    path.write_bytes(HEADER)
    tracemalloc.start()
    try:
        for source in (path, HEADER):
            with pytest.raises(WeightsError):
                read_weights(source, network)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_large_file_for_a_small_network_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.weights"
    with path.open("wb") as file:
        file.write(HEADER)
        file.truncate(1 << 33)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="goes on for"):
            read_weights(path, NETWORK)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Random weights ---------------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed() -> None:
    one, again, other = (random_weights(NETWORK, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[1].kernel, again[1].kernel)
    assert not np.array_equal(one[1].kernel, other[1].kernel)
    assert all(
        array.dtype == np.float32
        for array in (one[1].kernel, one[1].bias, one[1].scale, one[1].mean, one[1].variance)
        if array is not None
    )


@pytest.mark.parametrize("text", [yolov3, yolov3_tiny], ids=lambda text: text.__name__)
def test_random_weights_keep_the_signal_alive_and_within_float16(text: Any) -> None:
    network = Network.parse(text(64, classes=1))
    model = to_onnx(network, random_weights(network))
    outputs = [output.name for output in model.graph.output]
    for node in model.graph.node:  # every layer's result, not the heads' only
        if node.output[0] not in outputs:
            model.graph.output.add(name=node.output[0])
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    values = reference(model, {"000_net": image})
    for name, array in values.items():
        assert np.abs(array).max() < 2000, name  # float16 ends at 65504
        assert array.std() > 0.05, name
    other = reference(model, {"000_net": 1 - image})
    assert all(np.abs(other[name] - values[name]).max() > 0.1 for name in outputs)
