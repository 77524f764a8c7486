"""`BuildConfig` and `Profile`: everything that a user can say about a build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, cast

from ..errors import InputError
from ..tensor import Range, Shape

Precision = Literal["fp32", "tf32", "fp16", "as-typed"]


class Profile(Mapping[str, Range]):
    """The shapes, or the values of shape tensors, that one optimisation profile allows.

    Parameters
    ----------
    ranges : mapping of str to (min, opt, max)
        For each dynamic input a triple of shapes; for a shape tensor a triple of values. A single
        shape stands for all three.

    Examples
    --------
    >>> Profile({"images": ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))})["images"].max
    (32, 3, 224, 224)
    """

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Mapping[str, Sequence[Sequence[int]] | Sequence[int]]) -> None:
        self._ranges = {name: _range(name, value) for name, value in ranges.items()}

    def __getitem__(self, name: str) -> Range:
        return self._ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._ranges.items())))

    def __repr__(self) -> str:
        return f"Profile({self._ranges!r})"


def _range(name: str, value: Sequence[Sequence[int]] | Sequence[int]) -> Range:
    try:
        if all(hasattr(n, "__index__") for n in value):
            shape: Shape = tuple(index(n) for n in cast(Sequence[int], value))
            triple = (shape, shape, shape)
        else:
            low, opt, high = (tuple(index(n) for n in shape) for shape in cast(Any, value))
            triple = (low, opt, high)
    except (TypeError, ValueError):
        raise InputError(
            f"profile of {name!r}: expected (min, opt, max), three shapes, or one shape; "
            f"came {value!r}"
        ) from None
    low, opt, high = triple
    if not len(low) == len(opt) == len(high):
        raise InputError(f"profile of {name!r}: min, opt and max differ in rank: {value!r}")
    if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise InputError(f"profile of {name!r}: needs min <= opt <= max everywhere, got {value!r}")
    return Range(low, opt, high)


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is built; the default suits most models.

    Attributes
    ----------
    profiles : tuple of Profile
        Needed where the model has dynamic inputs or shape tensors.
    precision : "tf32", "fp32", "fp16" or "as-typed"
        What TensorRT may compute in. ``tf32``, its own default, rounds float32 products to ten
        mantissa bits on GPUs that can; ``fp32`` forbids that. ``fp16`` lets a weakly typed
        release (8.6, 10) choose float16. ``as-typed`` follows the model's types exactly; releases
        that are strongly typed only (11, RTX) always do, and refuse ``fp16``.
    optimization_level : int or None
        0 (fast build) to 5 (fast engine); None is TensorRT's default.
    workspace_bytes : int or None
        Limit of scratch memory during the build and in the engine; None is TensorRT's default.
    version_compatible : bool
        The plan runs under later TensorRT releases and the lean runtime. It then carries a lean
        runtime, which is host code, unless ``embed_lean_runtime`` is false.
    embed_lean_runtime : bool
    compute_capabilities : tuple of str
        For TensorRT for RTX: build for these, such as ``"8.6"``, instead of the present GPU.
    """

    profiles: tuple[Profile, ...] = ()
    precision: Precision = "tf32"
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    version_compatible: bool = False
    embed_lean_runtime: bool = True
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "tf32", "fp16", "as-typed"):
            raise InputError(
                f"precision {self.precision!r} is not known; expected 'fp32', 'tf32', 'fp16' or "
                "'as-typed'"
            )
        level, workspace = self.optimization_level, self.workspace_bytes
        if level is not None and level not in range(6):
            raise InputError(f"optimization_level must be 0 to 5, not {level!r}")
        if workspace is not None and not (isinstance(workspace, int) and workspace > 0):
            raise InputError(f"workspace_bytes must be a positive int, not {workspace!r}")
        object.__setattr__(
            self, "profiles", _several("profiles", self.profiles, Profile, "Profile objects")
        )
        object.__setattr__(
            self,
            "compute_capabilities",
            _several("compute_capabilities", self.compute_capabilities, str, 'texts like "8.6"'),
        )


def _several(name: str, given: Any, kind: type, what: str) -> tuple[Any, ...]:
    """``given`` as a tuple; one object alone is iterable too, and would be taken apart."""
    if isinstance(given, kind) or not all(isinstance(item, kind) for item in given):
        raise InputError(f"{name} must be a sequence of {what}, not {given!r}")
    return tuple(given)
