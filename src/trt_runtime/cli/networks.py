"""The classic networks that the onnx package carries for its own tests, with reference outputs.

They need no download. Their weights are constants instead of trained values, which makes the files
small and the outputs independent of the input: a match shows that every layer of the network ran
and produced the right shape and value, not that the input arrived.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trt_runtime import InputError

#: The tolerance of the onnx package's own tests of these networks.
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Network:
    """A network by its short name, such as ``squeezenet``."""

    name: str

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return _folder() / f"light_{self.name}.onnx"

    def reference(self) -> npt.NDArray[np.generic]:
        """Read the output that the onnx package expects of `ramp`."""
        import onnx
        import onnx.numpy_helper

        tensor = onnx.TensorProto()
        tensor.ParseFromString((_folder() / f"light_{self.name}_output_0.pb").read_bytes())
        return np.asarray(onnx.numpy_helper.to_array(tensor))


def find(name: str) -> Network | None:
    """Return the network called ``name``, or None."""
    return Network(name) if name in names() else None


def names() -> list[str]:
    """The networks that the installed onnx has, sorted."""
    files = _folder().glob("light_*.onnx")
    return sorted(file.stem.removeprefix("light_") for file in files)


def model_file(model: str) -> Path:
    """The file that MODEL means: a network's, or the one of that path.

    Raises
    ------
    InputError
        It is neither.
    """
    network = find(model)
    if network is not None:
        return network.model
    path = Path(model)
    if not path.is_file():
        raise InputError(
            f"{model} is neither a file nor a network that comes with the onnx package; "
            f"those are {', '.join(names())}."
        )
    return path


def ramp(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The input that onnx's test runner gives these networks: from 0 to almost 1, evenly."""
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) / count).astype(np.float32)


def _folder() -> Path:
    # Found without importing onnx, which would slow every --help down.
    found = importlib.util.find_spec("onnx")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "backend" / "test" / "data" / "light"
