"""Reading the ONNX model that an engine is built from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError


def read_model(model: str | os.PathLike[str] | bytes | Any) -> tuple[bytes, str | None]:
    """The serialised model, and the path it came from, for its external data.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto

    Raises
    ------
    ModelError
        The file is missing or cannot be read.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model), None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        try:
            return path.read_bytes(), str(path)
        except FileNotFoundError:
            raise ModelError(
                f"there is no ONNX model {str(path)!r} (in {os.getcwd()!r}); check the path"
            ) from None
        except OSError as error:
            raise ModelError(f"the ONNX model {str(path)!r} cannot be read: {error}") from error
    serialize = getattr(model, "SerializeToString", None)
    if serialize is None:
        raise InputError(
            f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}"
        )
    return bytes(serialize()), None
