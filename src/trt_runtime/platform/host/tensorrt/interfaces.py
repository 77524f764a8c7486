"""The classes that a user of TensorRT subclasses, and the bytes that TensorRT hands back.

None of them knows the host device: TensorRT calls them, they never call TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from .enums import CalibrationAlgoType, DataType


class ILogger:
    """Receives every message of the objects created with it; subclasses override :meth:`log`."""

    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        """Take one message."""


class IOutputAllocator:
    """Supplies memory for outputs; subclasses define what TensorRT looks up by name.

    ``reallocate_output_async(name, memory, size, alignment, stream) -> int``, or the same without
    the stream as ``reallocate_output``, and ``notify_shape(name, shape)``.
    """


class IProfiler:
    """Receives layer times in milliseconds."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take the time of one layer."""


class IProgressMonitor:
    """Follows a build; returning False from :meth:`step_complete` cancels it."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Learn of a phase of `num_steps` steps."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Learn of a finished step, and say whether the build goes on."""
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Learn of the end of a phase."""


class IInt8EntropyCalibrator2:
    """Supplies example inputs; subclasses must call this ``__init__`` and define the rest."""

    def __init__(self) -> None:
        self._initialised = True

    def get_algorithm(self) -> CalibrationAlgoType:
        """Return which algorithm makes ranges of the examples."""
        return CalibrationAlgoType.ENTROPY_CALIBRATION_2

    def get_batch_size(self) -> int:
        """Return the number of examples in a batch."""
        raise NotImplementedError

    def get_batch(self, names: Sequence[str]) -> list[int]:
        """Return a device address for each input, or an empty list when there are no more."""
        raise NotImplementedError

    def read_calibration_cache(self) -> bytes | None:
        """Return an earlier calibration's table, or None."""
        raise NotImplementedError

    def write_calibration_cache(self, cache: bytes) -> None:
        """Take this calibration's table."""
        raise NotImplementedError


class IHostMemory(bytes):
    """A plan or a timing cache, with the buffer protocol."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self)

    @property
    def dtype(self) -> DataType:
        """Plans are plain bytes."""
        return DataType.INT8
