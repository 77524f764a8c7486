"""Which GPUs each TensorRT supports, as far as that is known without asking it.

TensorRT itself is asked when an engine is built or loaded; this is for telling beforehand, and for
recommending one that fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from .flavours import FLAVOURS

Capability = tuple[int, int]


@dataclass(frozen=True)
class Support:
    """The compute capabilities of a release: from the first to the last, or only those named.

    ``last`` is None where later GPUs are supported until a release says otherwise.
    """

    first: Capability
    last: Capability | None = None
    only: tuple[Capability, ...] = ()
    majors: tuple[int, ...] = ()

    def includes(self, capability: Capability) -> bool:
        if self.only or self.majors:
            return capability in self.only or capability[0] in self.majors
        return self.first <= capability and (self.last is None or capability <= self.last)

    def __str__(self) -> str:
        if self.only or self.majors:
            named = [f"{major}.{minor}" for major, minor in self.only]
            return ", ".join([*named, *(f"{major}.x" for major in self.majors)])
        first = f"{self.first[0]}.{self.first[1]}"
        return f"{first} to {self.last[0]}.{self.last[1]}" if self.last else f"{first} and later"


# NVIDIA's support matrices; RTX: its ComputeCapability enum, and that it refused a 9.0 (measured).
_OF_8_6 = Support((7, 0), (9, 0))
_OF_10_AND_11 = Support((7, 5))
_OF_RTX = Support((7, 5), only=((7, 5), (8, 0), (8, 6), (8, 9)), majors=(12,))


def supported_gpus(flavour: str, version: str | None = None) -> Support | None:
    """What a release supports; None for a runtime alone, which runs what its engines are built for.

    Without a version, what a new installation would support.
    """
    if flavour == "tensorrt_rtx":
        return _OF_RTX
    if not FLAVOURS[flavour].builder:
        return None
    return _OF_8_6 if version is not None and version.startswith("8.") else _OF_10_AND_11


def recommended(capability: Capability | None) -> str:
    """The flavour to install for a GPU: the one that is on the public index, if it fits."""
    if capability is None or _OF_RTX.includes(capability):
        return "tensorrt_rtx"
    return "tensorrt"
