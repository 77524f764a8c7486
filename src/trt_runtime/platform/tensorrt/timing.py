"""The timing cache of a build: read from a file before it, merged into the file after it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import BuildError

if TYPE_CHECKING:
    from . import TensorRT

logger = logging.getLogger("trt_runtime")


class TimingFile(Protocol):
    """Where timings are kept; `build.shared_file.SharedFile` is one."""

    @property
    def path(self) -> Any: ...
    def read(self) -> bytes: ...
    def merge(self, merged: Callable[[bytes], bytes | None]) -> None: ...


def use_timings(library: TensorRT, settings: Any, file: TimingFile) -> None:
    """Let the build begin with the file's timings, or with none where the file cannot be used."""
    data = file.read()
    cache = None
    if data:
        with library.log.capture() as lines:
            cache = _read(library, settings, data)
            if cache is not None and not settings.set_timing_cache(cache, False):
                cache = None
        if cache is None:
            logger.warning(
                "the timing cache %s was not made by %s %s on this kind of GPU, or is damaged; "
                "this build does without%s",
                file.path, library.name, library.version, "".join(f" ({line})" for line in lines),
            )  # fmt: skip
    if cache is None and not settings.set_timing_cache(_new(library, settings), False):
        raise _failure(library)


def keep_timings(library: TensorRT, settings: Any, file: TimingFile) -> None:
    """Add what the build measured to the file, with what others have added meanwhile.

    A file that is damaged, or of another release, is replaced; one of another GPU is left alone.
    """
    measured = settings.get_timing_cache()
    if measured is None:
        return

    def merged(contents: bytes) -> bytes | None:
        others = _read(library, settings, contents) if contents else None
        if others is not None and not measured.combine(others, False):
            return None
        memory = measured.serialize()
        return bytes(memory) if memory is not None else None

    file.merge(merged)


def _read(library: TensorRT, settings: Any, data: bytes) -> Any:
    """The cache that was serialised, or None.

    Of bytes that are none TensorRT 8.6 makes an empty cache, without a word (measured on 8.6.0).
    """
    try:
        cache = settings.create_timing_cache(data)
    except (TypeError, RuntimeError):  # a null pointer, to some bindings
        return None
    if cache is None:
        return None
    empty = bytes(_new(library, settings).serialize())
    return None if bytes(cache.serialize()) == empty != data else cache


def _new(library: TensorRT, settings: Any) -> Any:
    cache = settings.create_timing_cache(b"")
    if cache is None:
        raise _failure(library)
    return cache


def _failure(library: TensorRT) -> BuildError:
    return BuildError(
        "TensorRT could not create a timing cache", log_lines=library.log.take_errors()
    )
