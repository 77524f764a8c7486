"""`CudaGraph`: one inference, copies included, captured once and launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from .errors import CudaError, InputError, StaleGraphError, UnsupportedError
from .interrupts import uninterrupted
from .ownership import Owned, insist
from .stream import Stream, _same_device, ordered

if TYPE_CHECKING:
    from .bindings import BindingSet
    from .context import ExecutionContext

#: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED to CUDA_ERROR_CAPTURED_EVENT (cuda.h).
_CAPTURE_ERRORS = range(900, 908)


class CudaGraph(Owned):
    """The copies in, the inference and the copies out of one binding set, as one launch.

    Parameters
    ----------
    context : ExecutionContext
    bindings : BindingSet
        Of that context. The graph holds both; closing either closes the graph first.
    stream : Stream
        Where one ordinary inference is run first, as TensorRT demands, and the capture is made.

    Raises
    ------
    UnsupportedError
        The engine cannot be captured: an output's shape depends on the data, or TensorRT
        synchronises inside (loops, conditionals).
    """

    __slots__ = ("_configured", "_primary", "bindings", "context")

    def __init__(self, context: ExecutionContext, bindings: BindingSet, stream: Stream) -> None:
        if bindings.context is not context:
            raise InputError("the binding set was made for another context")
        self._open(context, bindings, stream, bindings._upload, bindings._download, {})

    @classmethod
    def _around(
        cls,
        context: ExecutionContext,
        bindings: BindingSet,
        stream: Stream,
        before: Callable[[int], None],
        after: Callable[[int], None],
        *,
        elsewhere: Mapping[str, int] | None = None,
    ) -> CudaGraph:
        """A graph of an inference with other copies than the set's own around it.

        The context may be another one of the engine than the binding set's. Outputs of which
        ``elsewhere`` has an address are written there, not to the set's memory.
        """
        self = cls.__new__(cls)
        self._open(context, bindings, stream, before, after, elsewhere or {})
        return self

    def _open(
        self,
        context: ExecutionContext,
        bindings: BindingSet,
        stream: Stream,
        before: Callable[[int], None],
        after: Callable[[int], None],
        elsewhere: Mapping[str, int],
    ) -> None:
        unknown = [binding.name for binding in bindings.values() if binding.data_dependent]
        if unknown:
            raise UnsupportedError(
                f"outputs {', '.join(map(repr, unknown))} have shapes that depend on the data, "
                "so the inference cannot be captured in a graph"
            )
        self.context = context
        self.bindings = bindings
        self._primary = primary = context.device._primary
        driver = primary.driver
        with uninterrupted(), context._record, bindings._record as memory, ExitStack() as cleanup:
            last_use = memory.last_use  # launches are uses of the bindings, which outlive the graph

            def destroy(executable: int) -> None:
                primary.release(last_use.wait, lambda: driver.graph_exec_destroy(executable))

            graph = primary.create(
                lambda: self._capture(stream, before, after, elsewhere), driver.graph_destroy
            )
            try:
                executable = primary.create(
                    lambda: driver.graph_instantiate(graph), driver.graph_exec_destroy
                )
                cleanup.callback(destroy, executable)
            finally:
                primary.release(lambda: driver.graph_destroy(graph))
            cleanup.pop_all()
            self._own(executable, destroy, parents=[context, bindings])

    def _capture(
        self,
        stream: Stream,
        before: Callable[[int], None],
        after: Callable[[int], None],
        elsewhere: Mapping[str, int],
    ) -> int:
        context, bindings, driver = self.context, self.bindings, self._primary.driver
        with (
            context._record as state,
            bindings._record as memory,
            stream._record as handle,
            self._primary.current(),
        ):
            context._turn.take(True)
            try:
                # Both under one turn: another thread's bindings must not come in between.
                with ordered([memory.last_use, state.last_use], stream, handle):
                    before(handle)
                    context._prepare(state, bindings)
                    context._run(state, bindings, handle)
                insist(lambda: driver.stream_synchronize(handle))
                self._configured = context._configured
                driver.stream_begin_capture(handle)
                try:
                    before(handle)
                    context._redirect(state, elsewhere)
                    context._run(state, bindings, handle)
                    after(handle)
                except BaseException as error:
                    with suppress(CudaError):
                        driver.graph_destroy(driver.stream_end_capture(handle))
                    if isinstance(error, Exception):
                        raise _refusal(error) from error
                    raise
                try:
                    return driver.stream_end_capture(handle)
                except CudaError as error:
                    if error.code in _CAPTURE_ERRORS:
                        raise _refusal(error) from error
                    raise
            finally:
                context._turn.give()

    def launch(self, stream: Stream) -> None:
        """Enqueue the captured copies and inference. Does not synchronise.

        Fill the inputs' host sides before, and read the outputs' after a synchronisation.

        Raises
        ------
        StaleGraphError
            Since the capture the context was given the shapes of another binding set, or, if the
            engine has shape tensors, another binding set of any shapes. TensorRT leaves undefined
            what the graph would do.
        """
        _same_device(self.context.device, stream.device, "graph", "stream")
        bindings, context = self.bindings, self.context
        with (
            self._record as executable,
            bindings._record as memory,
            context._record as state,
            stream._record as handle,
        ):
            context._turn.take(True)
            try:
                if context._configured is not self._configured:
                    raise StaleGraphError(
                        f"{self.context.engine.name!r} has run, or was prepared, with other shapes "
                        "on this context since the graph was captured, which leaves undefined what "
                        "it would do; capture it again, or make a context for each shape"
                    )
                uses = [memory.last_use, state.last_use]
                with self._primary.current(), ordered(uses, stream, handle):
                    self._primary.driver.graph_launch(executable, handle)
            finally:
                context._turn.give()

    def _describe(self) -> str:
        return f"of {self.context.engine.name!r}, profile {self.bindings.profile}"


def _refusal(error: Exception) -> UnsupportedError:
    return UnsupportedError(f"the inference cannot be captured in a CUDA graph: {error}")
