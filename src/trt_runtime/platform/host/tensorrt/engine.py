"""The engine: what a plan holds, ready to run, and everything that can be asked about it."""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, Any

from . import plan
from .context import IExecutionContext
from .datatypes import numpy_dtype
from .enums import (
    BuilderFlag,
    DataType,
    EngineCapability,
    EngineStat,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    LayerInformationFormat,
    ProfilingVerbosity,
    SerializationFlag,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from .interfaces import IHostMemory
from .loaded import LoadedNetwork
from .model import Tensor
from .profile import Profile
from .seam import TensorRTObject, frameless
from .weights import weights_bytes, without_weights

if TYPE_CHECKING:
    from .runtime import Runtime

_REFITTABLE = (
    BuilderFlag.REFIT,
    BuilderFlag.REFIT_IDENTICAL,
    BuilderFlag.REFIT_INDIVIDUAL,
    BuilderFlag.STRIP_PLAN,
)


class ICudaEngine(TensorRTObject):
    """A network that runs. Asked about a tensor that it lacks, it logs and returns a default."""

    def __init__(
        self, runtime: Runtime, header: dict[str, Any], network: LoadedNetwork, serialized: bytes
    ) -> None:
        super().__init__(runtime._trt, runtime._logger, "engine", header["name"], runtime)
        self._header = header
        self._serialized = serialized
        self._network = network
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self._budget: int | None = None

    @property
    def name(self) -> str:
        return str(self._header["name"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._network.tensors)

    @property
    def num_layers(self) -> int:
        return len(self._network.layers)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._network.profiles)

    @property
    def num_aux_streams(self) -> int:
        return 0

    @property
    def refittable(self) -> bool:
        return any(self._built_with(flag) for flag in _REFITTABLE)

    @property
    def tactic_sources(self) -> int:
        return int(self._header.get("tactic_sources", 0))

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return False

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        return ProfilingVerbosity(self._header["profiling_verbosity"])

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        return HardwareCompatibilityLevel(self._header["hardware_compatibility_level"])

    @property
    def engine_capability(self) -> EngineCapability:
        return EngineCapability(self._header["engine_capability"])

    @property
    def device_memory_size(self) -> int:
        """Scratch memory of one context, in bytes."""
        return self._network.scratch_bytes

    @property
    def device_memory_size_v2(self) -> int:
        """Scratch memory of one context, in bytes."""
        return self._network.scratch_bytes

    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        return self.get_device_memory_size_for_profile_v2(profile_index)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._network.scratch_bytes if self._profile(profile_index) else 0

    @property
    def streamable_weights_size(self) -> int:
        """Bytes of weights that may stay on the host; 0 unless built for weight streaming."""
        streams = self._built_with(BuilderFlag.WEIGHT_STREAMING)
        return weights_bytes(self._network.model) if streams else 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        """Bytes of device memory for streamable weights; all of them by default."""
        return self.streamable_weights_size if self._budget is None else self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        refused = ""
        if self._contexts:
            refused = f"{len(self._contexts)} execution contexts of the engine are active"
        elif not self._built_with(BuilderFlag.WEIGHT_STREAMING):
            refused = "the engine was not built for weight streaming"
        elif budget < 0:
            refused = f"{budget} bytes are negative"
        if refused:
            self._error(f"ICudaEngine::setWeightStreamingBudgetV2: Error Code 3: ({refused})")
        if refused or self._fails("weight_streaming_budget_v2"):
            raise RuntimeError("Failed to set the weight streaming budget")
        self._budget = min(int(budget), self.streamable_weights_size)

    @property
    def weight_streaming_scratch_memory_size(self) -> int:
        return self.streamable_weights_size - self.weight_streaming_budget_v2

    def get_weight_streaming_automatic_budget(self) -> int:
        """Return a budget that suits the device: here half of what there is."""
        return self.streamable_weights_size // 2

    def get_engine_stat(self, stat: EngineStat = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        """Return a size in bytes; -1 for stripped weights of an engine that has its own."""
        if stat == EngineStat.TOTAL_WEIGHTS_SIZE:
            return weights_bytes(self._network.model)
        return int(self._header.get("stripped_bytes") or -1)

    def get_tensor_name(self, index: int) -> str | None:
        """Return the name of a tensor, inputs before outputs, in the model's order."""
        if not 0 <= index < self.num_io_tensors:
            self._error(
                f"ICudaEngine::getIOTensorName: index {index} of {self.num_io_tensors} tensors"
            )
            return None
        return self._network.tensors[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        tensor = self._tensor(name)
        if tensor is None:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if tensor.is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        tensor = self._tensor(name)
        return tensor.data_type if tensor else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the dimensions, -1 where they depend on the inputs."""
        tensor = self._tensor(name)
        return tensor.dims if tensor else ()

    def get_tensor_location(self, name: str) -> TensorLocation:
        tensor = self._tensor(name)
        on_host = tensor is not None and tensor.is_shape_tensor
        return TensorLocation.HOST if on_host else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        tensor = self._tensor(name)
        return tensor is not None and tensor.is_shape_tensor

    def get_tensor_format(self, name: str, profile_index: int = 0) -> TensorFormat:
        self._tensor(name)
        return TensorFormat.LINEAR

    def get_tensor_format_desc(self, name: str, profile_index: int = 0) -> str:
        tensor = self._tensor(name)
        return f"Row-major linear {tensor.data_type.name} format (kLINEAR)" if tensor else ""

    def get_tensor_components_per_element(self, name: str, profile_index: int = 0) -> int:
        self._tensor(name)
        return -1

    def get_tensor_vectorized_dim(self, name: str, profile_index: int = 0) -> int:
        self._tensor(name)
        return -1

    def get_tensor_bytes_per_component(self, name: str, profile_index: int = 0) -> int:
        tensor = self._tensor(name)
        return numpy_dtype(tensor.data_type).itemsize if tensor else -1

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Return minimum, optimum and maximum shape of an input, or an empty list."""
        tensor, profile = self._tensor(name), self._profile(profile_index)
        if tensor is None or profile is None:
            return []
        if not tensor.is_input:
            self._error(f"ICudaEngine::getProfileShape: {name} is not an input")
            return []
        return profile.shapes[name].as_list()

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[tuple[int, ...]]:
        """Return minimum, optimum and maximum values of a shape tensor, or an empty list.

        TensorRT's Python swaps the two names: the first argument is the profile's index, the
        second the tensor's name.
        """
        index, tensor_name = name, profile_index
        tensor, profile = self._tensor(tensor_name), self._profile(index)
        if tensor is None or profile is None or not tensor.is_shape_tensor:
            return []
        return profile.values[tensor_name].as_list()

    def serialize(self) -> IHostMemory:
        """Return the plan that this engine came from, with the weights that it has now."""
        if not self._network.refits:
            return IHostMemory(self._serialized)
        if self._built_with(BuilderFlag.STRIP_PLAN):
            return self._pack(without_weights(self._network.model.SerializeToString())[0])
        return self._pack(self._network.model.SerializeToString())

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig(stripped=self._built_with(BuilderFlag.STRIP_PLAN))

    def serialize_with_config(self, arg0: ISerializationConfig) -> IHostMemory | None:
        """Return a plan with or without weights, as the configuration says."""
        if self._fails("serialize_with_config"):
            return None
        flags, model, saved = self._header["flags"], self._network.model.SerializeToString(), 0
        if arg0.get_flag(SerializationFlag.EXCLUDE_WEIGHTS):
            model, saved = without_weights(model)
        else:
            for flag in _REFITTABLE:
                flags &= ~(1 << flag)
            if self.refittable and arg0.get_flag(SerializationFlag.INCLUDE_REFIT):
                flags |= 1 << BuilderFlag.REFIT
        return self._pack(model, flags=flags, stripped_bytes=saved)

    def _pack(self, model: bytes, **changed: Any) -> IHostMemory:
        header = {**self._header, **changed}
        if not header.get("stripped_bytes"):
            header.pop("stripped_bytes", None)
        return IHostMemory(plan.pack(header, model))

    @frameless
    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
    ) -> IExecutionContext | None:
        """Return a context, or None after logging why there is none."""
        return self._create_context("create_execution_context", strategy)

    @frameless
    def create_execution_context_without_device_memory(self) -> IExecutionContext | None:
        """Return a context that cannot execute before it is given scratch memory."""
        return self._create_context(
            "create_execution_context_without_device_memory",
            ExecutionContextAllocationStrategy.USER_MANAGED,
        )

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def _create_context(
        self, call: str, strategy: ExecutionContextAllocationStrategy
    ) -> IExecutionContext | None:
        if self._fails(call):
            return None
        self._require_current_context(call)
        strategy = ExecutionContextAllocationStrategy(strategy)
        context = IExecutionContext(self, self._network, strategy)
        self._contexts.add(context)
        return context

    def _built_with(self, flag: BuilderFlag) -> bool:
        return bool(self._header["flags"] >> int(flag) & 1)

    def _tensor(self, name: str) -> Tensor | None:
        tensor = self._network.by_name.get(name)
        if tensor is None:
            self._error(
                f"ICudaEngine: Error Code 3: API Usage Error (Given invalid tensor name: {name}. "
                "Get valid tensor names with getIOTensorName())"
            )
        return tensor

    def _profile(self, index: int) -> Profile | None:
        if not 0 <= index < len(self._network.profiles):
            self._error(
                f"ICudaEngine: Error Code 3: API Usage Error (profile index {index} is not below "
                f"the {len(self._network.profiles)} profiles of the engine)"
            )
            return None
        return self._network.profiles[index]


class ISerializationConfig:
    """What a plan that is written again shall contain."""

    def __init__(self, *, stripped: bool) -> None:
        self.flags = 1 << SerializationFlag.EXCLUDE_WEIGHTS if stripped else 0

    def set_flag(self, flag: SerializationFlag) -> bool:
        self.flags |= 1 << int(flag)
        return True

    def clear_flag(self, flag: SerializationFlag) -> bool:
        self.flags &= ~(1 << int(flag))
        return True

    def get_flag(self, flag: SerializationFlag) -> bool:
        return bool(self.flags >> int(flag) & 1)


class EngineInspector(TensorRTObject):
    """Describes an engine's layers, in the detail that it was built with."""

    def __init__(self, engine: ICudaEngine) -> None:
        super().__init__(engine._trt, engine._logger, "inspector", engine.name, engine)
        self._engine = engine
        self.execution_context: IExecutionContext | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str | None:
        """Return all layers and the bindings' names."""
        if self._fails("get_engine_information"):
            return None
        layers = [self._layer(index) for index in range(self._engine.num_layers)]
        bindings = [tensor.name for tensor in self._engine._network.tensors]
        if format == LayerInformationFormat.JSON:
            return json.dumps({"Layers": layers, "Bindings": bindings}, indent=2)
        return "\n".join([*map(str, layers), "", "Bindings:", *bindings])

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        """Return one layer."""
        if not 0 <= layer_index < self._engine.num_layers:
            self._engine._error(f"IEngineInspector: layer index {layer_index} is out of range")
            return ""
        layer = self._layer(layer_index)
        return json.dumps(layer) if format == LayerInformationFormat.JSON else str(layer)

    def _layer(self, index: int) -> str | dict[str, Any]:
        name, operator = self._engine._network.layers[index]
        verbosity = self._engine.profiling_verbosity
        if verbosity == ProfilingVerbosity.DETAILED:
            node = self._engine._network.model.graph.node[index]
            return {
                "Name": name,
                "LayerType": operator,
                "Inputs": [{"Name": tensor} for tensor in node.input if tensor],
                "Outputs": [{"Name": tensor} for tensor in node.output if tensor],
                "TacticName": "onnxruntime",
                "Metadata": f"[ONNX Layer: {name}]",
            }
        return name if verbosity == ProfilingVerbosity.LAYER_NAMES_ONLY else f"Layer {index}"
