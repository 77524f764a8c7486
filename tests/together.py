"""Work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE_SECONDS = 30


def run_together(count: int, work: Callable[[int], object]) -> list[BaseException]:
    """``work(number)`` in that many threads, begun at once; what they raised."""
    raised: list[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait(PATIENCE_SECONDS)
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return raised
