"""`Choices`: bytes read as decisions, so that whoever makes bytes makes input of any kind.

Bytes that are used up go on as zeros, which stand for the plainest choice: a shorter input is a
simpler one. No randomness here: the same bytes are always the same input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

#: What parsers stumble over, more often than chance would find it.
_TOKENS = (
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\xff" * 9 + b"\x01",  # the largest varint
    b"\x00\x00\x00\x80",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 25,
    b"[" * 2000,
    b"{}",
    b"null",
    b"../",
    b"\xed\xa0\x80",  # a lone surrogate
)


class Choices:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def number(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        span = high - low + 1
        count = max(1, (span - 1).bit_length() + 7 >> 3)
        return low + int.from_bytes(self.take(count), "little") % span

    def pick(self, among: Sequence[_T]) -> _T:
        return among[self.number(0, len(among) - 1)]

    def yes(self) -> bool:
        return self.number(0, 1) == 1

    def mutated(self, seed: bytes) -> bytes:
        """The seed after a few changes of the kinds that break files."""
        content = bytearray(seed)
        for _ in range(self.number(0, 5)):
            size = len(content)
            # Most of what a file says of itself is at its beginning.
            at = self.number(0, max(0, (min(size, 64) if self.yes() else size) - 1))
            until = min(size, at + self.number(1, 64))
            what = self.number(0, 6)
            if what == 0 and size:
                content[at] ^= 1 << self.number(0, 7)
            elif what == 1 and size:
                content[at] = self.number(0, 255)
            elif what == 2:
                del content[at:]
            elif what == 3:
                del content[at:until]
            elif what == 4:
                content[at:at] = content[at:until]
            elif what == 5:
                content[at:at] = self.take(self.number(0, 32))
            else:
                token = self.pick(_TOKENS)
                content[at : at + len(token)] = token
        return bytes(content)
