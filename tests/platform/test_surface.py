"""Every TensorRT and CUDA name that the platform touches exists where it is touched.

The names are read out of the source, and held against the surfaces of real releases in
``tests/manifests``. A name that is only touched under some releases stands in `GUARDED`, with those
releases; any other must exist in all of them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import trt_runtime
from trt_runtime.platform.tensorrt.flavours import FLAVOURS
from trt_runtime.tensor import DTYPES

MANIFESTS = Path(__file__).parent.parent / "manifests"
PLATFORM = Path(trt_runtime.__file__).parent / "platform"

BUILDERS = ("tensorrt-8.6.0", "tensorrt-10.16.1", "tensorrt-11.4.0", "tensorrt_rtx-1.7.1")
RUNTIMES = (*BUILDERS, "tensorrt_lean-10.16.1", "tensorrt_lean-11.4.0", "tensorrt_dispatch-11.4.0")

RELEASE_8 = ("tensorrt-8.6.0",)
WITHOUT_8 = tuple(release for release in RUNTIMES if release not in RELEASE_8)
WEAKLY_TYPED = ("tensorrt-8.6.0", "tensorrt-10.16.1")
RELEASE_10 = ("tensorrt-10.16.1",)
RTX = ("tensorrt_rtx-1.7.1",)
PARSER_REFITTERS = ("tensorrt-10.16.1", "tensorrt-11.4.0", *RTX)

#: Which releases each file works with; a file that is not here may touch no TensorRT at all.
FILES = {
    "__init__.py": RUNTIMES,
    "builder.py": BUILDERS,
    "calibrator.py": WEAKLY_TYPED,
    "flavours.py": RUNTIMES,
    "gpus.py": RUNTIMES,
    "inspector.py": RUNTIMES,
    "log.py": RUNTIMES,
    "refit.py": RUNTIMES,
    "runtime.py": RUNTIMES,
    "settings.py": BUILDERS,
    "timing.py": BUILDERS,
}

#: What the code calls an object of TensorRT, by file.
RECEIVERS = {
    "__init__.py": {"self.module.get_plugin_registry()": "IPluginRegistry"},
    "settings.py": {
        "settings": "IBuilderConfig",
        "layer": "ILayer",
        "tensor": "ITensor",
        "flags": "BuilderFlag",
        "pools": "MemoryPoolType",
    },
    "timing.py": {
        "settings": "IBuilderConfig",
        "measured": "ITimingCache",
    },
    "runtime.py": {
        "self._engine": "ICudaEngine",
        "self._context": "IExecutionContext",
        "self._runtime": "Runtime",
        "self._loader": "Runtime",
        "runtime": "Runtime",
        "config": "ISerializationConfig",
    },
    "inspector.py": {"plan._engine": "ICudaEngine", "inspector": "EngineInspector"},
    "refit.py": {
        "self._refitter": "Refitter",
        "parser": "OnnxParserRefitter",
        "prototype": "Weights",
    },
    "builder.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "settings": "IBuilderConfig",
        "ranges": "IOptimizationProfile",
        "tensor": "ITensor",
        "inputs[]": "ITensor",
        "o": "ITensor",
    },
}

#: Names that a guard keeps to some releases: there they exist, and somewhere else they do not.
GUARDED: dict[str, tuple[str, ...]] = {
    "init_libnvinfer_plugins": BUILDERS,
    "BuilderFlag.FP16": WEAKLY_TYPED,
    "BuilderFlag.INT8": WEAKLY_TYPED,
    "BuilderFlag.FP8": WEAKLY_TYPED,
    "BuilderFlag.BF16": RELEASE_10,
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": WEAKLY_TYPED,
    "ILayer.precision": WEAKLY_TYPED,
    "ILayer.set_output_type": WEAKLY_TYPED,
    "BuilderFlag.STRIP_PLAN": WITHOUT_8,
    "BuilderFlag.WEIGHT_STREAMING": WITHOUT_8,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": WITHOUT_8,
    "IBuilderConfig.int8_calibrator": WEAKLY_TYPED,
    "IBuilderConfig.set_calibration_profile": WEAKLY_TYPED,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": RELEASE_8,
    "PreviewFeature.PROFILE_SHARING_0806": RELEASE_8,
    "ICudaEngine.create_execution_context_without_device_memory": RELEASE_8,
    "ICudaEngine.device_memory_size": RELEASE_8,
    "ICudaEngine.device_memory_size_v2": WITHOUT_8,
    "ICudaEngine.get_tensor_profile_values": WITHOUT_8,
    "IExecutionContext.set_device_memory": WITHOUT_8,
    "ExecutionContextAllocationStrategy": WITHOUT_8,
    "ExecutionContextAllocationStrategy.USER_MANAGED": WITHOUT_8,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": WITHOUT_8,
    "IBuilderConfig.progress_monitor": WITHOUT_8,
    "IProgressMonitor": WITHOUT_8,
    "IProgressMonitor.phase_start": WITHOUT_8,
    "IProgressMonitor.step_complete": WITHOUT_8,
    "IProgressMonitor.phase_finish": WITHOUT_8,
    "ParserError.node_name": WITHOUT_8,
    "ParserError.node_operator": WITHOUT_8,
    "ComputeCapability": RTX,
    "IBuilderConfig.num_compute_capabilities": RTX,
    "IBuilderConfig.set_compute_capability": RTX,
    "EngineInspector.get_engine_information": BUILDERS,
    "EngineStat": WITHOUT_8,
    "EngineStat.TOTAL_WEIGHTS_SIZE": WITHOUT_8,
    "EngineStat.STRIPPED_WEIGHTS_SIZE": WITHOUT_8,
    "ICudaEngine.get_engine_stat": WITHOUT_8,
    "ICudaEngine.get_device_memory_size_for_profile_v2": WITHOUT_8,
    "ICudaEngine.streamable_weights_size": WITHOUT_8,
    "ICudaEngine.weight_streaming_budget_v2": WITHOUT_8,
    "ICudaEngine.get_weight_streaming_automatic_budget": WITHOUT_8,
    "ICudaEngine.create_serialization_config": WITHOUT_8,
    "ICudaEngine.serialize_with_config": WITHOUT_8,
    "ISerializationConfig.clear_flag": WITHOUT_8,
    "ISerializationConfig.set_flag": WITHOUT_8,
    "SerializationFlag": WITHOUT_8,
    "SerializationFlag.EXCLUDE_WEIGHTS": WITHOUT_8,
    "SerializationFlag.INCLUDE_REFIT": WITHOUT_8,
    "Refitter.get_weights_prototype": WITHOUT_8,
    "OnnxParserRefitter": PARSER_REFITTERS,
    "OnnxParserRefitter.refit_from_bytes": PARSER_REFITTERS,
    "OnnxParserRefitter.num_errors": PARSER_REFITTERS,
    "OnnxParserRefitter.get_error": PARSER_REFITTERS,
    "EngineValidity": RTX,
    "EngineValidity.VALID": RTX,
    "EngineValidity.SUBOPTIMAL": RTX,
    "EngineInvalidityDiagnostics": RTX,
    "Runtime.get_engine_validity": RTX,
}

#: Classes whose methods the bindings look up without listing them (see the manifests' README).
UNLISTED = {"IOutputAllocator"}


@cache
def manifest(release: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MANIFESTS / f"{release}.json").read_text())
    return loaded


def exists(release: str, name: str) -> bool:
    """Whether ``Class.member``, ``Enum.MEMBER`` or a module's name is in that release."""
    surface = manifest(release)
    owner, _, member = name.partition(".")
    if not member:
        return any(owner in surface[kind] for kind in ("classes", "enums", "functions"))
    return member in surface["classes"].get(owner, ()) or member in surface["enums"].get(owner, ())


def written(node: ast.expr) -> str:
    """An expression as `RECEIVERS` spells it: ``inputs[name]`` is ``inputs[]``."""
    if isinstance(node, ast.Subscript):
        return written(node.value) + "[]"
    return ast.unparse(node)


def is_module(node: ast.expr) -> bool:
    return written(node).split(".")[-1] == "module"


class Names(ast.NodeVisitor):
    """Collects the names of TensorRT that a file touches."""

    def __init__(self, receivers: dict[str, str]) -> None:
        self.found: set[str] = set()
        self._receivers = receivers
        self._aliases: dict[str, str] = {}

    def _owner(self, node: ast.expr) -> str | None:
        """The class or enum that ``node`` stands for or is an object of."""
        if isinstance(node, ast.Name) and node.id in self._aliases:
            return self._aliases[node.id]
        if isinstance(node, ast.Attribute) and is_module(node.value):
            return node.attr
        return self._receivers.get(written(node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._aliases = self._aliases, dict(self._aliases)
        self.generic_visit(node)
        self._aliases = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                taken = isinstance(value, ast.Attribute) and is_module(value.value)
                if isinstance(name, ast.Name) and isinstance(value, ast.Attribute) and taken:
                    self._aliases[name.id] = value.attr
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not node.attr.startswith("__"):
            owner = self._owner(node.value)
            if owner is not None:
                self.found.add(f"{owner}.{node.attr}")
            elif is_module(node.value):
                self.found.add(node.attr)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            owner = self._owner(base)
            if owner is not None and owner not in UNLISTED:
                self.found |= {
                    f"{owner}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                }
        self.generic_visit(node)


def names_in(file: str, source: str) -> set[str]:
    names = Names(RECEIVERS.get(file, {}))
    names.visit(ast.parse(source))
    return names.found


def source_of(file: str) -> str:
    return (PLATFORM / "tensorrt" / file).read_text()


def problems(file: str, names: set[str]) -> list[str]:
    """Names that are touched where they do not exist; a guard holds in the file that has it."""
    told = []
    has_guards = names_in(file, source_of(file)) & set(GUARDED)
    for name in sorted(names):
        for release in GUARDED[name] if name in has_guards else FILES[file]:
            if release in FILES[file] and not exists(release, name):
                told.append(f"{file} touches {name}, which {release} does not have")
    return told


def used() -> dict[str, set[str]]:
    return {file: names_in(file, source_of(file)) for file in FILES}


def test_every_file_is_looked_at() -> None:
    assert {path.name for path in (PLATFORM / "tensorrt").glob("*.py")} == set(FILES)
    assert {path.stem for path in MANIFESTS.glob("*.json")} == set(RUNTIMES)


@pytest.mark.parametrize("file", FILES)
def test_every_name_exists_in_every_release_that_it_is_touched_under(file: str) -> None:
    assert not problems(file, names_in(file, source_of(file)))


def test_the_names_are_found_at_all() -> None:
    found = used()
    assert {
        "Runtime",
        "Runtime.load_runtime",
        "ICudaEngine.num_io_tensors",
        "IExecutionContext.execute_async_v3",
        "TensorLocation.HOST",
        "IProfiler.report_layer_time",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
    } <= found["runtime.py"]
    assert {
        "Builder",
        "Builder.create_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IProgressMonitor.step_complete",
        "ITensor.is_shape_tensor",
        "ParserError.node_operator",
        "IBuilderConfig.int8_calibrator",
    } <= found["builder.py"]
    assert {
        "BuilderFlag.FP16",
        "MemoryPoolType.WORKSPACE",
        "IBuilderConfig.set_tactic_sources",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ITensor.allowed_formats",
        "ILayer.num_outputs",
        "ProfilingVerbosity.DETAILED",
    } <= found["settings.py"]
    assert {"IBuilderConfig.set_timing_cache", "ITimingCache.combine"} <= found["timing.py"]
    assert "IInt8EntropyCalibrator2.get_batch" in found["calibrator.py"]
    assert "IPluginRegistry.load_library" in found["__init__.py"]
    assert found["log.py"] == {"ILogger", "ILogger.log"}


@pytest.mark.parametrize("name", GUARDED)
def test_a_guarded_name_is_touched_and_needs_its_guard(name: str) -> None:
    files = [file for file, names in used().items() if name in names]
    assert files, "nothing touches it: take it out"
    (file,) = files
    assert all(exists(release, name) for release in GUARDED[name] if release in FILES[file])
    missing = [release for release in FILES[file] if not exists(release, name)]
    assert missing, "it exists everywhere: take it out"


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("runtime.py", "self._engine.get_binding_name(0)", "get_binding_name, which tensorrt-10"),
        ("runtime.py", "self._engine.has_implicit_batch_dimension", "which tensorrt-11"),
        ("runtime.py", "self._context.execute_v3(0)", "execute_v3"),
        ("runtime.py", "module.init_libnvinfer_plugins(None, '')", "which tensorrt_lean"),
        ("runtime.py", "self._library.module.TensorLocation.NOWHERE", "TensorLocation.NOWHERE"),
        ("builder.py", "builder.platform_has_fast_fp16", "which tensorrt-11"),
        (
            "builder.py",
            "settings.set_flag(self.module.BuilderFlag.INT8)",
            "INT8, which tensorrt-11",
        ),
        ("builder.py", "flags = self.module.BuilderFlag; flags.STRIP_PLAN", "which tensorrt-8.6.0"),
        ("builder.py", "a, b = self.module.PreviewFeature, 1; a.ALIASED_PLUGIN_IO", "tensorrt-8.6"),
        ("builder.py", "inputs['x'].dynamic_range", "which tensorrt-11"),
        ("log.py", "module.Uff", "Uff, which tensorrt"),
    ],
)
def test_a_call_that_some_release_lacks_is_noticed(file: str, line: str, told: str) -> None:
    source = f"{source_of(file)}\ndef added(self, builder, settings, inputs):\n    {line}\n"
    assert any(told in problem for problem in problems(file, names_in(file, source)))


def test_every_type_that_is_mapped_is_one_of_tensorrts() -> None:
    for name in DTYPES:
        releases = [r for r in RUNTIMES if not exists(r, f"DataType.{name}")]
        assert not releases or (name in ("INT64", "BF16") and releases == list(RELEASE_8)), name


def test_every_flavour_has_a_manifest_and_its_facts_are_true() -> None:
    for release in RUNTIMES:
        surface = manifest(release)
        flavour = FLAVOURS[release.partition("-")[0]].of_release(surface["version"])
        builder = "Builder" in surface["classes"]
        assert flavour.builder == builder
        assert flavour.shared_profiles == (release not in RELEASE_8)
        if not builder:
            continue
        flags = surface["enums"]["NetworkDefinitionCreationFlag"]
        assert flavour.compute_capabilities == ("ComputeCapability" in surface["enums"])
        assert flavour.typed_only == ("FP16" not in surface["enums"]["BuilderFlag"])
        assert flavour.typed_only <= ("STRONGLY_TYPED" in flags)
        assert flavour.needs_explicit_batch <= ("EXPLICIT_BATCH" in flags)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
def test_the_installed_rtx_has_what_its_manifest_says() -> None:
    module = importlib.import_module("tensorrt_rtx")
    surface = manifest(RTX[0])
    if module.__version__ != surface["version"]:
        pytest.skip(f"the manifest is of {surface['version']}, installed is {module.__version__}")
    for name in set().union(*used().values()):
        owner, _, member = name.partition(".")
        there = hasattr(module, owner) and (not member or hasattr(getattr(module, owner), member))
        assert there == exists(RTX[0], name), name


# CUDA -------------------------------------------------------------------------------------------


def cuda_names(source: str) -> Iterator[str]:
    """``cuInit``, ``CUresult.CUDA_SUCCESS``: what is taken from the bindings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            for prefix in ("self._cu.", "cu."):
                if text.startswith(prefix):
                    yield text.removeprefix(prefix)
        # self._attribute(ordinal, "NAME") makes CUdevice_attribute.CU_DEVICE_ATTRIBUTE_NAME.
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._attribute":
            name = ast.literal_eval(node.args[1])
            yield f"CUdevice_attribute.CU_DEVICE_ATTRIBUTE_{name}"


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed")
def test_every_driver_call_and_enum_exists_in_the_bindings() -> None:
    driver = importlib.import_module("cuda.bindings.driver")
    names = set(cuda_names((PLATFORM / "cuda.py").read_text()))
    assert {"cuInit", "cuMemcpyHtoDAsync", "CUresult.CUDA_SUCCESS"} <= names
    assert "CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR" in names
    for name in sorted(names):
        thing: Any = driver
        for part in name.split("."):
            assert hasattr(thing, part), name
            thing = getattr(thing, part)


def test_a_driver_call_that_does_not_exist_would_be_noticed() -> None:
    assert set(cuda_names("def f(self):\n    self._cu.cuMemAllocate(1)\n")) == {"cuMemAllocate"}
