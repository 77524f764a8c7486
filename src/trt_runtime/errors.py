"""Every exception and warning that a user of trt_runtime can meet.

One base, `TrtRuntimeError`; below it one class for each thing that a caller would handle
differently. A message says what was expected, what came, and what to do. Where TensorRT explained
a failure in its log, the lines are in ``log_lines`` and at the end of the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class TrtRuntimeError(Exception):
    """Base of every error that trt_runtime raises on purpose.

    Attributes
    ----------
    log_lines : tuple of str
        What TensorRT logged while the failing call ran, oldest first; empty if it said nothing.
    """

    def __init__(self, message: str, *, log_lines: Sequence[str] = ()) -> None:
        self.message = message
        self.log_lines = tuple(log_lines)
        super().__init__(message)

    def __str__(self) -> str:
        if not self.log_lines:
            return self.message
        return "\n  TensorRT: ".join((self.message, *self.log_lines))


class ClosedError(TrtRuntimeError):
    """An object was used after its ``close()``."""


class BusyError(TrtRuntimeError):
    """An object is in use, and waiting for it was not asked for or could never end."""


class StaleGraphError(TrtRuntimeError):
    """A CUDA graph's context was set up otherwise since the capture, so it cannot be launched."""


class ForkedProcessError(TrtRuntimeError):
    """A CUDA object was used in a process forked after CUDA was initialised."""


class NoDeviceError(TrtRuntimeError):
    """The device asked for is not there: no driver, no GPU, or no GPU of that ordinal."""


class NoTensorRTError(TrtRuntimeError):
    """No TensorRT that fits is installed, or the one asked for is not."""


class UnsupportedError(TrtRuntimeError):
    """This TensorRT release, flavour or tensor format lacks what was asked for."""


class CudaError(TrtRuntimeError):
    """A CUDA driver call failed.

    Attributes
    ----------
    code : int
        The ``CUresult`` value.
    name : str
        Its name, such as ``CUDA_ERROR_INVALID_VALUE``.
    call : str
        The driver call, such as ``cuMemAlloc``.
    """

    def __init__(self, code: int, name: str, call: str, detail: str = "") -> None:
        self.code = code
        self.name = name
        self.call = call
        super().__init__(f"{call} failed with {name} ({code})" + (f": {detail}" if detail else ""))


class OutOfMemoryError(CudaError, MemoryError):
    """The device, or the page-locked host memory, cannot hold what was asked for."""


class StickyCudaError(CudaError):
    """The GPU's context is broken for good; every later call fails until the process restarts."""


class MisuseError(TrtRuntimeError):
    """The host device saw what is undefined behaviour on a GPU; the message names both places."""


class EngineError(TrtRuntimeError):
    """TensorRT refused to make, describe or run an engine or a context of it."""


class RefitError(EngineError):
    """An engine cannot take a model's weights and is as it was; build a new one instead.

    Attributes
    ----------
    problems : tuple of str
        One line for each weight, or each input or output, that does not fit.
    """

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), log_lines: Sequence[str] = ()
    ) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  - ".join((message, *problems)), log_lines=log_lines)


class PlanError(EngineError):
    """A serialised engine (a plan) cannot be used here; the subclasses say why."""


class NotAPlanError(PlanError):
    """The bytes are not a TensorRT plan at all."""


class CorruptPlanError(PlanError):
    """The plan is truncated or damaged."""


class PlanVersionError(PlanError):
    """The plan was built by another TensorRT release or flavour."""


class PlanDeviceError(PlanError):
    """The plan was built for another GPU."""


class UntrustedPlanError(PlanError):
    """The plan carries host code, which runs only when the caller says that it trusts it."""


class BuildError(TrtRuntimeError):
    """An engine could not be built."""


class MissingProfileError(BuildError):
    """A dynamic input, or a shape tensor, has no range of shapes or values to build for.

    Attributes
    ----------
    inputs : dict of str to tuple of int
        Each such input and its shape in the model, -1 where it can vary.
    """

    def __init__(self, message: str, inputs: Mapping[str, tuple[int, ...]]) -> None:
        self.inputs = dict(inputs)
        super().__init__(message)


class ModelError(BuildError):
    """The ONNX model cannot be read or parsed.

    Attributes
    ----------
    problems : tuple of str
        One line for each thing wrong, with node name and operator where the parser gave them.
    """

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), log_lines: Sequence[str] = ()
    ) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  - ".join((message, *problems)), log_lines=log_lines)


class InputError(TrtRuntimeError, ValueError):
    """An argument does not fit: name, rank, shape, dtype, size or layout."""


class CfgError(InputError):
    """A Darknet ``.cfg`` file describes no network that `trt_runtime.yolov3` knows.

    Attributes
    ----------
    source : str
        The file.
    line : int or None
        Counted from 1; None where it is about the whole file.
    section : str or None
        Such as ``convolutional``.
    """

    def __init__(
        self, message: str, source: str, line: int | None = None, section: str | None = None
    ) -> None:
        self.source = source
        self.line = line
        self.section = section
        where = [source]
        if line is not None:
            where.append(f"line {line}")
        if section is not None:
            where.append(f"[{section}]")
        super().__init__(f"{', '.join(where)}: {message}")


class WeightsError(InputError):
    """A Darknet ``.weights`` file does not fit its ``.cfg``, or is none.

    Attributes
    ----------
    source : str
        The file.
    offset : int or None
        The byte at which it goes wrong; None where it is about the whole file.
    """

    def __init__(self, message: str, source: str, offset: int | None = None) -> None:
        self.source = source
        self.offset = offset
        where = source if offset is None else f"{source}, byte {offset}"
        super().__init__(f"{where}: {message}")


class ExportError(TrtRuntimeError, BufferError):
    """Memory cannot be handed to another library the way that library asks for it."""


class ShapeError(InputError):
    """A shape has the wrong rank, or lies outside every optimisation profile."""


class DtypeError(InputError, TypeError):
    """An array's dtype cannot be converted without losing values."""


class PendingWorkError(TrtRuntimeError):
    """Memory was touched by the host while device work on it had not finished."""


class HostDeviceWarning(UserWarning):
    """No GPU was found; the host device runs instead: right results, meaningless timings."""


class CacheWarning(UserWarning):
    """The engine cache cannot be used; engines are built instead: right results, later."""


def add_note(error: BaseException, note: str) -> None:
    """Attach ``note`` to ``error``; Python 3.10 keeps it in ``__notes__`` without printing it."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__dict__.setdefault("__notes__", []).append(note)
