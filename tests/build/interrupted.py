"""A build that says when TensorRT has begun; a test interrupts it.

Usage: python -m tests.build.interrupted TARGET OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from trt_runtime import BuildConfig, BuildProgress, Engine, build_plan

from ..models import light, static

target, out = sys.argv[1], Path(sys.argv[2])


def tell(told: BuildProgress) -> None:
    """Say once that TensorRT builds; then stay until the signal came, as a long build would."""
    if told.parent and not tell.told:  # type: ignore[attr-defined]
        tell.told = True  # type: ignore[attr-defined]
        print("building", flush=True)
        if target == "host":
            sys.stdin.read()


tell.told = False  # type: ignore[attr-defined]

try:
    if target == "host":
        with Engine.build(static().model, device="host", on_progress=tell) as engine:
            engine.save(out)
    else:
        config = BuildConfig(compute_capabilities=("8.6",), timing_cache=None)
        out.write_bytes(build_plan(light("densenet121")[0].model, config, on_progress=tell))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
