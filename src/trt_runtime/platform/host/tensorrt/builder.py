"""The builder: checks a network against its configuration and writes the plan."""

from __future__ import annotations

from typing import Any

from ....build.precision import with_io_types
from . import plan
from .calibration import calibrate
from .config import IBuilderConfig
from .datatypes import numpy_dtype
from .enums import BuilderFlag, NetworkDefinitionCreationFlag, TensorFormat
from .interfaces import IHostMemory, ILogger, IProgressMonitor
from .model import layer_name
from .network import INetworkDefinition
from .profile import IOptimizationProfile, Profile, ProfileRefused, resolve
from .seam import Platform, TensorRTObject, log, refuse_construction
from .weights import without_weights

_PRECISIONS = (BuilderFlag.FP16, BuilderFlag.BF16, BuilderFlag.INT8, BuilderFlag.FP8)


class Builder(TensorRTObject):
    """Makes networks, configurations and plans. It needs no CUDA context on the host."""

    def __init__(self, trt: Platform, logger: ILogger) -> None:
        refuse_construction(trt, logger, "Builder")
        super().__init__(trt, logger, "builder")
        self.max_threads = 1

    @property
    def logger(self) -> ILogger:
        return self._logger

    @property
    def platform_has_fast_fp16(self) -> bool:
        return True

    @property
    def platform_has_fast_int8(self) -> bool:
        return True

    @property
    def platform_has_tf32(self) -> bool:
        return True

    @property
    def num_DLA_cores(self) -> int:
        return 0

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        """Return an empty network; explicit batch is the only kind, with or without its flag."""
        return None if self._fails("create_network") else INetworkDefinition(self, flags)

    def create_builder_config(self) -> IBuilderConfig | None:
        if self._fails("create_builder_config"):
            return None
        return IBuilderConfig(self._trt, self._logger, self)

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        return self._refusal(network, config) is None

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        """Return the plan, or None after logging why there is none."""
        if self._fails("build_serialized_network"):
            return None
        if reason := self._refusal(network, config):
            self._error(f"IBuilder::buildSerializedNetwork: {reason}")
            return None
        self._warn_about_unknown_names(network, config)
        inputs = [t for t in network._tensors if t.is_input]
        profiles = resolve(inputs, config._profiles)
        progress = _Progress(config.progress_monitor, self._logger)
        layers = [layer_name(node) for node in network._model.graph.node]
        if not progress.run("Building Engine", ["Tactic Selection", "Serialization"], layers):
            self._error(
                "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Build was "
                "cancelled by the progress monitor)"
            )
            return None
        model, ranges = _with_border_types(network), None
        if config.get_flag(BuilderFlag.INT8) and config.int8_calibrator is not None:
            ranges = calibrate(self, network, model, config)
            if ranges is None:
                return None
        if config._timing_cache is not None:
            known, new = config._timing_cache._remember(network._model.graph.node)
            self._info(f"Timing cache: {known} layers were known, {new} are new")
        header = self._header(network, config, profiles)
        header["calibrated_ranges"] = ranges
        if config.get_flag(BuilderFlag.STRIP_PLAN):
            model, header["stripped_bytes"] = without_weights(model)
        return IHostMemory(plan.pack(header, model))

    def _refusal(self, network: INetworkDefinition, config: IBuilderConfig) -> str | None:
        if network._model is None:
            return "Error Code 4: Internal Error (Network must have at least one output)"
        if network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            set_flags = [flag.name for flag in _PRECISIONS if config.get_flag(flag)]
            if set_flags:
                return (
                    "Error Code 3: API Usage Error (a strongly typed network takes its types from "
                    f"the model, but precision flags are set: {', '.join(set_flags)})"
                )
        elif config.get_flag(BuilderFlag.WEIGHT_STREAMING):
            return "Error Code 3: API Usage Error (weight streaming needs a strongly typed network)"
        for name, formats in network._formats.items():
            if not formats >> int(TensorFormat.LINEAR) & 1:
                return (
                    f"Error Code 3: API Usage Error ({name}: none of the tensor's allowed "
                    "TensorFormats is supported; the host has LINEAR)"
                )
        try:
            resolve([t for t in network._tensors if t.is_input], config._profiles)
        except ProfileRefused as refused:
            return str(refused)
        return None

    def _warn_about_unknown_names(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> None:
        inputs = {t.name for t in network._tensors if t.is_input}
        for index, profile in enumerate(config._profiles):
            for name in sorted((profile._shapes.keys() | profile._values.keys()) - inputs):
                self._warning(f"Optimization profile {index} names {name}, which is not an input")

    def _header(
        self, network: INetworkDefinition, config: IBuilderConfig, profiles: list[Profile]
    ) -> dict[str, Any]:
        return {
            "tensorrt": self._trt.__version__,
            "version_compatible": config.get_flag(BuilderFlag.VERSION_COMPATIBLE),
            "carries_host_code": config.get_flag(BuilderFlag.VERSION_COMPATIBLE)
            and not config.get_flag(BuilderFlag.EXCLUDE_LEAN_RUNTIME),
            "name": network.name,
            "flags": config.flags,
            "tensors": [tensor.to_json() for tensor in network._tensors],
            "profiles": [profile.to_json() for profile in profiles],
            "profiling_verbosity": config.profiling_verbosity,
            "hardware_compatibility_level": config.hardware_compatibility_level,
            "engine_capability": config.engine_capability,
            "tactic_sources": config.get_tactic_sources(),
        }


def _with_border_types(network: INetworkDefinition) -> bytes:
    """The model, cast where an input or output was given another type than its own."""
    model: bytes = network._model.SerializeToString()
    types = {name: numpy_dtype(kind).name for name, kind in network._border_types.items()}
    return with_io_types(model, None, types) if types else model


class _Progress:
    """Tells a progress monitor of the phases; a monitor that fails cancels, as one that refuses."""

    def __init__(self, monitor: IProgressMonitor | None, logger: ILogger) -> None:
        self._monitor = monitor
        self._logger = logger

    def run(self, root: str, phases: list[str], steps: list[str]) -> bool:
        """Walk through all phases; False when the monitor stopped them."""
        if self._monitor is None:
            return True
        try:
            self._monitor.phase_start(root, None, len(phases))
            going = True
            for index, phase in enumerate(phases):
                going = self._phase(phase, root, len(steps)) and self._step(root, index)
                if not going:
                    break
            self._monitor.phase_finish(root)
        except Exception as error:
            log(self._logger, ILogger.ERROR, f"IProgressMonitor raised {error!r}")
            return False
        return going

    def _phase(self, phase: str, parent: str, steps: int) -> bool:
        assert self._monitor is not None
        self._monitor.phase_start(phase, parent, steps)
        going = all(self._step(phase, step) for step in range(steps))
        self._monitor.phase_finish(phase)
        return going

    def _step(self, phase: str, step: int) -> bool:
        assert self._monitor is not None
        return bool(self._monitor.step_complete(phase, step))
