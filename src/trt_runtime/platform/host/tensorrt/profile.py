"""Optimisation profiles: the ranges of input shapes, and of shape tensors' values, of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .model import Tensor

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Minimum, optimum and maximum, elementwise."""

    min: Dims
    opt: Dims
    max: Dims

    @classmethod
    def of(
        cls, minimum: Sequence[int], optimum: Sequence[int], maximum: Sequence[int], what: str
    ) -> Range:
        """Return the range, or raise ValueError where it is none."""
        low, best, high = (tuple(int(v) for v in d) for d in (minimum, optimum, maximum))
        if len(low) != len(best):
            raise ValueError(f"Shape provided for opt is inconsistent with other shapes ({what})")
        if len(best) != len(high):
            raise ValueError(f"Shape provided for max is inconsistent with other shapes ({what})")
        for name, smaller, larger in (("opt", low, best), ("max", best, high)):
            if any(s > v for s, v in zip(smaller, larger, strict=True)):
                raise ValueError(
                    f"Shape provided for {name} is inconsistent with other shapes "
                    f"({what}: {list(low)} <= {list(best)} <= {list(high)} does not hold)"
                )
        return cls(low, best, high)

    def __contains__(self, dims: Sequence[int]) -> bool:
        return len(dims) == len(self.min) and all(
            low <= dim <= high for low, dim, high in zip(self.min, dims, self.max, strict=True)
        )

    def __str__(self) -> str:
        return f"{list(self.min)}..{list(self.max)}"

    def as_list(self) -> list[Dims]:
        """Return minimum, optimum and maximum, as TensorRT does."""
        return [self.min, self.opt, self.max]


class IOptimizationProfile:
    """What a user says about one profile; checked against the network when that is built."""

    def __init__(self) -> None:
        self.extra_memory_target = 1.0
        self._shapes: dict[str, Range] = {}
        self._values: dict[str, Range] = {}

    def set_shape(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None:
        """Set the range of an input's shape; raises ValueError unless min <= opt <= max."""
        shapes = Range.of(min, opt, max, input)
        if any(dim < 0 for dim in shapes.min):
            raise ValueError(f"Shape provided for min has a negative dimension ({input}: {min})")
        self._shapes[input] = shapes

    def set_shape_input(
        self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]
    ) -> None:
        """Set the range of a shape tensor's values; raises ValueError unless min <= opt <= max."""
        self._values[input] = Range.of(min, opt, max, input)

    def get_shape(self, input: str) -> list[Dims]:
        """Return minimum, optimum and maximum, or an empty list."""
        return self._shapes[input].as_list() if input in self._shapes else []

    def get_shape_input(self, input: str) -> list[Dims]:
        """Return minimum, optimum and maximum, or an empty list."""
        return self._values[input].as_list() if input in self._values else []

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Profile:
    """One profile of an engine: a range for every input's shape and every shape tensor's values."""

    shapes: dict[str, Range]
    values: dict[str, Range]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {
            "shapes": {name: r.as_list() for name, r in self.shapes.items()},
            "values": {name: r.as_list() for name, r in self.values.items()},
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Profile:
        """Rebuild a profile from a plan's header."""

        def ranges(section: dict[str, Any]) -> dict[str, Range]:
            return {name: Range(*(tuple(d) for d in dims)) for name, dims in section.items()}

        return cls(ranges(values["shapes"]), ranges(values["values"]))

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Raise unless it has a range of integers for each of these inputs."""
        for tensor in inputs:
            known = [(self.shapes[tensor.name], len(tensor.dims))]
            if tensor.is_shape_tensor:
                known.append((self.values[tensor.name], tensor.dims[0] if tensor.dims else 1))
            for given, count in known:
                for dims in given.as_list():
                    if len(dims) != count or not all(type(n) is int for n in dims):
                        raise ValueError(f"no range of {tensor.name}: {given}")


class ProfileRefused(ValueError):
    """Profiles that do not fit the network; the message is what TensorRT logs."""


def resolve(inputs: Sequence[Tensor], profiles: Sequence[IOptimizationProfile]) -> list[Profile]:
    """Return the engine's profiles; a network of static inputs has one even if none was given.

    Raises
    ------
    ProfileRefused
        A dynamic input or a shape tensor is not covered, or a range contradicts the network.
    """
    open_inputs = [t.name for t in inputs if t.is_dynamic or t.is_shape_tensor]
    if open_inputs and not profiles:
        raise ProfileRefused(
            "Error Code 4: Internal Error (Network has dynamic or shape inputs, but no "
            f"optimization profile has been defined: {', '.join(open_inputs)})"
        )
    return [
        Profile(
            {t.name: _shape_range(t, profile, index) for t in inputs},
            {t.name: _value_range(t, profile, index) for t in inputs if t.is_shape_tensor},
        )
        for index, profile in enumerate(profiles or [IOptimizationProfile()])
    ]


def _shape_range(tensor: Tensor, profile: IOptimizationProfile, index: int) -> Range:
    given = profile._shapes.get(tensor.name)
    if given is None:
        if tensor.is_dynamic:
            raise ProfileRefused(
                f"Error Code 4: Internal Error ({tensor.name}: optimization profile {index} is "
                f"missing dimensions of this dynamic input, whose shape is {list(tensor.dims)})"
            )
        return Range(tensor.dims, tensor.dims, tensor.dims)
    for dims in given.as_list():
        fits = len(dims) == len(tensor.dims) and all(
            fixed in (-1, dim) for fixed, dim in zip(tensor.dims, dims, strict=True)
        )
        if not fits:
            raise ProfileRefused(
                f"Error Code 4: Internal Error ({tensor.name}: dimensions {list(dims)} in "
                f"optimization profile {index} do not match the network's {list(tensor.dims)})"
            )
    return given


def _value_range(tensor: Tensor, profile: IOptimizationProfile, index: int) -> Range:
    given = profile._values.get(tensor.name)
    count = tensor.dims[0] if tensor.dims else 1
    if given is None or len(given.min) != count:
        raise ProfileRefused(
            f"Error Code 4: Internal Error ({tensor.name}: optimization profile {index} is missing "
            f"the values of this shape tensor, or does not have {count} of them)"
        )
    return given
