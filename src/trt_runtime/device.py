"""`Device`: which platform, which ordinal, and the retain on its primary context."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from .errors import HostDeviceWarning, InputError, NoDeviceError, NoTensorRTError
from .interrupts import uninterrupted
from .locks import RLock
from .ownership import Owned, insist, release_all
from .platform import Kind, Platform, cuda_platform, host_platform
from .platform.driver import Driver

_Made = TypeVar("_Made")


class _Current:
    """Makes a context current for the duration of a ``with``, and restores the caller's."""

    __slots__ = ("_previous", "_primary")

    def __init__(self, primary: PrimaryContext) -> None:
        self._primary = primary
        self._previous: int | None = None

    def __enter__(self) -> None:
        self._previous = self._primary.enter()

    def __exit__(self, *_: object) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            self._primary.leave(previous)


class PrimaryContext:
    """One retain of a device's primary context, shared by those who must outlive each other.

    A page-locked block that a user's array still shows holds the context too: releasing the last
    retain would free the block under the array.
    """

    __slots__ = ("_holds", "_lock", "driver", "handle", "ordinal")

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver = driver
        self.ordinal = ordinal
        self.handle = driver.retain_primary_context(ordinal)
        self._holds = 1
        self._lock = RLock()  # a collected array may give up its hold at any point

    def current(self) -> _Current:
        """A ``with`` that makes the context current on this thread and then restores."""
        return _Current(self)

    def enter(self) -> int | None:
        """Make the context current; the caller's, to be given to `leave`, if it was another."""
        previous = self.driver.current_context()
        if previous == self.handle:
            return None
        self.driver.set_current_context(self.handle)
        return previous

    def leave(self, previous: int) -> None:
        self.driver.set_current_context(previous)

    def hold(self) -> None:
        with self._lock:
            self._holds += 1

    def drop(self) -> None:
        """Give up one hold; the last one releases the primary context."""
        with self._lock:
            self._holds -= 1
            last = self._holds == 0
        if last:
            self.driver.release_primary_context(self.ordinal)

    def create(self, make: Callable[[], _Made], destroy: Callable[[_Made], object]) -> _Made:
        """Make something with the context current; destroy it if restoring the caller's fails."""
        made: list[_Made] = []
        try:
            with self.current():
                made.append(make())
            return made[0]
        except BaseException:
            if made:
                self.release(lambda: destroy(made[0]))
            raise

    def release(self, *steps: Callable[[], object]) -> None:
        """Run releases with the context current, every one of them even if another fails."""
        current = self.current()
        release_all([partial(insist, current.__enter__), *steps, partial(insist, current.__exit__)])


class Device(Owned):
    """A device that engines, buffers and streams live on.

    Parameters
    ----------
    which : str, int, Platform or None
        ``"auto"`` takes the first CUDA device if a driver and a TensorRT are there, and otherwise
        the host device with one `HostDeviceWarning`. ``"cuda"``, ``"cuda:1"`` or ``1`` insist on a
        GPU; ``"host"`` or ``"host:1"`` choose the host device. None reads ``TRT_RUNTIME_DEVICE``,
        then means ``"auto"``. A `Platform` gives its first device.
    ordinal : int, optional
        Which device of a `Platform`.

    Raises
    ------
    NoDeviceError
        The device does not exist.
    InputError
        ``which`` is none of the above.

    Notes
    -----
    Owns one retain of the device's *primary* context, the one that PyTorch and CuPy use as well;
    it never creates a private context and never pushes or pops one.
    """

    __slots__ = ("_driver", "_primary", "kind", "ordinal", "platform")

    kind: Kind

    def __init__(self, which: str | int | Platform | None = None, ordinal: int = 0) -> None:
        if isinstance(which, Platform):
            platform = which
        else:
            platform, ordinal = _find(which)
        count = platform.driver.device_count()
        if not 0 <= ordinal < count:
            raise NoDeviceError(
                f"device {platform.kind}:{ordinal} does not exist; there "
                + (f"are {count}, numbered 0 to {count - 1}" if count != 1 else "is one, number 0")
            )
        self.platform = platform
        self.kind = platform.kind
        self.ordinal = ordinal
        self._driver = platform.driver
        with uninterrupted():
            self._primary = PrimaryContext(platform.driver, ordinal)
            self._own(self._primary, PrimaryContext.drop, label=f"Device {self.kind}:{ordinal}")

    @property
    def name(self) -> str:
        """The GPU's name, or ``"host"``."""
        with self._record:
            return self._driver.device_name(self.ordinal)

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor; ``(0, 0)`` on the host device."""
        with self._record:
            return self._driver.compute_capability(self.ordinal)

    @property
    def total_memory(self) -> int:
        """Bytes of device memory."""
        with self._record:
            return self._driver.total_memory(self.ordinal)

    def memory_info(self) -> tuple[int, int]:
        """Free and total device memory in bytes, as ``cuMemGetInfo`` counts it."""
        with self._record as primary, primary.current():
            return self._driver.memory_info()

    @property
    def tensorrt_name(self) -> str:
        """The import name of the TensorRT that is used by default."""
        return self.platform.tensorrt().name

    @property
    def tensorrt_version(self) -> str:
        """Its version, as it states it itself."""
        return self.platform.tensorrt().version

    def same_as(self, other: Device) -> bool:
        """Whether both name one physical device of one platform."""
        return self.platform is other.platform and self.ordinal == other.ordinal

    def _describe(self) -> str:
        return f"{self.kind}:{self.ordinal} {self.name}"

    def __str__(self) -> str:
        return f"{self.kind}:{self.ordinal}"


def borrow_or_open(
    device: Device | str | int | None, stack: ExitStack
) -> tuple[Device, list[Callable[[], None]]]:
    """The device a user means, and what must be done with it in the end.

    A device that was opened here is closed by ``stack``, until its user takes that over.
    """
    if isinstance(device, Device):
        device._require_open()
        return device, []
    opened = stack.enter_context(Device(device))
    return opened, [opened.close]


def _find(which: str | int | None) -> tuple[Platform, int]:
    if which is None:
        which = os.environ.get("TRT_RUNTIME_DEVICE") or "auto"
    if isinstance(which, int) and not isinstance(which, bool):
        return cuda_platform(), which
    if not isinstance(which, str):
        raise _unknown(which)
    if which == "auto":
        return _automatic(), 0
    kind, colon, number = which.partition(":")
    if kind not in ("cuda", "host") or (colon and not number.isdecimal()):
        raise _unknown(which)
    platform = cuda_platform() if kind == "cuda" else host_platform()
    return platform, int(number or 0)


def _unknown(which: object) -> InputError:
    return InputError(
        f"device {which!r} is not understood; expected 'auto', 'host', 'cuda', 'cuda:N' or N"
    )


def _automatic() -> Platform:
    try:
        platform = cuda_platform()
        platform.tensorrt()
        return platform
    except (NoDeviceError, NoTensorRTError) as error:
        warnings.warn(
            f"running on the host device: {error.message} Results are right, timings mean "
            "nothing; device='host' silences this.",
            HostDeviceWarning,
            stacklevel=_callers_level(),
        )
        return host_platform()


def _callers_level() -> int:
    """The ``stacklevel`` for `warnings.warn`, called next to this, that names the user's line."""
    package = os.path.dirname(os.path.abspath(__file__)) + os.sep
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
        level += 1
    return level
