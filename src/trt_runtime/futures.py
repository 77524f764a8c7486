"""`InferenceFuture`, and the thread that fills it: inferences that are waited for elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

from .interrupts import uninterrupted
from .locks import Changes
from .pipeline import Flight, Outputs

#: Inferences that `Session.infer_async` accepts before it waits for one to be dispatched.
PENDING = 64

Submit = Callable[[], Flight]


class InferenceFuture(Future[Outputs]):
    """The results of an inference, later: a `concurrent.futures.Future` that can be awaited.

    ``result()`` waits for them from any thread; ``await`` does from any event loop. ``cancel()``
    succeeds until the inference has been enqueued; a cancelled ``await`` cancels it likewise.
    """

    # An interrupt in a future's own methods may leave its lock taken, and who completes the futures
    # would wait for it for ever: see `trt_runtime.locks`. So those wait here, where no lock is.

    def __init__(self) -> None:
        super().__init__()
        self._changed = Changes()
        self._settled = False
        super().add_done_callback(_settle)

    def result(self, timeout: float | None = None) -> Outputs:
        self._wait(timeout)
        with uninterrupted():
            return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        with uninterrupted():
            return super().exception(0)

    def cancel(self) -> bool:
        with uninterrupted():
            return super().cancel()

    def cancelled(self) -> bool:
        with uninterrupted():
            return super().cancelled()

    def running(self) -> bool:
        with uninterrupted():
            return super().running()

    def done(self) -> bool:
        with uninterrupted():
            return super().done()

    def add_done_callback(self, fn: Callable[[Future[Outputs]], object]) -> None:
        with uninterrupted():
            super().add_done_callback(fn)

    def _wait(self, timeout: float | None) -> None:
        if not self._settled:
            self._changed.wait_for(lambda: self._settled, timeout)

    def __await__(self) -> Generator[Any, None, Outputs]:
        import asyncio  # whoever awaits has it already

        return asyncio.wrap_future(self).__await__()


def _settle(future: Any) -> None:
    """The first of a future's callbacks. No method, which would keep the results alive."""
    future._settled = True
    future._changed.notify_all()


class Dispatcher:
    """Two threads: one enqueues inferences as memory becomes free, one completes their futures.

    Parameters
    ----------
    current : callable
        Gives a ``with`` that makes the device's context current.
    """

    def __init__(self, current: Callable[[], AbstractContextManager[object]]) -> None:
        self._current = current
        self._orders: SimpleQueue[tuple[InferenceFuture, Submit] | None] = SimpleQueue()
        self._flying: SimpleQueue[
            tuple[InferenceFuture, Flight | BaseException] | Callable[[], object] | None
        ] = SimpleQueue()
        # No semaphore, whose methods are Python: an interrupt in one may leave it locked for ever.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(PENDING):
            self._room.put(None)
        self._completed = False
        self._enqueuer = threading.Thread(
            target=self._enqueue, name="trt_runtime enqueue", daemon=True
        )
        self._completer = threading.Thread(
            target=self._complete, name="trt_runtime complete", daemon=True
        )

    def start(self) -> None:
        self._enqueuer.start()
        self._completer.start()

    def dispatch(self, submit: Submit) -> InferenceFuture:
        """A future of what ``submit`` will enqueue; waits while too many are pending."""
        try:
            if threading.current_thread() is not self._completer:  # a callback's is its own to make
                self._room.get()
            future = InferenceFuture()
            self._orders.put((future, submit))
        except BaseException:
            # Whether it had taken its place an interrupt leaves unknown. One too many does no harm;
            # with one too few each time, nobody would get any in the end.
            self._room.put(None)
            raise
        return future

    def close(self) -> None:
        """Finish what was accepted, and end the threads."""
        self._orders.put(None)
        self._enqueuer.join()
        if threading.current_thread() is self._completer:  # closed by a future's callback
            self._complete()
        else:
            self._completer.join()

    def end_with(self, last: Callable[[], object]) -> None:
        """Have one of the threads call ``last``, which closes this. Does not wait."""
        self._flying.put(last)

    def _enqueue(self) -> None:
        while (order := self._orders.get()) is not None:
            future, submit = order
            self._room.put(None)
            if future.set_running_or_notify_cancel():
                try:
                    with self._current():
                        flight: Flight | BaseException = submit()
                except BaseException as error:
                    flight = error
                self._flying.put((future, flight))
                del flight
            del order, future, submit  # nothing of the last inference is kept while waiting
        self._flying.put(None)

    def _complete(self) -> None:
        while not self._completed:
            landed = self._flying.get()
            if landed is None:
                self._completed = True
                return
            if not isinstance(landed, tuple):
                landed()
                continue
            future, flight = landed
            try:
                if isinstance(flight, BaseException):
                    raise flight
                with self._current():
                    flight.sleep()
                    arrays = flight.finish()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(arrays)
                del arrays
            del landed, future, flight
