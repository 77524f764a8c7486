"""Calibration: asks a calibrator for example inputs and tells it the largest value of each tensor.

The host computes in the model's own types whatever the table says; the ranges are in the plan, so
that a test can see whether the examples arrived, and when they were not asked for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .datatypes import numpy_dtype
from .executable import Executable
from .interfaces import IInt8EntropyCalibrator2

if TYPE_CHECKING:
    from .builder import Builder
    from .config import IBuilderConfig
    from .network import INetworkDefinition

_HEAD = b"TRTHOST-EntropyCalibration2\n"


def calibrate(
    builder: Builder, network: INetworkDefinition, model: bytes, config: IBuilderConfig
) -> dict[str, float] | None:
    """Return the largest absolute value of each input and output, or None after logging why not.

    An earlier table is taken as it is, and no batch is asked for.
    """
    calibrator = config.int8_calibrator
    if not getattr(calibrator, "_initialised", False):
        raise TypeError("the calibrator's __init__ must call that of its base, explicitly")
    assert isinstance(calibrator, IInt8EntropyCalibrator2)
    table = calibrator.read_calibration_cache()
    if table is not None:
        builder._info("Calibration: the table was read")
        told: dict[str, float] = json.loads(bytes(table).removeprefix(_HEAD))
        return told
    inputs = [tensor for tensor in network._tensors if tensor.is_input]
    profile = config._calibration_profile
    shapes = {t.name: t.dims for t in inputs}
    if profile is not None:
        shapes |= {n: given.opt for n, given in profile._shapes.items() if n in shapes}
    if any(-1 in dims for dims in shapes.values()):
        builder._error("Calibration: a dynamic input needs a calibration profile")
        return None
    import onnx

    executable = Executable(onnx.ModelProto.FromString(model), network._tensors)
    largest: dict[str, float] = {}
    batches = 0
    while addresses := calibrator.get_batch([t.name for t in inputs]):
        batches += 1
        feeds = {
            tensor.name: _at(builder, address, shapes[tensor.name], numpy_dtype(tensor.data_type))
            for tensor, address in zip(inputs, addresses, strict=True)
        }
        outputs = (tensor.name for tensor in network._tensors if not tensor.is_input)
        for name, array in (*feeds.items(), *zip(outputs, executable.run(feeds), strict=True)):
            top = float(np.abs(array.astype(np.float64)).max(initial=0))
            largest[name] = max(top, largest.get(name, 0.0))
    if not batches:
        builder._error("Calibration: the calibrator has no batches")
        return None
    calibrator.write_calibration_cache(_HEAD + json.dumps(largest, sort_keys=True).encode())
    return largest


def _at(builder: Builder, address: int, dims: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    nbytes = int(np.prod(dims)) * dtype.itemsize
    seen = builder._driver.view(address, nbytes, "IInt8EntropyCalibrator2.get_batch")
    return seen.copy().view(dtype).reshape(dims)
