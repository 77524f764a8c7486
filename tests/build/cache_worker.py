"""A process that uses an engine cache and stops where it is told to, for `test_cache`.

Says on its standard output where it is, a word a line, and goes on with each line that it is sent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from trt_runtime import Device, EngineCache
from trt_runtime.build import cache as cache_module
from trt_runtime.build.store import Store
from trt_runtime.platform import HostPlatform


def say(word: str) -> None:
    print(word, flush=True)


def stop(word: str) -> None:
    say(word)
    sys.stdin.readline()


class SayWaiting(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("waiting for another build"):
            say("waiting")


def main(directory: str, model: str, marker: str, where: str) -> None:
    real_build, real_fill, real_replace = cache_module.build_reporting, Store._fill, Store._replace

    def build_reporting(*arguments: Any, **options: Any) -> bytes:
        with open(marker, "a") as file:
            file.write(f"{os.getpid()}\n")
        if where == "building":
            stop("building")
        return real_build(*arguments, **options)

    def fill(self: Store, file: Any, data: bytes) -> None:
        if where == "writing":
            file.write(data[: len(data) // 2])
            file.flush()
            stop("writing")
        real_fill(self, file, data)

    def replace(self: Store, target: Path, key: str, data: bytes) -> None:
        if where == "between" and target.suffix == ".json":
            stop("between")
        real_replace(self, target, key, data)

    cache_module.build_reporting = build_reporting
    Store._fill, Store._replace = fill, replace  # type: ignore[method-assign]
    logger = logging.getLogger("trt_runtime")
    logger.setLevel(logging.INFO)
    logger.addHandler(SayWaiting())
    stop("ready")
    with (
        Device(HostPlatform()) as device,
        EngineCache(directory).load_or_build(model, device=device) as engine,
    ):
        say(f"done {hashlib.sha256(engine.serialize()).hexdigest()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
