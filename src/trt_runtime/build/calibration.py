"""`Calibration`: example inputs, from which TensorRT 8.6 and 10 choose the ranges of int8.

`Calibration` is the user's: the data, and the tables that TensorRT made of it. `CalibrationFeed` is
one build's: it puts a batch at a time into device memory. TensorRT's own calibrator class, which
asks for both, is in `platform.tensorrt.calibrator`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..device import PrimaryContext
from ..errors import DtypeError, InputError, ShapeError
from ..interrupts import uninterrupted
from ..memory import DeviceBlock
from ..ownership import insist, release_all
from ..platform.driver import address_of
from ..tensor import Shape, format_shape
from .shared_file import SharedFile

logger = logging.getLogger("trt_runtime")

Batch = Mapping[str, ArrayLike] | ArrayLike


class Calibration:
    """Example inputs for ``precision="int8"``.

    Parameters
    ----------
    data : iterable of mapping of str to array, or of array
        One item for each batch: an array for each input by name, or just the array of a model with
        one input. Every batch has the shape that the engine is built for; for a dynamic input that
        is the optimum of the first profile. An iterator is read at once and kept; anything else is
        iterated over again for every build.
    table : path, optional
        A file that keeps the resulting tables, so that the same data and model are calibrated once.
        Several processes may share it. Without it the tables live as long as this object.

    Notes
    -----
    A table belongs to the contents of the data and of the model and to the TensorRT release, and is
    found by them: nothing has to be deleted when either changes.
    """

    def __init__(
        self, data: Iterable[Batch], *, table: str | os.PathLike[str] | None = None
    ) -> None:
        if isinstance(data, (Mapping, str, bytes)) or not isinstance(data, Iterable):
            raise InputError(
                "calibration takes an iterable of batches, each an array or a mapping of name to "
                f"array, not {type(data).__name__}"
            )
        self._data: Iterable[Batch] = list(data) if isinstance(data, Iterator) else data
        self._file = None if table is None else SharedFile(table)
        self._tables: dict[str, bytes] = {}
        self._digest: str | None = None

    @classmethod
    def of(cls, given: Calibration | Iterable[Batch]) -> Calibration:
        """``given`` itself, or a calibration of it."""
        return given if isinstance(given, cls) else cls(given)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The batches as arrays by name; the name is empty where only an array was given."""
        for batch in self._data:
            named = batch if isinstance(batch, Mapping) else {"": batch}
            try:
                yield {name: np.asarray(array) for name, array in named.items()}
            except Exception as error:  # whatever an object's __array__ raises
                raise InputError(f"a calibration batch cannot be made arrays: {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of every batch's names, dtypes, shapes and values; computed once."""
        if self._digest is None:
            digest = hashlib.sha256()
            for batch in self:
                for name in sorted(batch):
                    array = np.ascontiguousarray(batch[name])
                    head = [name, array.dtype.name, list(batch[name].shape)]
                    digest.update(json.dumps(head).encode() + b"\0")
                    digest.update(array.reshape(-1).view(np.uint8).data)
                digest.update(b"\1")
            self._digest = digest.hexdigest()
        return self._digest

    def table(self, key: str) -> bytes | None:
        """The table that TensorRT made under that key."""
        if key not in self._tables and self._file is not None:
            self._tables.update(_tables(self._file.read(), self._file))
        return self._tables.get(key)

    def keep(self, key: str, table: bytes) -> None:
        """Remember a table, in the file too if there is one."""
        self._tables[key] = table
        file = self._file
        if file is not None:

            def merged(contents: bytes) -> bytes:
                tables = {**_tables(contents, file), key: table}
                told = {k: base64.b64encode(v).decode() for k, v in sorted(tables.items())}
                return json.dumps({"schema": _SCHEMA, "tables": told}, indent=1).encode()

            file.merge(merged)


_SCHEMA = 1


def _tables(contents: bytes, file: SharedFile) -> dict[str, bytes]:
    if not contents:
        return {}
    try:
        told = json.loads(contents)
        if told["schema"] != _SCHEMA:
            raise ValueError(f"schema {told['schema']}")
        return {key: base64.b64decode(table) for key, table in told["tables"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"  # the error itself would keep its frames alive
        logger.warning("%s holds no calibration tables and is not used: %s", file.path, why)
        return {}


class CalibrationFeed:
    """Puts one build's batches into device memory, and keeps what TensorRT makes of them.

    The device's context must be current for every call but `release`, which must always follow.
    """

    def __init__(self, calibration: Calibration, primary: PrimaryContext, identity: str) -> None:
        self._calibration = calibration
        self._primary = primary
        self._identity = identity
        self._inputs: dict[str, tuple[Shape, np.dtype[Any]]] = {}
        self._batches: Iterator[dict[str, NDArray[Any]]] = iter(())
        self._number = 0
        self._blocks: dict[str, DeviceBlock] = {}
        self._stream = 0

    def open(self, inputs: Mapping[str, tuple[Shape, np.dtype[Any]]]) -> None:
        """Say what each input of the network takes, before the build begins.

        Raises
        ------
        InputError
            The first batch does not fit, or there is none.
        """
        self._inputs = dict(inputs)
        first = next(iter(self._calibration), None)
        if first is None:
            raise InputError("there is no calibration data: the iterable is empty")
        self._checked(first)
        self._number = 0
        self._batches = iter(self._calibration)

    @property
    def batch_size(self) -> int:
        """Examples in a batch: the first dimension of the first input."""
        shape, _ = next(iter(self._inputs.values()))
        return shape[0] if shape else 1

    @property
    def _key(self) -> str:
        shapes = {name: [list(shape), dtype.name] for name, (shape, dtype) in self._inputs.items()}
        parts = [self._identity, self._calibration.digest, shapes]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def table(self) -> bytes | None:
        """The table of an earlier build with the same data, model and TensorRT."""
        return self._calibration.table(self._key)

    def keep(self, table: bytes) -> None:
        self._calibration.keep(self._key, table)

    def next(self, names: Sequence[str]) -> list[int]:
        """Device addresses of the next batch, in that order; empty when there are no more.

        Waits until the batch has arrived: TensorRT reads it on a stream of its own.
        """
        batch = next(self._batches, None)
        if batch is None:
            return []
        arrays = self._checked(batch)
        driver = self._primary.driver
        with uninterrupted():
            stream = self._stream = self._stream or driver.stream_create(0)
        try:
            for name in names:
                array = arrays[name]
                if name not in self._blocks:
                    with uninterrupted():
                        self._blocks[name] = DeviceBlock(self._primary, array.nbytes)
                address = self._blocks[name].address
                if array.nbytes:
                    driver.memcpy_htod_async(address, address_of(array), array.nbytes, stream)
        finally:
            insist(lambda: driver.stream_synchronize(stream))  # the arrays go, and the blocks
        return [self._blocks[name].address for name in names]

    def release(self) -> None:
        """Free the device memory and the stream."""
        blocks, self._blocks = self._blocks, {}
        stream, self._stream = self._stream, 0
        steps = [block.free for block in blocks.values()]
        destroy = self._primary.driver.stream_destroy
        with ExitStack() as stack:
            stack.callback(release_all, steps)
            if stream:
                stack.callback(self._primary.release, lambda: destroy(stream))

    def _checked(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        number, self._number = self._number, self._number + 1
        if set(batch) == {""} and len(self._inputs) == 1:
            batch = {next(iter(self._inputs)): batch[""]}
        if set(batch) != set(self._inputs):
            given = ", ".join(repr(name) if name else "one array" for name in batch) or "nothing"
            raise InputError(
                f"calibration batch {number} has {given}; the model's inputs are "
                f"{', '.join(map(repr, self._inputs))}"
            )
        arrays = {}
        for name, (shape, dtype) in self._inputs.items():
            array = batch[name]
            if array.shape != shape:
                raise ShapeError(
                    f"calibration batch {number}: {name!r} has shape {format_shape(array.shape)}, "
                    f"and the engine is calibrated at {format_shape(shape)}"
                )
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise DtypeError(
                    f"calibration batch {number}: {name!r} takes {dtype.name}, and "
                    f"{array.dtype.name} would lose values"
                )
            arrays[name] = np.ascontiguousarray(array, dtype)
        return arrays
