"""The host device's ledger: every handle, where it was opened and closed, and who still uses it."""

from __future__ import annotations

import logging
import os
import sys
from collections import OrderedDict

from ...locks import RLock

logger = logging.getLogger("trt_runtime")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_TOMBSTONES = 10_000


def place() -> str:
    """The nearest line of the stack that is not in this package, as ``file:line in function``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"


class Entry:
    """One handle or object: its kind, its place of birth and death, and its pending work."""

    __slots__ = (
        "closed_at",
        "kind",
        "name",
        "nbytes",
        "opened_at",
        "parent",
        "reads",
        "used_at",
        "writes",
    )

    def __init__(self, kind: str, name: str, parent: Entry | None, nbytes: int) -> None:
        self.kind = kind
        self.name = name
        self.parent = parent
        self.nbytes = nbytes
        self.opened_at = place()
        self.closed_at: str | None = None
        self.used_at: str | None = None
        self.reads = 0
        self.writes = 0

    @property
    def busy(self) -> bool:
        """Whether enqueued work that uses it has not run yet."""
        return self.reads > 0 or self.writes > 0

    def __str__(self) -> str:
        size = f" of {self.nbytes} bytes" if self.nbytes else ""
        return f"{self.kind} {self.name}{size} (opened at {self.opened_at})"


#: What arrays that live to the very end may hold: page-locked memory, and its primary context.
_HELD_BY_ARRAYS = {"pinned memory", "primary context"}


class Ledger:
    """Open entries, the graves of closed ones, and every rule that was broken.

    ``violations`` collects what could not be raised, because it happened in a destructor.
    """

    def __init__(self) -> None:
        self._open: dict[Entry, None] = {}
        self._graves: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._lock = RLock()
        self._pid = os.getpid()
        self.violations: list[str] = []

    def open(self, kind: str, name: str, parent: Entry | None = None, nbytes: int = 0) -> Entry:
        entry = Entry(kind, name, parent, nbytes)
        with self._lock:
            if parent is not None and parent.closed_at is not None:
                self.violate(f"{kind} {name} was made from a closed {parent}")
            self._open[entry] = None
        return entry

    def close(self, entry: Entry, call: str) -> None:
        """Close ``entry``; what is wrong with that becomes a violation, never an exception."""
        with self._lock:
            if entry.closed_at is not None:
                self.violate(
                    f"{call}: {entry} was closed at {entry.closed_at} and again at {place()}"
                )
                return
            if entry.busy:
                self.violate(
                    f"{call}: {entry} is used by work enqueued at {entry.used_at} that has not run"
                )
            entry.closed_at = place()
            self._open.pop(entry, None)
            self._graves[entry.kind, entry.name] = entry
            if len(self._graves) > _TOMBSTONES:
                self._graves.popitem(last=False)

    def violate(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)

    def grave(self, kind: str, name: str) -> Entry | None:
        """The closed entry of that kind and name, if it is remembered."""
        return self._graves.get((kind, name))

    @property
    def entries(self) -> list[Entry]:
        """What is open now, oldest first."""
        with self._lock:
            return list(self._open)

    def assert_empty(self) -> None:
        """Raise `AssertionError` that lists what is open or went wrong."""
        lines = [f"still open: {entry}" for entry in self.entries] + self.violations
        if lines:
            raise AssertionError("host device ledger: " + "\n  ".join(lines))

    def report_at_exit(self) -> None:
        """Log what outlived everything else; runs after every other finaliser."""
        if os.getpid() != self._pid:
            return  # a fork's copy: nothing in it was opened here
        entries = self.entries
        if {entry.kind for entry in entries} == _HELD_BY_ARRAYS:
            entries = []
        for entry in entries:
            logger.warning("host device: still open at exit: %s", entry)
        for text in self.violations:
            logger.warning("host device: %s", text)
