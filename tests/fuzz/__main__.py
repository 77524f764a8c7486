"""``python -m tests.fuzz TARGET --seconds N``: bad input for as long as it is told.

With atheris installed the code's coverage guides what is tried; without, it is changed at random.
Ends with the number of inputs that were tried. An input that breaks the promise is written to a
file, of which ``python -m tests.fuzz TARGET --input FILE`` tries it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["trt_runtime"]):
        from . import promise, targets
else:
    from . import promise, targets

#: Bytes of an input: more than any target reads for its choices.
_LENGTH = 256


class Run:
    """One target, and what was tried of it."""

    def __init__(self, name: str, keep: Path) -> None:
        self.name = name
        self.tried = 0
        self._target = targets.TARGETS[name]
        self.keep = keep
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")

    def one(self, data: bytes) -> None:
        """Try an input; one that fails, or ends the process, is on the disk."""
        self.tried += 1
        pending = self.keep / f"{self.name}-{os.getpid()}.pending"
        pending.write_bytes(data)
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            promise.keeps(self._target, data, Path(self._folder.name))
        except BaseException:
            kept = self.keep / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            os.replace(pending, kept)
            print(f"{self.name}: input {self.tried} failed; it is in {kept}", file=sys.stderr)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        pending.unlink()

    def close(self) -> None:
        self._folder.cleanup()

    def tell(self, how: str) -> None:
        print(f"{self.name}: {self.tried} inputs tried, {how}", flush=True)


def _randomly(run: Run, seconds: float, seed: int) -> None:
    source = random.Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.one(source.randbytes(source.randint(0, _LENGTH)))
    run.tell("at random")


def _guided(run: Run, seconds: float, seed: int) -> None:
    corpus = tempfile.TemporaryDirectory(prefix="corpus-")
    source = random.Random(seed)
    for number in range(64):
        Path(corpus.name, str(number)).write_bytes(source.randbytes(_LENGTH))
    until = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if time.monotonic() < until:
            run.one(data)
            return
        run.tell("guided by coverage")
        corpus.cleanup()
        run.close()
        os._exit(0)  # libFuzzer would as well, but says nothing and cleans nothing up

    kept = f"-artifact_prefix={run.keep}{os.sep}{run.name}-"
    options = [f"-max_len={_LENGTH}", f"-seed={seed or 1}", "-verbosity=0", kept]
    guide: Any = atheris
    guide.Setup([sys.argv[0], *options, corpus.name], one)
    guide.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=sorted(targets.TARGETS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="even where atheris is installed")
    parser.add_argument("--input", type=Path, help="try this file once")
    parser.add_argument("--keep", type=Path, default=Path.cwd(), help="where failures are kept")
    given = parser.parse_args()
    with closing(Run(given.target, given.keep)) as run:
        if given.input is not None:
            run.one(given.input.read_bytes())
            run.tell("from a file")
        elif atheris is None or given.random:
            _randomly(run, given.seconds, given.seed)
        else:
            _guided(run, given.seconds, given.seed)


if __name__ == "__main__":
    main()
