"""`EngineKey`: what an engine is made of, part by part, and the hash of it that names it.

Everything that can change what TensorRT makes of a model is a part; where things lie and when they
were made are not. What becomes of the engine, and where it is kept, is not this file's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .config import BuildConfig
from .digest import content_digest, file_digest
from .model import external_files

if TYPE_CHECKING:
    from ..device import Device
    from ..platform.tensorrt import TensorRT

#: Raised when the parts change their meaning, or when the same parts come to make another engine:
#: another way to convert a model, other network or parser flags for the same configuration.
SCHEMA = 2

#: The parts that say which network it is; the others say how it is built, by what, and for what.
MODEL_PARTS = ("model", "external data")

#: Fields of `BuildConfig` that are paths: what lies there counts, or what was timed there helps.
_PATHS = ("timing_cache", "plugin_libraries")


@dataclass(frozen=True)
class Contents:
    """What a model is made of.

    Attributes
    ----------
    model : str
        The digest of the serialised model.
    external_data : tuple of str
        The digest of each external file once, in the order in which the model first names them.
    """

    model: str
    external_data: tuple[str, ...] = ()


def contents_of(model: bytes) -> Contents:
    """The contents of a model that is in memory; raises `ModelError` if it has external data."""
    external_files(model, None)
    return Contents(content_digest(model))


@dataclass(frozen=True)
class EngineKey:
    """The identity of an engine.

    Attributes
    ----------
    parts : mapping of str to JSON
        Each part by name. Two keys are the same when all parts are.
    """

    parts: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the parts, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.parts)).hexdigest()


@dataclass(frozen=True)
class Difference:
    """A part of a key in which two engines differ; None where one of them does not have it."""

    part: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.part}: {_shown(self.ours)} here, {_shown(self.theirs)} there"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Every part in which the two differ, in our order, then those that only theirs has."""
    return tuple(
        Difference(part, ours.get(part), theirs.get(part))
        for part in {**ours, **theirs}
        if ours.get(part) != theirs.get(part) or (part in ours) != (part in theirs)
    )


def engine_key(
    contents: Contents,
    config: BuildConfig,
    *,
    library: TensorRT,
    device: Device,
    calibration: str | None = None,
) -> EngineKey:
    """The key of the engine that would be built.

    Nothing but content counts: neither where a file lies nor when it was changed. Of plugin
    libraries, too, which are hashed here.

    Parameters
    ----------
    contents : Contents
        As `contents_of` or `known.KnownModels` gives them.
    config : BuildConfig
        Complete: with the profiles.
    library : TensorRT
    device : Device
        Not looked at when the configuration names compute capabilities to build for.
    calibration : str, optional
        The digest of the calibration data.

    Raises
    ------
    InputError
        A plugin library cannot be read.
    """
    parts: dict[str, Any] = {
        "key schema": SCHEMA,
        "model": contents.model,
        "external data": list(contents.external_data),
        "calibration": calibration,
        "plugin libraries": [_plugin_digest(library) for library in config.plugin_libraries],
        **_settings(config),
        "tensorrt": library.name,
        "tensorrt version": library.version,
        "operating system": platform.system(),
        "architecture": platform.machine(),
        **_target(config, device),
    }
    return EngineKey(MappingProxyType(parts))


def canonical_json(value: Any) -> bytes:
    """One text for one value, whatever order its mappings are in."""
    return json.dumps(
        value if not isinstance(value, MappingProxyType) else dict(value),
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()


def _plugin_digest(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file_digest(file)
    except OSError as error:
        raise InputError(
            f"the plugin library {os.fspath(path)!r} cannot be read: {error.strerror or error}"
        ) from error


def _settings(config: BuildConfig) -> dict[str, Any]:
    """Every field of the configuration, and each input of each profile, as a part of its own."""
    settings = {name: value for name, value in config.to_json().items() if name not in _PATHS}
    for number, profile in enumerate(settings.pop("profiles")):
        settings[f"profiles[{number}]"] = sorted(profile)
        for name in sorted(profile):
            settings[f"profiles[{number}][{name!r}]"] = profile[name]
    return settings


def _target(config: BuildConfig, device: Device) -> dict[str, Any]:
    """What the engine is built on and for."""
    if config.compute_capabilities:  # built without looking at the device
        return {
            "cuda": None,
            "device": "any of compute_capabilities",
            "compute capability": None,
            "multiprocessors": None,
            "device memory": None,
        }
    with device._record:
        driver, ordinal = device.platform.driver, device.ordinal
        version = driver.driver_version()
        major, minor = driver.compute_capability(ordinal)
        return {
            "cuda": f"{version // 1000}.{version % 1000 // 10}",
            "device": driver.device_name(ordinal),
            "compute capability": f"{major}.{minor}",
            "multiprocessors": driver.multiprocessor_count(ordinal),
            "device memory": driver.total_memory(ordinal),
        }


def _shown(value: Any) -> str:
    """A part's value for people: hashes shortened."""
    if isinstance(value, str):
        return f"{value[:12]}…" if len(value) == 64 else value
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)
