"""`StagedInference`: one inference whose steps are enqueued and timed one by one.

For measuring, beside a session and never through it: what it runs on is its own. `benchmark` and
`timeline` are made of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bindings import BindingSet
from .context import ExecutionContext
from .errors import InputError, UnsupportedError
from .graph import CudaGraph
from .ownership import insist
from .stream import Event, Stream
from .tensor import Shape, TensorSpec, format_shape

if TYPE_CHECKING:
    from .session import Session

Arrays = dict[str, NDArray[Any]]


def measured_inputs(session: Session, inputs: Any, shapes: Mapping[str, Shape] | None) -> Arrays:
    """What `Session.infer` would take, by name; random if there is none.

    Raises
    ------
    InputError
        An input of dynamic shape, or a shape tensor, for which no profile says anything; a name in
        ``shapes`` that is no input; an input in device memory, which needs no transfer.
    """
    if inputs is None:
        inputs = _random(session.inputs, shapes or {})
    elif shapes:
        raise InputError("shapes are for random inputs; the inputs that were given have their own")
    given, _, _ = session._arrange(inputs if isinstance(inputs, tuple) else (inputs,), {}, None)
    arrays: Arrays = {}
    for spec, array in zip(session.inputs, given, strict=True):
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"input {spec.name!r} is in device memory; transfers are measured from host memory"
            )
        arrays[spec.name] = array
    return arrays


def _random(specs: tuple[TensorSpec, ...], shapes: Mapping[str, Shape]) -> Arrays:
    """Fractions of 1; 0 and 1 for integers, which are valid indices; shapes that are best."""
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise InputError(f"there is no input {name!r}; the engine takes {', '.join(names)}")
    generator = np.random.default_rng(0)
    arrays = {}
    for spec in specs:
        if spec.is_shape_tensor and spec.values:
            arrays[spec.name] = np.array(spec.values[0].opt, spec.dtype).reshape(spec.shape)
            continue
        shape = tuple(shapes.get(spec.name, spec.profiles[0].opt if spec.profiles else spec.shape))
        if -1 in shape or spec.is_shape_tensor:
            raise InputError(
                f"input {spec.name!r}: no profile says what {format_shape(spec.shape)} usually is; "
                "give inputs"
            )
        if spec.dtype.kind in "biu":
            arrays[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            arrays[spec.name] = generator.random(shape, np.float32).astype(spec.dtype)
    return arrays


class StagedInference:
    """A stream, memory, and a timing event at each end of each step.

    Parameters
    ----------
    context : ExecutionContext
    inputs : dict of str to ndarray
        Copied into page-locked memory now.
    graph : bool
        Whether the compute is to be a captured graph, if that is possible.
    stack : ExitStack
        Closes what is opened here.

    Attributes
    ----------
    graph : CudaGraph or None
        Of the compute alone.
    refusal : str or None
        Why there is none, if one was wanted.
    """

    def __init__(
        self, context: ExecutionContext, inputs: Arrays, *, graph: bool, stack: ExitStack
    ) -> None:
        device = context.device
        self.context = context
        self._primary = device._primary
        self._driver = device._driver
        specs = context.engine.inputs
        self.stream = stack.enter_context(Stream(device))
        self.bindings = stack.enter_context(
            BindingSet(
                context,
                {s.name: inputs[s.name].shape for s in specs if not s.is_shape_tensor},
                {s.name: inputs[s.name] for s in specs if s.is_shape_tensor},
            )
        )
        for spec in specs:
            if not spec.is_shape_tensor:
                self.bindings[spec.name].host[...] = inputs[spec.name]
        #: Start, sent, may compute, computed, received.
        self.points = [stack.enter_context(Event(device, timing=True)) for _ in range(5)]
        stack.callback(insist, self.stream.synchronize)
        self._handle = self.stream.handle
        self._points = [point.handle for point in self.points]
        self._grows = any(binding.data_dependent for binding in self.bindings.values())
        self.graph: CudaGraph | None = None
        self.refusal: str | None = None
        self.run()  # the inputs must be there when a capture tries the compute
        self.wait()
        if graph:
            try:
                if any(spec.is_shape_tensor for spec in specs):  # which other sets have elsewhere
                    context = stack.enter_context(context._beside(self.bindings.profile))
                self.graph = stack.enter_context(
                    CudaGraph._around(context, self.bindings, self.stream, _nothing, _nothing)
                )
                # Its launches are not its own: it must not go before they have ended.
                stack.callback(insist, self.stream.synchronize)
            except UnsupportedError as error:
                self.refusal = error.message

    def run(self, after: StagedInference | None = None) -> float:
        """Enqueue everything; the milliseconds that the host took to enqueue the compute.

        With ``after`` the compute waits for that inference's. Does not synchronise, unless TensorRT
        does. Straight to the driver: what the host does between two events counts as device time.
        """
        driver, stream = self._driver, self._handle
        started, sent, ready, computed, received = self._points
        record = driver.event_record
        with self._primary.current():
            record(started, stream)
            self.bindings._upload(stream)
            record(sent, stream)
            if after is not None:
                driver.stream_wait_event(stream, after._points[3])
            record(ready, stream)
            before = time.perf_counter()
            if self.graph is not None:
                driver.graph_launch(self.graph._record.handle, stream)
            else:
                self.context.enqueue(self.bindings, self.stream)
            enqueue_s = time.perf_counter() - before
            record(computed, stream)
            if self._grows:
                self.bindings.copy_to_host(self.stream)
            else:
                self.bindings._download(stream)
            record(received, stream)
        return enqueue_s * 1e3

    def wait(self) -> None:
        """Block until it has ended; without it, figures are not there yet."""
        with self._primary.current():
            self._driver.stream_synchronize(self._handle)

    def stages_ms(self) -> tuple[float, float, float]:
        """Copy in, compute and copy out of the latest run, in milliseconds of device time."""
        started, sent, ready, computed, received = self.points
        return (
            sent.elapsed_ms(started),
            computed.elapsed_ms(ready),
            received.elapsed_ms(computed),
        )


def _nothing(stream: int) -> None:
    """The copies of a graph that has none."""
