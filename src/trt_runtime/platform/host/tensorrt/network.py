"""The network definition: what a parser fills and a builder builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .dependence import analyse, with_shape_tensors
from .enums import DataType, NetworkDefinitionCreationFlag, TensorFormat, TensorLocation
from .model import Tensor, border_tensors, layer_name
from .seam import TensorRTObject
from .shapes import inferred_types, with_inferred_outputs

if TYPE_CHECKING:
    from .builder import Builder


_EVERY_FORMAT = (1 << len(TensorFormat)) - 1


class ITensor:
    """A network input or output."""

    def __init__(self, network: INetworkDefinition, index: int) -> None:
        self._network = network
        self._index = index

    @property
    def _tensor(self) -> Tensor:
        return self._network._tensors[self._index]

    @property
    def name(self) -> str:
        return self._tensor.name

    @property
    def dtype(self) -> DataType:
        """The element type; assigning another has the engine cast at the border."""
        return self._tensor.data_type

    @dtype.setter
    def dtype(self, data_type: DataType) -> None:
        if self._network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            self._network._error(
                f"ITensor::setType: {self.name}: the types of a strongly typed network are fixed"
            )
            return
        self._network._border_types[self.name] = DataType(data_type)
        self._network._analyse()

    @property
    def allowed_formats(self) -> int:
        """A bit for each `TensorFormat` that the tensor may have; the host knows LINEAR."""
        return self._network._formats.get(self.name, _EVERY_FORMAT)

    @allowed_formats.setter
    def allowed_formats(self, formats: int) -> None:
        self._network._formats[self.name] = int(formats)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions, -1 where unknown; assigning fixes or frees dimensions of an input."""
        return self._tensor.dims

    @shape.setter
    def shape(self, dims: tuple[int, ...]) -> None:
        self._network._reshape_input(self._index, tuple(int(dim) for dim in dims))

    @property
    def is_shape_tensor(self) -> bool:
        """Whether the values of this tensor decide shapes."""
        return self._tensor.is_shape_tensor

    @property
    def is_execution_tensor(self) -> bool:
        return not self._tensor.is_shape_tensor

    @property
    def is_network_input(self) -> bool:
        return self._tensor.is_input

    @property
    def is_network_output(self) -> bool:
        return not self._tensor.is_input

    @property
    def location(self) -> TensorLocation:
        return TensorLocation.HOST if self._tensor.is_shape_tensor else TensorLocation.DEVICE

    def get_dimension_name(self, index: int) -> str:
        """Return the name that the model gives to a dimension, or an empty string."""
        names = self._tensor.dim_names
        return names[index] if 0 <= index < len(names) else ""


class Intermediate(NamedTuple):
    """A tensor within a network; of its type None is known for what ONNX cannot infer."""

    name: str
    dtype: DataType | None


class ILayer:
    """A node of the model. The host computes in the model's types, whatever it is told here."""

    def __init__(self, network: INetworkDefinition, index: int) -> None:
        self._node = network._model.graph.node[index]
        self._types = network._types
        self._wanted: dict[int, DataType] = {}
        #: What it is to compute in.
        self.precision = DataType.FLOAT

    @property
    def name(self) -> str:
        return layer_name(self._node)

    @property
    def num_inputs(self) -> int:
        return len(self._node.input)

    @property
    def num_outputs(self) -> int:
        return len(self._node.output)

    def get_input(self, index: int) -> Intermediate | None:
        return self._tensor(self._node.input, index)

    def get_output(self, index: int) -> Intermediate | None:
        return self._tensor(self._node.output, index)

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self._wanted[index] = DataType(dtype)

    def output_type_is_set(self, index: int) -> bool:
        return index in self._wanted

    def _tensor(self, names: Sequence[str], index: int) -> Intermediate | None:
        if not 0 <= index < len(names) or not names[index]:
            return None
        return Intermediate(names[index], self._types.get(names[index]))


class INetworkDefinition(TensorRTObject):
    """A network, empty until a parser gives it a model."""

    def __init__(self, builder: Builder, flags: int) -> None:
        super().__init__(builder._trt, builder._logger, "network", parent=builder)
        self.name = "Unnamed Network 0"
        self._builder = builder
        self._flags = flags
        self._model: Any = None
        self._tensors: list[Tensor] = []
        self._border_types: dict[str, DataType] = {}
        self._formats: dict[str, int] = {}

    @property
    def builder(self) -> Builder:
        return self._builder

    @property
    def flags(self) -> int:
        return self._flags

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        return bool(self._flags >> int(flag) & 1)

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return False

    @property
    def num_inputs(self) -> int:
        return sum(t.is_input for t in self._tensors)

    @property
    def num_outputs(self) -> int:
        return sum(not t.is_input for t in self._tensors)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node) if self._model is not None else 0

    def get_layer(self, index: int) -> ILayer | None:
        if not 0 <= index < self.num_layers:
            self._error(f"INetworkDefinition::getLayer: index {index} of {self.num_layers} layers")
            return None
        return ILayer(self, index)

    def get_input(self, index: int) -> ITensor | None:
        if not 0 <= index < self.num_inputs:
            self._error(f"INetworkDefinition::getInput: index {index} of {self.num_inputs} inputs")
            return None
        return ITensor(self, index)

    def get_output(self, index: int) -> ITensor | None:
        if not 0 <= index < self.num_outputs:
            self._error(
                f"INetworkDefinition::getOutput: index {index} of {self.num_outputs} outputs"
            )
            return None
        return ITensor(self, self.num_inputs + index)

    @cached_property
    def _types(self) -> dict[str, DataType]:
        """The types of all tensors that ONNX can infer."""
        return inferred_types(self._model)

    def _fill(self, model: Any) -> None:
        """Take a model whose border tensors are known to be acceptable."""
        self._model = model
        self._analyse()
        if model.graph.name:
            self.name = model.graph.name

    def _analyse(self) -> None:
        tensors = border_tensors(with_inferred_outputs(self._model))
        self._tensors = [
            replace(t, data_type=self._border_types.get(t.name, t.data_type))
            for t in with_shape_tensors(tensors, analyse(self._model, tensors).shape_tensors)
        ]

    def _reshape_input(self, index: int, dims: tuple[int, ...]) -> None:
        tensor = self._tensors[index]
        if not tensor.is_input or len(dims) != len(tensor.dims):
            self._error(
                f"ITensor::setDimensions: {tensor.name}: cannot change {tensor.dims} to {dims}"
            )
            return
        value = next(v for v in self._model.graph.input if v.name == tensor.name)
        for dim, size in zip(value.type.tensor_type.shape.dim, dims, strict=True):
            if size >= 0:
                dim.dim_value = size
            elif dim.HasField("dim_value"):
                dim.Clear()
        self._analyse()
