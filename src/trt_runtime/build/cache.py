"""`EngineCache`: engines kept by what they are made of, so that none is ever the wrong one.

What an engine is made of is in `key`, and how its plan is kept safe on the disk in `store`. Here is
when to load, when to build, and what to say about it.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..device import Device, _callers_level, borrow_or_open
from ..engine import Engine
from ..errors import CacheWarning, InputError, PlanError, TrtRuntimeError
from ..locks import Lock
from ..platform.tensorrt import TensorRT, offline_flavour
from .calibration import Batch, Calibration
from .config import BuildConfig, Profile
from .digest import content_digest
from .key import MODEL_PARTS, Difference, EngineKey, contents_of, differences, engine_key
from .known import KnownModels
from .model import read_model
from .plan import build_reporting, with_profiles
from .progress import OnProgress, Reporter
from .store import DamagedEntry, Files, Sidecar, Store

logger = logging.getLogger("trt_runtime")

#: How many bytes of engines a cache keeps unless it is told otherwise.
MAX_BYTES = 20 * 2**30


@dataclass(frozen=True)
class CacheEntry:
    """An engine in a cache, or what is left of one.

    Attributes
    ----------
    key : str
        SHA-256 of the parts, in hexadecimal.
    path : Path
        Its plan, which `Engine.load` takes.
    nbytes : int
        What it takes on the disk.
    created, last_used : datetime or None
        In UTC; None where it is damaged.
    model : str
        File name of the model that it was built from; empty when that was no file.
    build_seconds : float
    parts : mapping of str to JSON
        Everything that it was built from, by, and for.
    damage : str
        Why it cannot be used; empty when it can.
    """

    key: str
    path: Path
    nbytes: int
    created: datetime | None = None
    last_used: datetime | None = None
    model: str = ""
    build_seconds: float = 0.0
    parts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    damage: str = ""

    @property
    def tensorrt(self) -> str:
        """Flavour and version of the TensorRT that built it."""
        return f"{self.parts.get('tensorrt', '')} {self.parts.get('tensorrt version', '')}".strip()

    @property
    def device(self) -> str:
        """Name of the device that it was built for."""
        return str(self.parts.get("device", ""))

    @property
    def precision(self) -> str:
        return str(self.parts.get("precision", ""))

    def __str__(self) -> str:
        if self.damage:
            return f"{self.key[:12]} (damaged: {self.damage})"
        name = f"{self.model}, " if self.model else ""
        return f"{self.key[:12]} ({name}{self.precision}, {self.tensorrt}, {self.device})"


@dataclass(frozen=True)
class Explanation:
    """Why an engine is in a cache, or why not.

    Attributes
    ----------
    key : str
    hit : bool
        Whether a whole entry is there. Only loading can tell that TensorRT takes it, too.
    reason : str
        Why an entry of that very key cannot be used; empty when it can, or is not there.
    nearest : CacheEntry or None
        Of the others the one that is most like it; None on a hit, or in an empty cache.
    differences : tuple of Difference
        The parts in which that one differs: ``part``, ``ours``, ``theirs``.
    """

    key: str
    hit: bool
    reason: str = ""
    nearest: CacheEntry | None = None
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        if self.hit:
            return f"engine {self.key[:12]} is in the cache"
        lines = [f"engine {self.key[:12]} is not in the cache"]
        if self.reason:
            lines = [f"engine {self.key[:12]} is in the cache and cannot be used: {self.reason}"]
        if self.nearest is not None:
            lines.append(f"the nearest entry, {self.nearest}, differs in")
            lines += [f"  {difference}" for difference in self.differences]
        elif not self.reason:
            lines.append("there is no other entry to compare it with")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Wanted:
    """An engine that somebody asks for: where it goes, what builds it, and its key."""

    model: Any
    name: str
    file_name: str
    config: BuildConfig
    calibration: Calibration | None
    device: Device
    flavour: str | None
    library: TensorRT
    key: EngineKey

    @property
    def digest(self) -> str:
        return self.key.digest


class EngineCache:
    """Engines on the disk, each under the hash of everything that it is made of.

    Parameters
    ----------
    directory : path, optional
        Where they are kept; None takes ``TRT_RUNTIME_CACHE``, then the user's cache directory. It
        is made on first use, for this user alone.
    max_bytes : int
        When there is more than that, the least recently used go.

    Notes
    -----
    May be used from several threads, and the directory by several processes and machines. Of those
    who want an engine that is not there, one builds it and the others wait. A directory that cannot
    be used, is not this user's alone, or is full makes no difference to the result: there is one
    `CacheWarning` for each cache, and engines are built as if there were none.

    The key is made of what is in the files, and never of their paths or times. Reading a model of
    hundreds of megabytes takes longer than loading its engine, so what was in a file is noted down
    beside the engines, and believed as long as the file is certain not to have been written since:
    see `build.known`. The plan is read and hashed each time.

    An engine file is code. What is found in the cache is loaded only if its bytes are those that
    this user wrote there; that is why nobody else may write to the directory.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, max_bytes: int = MAX_BYTES
    ) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 0:
            raise InputError(f"max_bytes must be bytes, an int from 0, not {max_bytes!r}")
        self.directory = Path(os.path.abspath(directory or default_directory()))
        self.max_bytes = max_bytes
        self._store = Store(self.directory)
        self._known = KnownModels(self._store)
        self._warning = Lock()
        self._warned = False

    def load_or_build(
        self,
        model: str | os.PathLike[str] | bytes | Any,
        config: BuildConfig | None = None,
        *,
        profiles: Sequence[Profile] = (),
        calibration: Calibration | Iterable[Batch] | None = None,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Engine:
        """The engine of that model: from the cache, or built and kept there.

        Parameters
        ----------
        model, config, profiles, calibration, device, tensorrt, on_progress
            As `Engine.build`. ``on_progress`` hears nothing when the engine is there, or when
            another process builds it. Without a ``timing_cache`` in the configuration, one beside
            the engines is used.

        Raises
        ------
        ModelError, BuildError
            As `Engine.build`.

        Notes
        -----
        Reads and hashes the model and its external data, unless they are on a file system that
        tells of every change, and tells of none since they were last read: see `build.known`.
        """
        with self._wanted(model, config, profiles, calibration, device, tensorrt) as (wanted, then):
            engine = self._load(wanted)
            if engine is None:
                engine = self._build(wanted, Reporter(on_progress))
            engine._record.also(then)
        return engine

    def explain(
        self,
        model: str | os.PathLike[str] | bytes | Any,
        config: BuildConfig | None = None,
        *,
        profiles: Sequence[Profile] = (),
        calibration: Calibration | Iterable[Batch] | None = None,
        device: Device | str | int | None = None,
        tensorrt: str | None = None,
    ) -> Explanation:
        """Whether `load_or_build` with these arguments would build, and what differs if so.

        The nearest entry is one of the same model if there is one, else one of a model of that file
        name; then the one with the fewest parts that differ; then the one that was used last.
        """
        with self._wanted(model, config, profiles, calibration, device, tensorrt) as (wanted, then):
            for step in then:
                step()
        reason = ""
        try:
            self._store.require()
            self._store.plan(wanted.digest, self._store.sidecar(wanted.digest))
            return Explanation(wanted.digest, hit=True)
        except FileNotFoundError:
            pass
        except DamagedEntry as damage:
            reason = str(damage)
        except OSError as error:
            return Explanation(wanted.digest, hit=False, reason=f"the cache is not used: {error}")
        others = [
            (entry, differences(wanted.key.parts, entry.parts))
            for entry in self.entries()
            if entry.key != wanted.digest and not entry.damage
        ]
        if not others:
            return Explanation(wanted.digest, hit=False, reason=reason)

        def distance(other: tuple[CacheEntry, tuple[Difference, ...]]) -> tuple[Any, ...]:
            entry, differing = other
            another = any(difference.part in MODEL_PARTS for difference in differing)
            used = entry.last_used.timestamp() if entry.last_used is not None else 0.0
            return another, entry.model != wanted.file_name, len(differing), -used

        nearest, differing = min(others, key=distance)
        return Explanation(wanted.digest, False, reason, nearest, differing)

    # What is there ---------------------------------------------------------------------------

    def entries(self, *, verify: bool = False) -> tuple[CacheEntry, ...]:
        """Every entry, least recently used first; damaged ones say so and raise nothing.

        Parameters
        ----------
        verify : bool
            Read and hash every plan as well, instead of trusting its size.
        """
        try:
            return tuple(self._entry(files, verify) for files in self._store.files())
        except OSError as error:
            self._warn(error)
            return ()

    def _entry(self, files: Files, verify: bool) -> CacheEntry:
        key, path = files.key, self._store.plan_path(files.key)
        try:
            sidecar = self._store.sidecar(key)
            if verify:
                self._store.plan(key, sidecar)
            elif path.stat().st_size != sidecar.plan_bytes:
                raise DamagedEntry(f"the plan does not have its {sidecar.plan_bytes} bytes")
        except FileNotFoundError:
            missing = "the sidecar" if files.has_plan else "the plan"
            return CacheEntry(key, path, files.nbytes, damage=f"{missing} is missing")
        except (DamagedEntry, OSError) as damage:
            return CacheEntry(key, path, files.nbytes, damage=str(damage))
        return CacheEntry(
            key,
            path,
            files.nbytes,
            sidecar.created,
            files.used,
            sidecar.model,
            sidecar.build_seconds,
            MappingProxyType(dict(sidecar.parts)),
        )

    @property
    def size(self) -> int:
        """Bytes of all entries, damaged ones included."""
        try:
            return sum(files.nbytes for files in self._store.files())
        except OSError:
            return 0

    def unusable(self) -> str | None:
        """Why the directory cannot be used; None when it can, or could be made."""
        try:
            self._store.require()
        except FileNotFoundError:
            return None
        except OSError as error:
            return str(error)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            return f"{str(self.directory)!r} cannot be written"
        return None

    # What goes -------------------------------------------------------------------------------

    def prune(
        self, max_bytes: int | None = None, *, older_than: timedelta | None = None
    ) -> tuple[str, ...]:
        """Remove the least recently used entries, and what dead processes left; the keys removed.

        Safe while others use the cache: an engine that is loaded stays loaded, and an entry that
        somebody is building stays.

        Parameters
        ----------
        max_bytes : int, optional
            Until the rest fits into that; None is the cache's own bound.
        older_than : timedelta, optional
            And every one that was not used for that long.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        try:
            self._store.require()
            return tuple(self._store.prune(bound, older_than=older_than))
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._warn(error)
            return ()

    def forget(self, key: str) -> bool:
        """Remove the entry of that key; whether it is gone. Somebody may be building it."""
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise InputError(f"a key is 64 hexadecimal digits, not {key!r}")
        try:
            self._store.require()
            return self._store.remove(key)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._warn(error)
            return False

    def clear(self) -> tuple[str, ...]:
        """Remove every entry and the timing caches; as `prune`, and as safe."""
        removed = self.prune(0)
        if self.unusable() is None:
            self._store.prune_memos(0)
            for path in self.directory.glob("timing-*.cache"):
                path.unlink(missing_ok=True)
        return removed

    # Loading and building --------------------------------------------------------------------

    @contextmanager
    def _wanted(
        self,
        model: Any,
        config: BuildConfig | None,
        profiles: Sequence[Profile],
        calibration: Calibration | Iterable[Batch] | None,
        device: Device | str | int | None,
        tensorrt: str | None,
    ) -> Iterator[tuple[_Wanted, list[Any]]]:
        """What is asked for, and how to close a device opened for it; closed if the body fails."""
        config = with_profiles(config, profiles)
        given = None if calibration is None else Calibration.of(calibration)
        file = Path(model) if isinstance(model, (str, os.PathLike)) else None
        if file is None:
            model, _ = read_model(model)  # the bytes that are hashed are the bytes that are built
            contents = contents_of(model)
        else:  # read for a build, and only then
            contents = self._known.contents(file)
        with ExitStack() as stack:
            opened, then = borrow_or_open(device, stack)
            flavour = offline_flavour(tensorrt, bool(config.compute_capabilities)) or tensorrt
            library = opened.platform.tensorrt(flavour)
            key = engine_key(
                contents,
                config,
                library=library,
                device=opened,
                calibration=None if given is None else given.digest,
            )
            wanted = _Wanted(
                model=model,
                name=file.stem if file is not None else "engine",
                file_name=file.name if file is not None else "",
                config=config,
                calibration=given,
                device=opened,
                flavour=flavour,
                library=library,
                key=key,
            )
            yield wanted, then
            stack.pop_all()

    def _load(self, wanted: _Wanted, *, last_look: bool = False) -> Engine | None:
        """The engine from its entry; None unless there is one that is whole and loads.

        What is wrong with one is said at the last look, under the lock: before that, somebody may
        just be replacing it.
        """
        key = wanted.digest
        try:
            self._store.require()
            plan = self._store.plan(key, self._store.sidecar(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        except DamagedEntry as damage:
            reason: Exception = damage
        else:
            try:
                engine = self._open(wanted, plan)
            except PlanError as error:
                reason = error
            else:
                self._store.touch(key)
                engine._metadata |= {"cache_key": key, "cache_hit": True}
                return engine
        if last_look:
            logger.warning("cache entry %s is built again: %s", key[:12], reason)
        return None

    def _open(
        self, wanted: _Wanted, plan: bytes | memoryview, reporter: Reporter | None = None
    ) -> Engine:
        """Load a plan of ours, telling ``reporter`` about it if it was just built."""
        wanted.library.load_plugins([os.fspath(path) for path in wanted.config.plugin_libraries])
        with ExitStack() as stack:
            if reporter is not None:
                reporter.step("load", False)
            # A plan may carry host code. This one was built by this user's own TensorRT, a moment
            # ago or, as its hash and the directory's owner say, when it was put into the cache: it
            # is as trusted as the library that built it.
            engine = stack.enter_context(
                Engine.load(
                    plan, device=wanted.device, tensorrt=wanted.flavour, trust_host_code=True
                )
            )
            if reporter is not None:
                reporter.step("load", True)
            stack.pop_all()
        engine.name = wanted.name
        engine._record.label = f"Engine {wanted.name!r}"
        engine._metadata |= {
            "config": wanted.config.to_json(),
            "model_digest": wanted.key.parts["model"],
        }
        if wanted.config.version_compatible:
            engine._plan = bytes(plan)  # TensorRT cannot serialise such an engine again
        return engine

    def _build(self, wanted: _Wanted, reporter: Reporter) -> Engine:
        """Build and keep, one process and thread at a time; whoever waited finds it built."""
        try:
            self._store.prepare()
            lock = self._acquire(wanted)
        except OSError as error:
            self._warn(error)
            return self._open(wanted, self._plan(wanted, wanted.config, reporter), reporter)
        with lock:
            engine = self._load(wanted, last_look=True)
            if engine is not None:
                return engine
            began = time.monotonic()
            plan = self._plan(wanted, self._with_timing_cache(wanted), reporter)
            seconds = time.monotonic() - began
            engine = self._open(wanted, plan, reporter)  # what does not load is not worth keeping
            with ExitStack() as stack:
                stack.callback(engine.close)
                if self._keep(wanted, plan, seconds):
                    engine._metadata |= {"cache_key": wanted.digest, "cache_hit": False}
                stack.pop_all()
        self._make_room(wanted.digest)
        return engine

    def _acquire(self, wanted: _Wanted) -> AbstractContextManager[Any]:
        """The entry's lock, taken; says so if that means waiting."""
        from filelock import Timeout  # see `Store.lock`

        lock = self._store.lock(wanted.digest)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            logger.info(
                "waiting for another build of %s (%s)",
                wanted.file_name or wanted.name,
                wanted.digest[:12],
            )
            return lock.acquire()

    def _plan(self, wanted: _Wanted, config: BuildConfig, reporter: Reporter) -> bytes:
        return build_reporting(
            wanted.model,
            config,
            calibration=wanted.calibration,
            device=wanted.device,
            tensorrt=wanted.flavour,
            reporter=reporter,
        )

    def _with_timing_cache(self, wanted: _Wanted) -> BuildConfig:
        """The configuration, with the timing cache of that TensorRT and GPU if it names none."""
        config, library = wanted.config, wanted.library
        if config.timing_cache is not None or not library.flavour.timing_cache:
            return config
        parts = wanted.key.parts
        name = f"{library.name}-{library.version}-{parts['device']}-{parts['compute capability']}"
        name = re.sub(r"[^\w.]+", "-", name)
        return replace(config, timing_cache=self.directory / f"timing-{name}.cache")

    def _keep(self, wanted: _Wanted, plan: bytes, seconds: float) -> bool:
        """Write the entry, unless its model changed since it was hashed; whether it is there."""
        if self._key_of_files_now(wanted) != wanted.key:
            logger.warning(
                "the engine of %s is not kept: the model changed while it was built",
                wanted.file_name or wanted.name,
            )
            return False
        sidecar = Sidecar(
            parts=wanted.key.parts,
            plan_digest=content_digest(plan),
            plan_bytes=len(plan),
            created=datetime.now(timezone.utc),
            model=wanted.file_name,
            build_seconds=round(seconds, 3),
        )
        try:
            self._store.write(wanted.digest, plan, sidecar)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _key_of_files_now(self, wanted: _Wanted) -> EngineKey | None:
        """The key once more, from the files: TensorRT reads some itself, and later."""
        try:
            return engine_key(
                contents_of(wanted.model)
                if isinstance(wanted.model, bytes)
                else self._known.contents_now(wanted.model),
                wanted.config,
                library=wanted.library,
                device=wanted.device,
                calibration=wanted.key.parts["calibration"],
            )
        except TrtRuntimeError:
            return None

    def _make_room(self, keep: str) -> None:
        try:
            self._store.prune(self.max_bytes, keep=keep)
        except OSError as error:
            logger.info("the engine cache could not be pruned: %s", error)

    def _warn(self, error: OSError) -> None:
        with self._warning:
            if self._warned:
                return
            self._warned = True
        warnings.warn(
            f"the engine cache {str(self.directory)!r} cannot be used, and engines are built each "
            f"time: {error}. Set TRT_RUNTIME_CACHE to a directory of your own.",
            CacheWarning,
            stacklevel=_callers_level(),
        )

    def __repr__(self) -> str:
        return f"EngineCache({str(self.directory)!r}, max_bytes={self.max_bytes})"


def default_directory() -> Path:
    """Where engines are kept unless somebody says otherwise."""
    chosen = os.environ.get("TRT_RUNTIME_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs  # only here is it needed

    return Path(platformdirs.user_cache_dir("trt_runtime")) / "engines"
