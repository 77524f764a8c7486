"""``python -m tests.soak --device host|cuda``: everything for a long time, and nothing may grow.

Ends with status 1 if a promise was broken, and with every thread's traceback if nothing goes on.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import sys
from pathlib import Path

from .course import soak, told

#: How long nothing may come to an end before the process does.
HANG_SECONDS = 120

#: Inferences for each device: minutes.
_INFERENCES = {"host": 1_000_000, "cuda": 200_000}

#: One heap, and no pieces of freed memory that threads keep for themselves: both go on filling for
#: hundreds of thousands of inferences (a million on the host device: 12 resident bytes each, and
#: 0.6 in use; without them 0.6 and 0.01).
_PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def _with_plain_malloc() -> None:
    """Begin again, since the C library looks at its settings once."""
    if sys.platform == "linux" and not _PLAIN_MALLOC.items() <= os.environ.items():
        again = [sys.executable, "-m", "tests.soak", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **_PLAIN_MALLOC})


def _alive() -> None:
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--device", choices=sorted(_INFERENCES), required=True)
    parser.add_argument("--inferences", type=int, help="1,000,000 on the host, 200,000 on a GPU")
    parser.add_argument("--cycles", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop by then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    _with_plain_malloc()
    logging.getLogger("trt_runtime").setLevel(logging.CRITICAL)  # refusals are expected
    _alive()
    report = soak(
        given.device,
        inferences=given.inferences or _INFERENCES[given.device],
        cycles=given.cycles,
        seconds=given.seconds,
        seed=given.seed,
        alive=_alive,
    )
    faulthandler.cancel_dump_traceback_later()
    print(told(report))
    if given.json is not None:
        given.json.write_text(json.dumps({"given": vars(given), **report.to_json()}, default=str))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
