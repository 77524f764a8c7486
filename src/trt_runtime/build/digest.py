"""`content_digest`, `file_digest`, `read_digested`: the digest that models, plans and files have.

The SHA-256 of the SHA-256s of pieces, so that several processors share the work: of reading too,
for copying 250 MB out of the page cache takes one of them longer than hashing takes eight.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..interrupts import uninterrupted
from ..locks import Changes

PIECE_BYTES = 4 << 20

#: Of a piece that is read only to be hashed, so much at a time: it is still in the processor's
#: cache when it is.
_READ_BYTES = 1 << 20

#: More would wait for memory (measured with 250 MB on 16 cores).
_THREADS = min(12, os.cpu_count() or 1)


def content_digest(data: bytes | bytearray | memoryview) -> str:
    """The digest of bytes, in hexadecimal."""
    view = memoryview(data)

    def piece(start: int) -> bytes:
        return hashlib.sha256(view[start : start + PIECE_BYTES]).digest()

    return _combine(piece, view.nbytes)


def file_digest(file: io.FileIO) -> str:
    """The digest of an open file's content, in hexadecimal; raises `OSError` as reading does."""
    size = _size(file)
    if size <= PIECE_BYTES:
        return content_digest(file.readall())

    def piece(start: int) -> bytes:
        left = min(PIECE_BYTES, size - start)
        room = memoryview(bytearray(min(_READ_BYTES, left)))
        hashed = hashlib.sha256()
        for at in range(start, start + left, _READ_BYTES):
            part = room[: min(_READ_BYTES, start + left - at)]
            _read_at(file, at, part)
            hashed.update(part)
        return hashed.digest()

    return _combine(piece, size)


def read_digested(file: io.FileIO) -> tuple[bytes | memoryview, str]:
    """An open file's content, which nobody can change, and its digest; raises `OSError`."""
    size = _size(file)
    if size <= PIECE_BYTES:
        data = file.readall()
        return data, content_digest(data)
    content = np.empty(size, np.uint8).data  # a bytearray would be filled with zeros first

    def piece(start: int) -> bytes:
        part = content[start : start + PIECE_BYTES]
        _read_at(file, start, part)
        return hashlib.sha256(part).digest()

    return content.toreadonly(), _combine(piece, size)


def _size(file: io.FileIO) -> int:
    """Bytes; 0 for what has no size, such as a pipe, and can only be read from its beginning."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _read_at(file: io.FileIO, start: int, room: memoryview) -> None:
    """Fill ``room`` from there on; from several threads at once."""
    if hasattr(os, "preadv"):
        while room and (count := os.preadv(file.fileno(), [room], start)):
            room, start = room[count:], start + count
    else:  # Windows: a file has one position, which the threads would move from under each other
        with open(file.name, "rb", buffering=0) as own:
            own.seek(start)
            room = _read_on(own, room)
    if room:
        raise OSError("it became shorter while it was read")


def _read_on(file: io.FileIO, room: memoryview) -> memoryview:
    """Fill ``room`` as far as the file goes; the rest of it."""
    while room and (count := file.readinto(room)):
        room = room[count:]
    return room


def _combine(piece: Callable[[int], bytes], size: int) -> str:
    """The digest of ``size`` bytes from those of the pieces that start at each offset."""
    starts = range(0, size, PIECE_BYTES)
    if len(starts) < 2:
        return hashlib.sha256(b"".join(map(piece, starts))).hexdigest()
    left, changes = set(starts), Changes()

    def digest(start: int) -> bytes:
        try:
            return piece(start)
        except BaseException:
            left.clear()  # nobody needs the others any more
            raise
        finally:
            left.discard(start)
            changes.notify_all()

    # An interrupt in one of the pool's methods may leave a lock taken that its threads wait for,
    # and who waits for a future may be told of a lock instead: see `trt_runtime.locks`.
    threads = ThreadPoolExecutor(min(_THREADS, len(starts)), "trt_runtime digest")
    try:
        with uninterrupted():
            pieces = [threads.submit(digest, start) for start in starts]
        changes.wait_for(lambda: not left)
    finally:
        with uninterrupted():
            threads.shutdown(cancel_futures=True)
    # Pieces begin in order: what was cancelled comes behind one that failed.
    return hashlib.sha256(b"".join(one.result() for one in pieces)).hexdigest()
