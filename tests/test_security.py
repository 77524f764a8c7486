"""Attacks that are tried: what must not be in the package, and what must not be run or read.

Those on the engine cache's directory and on what lies in it are in `build.test_cache_damage`, those
by paths of external data in `build.test_model`, and a plan that carries host code is refused in
`test_engine`.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import trt_runtime
from trt_runtime import Device, EngineCache, InputError
from trt_runtime.cli.inputs import _load
from trt_runtime.cli.saving import save_outputs

from .models import static

SOURCE = Path(trt_runtime.__file__).parent

#: Modules that run what they read, or start programs.
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"),
    *("subprocess", "pty", "commands", "code", "codeop", "xmlrpc"),
}
#: ``doctor`` asks other TensorRTs in processes of this Python, which one may crash.
STARTS_PROGRAMS = {"cli/doctor.py", "cli/installed.py"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input"}
FORBIDDEN_ATTRIBUTES = {
    "os": {"system", "popen", "execv", "execve", "execvp", "posix_spawn", "startfile"},
    "np": {"fromregex"},
}


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            yield f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}", node


def _problems(where: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        else:
            names = [] if node.level else [(node.module or "").partition(".")[0]]
        for name in FORBIDDEN_MODULES.intersection(names):
            if name != "subprocess" or where.partition(":")[0] not in STARTS_PROGRAMS:
                yield f"{where} imports {name}"
    if not isinstance(node, ast.Call):
        return
    called = node.func
    if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
        yield f"{where} calls {called.id}"
    if isinstance(called, ast.Attribute):
        of = called.value.id if isinstance(called.value, ast.Name) else ""
        if called.attr in FORBIDDEN_ATTRIBUTES.get(of, ()):
            yield f"{where} calls {of}.{called.attr}"
        if of == "subprocess" and not _runs_this_python(node):
            yield f"{where} starts another program than this Python"
        if (of, called.attr) in {("np", "load"), ("numpy", "load")}:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            allowed = given.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                yield f"{where} calls np.load without allow_pickle=False"
    for keyword in node.keywords:
        if keyword.arg == "shell" or (keyword.arg == "allow_pickle" and _is_true(keyword.value)):
            yield f"{where} passes {keyword.arg}"


def _runs_this_python(call: ast.Call) -> bool:
    command = call.args[0] if call.args else None
    words = command.elts if isinstance(command, (ast.List, ast.Tuple)) else []
    return bool(words) and ast.unparse(words[0]) == "sys.executable"


def _is_true(value: ast.expr) -> bool:
    return not (isinstance(value, ast.Constant) and value.value is False)


def test_nothing_in_the_package_unpickles_evaluates_or_starts_a_program() -> None:
    assert [problem for where, node in _nodes() for problem in _problems(where, node)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "import subprocess as s",
        "subprocess.run('ls')",
        "subprocess.run(['ls'])",
        "eval('1')",
        "import os; os.system('x')",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "f(shell=True)",
    ],
)
def test_what_is_looked_for_would_be_found(code: str) -> None:
    found = [problem for node in ast.walk(ast.parse(code)) for problem in _problems("", node)]
    assert found


@pytest.mark.parametrize(
    "key", ["../precious", "/etc/passwd", "0" * 63 + "/", "0" * 64 + "/../x", "", "0" * 63 + "\n"]
)
def test_a_key_that_leads_out_of_the_cache_is_refused(key: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious.plan"
    precious.write_text("here")
    (tmp_path / "precious.json").write_text("here")
    cache = EngineCache(tmp_path / "cache")
    cache.directory.mkdir(mode=0o700)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        cache.forget(key)
    assert precious.exists()


@pytest.mark.parametrize("name", ["..", "$(touch x);#", "a\nb", "..\\..\\x", "-rf", "%2e%2e%2fx"])
def test_no_name_of_a_model_reaches_the_names_in_the_cache(
    name: str, tmp_path: Path, host: Device
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = onnx.ModelProto()
    model.CopyFrom(static().model)
    model.graph.name = f"../../{name}"
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    cache = EngineCache(tmp_path / "cache")
    cache.load_or_build(path, device=host).close()
    kept = [found for found in tmp_path.rglob("*") if folder not in (found, *found.parents)]
    names = re.compile(r"[0-9a-f]{64}\.(plan|json|lock|known)|(prune|timing-[\w.-]+)\.(cache|lock)")
    assert cache.directory in kept
    for found in set(kept) - {cache.directory}:
        assert found.parent == cache.directory
        assert names.fullmatch(found.name), found


# Files given to the command line --------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_input_that_holds_a_pickle_is_refused_and_not_run(suffix: str, tmp_path: Path) -> None:
    file, sprung = tmp_path / f"x{suffix}", tmp_path / "sprung"
    trap = np.array([Trap(sprung)], object)
    if suffix == ".npy":
        np.save(file, trap, allow_pickle=True)
    else:
        np.savez(file, x=trap)
    with pytest.raises(InputError, match="cannot be read as NumPy arrays"):
        _load(file)
    assert not sprung.exists()
    np.load(file, allow_pickle=True)["x" if suffix == ".npz" else ...]
    assert sprung.exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_input_that_says_it_is_huge_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    with open(tmp_path / "x.npy", "wb") as header:
        about = {"descr": "<f4", "fortran_order": False, "shape": (1 << 44,)}
        np.lib.format.write_array_header_1_0(header, about)
    if suffix == ".npz":
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(InputError, match="cannot be read as NumPy arrays"):
        _load(file)


def test_nothing_in_an_archive_is_written_where_its_name_leads(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    np.savez(inner / "x.npz", **{"../../evil": np.zeros(3)})
    loaded = _load(inner / "x.npz")
    assert list(loaded) == ["../../evil"]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", inner, inner / "x.npz"]


def test_no_name_of_an_output_leads_out_of_the_folder_it_is_saved_in(tmp_path: Path) -> None:
    names = ["../evil", "/etc/evil", "..", "a/b", "a_b", "a_b_3", "a_b_4", "", "\0", "C:\\x", "A_B"]
    folder = tmp_path / "saved"
    saved = save_outputs(folder, {name: np.full(1, i) for i, name in enumerate(names)})
    assert len(set(saved)) == len(names)
    assert [int(np.load(path)[0]) for path in saved] == list(range(len(names)))
    assert sorted(tmp_path.iterdir()) == [folder]
    assert sorted(map(str, folder.iterdir())) == sorted(saved)
