"""TensorRT's int8 calibrator (8.6 and 10), over a feed that knows no TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Feed(Protocol):
    """What a calibrator asks for; `build.calibration.CalibrationFeed` is one."""

    @property
    def batch_size(self) -> int: ...
    def table(self) -> bytes | None: ...
    def keep(self, table: bytes) -> None: ...
    def next(self, names: Sequence[str]) -> list[int]: ...


def make_calibrator(module: Any, feed: Feed, fail: Callable[[BaseException], None]) -> Any:
    """An ``IInt8EntropyCalibrator2`` that reads from ``feed``.

    TensorRT would lose what a callback raises: it is handed to ``fail``, and the data ends there.
    """
    base = module.IInt8EntropyCalibrator2

    class Calibrator(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self._table: bytes | None = None

        def get_batch_size(self) -> int:
            return feed.batch_size

        def get_batch(self, names: Sequence[str]) -> list[int]:
            try:
                return feed.next([str(name) for name in names])
            except BaseException as error:
                fail(error)
                return []

        def read_calibration_cache(self) -> bytes | None:
            try:
                self._table = feed.table()  # TensorRT reads it where it lies
            except BaseException as error:
                fail(error)
            return self._table

        def write_calibration_cache(self, cache: Any) -> None:
            try:
                feed.keep(bytes(cache))
            except BaseException as error:
                fail(error)

    return Calibrator()
