"""The classes that a user of TensorRT subclasses, and the bytes that TensorRT hands back.

None of them knows the host device: TensorRT calls them, they never call TensorRT.
"""

from __future__ import annotations

from enum import IntEnum

from .enums import DataType


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
