"""Reading ``.cfg`` files: what layers come of them, and what is said of those that are wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trt_runtime import CfgError, TrtRuntimeError
from trt_runtime.yolov3 import Head, Network, yolov3, yolov3_tiny
from trt_runtime.yolov3.cfg import Convolutional, MaxPool, Route, Shortcut, Upsample, Yolo

NET = "[net]\nwidth=64\nheight=32\n"
CONV = "[convolutional]\nfilters=21\nsize=1\nactivation=linear\n"
YOLO = "[yolo]\nmask=0,2,1\nanchors=1,2, 3,4, 5,6\nclasses=2\nnum=3\n"


def test_every_layer_has_sources_shape_and_line() -> None:
    network = Network.parse(
        "# comments and blank lines count as lines\n"
        "[net]\nwidth = 64\nheight=32 ; of the image\nchannels=1\nmomentum=0.9\n"
        "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nbatch_normalize=1\nactivation=leaky\n"
        "[maxpool]\nsize=2\nstride=2\n"
        "[upsample]\nstride=2\n"
        "[shortcut]\nfrom=-3\nactivation=leaky\n"
        "[route]\nlayers = -1, 0\n"
        f"{CONV}{YOLO}"
    )
    assert (network.width, network.height, network.channels) == (64, 32, 1)
    assert network.layers == (
        Convolutional(1, (0,), (8, 16, 32), 7, 1, 8, 3, 2, 1, True, "leaky"),
        MaxPool(2, (1,), (8, 8, 16), 14, 2, 2, (0, 0, 0, 0)),
        Upsample(3, (2,), (8, 16, 32), 17, 2),
        Shortcut(4, (3, 1), (8, 16, 32), 19, "leaky"),
        Route(5, (4, 1), (16, 16, 32), 22),
        Convolutional(6, (5,), (21, 16, 32), 24, 16, 21, 1, 1, 0, False, "linear"),
        Yolo(7, (6,), (21, 16, 32), 28, ((1, 2), (5, 6), (3, 4)), 2),
    )
    assert [layer.line for layer in network.layers] == [7, 14, 17, 19, 22, 24, 28]
    assert network.layers[0].name == "001_convolutional"
    assert network.convolutions == (network.layers[0], network.layers[5])
    assert network.parameters == 8 * (4 + 9) + 21 * (1 + 16)
    assert network.heads == (Head("006_convolutional", ((1, 2), (5, 6), (3, 4)), 2, (16, 32)),)
    assert network.heads[0].channels == 21


@pytest.mark.parametrize(
    ("options", "padding", "shape"),
    [
        ("size=2\nstride=1", (0, 0, 1, 1), (3, 32, 64)),
        ("size=2\nstride=2", (0, 0, 0, 0), (3, 16, 32)),
        ("size=5\nstride=1", (2, 2, 2, 2), (3, 32, 64)),
        ("size=3\nstride=5", (1, 1, 0, 0), (3, 7, 13)),
        ("size=2\nstride=2\npadding=0", (0, 0, 0, 0), (3, 16, 32)),
        ("stride=7", (3, 3, 0, 3), (3, 5, 10)),
    ],
)
def test_a_pool_is_padded_as_far_as_its_windows_reach(
    options: str, padding: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    pool = Network.parse(f"{NET}[maxpool]\n{options}\n{CONV}{YOLO}").layers[0]
    assert isinstance(pool, MaxPool)
    assert (pool.padding, pool.shape) == (padding, shape)


def test_forms_that_darknet_takes_are_taken() -> None:
    usual = Network.parse(f"{NET}[maxpool]\nsize=2\nstride=2\n{CONV}{YOLO}")
    network = Network.parse(
        "[network]\r\n  width = 64\r\nheight=32\r\n"
        "[max]\nsize =2 # pixels\nstride= 2\n"
        "[conv]\nfilters=21\nsize=1\nactivation = linear\n"
        "[yolo]\nmask = 0, 2,1\nanchors = 1.0,2,  3.,4, 5,6,\nclasses=2\nnum=3\n"
        "jitter=.3\nignore_thresh = .7\ntruth_thresh = 1\nrandom=1"
    )
    assert network == usual
    implied = YOLO.replace("mask=0,2,1\n", "").replace("num=3\n", "")
    assert Network.parse(NET + CONV + implied).heads[0].anchors == ((1, 2), (3, 4), (5, 6))


def test_options_that_change_nothing_are_taken() -> None:
    neutral = CONV + "groups=1\ndilation=1\nstopbackward=1\ndontload=0\n"
    modern = YOLO + "scale_x_y=1.0\nnew_coords=0\niou_loss=mse\nnms_kind=greedynms\n"
    assert Network.parse(NET + neutral + modern) == Network.parse(NET + CONV + YOLO)


@pytest.mark.parametrize(
    ("text", "line", "section", "message"),
    [
        ("", None, None, "begins with [net]; here there is no section at all"),
        (CONV + YOLO, 1, None, "begins with [net]; here there is [convolutional]"),
        ("width=3\n" + NET, 1, None, "expected [section] or option=value in a section"),
        (NET + "nonsense\n", 4, "net", "expected [section] or option=value, not 'nonsense'"),
        (NET + "[sam]\nfrom=1\n", 4, None, "'[sam]' is no section of YOLOv3; known are [conv"),
        (NET + "[convolutional\n", 4, None, "'[convolutional' is no section"),
        (NET + CONV, None, None, "there is no [yolo]"),
        (NET + NET + CONV + YOLO, 4, "net", "there is a [net] in line 1 already"),
        ("[net]\nwidth=8\n", 1, "net", "height= is missing"),
        ("[net]\nwidth=8\nheight=x\n", 3, "net", "height= takes an integer from 1, not 'x'"),
        ("[net]\nwidth=0\nheight=8\n", 2, "net", "width= takes an integer from 1, not '0'"),
        (NET + "[conv]\nfilters=2\nfilters=3\n", 6, "conv", "is given twice, first in line 5"),
        (NET + "[conv]\nfilters=2\nsize=1\n", 4, "conv", "activation= is missing"),
        (NET + CONV + "activation=mish\n", 8, "convolutional", "activation= is given twice"),
        (NET + CONV.replace("linear", "mish"), 7, "convolutional", "takes leaky or linear"),
        (NET + CONV + "pad=2\n", 8, "convolutional", "pad= takes 0 or 1, not '2'"),
        (NET + CONV + "strid=2\n", 8, "convolutional", "no option 'strid'; those known are"),
        (NET + CONV + "groups=2\n", 8, "convolutional", "groups=2 is not of YOLOv3"),
        (NET + CONV + "dontload=1\n", 8, "convolutional", "dontload=1 is not of YOLOv3"),
        (
            NET + CONV.replace("size=1", "size=33"),
            4,
            "convolutional",
            "a window of 33 does not fit into 32 pixels and 0 of padding",
        ),
        (NET + CONV + "[shortcut]\nfrom=0\n[route]\nlayers=3\n", 11, "route", "names layer 3, and"),
        (NET + "[shortcut]\nfrom=-1\n", 5, "shortcut", "names layer -1, and there are 0 layers"),
        (NET + CONV + "[shortcut]\nfrom=1\n", 9, "shortcut", "names layer 1, and there are 1"),
        (NET + CONV + "[shortcut]\nfrom=0,0\n", 9, "shortcut", "from= names one layer, not 2"),
        (
            NET + CONV + "[upsample]\n[shortcut]\nfrom=0\n",
            10,
            "shortcut",
            "the layer before it is 21x64x128 and layer 0 is 21x32x64; a sum needs one shape",
        ),
        (
            NET + CONV + "[upsample]\n[route]\nlayers=0,1\n",
            10,
            "route",
            "its layers are 21x32x64, 21x64x128; to be joined, rows and columns must agree",
        ),
        (NET + CONV + "[route]\nlayers=0,a\n", 9, "route", "integers with commas between, not 'a'"),
        (NET + CONV + "[route]\nlayers=\n", 9, "route", "integers with commas between, not ''"),
        (NET + CONV + "[route]\nlayers=0\ngroups=2\n", 10, "route", "groups=2 is not of YOLOv3"),
        (NET + CONV + "[upsample]\nscale=.5\n", 9, "upsample", "scale=.5 is not of YOLOv3"),
        (NET + "[maxpool]\nsize=2\npadding=2\n", 6, "maxpool", "that see nothing of the image"),
        (NET + CONV + YOLO + CONV, 13, "convolutional", "the [yolo] of line 8, which nothing"),
        (NET + CONV + YOLO + "[route]\nlayers=1\n", 14, "route", "layer 1 is the [yolo] of line 8"),
        (NET + YOLO, 4, "yolo", "the layer before a [yolo] must be a [convolutional]"),
        (NET + CONV + "[upsample]\n" + YOLO, 9, "yolo", "must be a [convolutional], its output"),
        (NET + CONV + YOLO.replace("num=3", "num=4"), 10, "yolo", "num=4 anchors, 8 positive"),
        (NET + CONV + YOLO.replace("5,6", "5,0"), 10, "yolo", "the least of them 0"),
        (NET + CONV + YOLO.replace("5,6", "5,1e3"), 10, "yolo", "numbers with commas between"),
        (NET + CONV + YOLO.replace("0,2,1", "0,3"), 9, "yolo", "anchors from 0 to 2, not 3"),
        (NET + CONV + YOLO.replace("0,2,1", "0,1"), 8, "yolo", "need 14 channels; the [conv"),
        (NET + CONV + YOLO + "scale_x_y=1.2\n", 13, "yolo", "scale_x_y=1.2 is not of YOLOv3"),
        (
            NET + CONV + YOLO + "[route]\nlayers=0\n" + CONV.replace("21", "24")
            + YOLO.replace("classes=2", "classes=3"),
            19,
            "yolo",
            "classes=3 here and classes=2 in the [yolo] of line 8",
        ),
    ],
)  # fmt: skip
def test_an_error_names_line_section_and_what_was_expected(
    text: str, line: int | None, section: str | None, message: str
) -> None:
    with pytest.raises(CfgError) as caught:
        Network.parse(text, "my.cfg")
    error = caught.value
    assert message in error.message
    assert (error.source, error.line, error.section) == ("my.cfg", line, section)
    where = "my.cfg" + (f", line {line}" if line else "") + (f", [{section}]" if section else "")
    assert str(error).startswith(f"{where}: ")


# Files ------------------------------------------------------------------------------------------


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + yolov3_tiny(64).replace("\n", "\r\n").encode())
    assert Network.load(path) == Network.parse(yolov3_tiny(64))
    assert Network.load(str(path)).source == str(path)
    path.write_text(NET, encoding="utf-8")
    with pytest.raises(CfgError, match=r"t\.cfg: there is no \[yolo\]"):
        Network.load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[net]\nwidth=8\n\0\xff", r"line 3: it is no text: byte 15 is no UTF-8"),
        (b"\0" * 2_000_000, "it is no cfg: it has more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_cfg_is_told_apart(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.cfg"
    path.write_bytes(data)
    with pytest.raises(CfgError, match=message):
        Network.load(path)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CfgError, match=r"there is no such file \(in "):
        Network.load(tmp_path / "none.cfg")
    with pytest.raises(CfgError, match="cannot be read"):
        Network.load(tmp_path)
    with pytest.raises(CfgError, match="cannot be read"):
        Network.load("a\0b")


# Fuzzing ----------------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-5, 10).map(str),
    st.sampled_from(["", "-1,0", "1,2,3,4", "99999", "999999999", "2147483648", "1e9", "٣", "0x8"]),
)
_NAMES = (
    "width height channels filters size stride pad padding batch_normalize groups from layers mask "
    "anchors classes num activation random"
)
_OPTIONS = st.sampled_from(_NAMES.split())
_SECTIONS = st.sampled_from(
    ["net", "convolutional", "shortcut", "route", "upsample", "maxpool", "yolo", "conv", "sam", "["]
)
_LINES = st.one_of(
    _SECTIONS.map("[{}]".format),
    st.tuples(_OPTIONS, _NUMBERS).map("=".join),
    st.sampled_from(["activation=leaky", "activation=linear", "# x", "=", ";", "\0"]),
)


def parse_anything(text: str) -> None:
    """A network whose layers are of a size that can be, or an error of the package's."""
    lines = text.count("\n") + 1
    try:
        network = Network.parse(text)
    except CfgError as error:
        if error.line is None or 1 <= error.line <= lines:
            return
        raise
    assert network.heads
    for layer in network.layers:
        channels, rows, columns = layer.shape
        assert 0 < channels * rows * columns < 2**31
    assert 4 * network.parameters < 2**31


@given(st.text())
@settings(deadline=None)
@example("\ud800[net]\n")
@example("[" * 10_000)
def test_any_text_is_a_network_or_an_error(text: str) -> None:
    parse_anything(text)


@given(st.lists(_LINES, max_size=30).map("\n".join))
@settings(max_examples=300, deadline=None)
def test_any_sections_and_options_are_a_network_or_an_error(text: str) -> None:
    parse_anything(f"{NET}{text}\n{CONV}{YOLO}")


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_cfg_is_a_network_or_an_error(data: st.DataObject) -> None:
    lines = yolov3_tiny(64).split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[index].partition("=")
        change = st.one_of(_NUMBERS.map(lambda number, key=key: f"{key}={number}"), _LINES)  # type: ignore[misc]
        lines[index] = data.draw(change if equals else _LINES)
    parse_anything("\n".join(lines))


@pytest.mark.parametrize(
    "change",
    [
        ("width=608", "width=999999999"),
        ("filters=1024", "filters=999999999"),
        ("size=3", "size=99999"),
        ("stride=2\n\n[route]", "stride=999999\n\n[route]"),
        ("classes=80", "classes=999999999"),
    ],
    ids=lambda change: change[1],
)
def test_an_absurd_cfg_costs_no_memory(change: tuple[str, str]) -> None:
    text = yolov3(608).replace(*change)
    assert change[1] in text
    tracemalloc.start()
    try:
        with pytest.raises(TrtRuntimeError):
            Network.parse(text)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
