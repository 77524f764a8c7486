"""What a build is told, and the timing cache, which on the host remembers without timing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from .enums import (
    BuilderFlag,
    DeviceType,
    EngineCapability,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    PreviewFeature,
    ProfilingVerbosity,
    TacticSource,
)
from .interfaces import IHostMemory, IInt8EntropyCalibrator2, ILogger, IProgressMonitor
from .profile import IOptimizationProfile
from .seam import Platform, TensorRTObject

_DEFAULT_WORKSPACE = 1 << 36
_CACHE_MAGIC = b"TRTHOSTTIMING\x00"


class ITimingCache:
    """Signatures of the layers that were built with it: enough to see that a cache is used."""

    def __init__(self, version: str, keys: set[str]) -> None:
        self._version = version
        self._keys = keys

    def serialize(self) -> IHostMemory:
        """Return the cache as bytes for `IBuilderConfig.create_timing_cache`."""
        contents = {"tensorrt": self._version, "keys": sorted(self._keys)}
        return IHostMemory(_CACHE_MAGIC + json.dumps(contents).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Add another cache's entries; one of another version only if told to ignore that."""
        if input_cache._version != self._version and not ignore_mismatch:
            return False
        self._keys |= input_cache._keys
        return True

    def reset(self) -> bool:
        """Empty the cache."""
        self._keys.clear()
        return True

    def _remember(self, nodes: Iterable[Any]) -> tuple[int, int]:
        """Add the layers; how many were known, and how many are new."""
        signatures = {_signature(node) for node in nodes}
        known = len(signatures & self._keys)
        self._keys |= signatures
        return known, len(signatures) - known


def _signature(node: Any) -> str:
    """What two layers must share for one timing to serve both; their names are not part of it."""
    parts = [node.op_type.encode(), str(len(node.input)).encode()]
    parts += sorted(attribute.SerializeToString() for attribute in node.attribute)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


class IBuilderConfig(TensorRTObject):
    """The settings of a build. Precision flags are kept, and change nothing that is computed."""

    def __init__(self, trt: Platform, logger: ILogger, parent: TensorRTObject) -> None:
        super().__init__(trt, logger, "config", parent=parent)
        self.reset()

    def reset(self) -> None:
        """Return to the defaults."""
        self.flags = 1 << BuilderFlag.TF32
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.engine_capability = EngineCapability.STANDARD
        self.max_aux_streams = -1
        self.avg_timing_iterations = 1
        self.profile_stream = 0
        self.default_device_type = DeviceType.GPU
        self.DLA_core = -1
        self.progress_monitor: IProgressMonitor | None = None
        self.int8_calibrator: IInt8EntropyCalibrator2 | None = None
        self._calibration_profile: IOptimizationProfile | None = None
        self._pools = {pool: 0 for pool in MemoryPoolType}
        self._pools[MemoryPoolType.WORKSPACE] = _DEFAULT_WORKSPACE
        self._preview: dict[PreviewFeature, bool] = {}
        self._tactic_sources = 1 << TacticSource.JIT_CONVOLUTIONS
        self._profiles: list[IOptimizationProfile] = []
        self._timing_cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: BuilderFlag) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """Set the most memory a pool may take, in bytes."""
        self._pools[MemoryPoolType(pool)] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._pools[MemoryPoolType(pool)]

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        self._preview[PreviewFeature(feature)] = enable

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        return self._preview.get(PreviewFeature(feature), False)

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        if self._fails("set_tactic_sources"):
            return False
        self._tactic_sources = tactic_sources
        return True

    def get_tactic_sources(self) -> int:
        return self._tactic_sources

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Add a profile and return its index, or -1."""
        if self._fails("add_optimization_profile"):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        """Say at which shapes to calibrate: the optima of `profile`."""
        if self._fails("set_calibration_profile"):
            return False
        self._calibration_profile = profile
        return True

    def get_calibration_profile(self) -> IOptimizationProfile | None:
        return self._calibration_profile

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        """Return the cache that was serialised, an empty one for no bytes, or None for others."""
        data = bytes(serialized_timing_cache)
        if not data:
            if self._fails("create_timing_cache"):
                return None
            return ITimingCache(self._trt.__version__, set())
        try:
            if not data.startswith(_CACHE_MAGIC):
                raise ValueError("the magic tag does not match")
            contents = json.loads(data[len(_CACHE_MAGIC) :])
            return ITimingCache(contents["tensorrt"], set(contents["keys"]))
        except (ValueError, KeyError, TypeError) as error:
            self._error(f"IBuilderConfig::createTimingCache: not a timing cache: {error}")
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Use a cache; one of another version only if told to ignore that."""
        if self._fails("set_timing_cache"):
            return False
        if cache._version != self._trt.__version__ and not ignore_mismatch:
            self._error(
                "IBuilderConfig::setTimingCache: the cache was made by TensorRT "
                f"{cache._version}, this is {self._trt.__version__}"
            )
            return False
        self._timing_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing_cache
