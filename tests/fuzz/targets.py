"""Everything that takes input from outside: one function each, from choices to calls.

A target raises an error of ours, or nothing, whatever the choices are. Anything else is a bug.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from typer.testing import CliRunner

from trt_runtime import CacheWarning, Engine, EngineCache, InputError, Session, TrtRuntimeError
from trt_runtime.build import key, known, store
from trt_runtime.cli import app, grammar
from trt_runtime.cli.failure import INTERNAL
from trt_runtime.cli.onnx_file import input_specs
from trt_runtime.platform.host.tensorrt import plan as host_plan
from trt_runtime.yolov3 import Detector, Layout, Network, read_names, read_weights, to_onnx
from trt_runtime.yolov3.images import load_image

from ..yolov3.small import CFG
from . import seeds
from .choices import Choices
from .promise import Target, host

TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


# Plans and models ------------------------------------------------------------------------------


@target
def plan(choices: Choices, folder: Path) -> None:
    """Damaged plans, whose checksum is right again in one of two: what is in them is reached."""
    content = seeds.plan(choices.pick(seeds.CASES))
    if choices.yes():
        content = choices.mutated(content[:-32])
        content += hashlib.sha256(content).digest()
    elif choices.yes():
        content = _with_other_header(choices, content)
    else:
        content = choices.mutated(content)
    given: Any = content
    way = choices.number(0, 4)
    if way == 1:
        given = folder / "engine.plan"
        given.write_bytes(content)
    elif way == 2:
        given = bytearray(content)
    elif way == 3:
        given = _viewed(choices, content)
    with host() as device:
        with suppress(TrtRuntimeError):
            Engine.check(given, device=device)
        with suppress(TrtRuntimeError), Session(given, device=device) as session:
            session.engine.inspect().to_json()
        trust = choices.yes()
        with Engine.load(given, device=device, trust_host_code=trust) as engine:
            engine.serialize()


def _with_other_header(choices: Choices, content: bytes) -> bytes:
    header, model = host_plan.unpack(content, _built_by(content))
    _change(choices, header)
    return host_plan.pack(header, model)


def _built_by(content: bytes) -> str:
    start = len(host_plan.MAGIC)
    length = int.from_bytes(content[start : start + 8], "little")
    version: str = json.loads(content[start + 8 : start + 8 + length])["tensorrt"]
    return version


def _viewed(choices: Choices, content: bytes) -> memoryview:
    """The bytes as memory of another shape and type, and perhaps not contiguous."""
    array: Any = np.frombuffer(content, np.uint8)
    dtype = np.dtype(choices.pick(("u1", ">f4", "i4,f4", "?", "c16", "S7")))
    array = array[: array.size // dtype.itemsize * dtype.itemsize].view(dtype)
    array = array[:: choices.pick((1, 2, -1))]
    shape = choices.pick(((-1,), (-1, 1), (1, 1, -1)))
    array = array.reshape(shape)
    if choices.yes():
        array = choices.pick((array[:0], array[..., :0]))
    return memoryview(array)


@target
def model(choices: Choices, folder: Path) -> None:
    """Damaged models, as bytes and as files, read by a build, a session and the command line."""
    content = choices.mutated(seeds.model(choices.pick(seeds.CASES)))
    path = folder / "model.onnx"
    path.write_bytes(content)
    with suppress(TrtRuntimeError):
        input_specs(path)
    _command("inspect", str(path))
    with host() as device:
        if choices.yes():
            with suppress(TrtRuntimeError):
                Engine.build(_viewed(choices, content), device=device).close()
        with Session(path, device=device, cache=False):
            pass


@target
def external(choices: Choices, folder: Path) -> None:
    """External data: any location, offset and length, and files that are short or links."""
    serialised, data = seeds.external_model()
    proto = onnx.ModelProto.FromString(serialised)
    outside = folder / "outside"
    outside.write_bytes(b"secret" * 100)
    inside = folder / "inside"
    inside.mkdir(exist_ok=True)
    weights = inside / "weights.bin"
    with suppress(FileNotFoundError):
        weights.unlink()
    if choices.number(0, 3) == 1:
        weights.symlink_to(choices.pick((outside, weights, folder, Path("/dev/zero"))))
    else:
        weights.write_bytes(choices.mutated(data))
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if choices.number(0, 2) == 1:
                entry.value = _text(choices)
    path = inside / "model.onnx"
    path.write_bytes(choices.mutated(proto.SerializeToString()))
    _command("inspect", str(path))
    with host() as device, Session(path, device=device, cache=False):
        pass


# The engine cache ------------------------------------------------------------------------------


@target
def cache(choices: Choices, folder: Path) -> None:
    """A cache's directory in which each file may be damaged, missing, a folder or another's."""
    directory = folder / "cache"
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(directory.iterdir()):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in sorted(seeds.cached().items()):
        path = directory / name
        what = choices.number(0, 6)
        if what == 0:
            path.write_bytes(choices.mutated(content))
        elif what == 1:
            path.mkdir()
        elif what == 2:
            path.symlink_to(choices.pick((path, folder, Path("/dev/null"))))
        elif what == 3 and name.endswith(".json"):
            forged, sidecar = _forged(choices, content)
            path = directory / f"{forged}.json"
            path.write_bytes(sidecar)
        elif what == 4:
            path.write_bytes(content)
            moment = choices.pick((-1, 0, 2**31, 2**33, 2**36, 2**40, 2**55))
            with suppress(OSError, OverflowError):
                os.utime(path, (0, moment))
        elif what == 5:
            path.write_bytes(content)
    for _ in range(choices.number(0, 3)):
        (directory / f"x{_name(choices)}").write_bytes(choices.take(16))
    kept = EngineCache(directory, max_bytes=choices.pick((1 << 30, 0)))
    proto = seeds.case("static").model
    with warnings.catch_warnings(), host() as device:
        warnings.simplefilter("ignore", CacheWarning)
        for entry in kept.entries(verify=choices.yes()):
            repr(entry)
        kept.explain(proto, device=device)
        kept.load_or_build(proto, device=device).close()
        _command("cache", "list", "--json", directory=directory)
        _command("cache", "list", directory=directory)
        kept.prune()
        kept.clear()


def _forged(choices: Choices, content: bytes) -> tuple[str, bytes]:
    """A sidecar that says something else, with right checksums, and the key it belongs to."""
    entry = json.loads(content)["entry"]
    _change(choices, entry)
    parts = entry.get("parts") if isinstance(entry, dict) else None
    with suppress(ValueError, TypeError):
        digest = hashlib.sha256(key.canonical_json(parts)).hexdigest()
        return digest, store.sealed(key.SCHEMA, entry)
    return "0" * 64, content


@target
def sidecar(choices: Choices, folder: Path) -> None:
    """A sidecar read for itself."""
    (name,) = (name for name in seeds.cached() if name.endswith(".json"))
    content = seeds.cached()[name]
    of = name.partition(".")[0]
    if choices.yes():
        of, content = _forged(choices, content)
    else:
        content = choices.mutated(content)
    with suppress(store.DamagedEntry):
        read = store.Sidecar.from_bytes(content, of)
        assert all(isinstance(part, str) for part in read.parts)
        assert read.created.tzinfo is not None
        assert isinstance(read.build_seconds, (int, float))


@target
def memo(choices: Choices, folder: Path) -> None:
    """What is remembered of a model: damaged, or forged with the right checksum."""
    path = folder / "model.onnx"
    if not path.exists():
        path.write_bytes(seeds.model("static"))
    place = known.Place.of(path)
    content = seeds.memo(path)
    if choices.yes():
        entry = json.loads(content)["entry"]
        _change(choices, entry)
        with suppress(ValueError, TypeError):
            content = store.sealed(known.MEMO_SCHEMA, entry)
    else:
        content = choices.mutated(content)
    directory = folder / "memos"
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / f"{place.name}.known").write_bytes(content)
    known.KnownModels(store.Store(directory)).contents(path)


# The command line ------------------------------------------------------------------------------


@target
def shapes(choices: Choices, folder: Path) -> None:
    """Every little language; what is read can be written and read again."""
    which = choices.number(0, 4)
    text = choices.mutated(b"'a,b':1x3x224..2x3x224..4x3x224,y:scalar,z:-1x4GiB 30d").decode(
        "utf-8", "replace"
    )
    if which == 0:
        read = grammar.parse_shapes("--shapes", [text])
        assert grammar.parse_shapes("--shapes", [grammar.format_shapes(read)]) == read
    elif which == 1:
        profile = grammar.parse_profile("--profile", text)
        again = grammar.parse_profile("--profile", grammar.format_profile(profile))
        assert again == profile
    elif which == 2:
        grammar.parse_pairs("--io", [text], "NAME:TYPE", "x:float16")
    elif which == 3:
        grammar.parse_size("--size", text[-choices.number(1, 12) :])
    else:
        grammar.parse_age("--age", text[-choices.number(1, 12) :])


def _command(*arguments: str, directory: Path | None = None) -> None:
    """Run ``trt-runtime``; its own errors are fine, and internal ones are not."""
    told = CliRunner(env={"TRT_RUNTIME_CACHE": str(directory)} if directory else None).invoke(
        app, list(arguments), catch_exceptions=False
    )
    assert told.exit_code != INTERNAL, told.output


# Arrays ----------------------------------------------------------------------------------------

_DTYPES = (
    *("f4", "f8", "f2", ">f4", "i4", "i8", "u1", "u8", "?", "c8", "g", "O", "S3", "U2", "M8[s]"),
    *("m8[s]", "V4", "f4,i4"),
)


class _Explosive(RuntimeError):
    """What foreign objects raise."""


class Foreign:
    """Has some of the attributes by which libraries hand arrays over, with anything in them."""

    def __init__(self, values: dict[str, Callable[[], Any]]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        made = self.__dict__.get("_values", {}).get(name)
        if made is None:
            raise AttributeError(name)
        return made()


class Subclass(np.ndarray):
    def __array_finalize__(self, obj: Any) -> None:
        pass


def _array(choices: Choices, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array near to what an input takes: shape, dtype, layout, flags or class may differ."""
    if choices.number(0, 3) == 1:
        shape = choices.pick(
            ((), (0,), (1,) * 33, tuple(reversed(shape)), shape[1:], (2**20, 2**20), (*shape, 0))
        )
    if choices.number(0, 2) == 1:
        dtype = choices.pick(_DTYPES)
    dtype = np.dtype(dtype)
    shape = shape[:32]
    if np.prod([float(n) for n in shape]) > 1e6:
        return np.broadcast_to(np.zeros((), dtype), shape)
    array = np.zeros(shape, dtype)
    if dtype.kind in "fiu" and array.size and choices.yes():
        array.flat[choices.number(0, array.size - 1)] = choices.pick((1, 3, 100))
        if dtype.kind == "f":
            array.flat[0] = choices.pick((np.nan, np.inf, -np.inf, -1.5, np.finfo(dtype).max))
    layout = choices.number(0, 9)
    if layout == 1:
        array = array[tuple(slice(None, None, -1) for _ in array.shape)]
    elif layout == 2:
        array = np.asfortranarray(array)
    elif layout == 3 and array.ndim:
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif layout == 4:
        array = np.broadcast_to(array.flat[0] if array.size else array, array.shape)
    elif layout == 5:
        array.flags.writeable = False
    elif layout == 6:
        array = array.view(Subclass)
    elif layout == 7:
        return np.ma.masked_array(array, mask=choices.yes())
    elif layout == 8 and array.nbytes:
        raw = np.zeros(array.nbytes + 1, np.uint8)  # not aligned
        if not dtype.hasobject:
            array = raw[1:].view(dtype).reshape(array.shape)
    elif layout == 9:
        return array.tolist()
    return array


def _foreign(choices: Choices, shape: tuple[int, ...]) -> Any:
    def explode() -> Any:
        raise _Explosive("of its own")

    good = np.zeros(shape, np.float32)

    # Chosen once: an object tells the same each time that it is asked.
    whatever = choices.pick(
        (None, -1, "x", (), (1,), {}, good, [[]], 2**70, (2**70, -1), object(), np.nan)
    )
    place = choices.pick(((2, 0), (1, 0), (13, 0), (2, 2**70), None, 7, ()))

    def anything() -> Any:
        return whatever

    interface = {
        "shape": choices.pick((shape, (), None, "x", (-1,), ("a",), (2**70,), 3)),
        "typestr": choices.pick(("<f4", "|O", "x", None, 7, "<f3", "|V4", ">f4")),
        "data": choices.pick(((0, False), (1 << 40, True), None, (), ("x", 1), 5, (-1, 0))),
        "strides": choices.pick((None, (), (4,), "x", (2**70,) * len(shape), ("a",))),
        "stream": choices.pick((None, 0, 1, "x", -7, 2**70)),
        "version": 3,
    }
    for name in tuple(interface):
        if choices.number(0, 5) == 1:
            del interface[name]
    described: Any = choices.pick((interface, None, 3, [], "shape"))
    values: dict[str, Callable[[], Any]] = {}
    offered: dict[str, tuple[Callable[[], Any], ...]] = {
        "shape": (lambda: shape, anything, explode),
        "dtype": (lambda: good.dtype, anything, explode),
        "__array__": (lambda: lambda *a, **k: anything(), lambda: explode, explode, anything),
        "__array_interface__": (anything, explode),
        "__cuda_array_interface__": (lambda: described, explode),
        "__dlpack__": (
            lambda: lambda **k: anything(),
            lambda: explode,
            explode,
            anything,
            lambda: good.__dlpack__,
        ),
        "__dlpack_device__": (
            lambda: lambda: place,
            lambda: explode,
            explode,
            anything,
        ),
        "__len__": (anything, explode),
    }
    for name, makers in offered.items():
        if choices.yes():
            values[name] = choices.pick(makers)
    return Foreign(values)


@target
def infer(choices: Choices, folder: Path) -> None:
    """`Session.infer` with any arguments, by position, by name and in a mapping, and targets."""
    case = seeds.case(choices.pick(seeds.CASES))
    feed = choices.pick(case.feeds)
    with host() as device, Session(seeds.plan(case.name), device=device) as session:
        for _ in range(choices.number(1, 3)):
            arguments: dict[Any, Any] = {}
            for name, array in feed.items():
                if choices.number(0, 3) == 1:
                    arguments[name] = _foreign(choices, array.shape)
                elif choices.yes():
                    arguments[name] = _array(choices, array.shape, array.dtype)
                else:
                    arguments[name] = array
            if choices.number(0, 5) == 1:
                arguments[choices.pick(("x", "no such", "", 7))] = 3
            targets: dict[str, Any] | None = None
            if choices.number(0, 2) == 1:
                first = next((a for a in arguments.values() if isinstance(a, np.ndarray)), None)
                shared: Any = first if first is not None else np.zeros(())
                targets = {
                    spec.name: choices.pick(
                        (
                            _array(choices, tuple(max(1, n) for n in spec.shape), spec.dtype),
                            shared,
                            None,
                        )
                    )
                    for spec in session.outputs
                }
            way = choices.number(0, 3)
            with suppress(TrtRuntimeError), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of casts that overflow
                if way == 0:
                    session.infer(arguments, outputs=targets)
                elif way == 1:
                    session.infer(*arguments.values(), outputs=targets)
                elif way == 2:
                    session.infer_async(arguments, outputs=targets).result(10)
                else:
                    list(session.infer_many([arguments, feed]))
        session.infer(feed)  # whatever came before


# YOLOv3 ----------------------------------------------------------------------------------------


@target
def cfg(choices: Choices, folder: Path) -> None:
    """A network's description; of what is read, everything can be asked."""
    text = choices.mutated(CFG.encode())
    path = folder / "network.cfg"
    path.write_bytes(text)
    with suppress(InputError):
        Network.parse(text.decode("utf-8", "replace"))
    network = Network.load(path)
    assert network.parameters >= 0
    repr(network.heads)


@target
def weights(choices: Choices, folder: Path) -> None:
    """Weights of a network: any header, any length, any values."""
    network = Network.parse(CFG)
    read = read_weights(choices.mutated(seeds.weights()), network)
    with suppress(TrtRuntimeError):
        to_onnx(network, read)


@target
def names(choices: Choices, folder: Path) -> None:
    """The classes' names, and the layout that a model carries."""
    path = folder / "classes.names"
    path.write_bytes(choices.mutated(b"cat\ndog\nbird\n"))
    network = Network.parse(CFG)
    with suppress(TrtRuntimeError):
        Layout.of(network, read_names(path))
    entry = json.loads(Layout.of(network, ("a", "b", "c")).to_json())
    _change(choices, entry)
    Layout.from_json(choices.mutated(json.dumps(entry).encode()).decode("utf-8", "replace"))


@target
def image(choices: Choices, folder: Path) -> None:
    """An image file of every format."""
    path = folder / "image"
    path.write_bytes(choices.mutated(seeds.image(choices.pick(seeds.IMAGE_KINDS))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it could read after all
        load_image(path)


@target
def detector(choices: Choices, folder: Path) -> None:
    """A detector of files that do not belong together, or are none."""
    model, described = folder / "network.weights", folder / "network.cfg"
    model.write_bytes(choices.mutated(seeds.weights()) if choices.yes() else seeds.weights())
    described.write_bytes(choices.mutated(CFG.encode()))
    with host() as device, Detector(model, cfg=described, device=device, cache=False):
        pass


# Parts of input --------------------------------------------------------------------------------


def _text(choices: Choices) -> str:
    return choices.pick(
        (
            "../outside",
            "/etc/passwd",
            "weights.bin\0",
            "a" * 5000,
            "",
            ".",
            "-1",
            "9" * 30,
            "9" * 5000,
            "1e3",
            "C:\\x",
            "weights.bin/x",
            "\U0001f600",
            choices.take(8).decode("utf-8", "replace"),
        )
    )


def _name(choices: Choices) -> str:
    """Of a file, in a directory where names have a meaning."""
    ends = (".json", ".plan", ".known", ".part", ".lock", "timing-x.cache")
    return choices.pick(("0" * 64, "." + "0" * 64, "x", "\u00e9")) + choices.pick(ends)


def _change(choices: Choices, value: Any) -> None:
    """Replace a few things anywhere in a JSON document, or take them away."""
    for _ in range(choices.number(1, 3)):
        inner = value
        for _ in range(choices.number(0, 5)):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            if not keys:
                break
            deeper = inner[choices.pick(keys)]
            if not isinstance(deeper, (dict, list)):
                break
            inner = deeper
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        if not keys:
            continue
        at = choices.pick(keys)
        if choices.number(0, 3) == 1:
            del inner[at]
            continue
        inner[at] = choices.pick(
            (
                *(None, True, -1, 0, 2**31, 2**63, 2**70, 1.5, float("inf"), float("nan")),
                *("", "x", "\ud800", "2020-01-01", [], {}, [1], {"a": 1}, [[[]]], "../../x"),
            )
        )
