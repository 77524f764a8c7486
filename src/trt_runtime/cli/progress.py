"""A build's progress on the terminal: phase, steps, elapsed time. Silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trt_runtime.build.progress import BuildProgress
from trt_runtime.cli import output


class BuildDisplay:
    """Takes a build's reports, and knows afterwards whether there were any.

    Attributes
    ----------
    heard : bool
        Whether a build was reported at all; an engine from the cache is not built.
    """

    def __init__(self) -> None:
        self.heard = False

    def __call__(self, progress: BuildProgress) -> None:
        self.heard = True

    def close(self) -> None:
        """Leave the terminal as it was."""


class _TerminalDisplay(BuildDisplay):
    """A bar for each phase that is running, the inner ones indented below the outer."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__()
        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars: dict[str, tuple[object, int]] = {}
        self._display.start()

    def __call__(self, progress: BuildProgress) -> None:
        super().__call__(progress)
        phase, steps = progress.phase, progress.steps or None
        if phase not in self._bars:
            if not progress.parent:
                for done in list(self._bars):  # the outermost phases follow one another
                    self._remove(done)
            depth = self._bars[progress.parent][1] + 1 if progress.parent in self._bars else 0
            name = "  " * depth + (phase if len(phase) <= 50 else f"{phase[:49]}…")
            self._bars[phase] = (self._display.add_task(name, total=steps), depth)
        bar, _ = self._bars[phase]
        self._display.update(bar, completed=progress.step, total=steps)  # type: ignore[arg-type]
        if steps is not None and progress.step >= steps and progress.parent:
            self._remove(phase)

    def _remove(self, phase: str) -> None:
        bar, _ = self._bars.pop(phase)
        self._display.remove_task(bar)  # type: ignore[arg-type]

    def close(self) -> None:
        self._display.stop()


@contextmanager
def build_display() -> Iterator[BuildDisplay]:
    """A display for one build, for ``on_progress``; it moves on a terminal only."""
    display = _TerminalDisplay() if output.has_progress() else BuildDisplay()
    try:
        yield display
    finally:
        display.close()
