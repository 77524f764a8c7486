"""`content_digest` and `file_digest`: what the cache and metadata know models, plans and files by.

The SHA-256 of the SHA-256s of pieces, so that several processors can share the work: a network of
250 MB is hashed each time that it is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PIECE_BYTES = 4 << 20

#: More would wait for memory.
_THREADS = min(8, os.cpu_count() or 1)


def content_digest(data: bytes | bytearray | memoryview) -> str:
    """The digest of bytes, in hexadecimal."""
    view = memoryview(data)

    def piece(start: int) -> bytes:
        return hashlib.sha256(view[start : start + PIECE_BYTES]).digest()

    return _combine(piece, range(0, view.nbytes, PIECE_BYTES))


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file's content, in hexadecimal; raises `OSError` if it cannot be read."""

    def piece(start: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            rest = memoryview(bytearray(PIECE_BYTES))
            hashed = hashlib.sha256()
            while rest and (count := file.readinto(rest)):
                hashed.update(rest[:count])
                rest = rest[count:]
            return hashed.digest()

    return _combine(piece, range(0, os.stat(path).st_size, PIECE_BYTES))


def _combine(piece: Callable[[int], bytes], starts: range) -> str:
    if len(starts) < 2:
        return hashlib.sha256(b"".join(map(piece, starts))).hexdigest()
    with ThreadPoolExecutor(_THREADS, "trt_runtime digest") as threads:
        return hashlib.sha256(b"".join(threads.map(piece, starts))).hexdigest()
