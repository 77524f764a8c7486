"""`profile`: how long each layer takes, by TensorRT's own profiler."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError, UnsupportedError
from .staged import StagedInference, measured_inputs
from .tensor import Shape

if TYPE_CHECKING:
    from .session import Session

WARM_UP_RUNS = 5


@dataclass(frozen=True)
class LayerTime:
    """A layer, the median of its milliseconds, and its share of the whole, from 0 to 1."""

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class LayerProfile:
    """What `Session.profile` found.

    Attributes
    ----------
    layers : tuple of LayerTime
        In the order in which TensorRT reports them.
    total_ms : float
        Of all layers. More than an inference takes: TensorRT measures each layer on its own.
    runs : int
    on_gpu : bool
        Whether the figures say anything: those of the host device do not.
    """

    model: str
    device: str
    on_gpu: bool
    runs: int
    total_ms: float
    layers: tuple[LayerTime, ...]

    def slowest(self, count: int | None = None) -> tuple[LayerTime, ...]:
        """The layers that take longest, longest first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.ms)[:count])

    def to_json(self) -> dict[str, Any]:
        """Everything; layers in TensorRT's order."""
        content = asdict(self)
        content["timings_are_of_a_gpu"] = content.pop("on_gpu")
        return content

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.device}: {self.total_ms:.4f} ms, {len(self.layers)} layers"
        ]
        lines += [
            f"{layer.ms:>10.4f} ms {layer.share:>6.1%}  {layer.name}" for layer in self.slowest(20)
        ]
        return "\n".join(lines)


def profile(
    session: Session,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Shape] | None = None,
    runs: int = 50,
) -> LayerProfile:
    """Profile a session's engine; see `Session.profile`."""
    if runs < 1:
        raise InputError(f"runs must be 1 or more, not {runs}")
    arrays = measured_inputs(session, inputs, shapes)
    engine = session.engine
    # A layer may report more than once in a run: a loop's body does.
    times: dict[str, list[float]] = {}
    run: dict[str, float] = {}

    def report(layer: str, milliseconds: float) -> None:
        run[layer] = run.get(layer, 0.0) + milliseconds

    with ExitStack() as stack:
        context = stack.enter_context(engine.create_execution_context())
        staged = StagedInference(context, arrays, graph=False, stack=stack)
        context.profiler = report
        for number in range(WARM_UP_RUNS + runs):
            run.clear()
            staged.run()
            staged.wait()
            if number >= WARM_UP_RUNS:
                for layer, milliseconds in run.items():
                    times.setdefault(layer, []).append(milliseconds)
        context.profiler = None
    if not times:
        raise UnsupportedError(
            f"{engine.tensorrt_name} {engine.tensorrt_version} reported no layers to its profiler"
        )
    medians = {layer: statistics.median(each) for layer, each in times.items()}
    total = sum(medians.values())
    return LayerProfile(
        os.path.basename(engine.name) or engine.name,
        session.device.name,
        session.device.kind == "cuda",
        runs,
        total,
        tuple(LayerTime(n, ms, ms / total if total else 0.0) for n, ms in medians.items()),
    )
