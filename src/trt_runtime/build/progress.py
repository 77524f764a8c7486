"""`BuildProgress`: what a build tells while it runs, and the `Reporter` that tells it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import BuildError


@dataclass(frozen=True)
class BuildProgress:
    """One report of a running build.

    Attributes
    ----------
    phase : str
        ``"parse"``, ``"build"`` and ``"load"`` are this package's, one after the other; the others
        are TensorRT's own, within ``"build"``, from releases that tell them (10 and later).
    step, steps : int
        Steps of the phase that are done, and how many it has; ``steps`` is 0 where nobody knows.
    elapsed_s : float
        Seconds since the build began.
    parent : str
        The phase that this one is part of; empty for the outermost.
    """

    phase: str
    step: int = 0
    steps: int = 0
    elapsed_s: float = 0.0
    parent: str = ""


#: Called with each report, on the thread that builds, which need not be the caller's; returning
#: False cancels the build. What it raises comes out of the build.
OnProgress = Callable[[BuildProgress], "bool | None"]


class Reporter:
    """Tells one build's progress, and knows whether the build is still wanted.

    TensorRT loses an exception that a callback raises, so the first one is kept until it can come
    out; ``failed`` says that there was one.
    """

    def __init__(self, on_progress: OnProgress | None = None) -> None:
        self._on_progress = on_progress
        self._began = time.monotonic()
        self.cancelled = False
        self.failed = False
        self._error: BaseException | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def report(self, phase: str, step: int = 0, steps: int = 0, parent: str = "") -> bool:
        """Tell the user; whether to go on."""
        if self._on_progress is not None and not self.cancelled:
            try:
                told = BuildProgress(phase, step, steps, self.elapsed_s, parent)
                self.cancelled = self._on_progress(told) is False or self.cancelled
            except BaseException as error:
                self.fail(error)
        return not self.cancelled

    def fail(self, error: BaseException) -> None:
        """Keep what a callback raised, and stop the build."""
        if not self.failed:
            self._error = error
        self.failed = self.cancelled = True

    def cancel(self) -> None:
        """Stop the build as soon as TensorRT asks."""
        self.cancelled = True

    def raise_if_stopped(self, log_lines: Sequence[str] = ()) -> None:
        """Raise what a callback raised, or `BuildError` if the build was cancelled."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads here, and to who holds this reporter
        if self.cancelled:
            raise BuildError("the build was cancelled by on_progress", log_lines=log_lines)

    def step(self, phase: str, done: bool, log_lines: Sequence[str] = ()) -> None:
        """Tell that a phase of this package began or ended, and stop if it shall."""
        self.report(phase, int(done), 1)
        self.raise_if_stopped(log_lines)
