"""What the host TensorRT asks of the host driver, and what all of its objects share.

An object reports to its logger, counts its calls for fault injection, and is in the ledger from
its construction until the last reference to it goes, which is when TensorRT's own are released.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ....errors import MisuseError
from .interfaces import ILogger

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Entry = Any
"""A row of the ledger, opaque here."""


class Faults(Protocol):
    """Decides which platform calls fail."""

    def fails(self, name: str, /) -> bool: ...


class Ledger(Protocol):
    """Knows every object that is alive."""

    def open(self, kind: str, name: str, parent: Entry | None = None) -> Entry: ...

    def close(self, entry: Entry, call: str) -> None: ...


class Driver(Protocol):
    """The part of the host driver that TensorRT stands on."""

    @property
    def faults(self) -> Faults: ...

    @property
    def ledger(self) -> Ledger: ...

    def current_context_quietly(self) -> int: ...

    def view(self, address: int, nbytes: int, call: str) -> npt.NDArray[np.uint8]: ...

    def submit(
        self,
        stream: int,
        call: str,
        work: Callable[[], None],
        *,
        reads: Sequence[tuple[int, int]] = (),
        writes: Sequence[tuple[int, int]] = (),
        uses: Sequence[Entry] = (),
    ) -> None: ...

    def is_capturing(self, stream: int) -> bool: ...

    def drain(self, stream: int) -> None: ...

    def event_record(self, event: int, stream: int) -> None: ...


class Platform(Protocol):
    """One host platform's TensorRT, as its own objects see it."""

    @property
    def driver(self) -> Driver: ...

    @property
    def __version__(self) -> str: ...


class TensorRTObject:
    """Base of what TensorRT creates and the last reference destroys."""

    _entry: Entry | None = None

    def __init__(
        self,
        trt: Platform,
        logger: ILogger,
        kind: str,
        name: str = "",
        parent: TensorRTObject | None = None,
    ) -> None:
        self._trt = trt
        self._driver = trt.driver
        self._logger = logger
        self._parent = parent
        self._entry = self._driver.ledger.open(kind, name, parent._entry if parent else None)

    def __del__(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            with contextlib.suppress(Exception):
                self._driver.ledger.close(entry, f"~{type(self).__name__}")

    def _fails(self, call: str) -> bool:
        """Count one call, and log it when it is the one to fail."""
        if self._driver.faults.fails(call):
            self._error(f"injected failure of {call}")
            return True
        return False

    def _require_current_context(self, call: str) -> None:
        require_current_context(self._driver, call)

    def _log(self, severity: ILogger.Severity, message: str) -> None:
        log(self._logger, severity, message)

    def _error(self, message: str) -> None:
        self._log(ILogger.ERROR, message)

    def _warning(self, message: str) -> None:
        self._log(ILogger.WARNING, message)

    def _info(self, message: str) -> None:
        self._log(ILogger.INFO, message)


def frameless(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a method raise without its frames, which would keep its object alive in the traceback.

    NVIDIA's methods are C++ and have no frames, so an exception that a caller keeps does not keep
    an engine or a context from being destroyed.
    """

    @functools.wraps(method)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            failure = error
        del args, kwargs
        link: BaseException | None = failure
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        try:
            raise failure
        finally:
            del failure

    return call


def log(logger: ILogger, severity: ILogger.Severity, message: str) -> None:
    """Hand one line to a logger, whose own failures TensorRT ignores."""
    with contextlib.suppress(Exception):
        logger.log(severity, message)


def require_current_context(driver: Driver, call: str) -> None:
    """Refuse a call that needs the GPU on a thread without a current CUDA context."""
    if not driver.current_context_quietly():
        raise MisuseError(f"{call}: no CUDA context is current on this thread")


def refuse_construction(trt: Platform, logger: ILogger, call: str) -> None:
    """Fail a constructor as pybind11 does when NVIDIA's factory returns a null pointer."""
    if trt.driver.faults.fails(call):
        log(logger, ILogger.ERROR, f"injected failure of {call}")
        raise TypeError("pybind11::init(): factory function returned nullptr")
