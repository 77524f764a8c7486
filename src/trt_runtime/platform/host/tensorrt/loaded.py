"""A network loaded from a plan: all that running it needs, and nothing that has to be released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .dependence import analyse
from .executable import Executable
from .model import Tensor, layer_name
from .profile import Profile
from .shapes import OutputShapes
from .weights import Array, refittable_weights, with_weights, with_zeros

_SCRATCH_PER_LAYER = 1024
"""Bytes. The host needs no scratch memory, but whoever runs an engine has to provide some."""


class LoadedNetwork:
    """The runnable part of an engine, shared by its contexts and by work that is enqueued."""

    def __init__(self, header: dict[str, Any], model: bytes) -> None:
        import onnx

        proto = onnx.ModelProto.FromString(model)
        self.tensors = [Tensor.from_json(values) for values in header["tensors"]]
        self.by_name = {t.name: t for t in self.tensors}
        self.inputs = [t for t in self.tensors if t.is_input]
        self.outputs = [t for t in self.tensors if not t.is_input]
        self.profiles = [Profile.from_json(values) for values in header["profiles"]]
        for tensor in self.tensors:
            tensor.check()
        for profile in self.profiles:
            profile.check(self.inputs)
        self.layers = [(layer_name(node), node.op_type) for node in proto.graph.node]
        self.scratch_bytes = _SCRATCH_PER_LAYER * max(1, len(self.layers))
        #: Whether the plan came without its weights, and none were given yet.
        self.stripped = bool(header.get("stripped_bytes"))
        #: How often the weights were changed.
        self.refits = 0
        self._run(with_zeros(proto) if self.stripped else proto)

    def refit(self, arrays: Mapping[str, Array]) -> None:
        """Change the weights of these names for work that is enqueued from now on."""
        self._run(with_weights(self.model, arrays))
        self.refits += 1
        self.stripped = self.stripped and not refittable_weights(self.model).keys() <= arrays.keys()

    def _run(self, model: Any) -> None:
        self.model = model
        self.executable = Executable(model, self.tensors)
        dependence = analyse(model, self.tensors)
        self.shapes = OutputShapes(model, self.tensors, dependence, self.executable.run)
