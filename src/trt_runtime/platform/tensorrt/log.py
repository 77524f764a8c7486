"""What TensorRT logs: on to the ``trt_runtime.tensorrt`` logger, and into the errors it explains.

TensorRT reports failures by returning nothing and logging why, so a call that may fail runs inside
`Log.capture`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("trt_runtime.tensorrt")

# ILogger.Severity of every release: INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4.
_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_WARNING = 2
_ERROR = 1


class Log:
    """The one logger of a loaded TensorRT.

    TensorRT wants a single logger per process and keeps a pointer to the first it saw, so this one
    lives as long as the library.
    """

    def __init__(self, module: Any) -> None:
        self._captures: dict[int, tuple[int, list[str]]] = {}
        self._local = threading.local()
        write = self._write

        class Logger(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                write(int(severity), msg)

        self.logger = Logger()

    def _write(self, severity: int, message: str) -> None:
        level = _LEVELS[min(severity, 4)]
        # TensorRT's errors reach the user as exceptions: they need not be shouted as well.
        if logger.isEnabledFor(level):
            logger.log(min(level, logging.INFO) if severity <= _ERROR else level, "%s", message)
        if severity > _WARNING:
            return
        if severity <= _ERROR:
            self._recent.append(message)
        me = threading.get_ident()
        captures = tuple(self._captures.values())
        mine = [lines for owner, lines in captures if owner == me]
        for lines in mine or [lines for _, lines in captures]:  # builders log from their threads
            lines.append(message)

    @property
    def _recent(self) -> deque[str]:
        recent: deque[str] | None = getattr(self._local, "recent", None)
        if recent is None:
            recent = self._local.recent = deque(maxlen=16)
        return recent

    def take_errors(self) -> tuple[str, ...]:
        """This thread's latest error lines, which are then forgotten."""
        lines = tuple(self._recent)
        self._recent.clear()
        return lines

    @contextmanager
    def capture(self) -> Iterator[list[str]]:
        """Collect warnings and errors that are logged inside, oldest first."""
        lines: list[str] = []
        self._captures[id(lines)] = (threading.get_ident(), lines)
        try:
            yield lines
        finally:
            del self._captures[id(lines)]
            self._recent.clear()
