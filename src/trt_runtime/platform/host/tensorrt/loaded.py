"""A network loaded from a plan: all that running it needs, and nothing that has to be released."""

from __future__ import annotations

from typing import Any

from .dependence import analyse
from .executable import Executable
from .model import Tensor, layer_name
from .profile import Profile
from .shapes import OutputShapes

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
        self.layers = [(layer_name(node), node.op_type) for node in proto.graph.node]
        self.executable = Executable(proto, self.tensors)
        dependence = analyse(proto, self.tensors)
        self.shapes = OutputShapes(proto, self.tensors, dependence, self.executable.run)
        self.scratch_bytes = _SCRATCH_PER_LAYER * max(1, len(self.layers))
