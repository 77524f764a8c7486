"""`KnownModels`: what a cache remembers of models, so that one that did not change is not read.

An engine's key is made of what is in a model's files. What that is, as digests, is kept in a memo
beside the engines, with each file's identity: its device, inode, size, and both of its times.
A memo saves the reading, and never says more than it: it is believed only where each file is the
same and has the same content for certain; else the files are read. How long that holds:

- The time of change (ctime) cannot be set by programs, unlike that of modification (mtime).
- A write within the same tick of the file system's clock leaves both times as they were, and one
  through a memory mapping changes them only when the page was clean before; Linux cleans each
  within 35 s unless it is told otherwise (vm.dirty_expire_centisecs, dirty_writeback_centisecs).
  So only what did not change for `SETTLED_SECONDS` before it was read is remembered.
- Neither is so of every file system: tmpfs never cleans a page, and one of FUSE's has the ctime
  that it likes. Files are remembered only on those of which it is known.
- Opening a file, before asking for its times, is what makes NFS ask its server for them.

The digests themselves are made in `digest`, and the memos lie where `store` puts them.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ModelError
from .digest import file_digest, read_digested
from .key import Contents, canonical_json
from .model import external_files, reading, resolved
from .store import DamagedEntry, Store, sealed, unsealed

#: How long a file must have been as it is when it is read, for that to be remembered.
SETTLED_SECONDS = 60

#: Raised when memos change their meaning, or digests theirs.
MEMO_SCHEMA = 1

#: Linux's names of file systems whose times change with the content, however it is written.
_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "overlay", "nfs", "nfs4"}
)


class KnownModels:
    """The memos of one cache. None of them is ever needed: without, models are read.

    May be used from several threads and processes. Only Linux tells enough about its files; on
    other systems each model is read each time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def contents(self, path: str | os.PathLike[str]) -> Contents:
        """What is in the model there, which is read only if that is not known.

        Raises
        ------
        ModelError
            It, or its external data, is missing or cannot be read, or leads out of its folder.
        """
        memo = self._recall(Path(path))
        return memo.contents if memo is not None else self.contents_now(path)

    def contents_now(self, path: str | os.PathLike[str]) -> Contents:
        """What is in the model there, read now and remembered; raises as `contents`."""
        memo, lasts = _read(Path(path))
        if lasts:
            self._remember(memo)
        return memo.contents

    def _recall(self, path: Path) -> Memo | None:
        """The memo of the model there, if each of its files is what it was."""
        if sys.platform != "linux":
            return None
        try:
            place = Place.of(path)
            self._store.require()
            memo = Memo.from_bytes(self._store.memo_path(place.name).read_bytes(), place)
        except (OSError, RuntimeError, DamagedEntry):  # RuntimeError: links that lead in a circle
            return None
        if not memo.holds():
            return None
        self._store.touch_memo(place.name)
        return memo

    def _remember(self, memo: Memo) -> None:
        try:
            self._store.require()
            self._store.write_memo(memo.place.name, memo.to_bytes())
        except OSError:
            pass  # read-only, say, or not there before the first engine is: it is read again


@dataclass(frozen=True)
class Place:
    """Where a model lies.

    Attributes
    ----------
    folder : str
        That of its external data, absolute and without links. Not always the file's: the model's
        own path may be a link.
    file : str
        Absolute and without links.
    """

    folder: str
    file: str

    @classmethod
    def of(cls, path: Path) -> Place:
        return cls(str(path.parent.resolve()), str(path.resolve()))

    @property
    def name(self) -> str:
        """What its memo is called."""
        return hashlib.sha256(canonical_json([self.folder, self.file])).hexdigest()


class Identity(NamedTuple):
    """What tells a file from any other, and from itself before a change; times in nanoseconds."""

    device: int
    inode: int
    nbytes: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: io.FileIO) -> Identity:
        """That of an open file, now."""
        status = os.fstat(file.fileno())
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


@dataclass(frozen=True)
class KnownFile:
    """A file at the time when it was read.

    Attributes
    ----------
    location : str
        As the model gives it; empty for the model itself.
    path : str
        Absolute and without links.
    identity : Identity
    digest : str
    """

    location: str
    path: str
    identity: Identity
    digest: str

    def settled(self, when: int) -> bool:
        """Whether it had not changed for long at that time, in nanoseconds."""
        return max(self.identity.modified, self.identity.changed) <= when - SETTLED_SECONDS * 10**9


@dataclass(frozen=True)
class Memo:
    """A model's files at the time when they were read.

    Attributes
    ----------
    place : Place
    read : int
        When the first of them was opened, in nanoseconds since 1970.
    files : tuple of KnownFile
        The model first, then one for each location, in the order in which the model names them.
    """

    place: Place
    read: int
    files: tuple[KnownFile, ...]

    @property
    def contents(self) -> Contents:
        model, *others = self.files
        return Contents(model.digest, tuple({file.path: file.digest for file in others}.values()))

    def holds(self) -> bool:
        """Whether each file has the content that it had."""
        if self.read > time.time_ns() or not all(file.settled(self.read) for file in self.files):
            return False
        folder = Path(self.place.folder)
        try:
            for file in self.files:
                if file.location and str(resolved(file.location, folder)) != file.path:
                    return False  # another file by now, and perhaps outside of the folder
                with open(file.path, "rb", buffering=0) as opened:
                    if Identity.of(opened) != file.identity:
                        return False
        except (OSError, RuntimeError):
            return False
        return True

    def to_bytes(self) -> bytes:
        return sealed(MEMO_SCHEMA, asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, place: Place) -> Memo:
        """Read back what `to_bytes` wrote for the model there; raises `DamagedEntry`."""
        try:
            entry: Any = unsealed(MEMO_SCHEMA, data, "memo")
            files = (
                KnownFile(**{**file, "identity": Identity(*map(int, file["identity"]))})
                for file in entry["files"]
            )
            memo = cls(Place(**entry["place"]), int(entry["read"]), tuple(files))
        except (ValueError, TypeError, LookupError) as error:
            raise DamagedEntry(f"the memo cannot be read: {error}") from error
        if memo.place != place or not memo.files:
            raise DamagedEntry("the memo is another model's")
        return memo


def _read(path: Path) -> tuple[Memo, bool]:
    """A memo of the model there, read and hashed now, and whether it may be kept."""
    began = time.time_ns()
    with reading(path), open(path, "rb", buffering=0) as file:
        place = Place.of(path)
        before = Identity.of(file)
        content, digest = read_digested(file)
        model = KnownFile("", place.file, before, digest)
        lasts = _lasts(model, file, began)
    files, read = [model], dict[Path, KnownFile]()
    for location, source in {f.location: f.path for f in external_files(content, path)}.items():
        if source not in read:
            try:
                with open(source, "rb", buffering=0) as file:
                    before = Identity.of(file)
                    read[source] = KnownFile(location, str(source), before, file_digest(file))
                    lasts = lasts and _lasts(read[source], file, began)
            except OSError as error:
                raise ModelError(
                    f"the external data {location!r} of the ONNX model {str(path)!r} cannot be "
                    f"read: {error}"
                ) from error
        files.append(replace(read[source], location=location))
    return Memo(place, began, tuple(files)), lasts


def _lasts(known: KnownFile, file: io.FileIO, began: int) -> bool:
    """Whether a file, still open, has for certain the content that was read since then."""
    return known.settled(began) and _tells_changes(file) and Identity.of(file) == known.identity


def _tells_changes(file: io.FileIO) -> bool:
    """Whether the times of an open file are sure to tell when its content changed."""
    if sys.platform != "linux" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return False
    try:
        told = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
        mount = re.search(r"^mnt_id:\s*(\d+)$", told, re.MULTILINE)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            # 36 35 98:0 /root /mount/point options [optional fields] - type source options
            fields = line.split()
            if mount is not None and fields[0] == mount[1]:
                kind, options = fields[fields.index("-", 6) + 1], fields[-1].split(",")
                return kind in _FILE_SYSTEMS and "nocto" not in options  # NFS without asking
    except (OSError, ValueError, LookupError):
        pass
    return False
