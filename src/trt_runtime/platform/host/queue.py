"""Streams, events and graphs of the host device: queues of deferred work.

Nothing runs when it is enqueued. A synchronisation runs a stream's queue up to the point it waits
for, in the synchronising thread; a query runs one operation, so that a polling loop ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ...locks import RLock
from .ledger import Entry

Range = tuple[int, int]


class Marker:
    """The point in a stream that an event stands for."""

    __slots__ = ("done", "milliseconds", "stream")

    def __init__(self, stream: StreamQueue) -> None:
        self.stream = stream
        self.done = False
        self.milliseconds = 0.0


class Operation:
    """One piece of work: what it calls, and which memory and objects it needs until it has run."""

    __slots__ = (
        "call",
        "host_source",
        "host_target",
        "reads",
        "uses",
        "waits_for",
        "work",
        "writes",
    )

    def __init__(
        self,
        call: str,
        work: Callable[[], None],
        *,
        reads: Sequence[Range] = (),
        writes: Sequence[Range] = (),
        uses: Sequence[Entry] = (),
        host_source: Range | None = None,
        host_target: Range | None = None,
        waits_for: Marker | None = None,
    ) -> None:
        self.call = call
        self.work = work
        self.reads = tuple(reads)
        self.writes = tuple(writes)
        self.uses = tuple(uses)
        self.host_source = host_source
        self.host_target = host_target
        self.waits_for = waits_for


class Enqueued:
    """An operation in a queue, with what it keeps busy."""

    __slots__ = ("operation", "release", "run")

    def __init__(
        self, operation: Operation, run: Callable[[], None], release: Callable[[], None]
    ) -> None:
        self.operation = operation
        self.run = run
        self.release = release


class StreamQueue:
    """A stream: operations that run in order, one at a time."""

    def __init__(self, handle: int, entry: Entry | None) -> None:
        self.handle = handle
        self.entry = entry
        self.queue: deque[Enqueued] = deque()
        self.capture: list[Operation] | None = None
        self.capture_broken: str | None = None
        self._running = RLock()

    def step(self) -> bool:
        """Run one operation, first what it waits for; False when there is none."""
        while True:
            with self._running:
                if not self.queue:
                    return False
                marker = self.queue[0].operation.waits_for
                if marker is None or marker.done:
                    self._run(self.queue[0])
                    return True
            # Not while holding this queue: the other stream may wait for this one.
            marker.stream.run_until(marker)

    def _run(self, head: Enqueued) -> None:
        """Run the first operation; one that is interrupted stays first, and runs again.

        A GPU does not notice Ctrl-C. A finaliser that waits for this stream in the middle of it has
        run it by the time it is back here.
        """
        try:
            head.run()
        except Exception:
            self._leave(head)
            raise
        self._leave(head)

    def _leave(self, head: Enqueued) -> None:
        head.release()
        if self.queue and self.queue[0] is head:
            self.queue.popleft()

    def run_until(self, marker: Marker) -> None:
        while not marker.done:
            if not self.step():
                return

    def drain(self) -> None:
        while self.step():
            pass

    def lose(self) -> None:
        """Forget what has not run: it never will."""
        while self.queue:
            self.queue.popleft().release()

    @property
    def idle(self) -> bool:
        return not self.queue


class EventState:
    """An event: the marker of its last record, if it was ever recorded."""

    def __init__(self, handle: int, timing: bool, entry: Entry) -> None:
        self.handle = handle
        self.timing = timing
        self.entry = entry
        self.marker: Marker | None = None


class GraphState:
    """A captured graph, or an executable of one: the operations in their order."""

    def __init__(self, handle: int, operations: Sequence[Operation], entry: Entry) -> None:
        self.handle = handle
        self.operations = tuple(operations)
        self.entry = entry
