"""The files of an engine cache: entries that are whole or not there, and the locks over them.

An entry is ``<key>.plan``, the raw engine, and ``<key>.json``, its sidecar: the parts of the key
and the plan's size and SHA-256. The sidecar is written last and removed first, so that it is the
mark of a complete entry; its own checksum covers everything in it. ``<key>.lock`` is held by
whoever builds, replaces or removes the entry. Lock files are empty and are never removed: a process
that waits for one that was removed would not exclude those who come later. Readers take no lock:
what they find is checked against the sidecar.

Beside the entries lie memos, ``<name>.known``: small files that save work and that nothing needs.
They carry a checksum as well, and are written and removed without a lock. What they say is not
known here either.

This file knows bytes and files; what a plan is, and how one is made, is not its business. What goes
wrong with the directory is an `OSError`, to which the cache answers by doing without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .digest import read_digested
from .key import SCHEMA, canonical_json

if TYPE_CHECKING:
    from filelock import FileLock

_ENTRY = re.compile(r"([0-9a-f]{64})\.(plan|json)")
_PART = re.compile(r"\.([0-9a-f]{64})\.[0-9a-f]+\.part")
_MEMO = re.compile(r"[0-9a-f]{64}\.known|\.[0-9a-f]{64}\.[0-9a-f]+\.known\.part")

#: How many memos stay: those that were used last.
MAX_MEMOS = 256

#: Held while entries are chosen for removal, so that two processes do not both remove enough.
_PRUNING = "prune"


class DamagedEntry(Exception):
    """An entry, or what is left of one, that cannot be used; the message says why."""


@dataclass(frozen=True)
class Sidecar:
    """What is written down about a plan.

    Attributes
    ----------
    parts : mapping of str to JSON
        The parts of the key.
    plan_digest : str
    plan_bytes : int
    created : datetime
        When it was built, in UTC.
    model : str
        The model's file name, to show; empty when it did not come from a file.
    build_seconds : float
    """

    parts: Mapping[str, Any]
    plan_digest: str
    plan_bytes: int
    created: datetime
    model: str = ""
    build_seconds: float = 0.0

    def to_bytes(self) -> bytes:
        entry = {
            "parts": dict(self.parts),
            "plan_digest": self.plan_digest,
            "plan_bytes": self.plan_bytes,
            "created": self.created.isoformat(),
            "model": self.model,
            "build_seconds": self.build_seconds,
        }
        return sealed(SCHEMA, entry)

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> Sidecar:
        """Read back what `to_bytes` wrote for the entry of that key; raises `DamagedEntry`."""
        entry = unsealed(SCHEMA, data, "sidecar")
        try:
            if hashlib.sha256(canonical_json(entry["parts"])).hexdigest() != key:
                raise DamagedEntry("the sidecar is another entry's")
            sidecar = cls(**{**entry, "created": datetime.fromisoformat(entry["created"])})
            sidecar._check()
            return sidecar
        except (ValueError, TypeError, LookupError) as error:
            raise DamagedEntry(f"the sidecar cannot be read: {error}") from error

    def _check(self) -> None:
        """Raise ValueError unless everything is of its type; a checksum does not promise that."""
        for value, kind, what in (
            (self.parts, dict, "parts"),
            (self.plan_digest, str, "plan_digest"),
            (self.plan_bytes, int, "plan_bytes"),
            (self.model, str, "model"),
            (self.build_seconds, (int, float), "build_seconds"),
        ):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"its {what} is {value!r}")
        if self.created.utcoffset() is None:
            raise ValueError("the time at which it was created has no time zone")


def sealed(schema: int, entry: Mapping[str, Any]) -> bytes:
    """JSON, with the checksum by which `unsealed` knows that it is whole."""
    checksum = hashlib.sha256(canonical_json(entry)).hexdigest()
    written = {"schema": schema, "entry": entry, "sha256": checksum}
    return json.dumps(written, indent=1).encode() + b"\n"


def unsealed(schema: int, data: bytes, what: str) -> Any:
    """What `sealed` was given; raises `DamagedEntry`, which says ``what`` it is that is damaged."""
    try:
        written = json.loads(data)
        theirs, entry = written["schema"], written["entry"]
        if theirs != schema:
            raise DamagedEntry(f"it was written with schema {theirs}, and this one is {schema}")
        if hashlib.sha256(canonical_json(entry)).hexdigest() != written["sha256"]:
            raise DamagedEntry(f"the {what}'s checksum does not match")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedEntry(f"the {what} cannot be read: {error}") from error
    return entry


@dataclass(frozen=True)
class Files:
    """What the directory holds of one entry.

    Attributes
    ----------
    key : str
    nbytes : int
        Bytes of the plan and the sidecar.
    used : datetime or None
        When it was last written or read, in UTC; None without a sidecar.
    has_plan : bool
    """

    key: str
    nbytes: int
    used: datetime | None
    has_plan: bool


class Store:
    """The directory of an engine cache; nothing is touched before it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # The directory ---------------------------------------------------------------------------

    def require(self) -> None:
        """Raise unless the directory is there, and this user's alone to write.

        A plan is code: whoever can write here can run code as this user. Where the system has no
        such owners (Windows), the user's own profile directory is what protects it.

        Raises
        ------
        FileNotFoundError
            It is not there.
        PermissionError
            Somebody else owns it, or the link that leads to it, or may write to it.
        """
        found = os.stat(self.directory)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{str(self.directory)!r} is no directory")
        if not hasattr(os, "getuid"):
            return
        me = os.getuid()
        for owner in (found.st_uid, os.lstat(self.directory).st_uid):  # of a link to it as well
            if owner != me:
                raise PermissionError(
                    f"{str(self.directory)!r} belongs to user {owner}, not to {me}, who runs this"
                )
        writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable:
            raise PermissionError(
                f"{str(self.directory)!r} can be written by others (mode "
                f"{stat.S_IMODE(found.st_mode):04o}); chmod 700 it if what lies in it is yours"
            )

    def prepare(self) -> None:
        """Make the directory, for this user alone, unless it is there; then `require` it."""
        missing = [self.directory]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for directory in reversed(missing):
            # What leads there as well: who may rename a parent may put another in its place.
            directory.mkdir(mode=0o700, exist_ok=True)
        self.require()

    # Entries ---------------------------------------------------------------------------------

    def plan_path(self, key: str) -> Path:
        return self.directory / f"{key}.plan"

    def sidecar_path(self, key: str) -> Path:
        return self.directory / f"{key}.json"

    def sidecar(self, key: str) -> Sidecar:
        """What is written down about an entry.

        Raises
        ------
        FileNotFoundError
            There is no such entry.
        DamagedEntry
        """
        return Sidecar.from_bytes(self.sidecar_path(key).read_bytes(), key)

    def plan(self, key: str, sidecar: Sidecar) -> bytes | memoryview:
        """The plan's bytes, read once and found to be those that were written.

        Raises
        ------
        DamagedEntry
        """
        try:
            with open(self.plan_path(key), "rb", buffering=0) as file:
                plan, digest = read_digested(file)
        except FileNotFoundError:
            raise DamagedEntry("the plan is missing") from None
        if len(plan) != sidecar.plan_bytes:
            raise DamagedEntry(f"the plan has {len(plan)} bytes, not {sidecar.plan_bytes}")
        if digest != sidecar.plan_digest:
            raise DamagedEntry("the plan's SHA-256 digest is not the one in the sidecar")
        return plan

    def touch(self, key: str) -> None:
        """Note that the entry was used; not where that is impossible, as when it is read-only."""
        with suppress(OSError):
            os.utime(self.sidecar_path(key))

    def write(self, key: str, plan: bytes, sidecar: Sidecar) -> None:
        """Write or replace an entry; its lock must be held. Without success nothing is left."""
        try:
            self._replace(self.plan_path(key), key, plan)
            self._replace(self.sidecar_path(key), key, sidecar.to_bytes())
        except BaseException:
            with suppress(OSError):
                self._unlink(key)
            raise

    def _replace(self, target: Path, key: str, data: bytes) -> None:
        self._replace_by(f".{key}.{secrets.token_hex(8)}.part", target, data, self._fill)

    def _replace_by(
        self, part_name: str, target: Path, data: bytes, fill: Callable[[Any, bytes], object]
    ) -> None:
        """Write a part, as ``fill`` does it, and give it the name of ``target``."""
        part = self.directory / part_name
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
            with open(descriptor, "wb") as file:
                fill(file, data)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

    def _fill(self, file: Any, data: bytes) -> None:
        """Write it through to the disk: a sidecar must not survive a power cut that its plan did
        not."""
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    # Memos -----------------------------------------------------------------------------------

    def memo_path(self, name: str) -> Path:
        """The memo of that name, 64 hexadecimal digits."""
        return self.directory / f"{name}.known"

    def write_memo(self, name: str, data: bytes) -> None:
        """Write or replace a memo; one that a power cut leaves in pieces is not believed."""
        part = f".{name}.{secrets.token_hex(8)}.known.part"
        self._replace_by(part, self.memo_path(name), data, lambda file, data: file.write(data))
        self.prune_memos()

    def touch_memo(self, name: str) -> None:
        """Note that the memo was used, where that is possible."""
        with suppress(OSError):
            os.utime(self.memo_path(name))

    def prune_memos(self, most: int = MAX_MEMOS) -> None:
        """Remove all but the memos that were used last, and the parts of some.

        A part may be one that somebody is writing: that memo is written another time.
        """
        used = []
        for found in self._scan():
            if _MEMO.fullmatch(found.name):
                with suppress(OSError):
                    part = found.name.endswith(".part")
                    used.append((part, -found.stat(follow_symlinks=False).st_mtime_ns, found.path))
        for number, (part, _, path) in enumerate(sorted(used)):
            if part or number >= most:
                with suppress(OSError):
                    os.unlink(path)

    # Locks -----------------------------------------------------------------------------------

    def lock(self, name: str) -> FileLock:
        """The lock of an entry, not yet taken; the kernel gives it back when its holder dies.

        Excludes other processes, and other threads of this one. Not reentrant.
        """
        from filelock import FileLock  # takes a while, and who finds an engine needs none

        return FileLock(self.directory / f"{name}.lock", mode=0o600)

    @contextmanager
    def _trying(self, key: str) -> Iterator[bool]:
        """Whether the entry's lock could be had at once; it is held inside."""
        from filelock import Timeout

        try:
            held = self.lock(key).acquire(timeout=0)
        except Timeout:
            yield False
            return
        with held:
            yield True

    # Housekeeping ----------------------------------------------------------------------------

    def files(self) -> list[Files]:
        """Every entry, and what is left of one, least recently used first; without a directory,
        none."""
        plans: dict[str, int] = {}
        sidecars: dict[str, os.stat_result] = {}
        for found in self._scan():
            match = _ENTRY.fullmatch(found.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):  # removed meanwhile
                status = found.stat(follow_symlinks=False)
                if match[2] == "plan":
                    plans[match[1]] = status.st_size
                else:
                    sidecars[match[1]] = status
        files = []
        for key in plans.keys() | sidecars.keys():
            sidecar = sidecars.get(key)
            nbytes = plans.get(key, 0) + (sidecar.st_size if sidecar is not None else 0)
            used = _moment(sidecar.st_mtime) if sidecar is not None else None
            files.append(Files(key, nbytes, used, key in plans))
        return sorted(files, key=lambda f: (f.used is not None, f.used or 0, f.key))

    def _scan(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.directory) as found:
                return list(found)
        except FileNotFoundError:
            return []

    def remove(self, key: str) -> bool:
        """Remove an entry, or what is left of it; whether it is gone.

        One that is being built, replaced or removed by somebody else stays.
        """
        with self._trying(key) as held:
            return held and self._unlink(key)

    def _unlink(self, key: str) -> bool:
        try:
            self.sidecar_path(key).unlink(missing_ok=True)
            self.plan_path(key).unlink(missing_ok=True)
        except PermissionError:  # Windows: somebody reads it at this moment
            return False
        return True

    def prune(
        self, max_bytes: int, *, older_than: timedelta | None = None, keep: str | None = None
    ) -> list[str]:
        """Remove what was not used for that long, then the least recently used, until they fit.

        ``keep`` and what somebody is building stay. Sweeps as well. The keys that were removed.
        """
        removed: list[str] = []
        with self.lock(_PRUNING):
            self.sweep()
            self.prune_memos()
            files = self.files()
            total = sum(file.nbytes for file in files)
            now = datetime.now(timezone.utc)
            for file in files:
                old = older_than is not None and (file.used is None or now - file.used > older_than)
                if file.key == keep or not (old or total > max_bytes):
                    continue
                if self.remove(file.key):
                    removed.append(file.key)
                    total -= file.nbytes
        return removed

    def sweep(self) -> None:
        """Remove what processes that died in the middle of a write left behind.

        Parts and plans without a sidecar belong to whoever holds the entry's lock; where it can be
        had, there is nobody.
        """
        for found in self._scan():
            part = _PART.fullmatch(found.name)
            plan = _ENTRY.fullmatch(found.name)
            key = part[1] if part else plan[1] if plan and plan[2] == "plan" else None
            if key is None or (plan and self.sidecar_path(key).exists()):
                continue
            with self._trying(key) as held:
                if held and not (plan and self.sidecar_path(key).exists()):
                    with suppress(OSError):
                        os.unlink(found.path)


def _moment(seconds: float) -> datetime:
    """A file's time in UTC; any that no datetime holds is so long ago that the file may go."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, timezone.utc)


_BINARY = getattr(os, "O_BINARY", 0)  # Windows
