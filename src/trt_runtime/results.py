"""`Results`: page-locked memory for the outputs of one inference, lent to the caller as arrays.

The device copies into it, and the arrays show it without a copy. It is idle again when the last of
them, or view of one, is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .device import PrimaryContext
from .memory import PageLocked, PinnedBlock
from .tensor import Shape

Arrays = dict[str, NDArray[Any]]

#: Where each output begins in the block, in bytes: as CUDA's allocator has it at least, since the
#: engine's layers may write there.
_ALIGNMENT = 256


class Results:
    """One block for every output of an inference at given shapes.

    Attributes
    ----------
    addresses : tuple of int
        Where each output goes.
    in_flight : bool
        Whether an inference is going to write to it.
    lends : bool
        Whether it gives its own memory to the caller, and not copies.
    shown : dict of str to ndarray
        The outputs as arrays that hold nothing: only until the next inference writes.
    """

    __slots__ = ("_block", "_lent", "_parts", "addresses", "in_flight", "lends", "shown")

    def __init__(
        self,
        primary: PrimaryContext,
        outputs: Mapping[str, tuple[Shape, np.dtype[Any], int]],
        *,
        lends: bool,
    ) -> None:
        offset = 0
        parts = []
        for name, (shape, dtype, nbytes) in outputs.items():
            parts.append((name, shape, dtype, offset))
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._parts: Sequence[tuple[str, Shape, np.dtype[Any], int]] = parts
        self._block = PinnedBlock(primary, offset)
        self._lent: weakref.ref[PageLocked] | None = None
        self.addresses = tuple(self._block.address + part[3] for part in parts)
        self.in_flight = False
        self.lends = lends
        raw = self._block.raw
        self.shown = {n: np.ndarray(shape, dtype, raw, at) for n, shape, dtype, at in parts}

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    @property
    def idle(self) -> bool:
        """Whether nothing writes to it and nobody can read it."""
        return not self.in_flight and (self._lent is None or self._lent() is None)

    def lend(self) -> Arrays:
        """The outputs as the caller's own arrays, on this memory."""
        memory = self._block.show()
        self._lent = weakref.ref(memory)
        return {
            name: np.ndarray(shape, dtype, memory, offset)
            for name, shape, dtype, offset in self._parts
        }

    def close(self) -> None:
        """Give the memory up; arrays that were lent keep it for as long as they live."""
        memory = self._lent() if self._lent is not None else None
        if memory is not None:
            self._block.hold_for(memory)
        self._block.drop()
