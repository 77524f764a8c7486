"""`standstill`: an engine at rest, none of whose contexts is in a call or has work in flight.

TensorRT leaves undefined what a refit does to an engine with pending work, so whoever changes an
engine does it in here. Nothing in here changes anything.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeAlias

from .errors import BusyError, ClosedError
from .graph import CudaGraph
from .ownership import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from .context import _Turn

#: What brings a context to rest: the turn that its calls take, or a method of whoever uses it in
#: another way, which gives a ``with`` in which the context is at rest and has no graphs.
Rest: TypeAlias = "_Turn | weakref.WeakMethod[Callable[[], AbstractContextManager[None]]]"


@contextmanager
def standstill(contexts: Mapping[Record, Rest | None]) -> Iterator[None]:
    """Wait until every context is at rest, and keep it so; other threads' calls wait meanwhile.

    Graphs that were captured on the contexts are closed: NVIDIA promises that contexts remain valid
    after a refit, and says nothing of the addresses that a graph has captured. The device's context
    must be current, and no other context may be made meanwhile.

    Parameters
    ----------
    contexts : mapping of Record to what brings it to rest
        Of all execution contexts of the engine.

    Raises
    ------
    BusyError
        This thread is inside a call on one of them, or nothing brings one to rest.
    """
    with ExitStack() as held:
        for context, rest in contexts.items():
            try:
                state = held.enter_context(context)
            except ClosedError:  # another thread is closing it: wait until it has
                context.close()
                continue
            if rest is None:
                raise BusyError(
                    f"{context.label} was not made by Engine.create_execution_context, and cannot "
                    "be waited for; close it first"
                )
            if isinstance(rest, weakref.WeakMethod):
                at_rest = rest()
                if at_rest is not None:  # otherwise its owner is gone, and it is being closed
                    held.enter_context(at_rest())
                continue
            _take(context, rest)
            held.callback(rest.give)
            state.last_use.wait()
        yield


def _take(context: Record, turn: _Turn) -> None:
    """Take a context's turn at a moment when no graph is captured on it."""
    while True:
        # Not inside the turn, for which a launch in another thread waits inside the graph.
        for graph in _graphs(context):
            graph.close()
        turn.take(True)
        if not _graphs(context):
            return
        turn.give()


def _graphs(context: Record) -> list[Record]:
    return [child for child in context.children.copy() if child.label == CudaGraph.__name__]
