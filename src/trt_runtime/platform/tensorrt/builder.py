"""Building a plan with whichever TensorRT is loaded: the parser, the network, the profiles.

What the options of a build mean to TensorRT is in `settings`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import (
    BuildError,
    InputError,
    MissingProfileError,
    ModelError,
    TrtRuntimeError,
    UnsupportedError,
)
from ...tensor import Range, Shape, format_shape, numpy_dtype
from .calibrator import Feed, make_calibrator
from .settings import apply, apply_to_layers, apply_to_tensors, is_typed
from .timing import TimingFile, keep_timings, use_timings

if TYPE_CHECKING:
    from ...build.config import BuildConfig
    from ...build.progress import Reporter
    from . import TensorRT


class CalibrationData(Feed, Protocol):
    """The data of a calibrated build; `build.calibration.CalibrationFeed` is one."""

    def open(self, inputs: Mapping[str, tuple[Shape, np.dtype[Any]]]) -> None: ...


def build_plan(
    library: TensorRT,
    model: bytes,
    path: str | None,
    config: BuildConfig,
    reporter: Reporter,
    calibration: CalibrationData | None,
    timings: TimingFile | None,
) -> bytes:
    """Parse ``model`` and build it; the plan as bytes."""
    with library.log.capture() as lines:
        build = _Build(library, config, lines, reporter, calibration, timings)
        try:
            return build.run(model, path)
        except BaseException as error:
            _forget_objects(error)
            # A builder that cannot start is a null pointer to the bindings: a TypeError.
            ours = reporter.failed or isinstance(error, TrtRuntimeError)
            if ours or not isinstance(error, (TypeError, RuntimeError)):
                raise
            raise BuildError(
                f"TensorRT {library.version} could not build: {error}", log_lines=lines
            ) from error


def _forget_objects(error: BaseException) -> None:
    """Drop TensorRT's objects from the traceback, which would keep them for as long as it lives."""
    here, caller = Path(__file__).parent, sys._getframe(1)
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if Path(frame.f_code.co_filename).parent == here and frame is not caller:
            with contextlib.suppress(RuntimeError):  # it is still running
                frame.clear()
        step = step.tb_next


class _Build:
    """One build: what TensorRT gives out along the way, and the lines it logs."""

    def __init__(
        self,
        library: TensorRT,
        config: BuildConfig,
        lines: list[str],
        reporter: Reporter,
        calibration: CalibrationData | None,
        timings: TimingFile | None,
    ) -> None:
        self.library = library
        self.config = config
        self.lines = lines
        self.reporter = reporter
        self.calibration = calibration
        self.timings = timings
        self.module: Any = library.module

    def run(self, model: bytes, path: str | None) -> bytes:
        self.reporter.step("parse", False)
        builder = self.module.Builder(self.library.log.logger)
        # The registry logs to nobody before there is a builder.
        self.library.load_plugins([os.fspath(path) for path in self.config.plugin_libraries])
        self._check_accelerator(builder)
        network = self._made(builder.create_network(self._network_flags()), "a network")
        parser = self.module.OnnxParser(network, self.library.log.logger)
        self._parse(network, parser, model, path)
        self.reporter.step("parse", True)
        inputs = {
            str(tensor.name): tensor
            for tensor in (network.get_input(i) for i in range(network.num_inputs))
        }
        outputs = {
            str(tensor.name): tensor
            for tensor in (network.get_output(i) for i in range(network.num_outputs))
        }
        settings = self._made(builder.create_builder_config(), "a builder configuration")
        apply(self.library, settings, self.config)
        layers = (network.get_layer(index) for index in range(network.num_layers))
        apply_to_layers(self.library, settings, self.config, layers)
        apply_to_tensors(self.library, self.config, inputs, outputs)
        self._add_profiles(builder, network, settings, inputs)
        if self.timings is not None:
            use_timings(self.library, settings, self.timings)
        if self.calibration is not None:
            self._calibrate(builder, settings, inputs, self.calibration)
        if self.library.flavour.monitor:
            settings.progress_monitor = self._monitor()
        self.reporter.step("build", False)
        plan = builder.build_serialized_network(network, settings)
        self.reporter.raise_if_stopped(self.lines)
        if plan is None:
            raise BuildError("TensorRT could not build the engine", log_lines=self.lines)
        if self.timings is not None:
            keep_timings(self.library, settings, self.timings)
        self.reporter.step("build", True)
        return bytes(plan)

    def _check_accelerator(self, builder: Any) -> None:
        core, there = self.config.dla_core, int(builder.num_DLA_cores)
        if core is not None and core >= there:
            cores = "no DLA core" if not there else f"DLA cores 0 to {there - 1}"
            raise UnsupportedError(
                f"{self.library.name} {self.library.version} finds {cores} on this device, and "
                f"dla_core={core} was asked for; leave it out to build for the GPU"
            )

    def _made(self, thing: Any, what: str) -> Any:
        if thing is None:
            raise BuildError(f"TensorRT could not create {what}", log_lines=self.lines)
        return thing

    def _network_flags(self) -> int:
        flags = self.module.NetworkDefinitionCreationFlag
        if self.library.flavour.needs_explicit_batch:
            return 1 << int(flags.EXPLICIT_BATCH)
        if is_typed(self.library.flavour, self.config):
            return 1 << int(flags.STRONGLY_TYPED)
        return 0

    def _parse(self, network: Any, parser: Any, model: bytes, path: str | None) -> None:
        parsed = parser.parse(model, path) if path is not None else parser.parse(model)
        if parsed and not parser.num_errors and network.num_outputs:
            return
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        problems = [self._problem(error, model) for error in errors]
        if parsed and not problems:  # RTX 1.7.1 takes an empty file for an empty network
            problems = [f"its {len(model)} bytes hold no network with an output"]
        origin = f" {path!r}" if path is not None else ""
        raise ModelError(
            f"TensorRT {self.library.version} cannot parse the ONNX model{origin}",
            problems=problems,
            log_lines=() if problems else self.lines,
        )

    def _problem(self, error: Any, model: bytes) -> str:
        text = str(error.desc())
        index = int(error.node())
        if self.library.flavour.generation >= 10:
            name, operator = str(error.node_name()), str(error.node_operator())
        else:
            name, operator = _node(model, index)
        if not operator:
            return text
        label = f" {name!r}" if name else ""
        return f"node {index}{label} ({operator}): {text}"

    def _monitor(self) -> Any:
        """Passes TensorRT's reports on. It is there even if nobody listens, to cancel the build."""
        base = self.module.IProgressMonitor
        reporter = self.reporter

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)
                self._phases: dict[str, tuple[int, str]] = {}

            def phase_start(
                self, phase_name: str, parent_phase: str | None, num_steps: int
            ) -> None:
                self._phases[phase_name] = (int(num_steps), str(parent_phase or "build"))
                self._report(phase_name, 0)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return self._report(phase_name, int(step) + 1)

            def phase_finish(self, phase_name: str) -> None:
                self._phases.pop(phase_name, None)

            def _report(self, phase: str, step: int) -> bool:
                steps, parent = self._phases.get(phase, (0, "build"))
                return reporter.report(str(phase), min(step, steps), steps, parent)

        return Monitor()

    def _add_profiles(
        self, builder: Any, network: Any, settings: Any, inputs: Mapping[str, Any]
    ) -> None:
        dynamic = {name for name, tensor in inputs.items() if -1 in tuple(tensor.shape)} | {
            name for name, tensor in inputs.items() if tensor.is_shape_tensor
        }
        if dynamic and not self.config.profiles:
            raise _missing_profile(inputs, dynamic, {})
        fixed = self._shapes_to_repeat(
            network, {n: t for n, t in inputs.items() if n not in dynamic}
        )
        profiles: Sequence[Mapping[str, Range]] = self.config.profiles or ([{}] if fixed else [])
        for number, profile in enumerate(profiles):
            unknown = sorted(set(profile) - set(inputs))
            if unknown:
                raise InputError(
                    f"profile {number} names {', '.join(map(repr, unknown))}, but the model's "
                    f"inputs are {', '.join(map(repr, inputs))}"
                )
            missing = sorted(dynamic - set(profile))
            if missing:
                raise _missing_profile(inputs, dynamic, profile, number)
            ranges = builder.create_optimization_profile()
            for name, shapes in {**fixed, **profile}.items():
                try:
                    if inputs[name].is_shape_tensor:
                        ranges.set_shape_input(name, *(list(values) for values in shapes))
                    else:
                        ranges.set_shape(name, *shapes)
                except (ValueError, RuntimeError) as error:
                    raise InputError(
                        f"profile {number}: TensorRT refused {shapes} for {name!r}: {error}",
                        log_lines=self.lines,
                    ) from error
            if settings.add_optimization_profile(ranges) < 0:
                raise BuildError(
                    f"TensorRT refused optimisation profile {number}: {profile!r}",
                    log_lines=self.lines,
                )

    def _calibrate(
        self, builder: Any, settings: Any, inputs: Mapping[str, Any], calibration: CalibrationData
    ) -> None:
        """Calibrate at the shapes of the first profile's optimum, or at the only ones there are."""
        shape_tensors = [name for name, tensor in inputs.items() if tensor.is_shape_tensor]
        if shape_tensors:
            raise UnsupportedError(
                f"calibration gives arrays, and {', '.join(map(repr, shape_tensors))} is a shape "
                "tensor; put QuantizeLinear and DequantizeLinear nodes into the model instead"
            )
        changed = [name for name in dict(self.config.io_types) if name in inputs]
        if changed:
            raise InputError(
                "TensorRT calibrates with inputs of the model's own types; leave "
                f"{', '.join(map(repr, changed))} out of io_types, or quantise the model itself"
            )
        optimum = self.config.profiles[0] if self.config.profiles else {}
        shapes = {
            name: optimum[name].opt if name in optimum else tuple(int(n) for n in tensor.shape)
            for name, tensor in inputs.items()
        }
        calibration.open(
            {
                name: (shapes[name], numpy_dtype(tensor.dtype.name, name))
                for name, tensor in inputs.items()
            }
        )
        settings.int8_calibrator = make_calibrator(self.module, calibration, self.reporter.fail)
        if any(-1 in tuple(tensor.shape) for tensor in inputs.values()):
            ranges = builder.create_optimization_profile()
            for name, shape in shapes.items():
                ranges.set_shape(name, shape, shape, shape)
            if not settings.set_calibration_profile(ranges):
                raise BuildError(
                    f"TensorRT refused a calibration profile of {shapes}", log_lines=self.lines
                )

    def _shapes_to_repeat(self, network: Any, inputs: Mapping[str, Any]) -> dict[str, Range]:
        """Fixed shapes that a profile must repeat, or the engine would not tell them later.

        8.6.0 forgets them when an output's shape depends on the data (measured).
        """
        outputs = (network.get_output(index) for index in range(network.num_outputs))
        if self.library.flavour.generation != 8 or all(-1 not in tuple(o.shape) for o in outputs):
            return {}
        shapes = {name: tuple(int(n) for n in tensor.shape) for name, tensor in inputs.items()}
        return {name: Range(shape, shape, shape) for name, shape in shapes.items()}


def _missing_profile(
    inputs: Mapping[str, Any],
    names: set[str],
    given: Mapping[str, Sequence[tuple[int, ...]]],
    number: int | None = None,
) -> MissingProfileError:
    """Which of ``names`` have no range, and a profile for all of them to paste and adapt."""
    lines = []
    example = {name: tuple(given[name]) for name in given}
    missing = {
        name: tuple(int(n) for n in inputs[name].shape) for name in sorted(names - set(given))
    }
    for name, shape in missing.items():
        if inputs[name].is_shape_tensor:
            lines.append(f"the values of shape tensor {name!r} of shape {format_shape(shape)}")
            example[name] = tuple((bound,) * prod(shape) for bound in (1, 4, 8))
        else:
            lines.append(f"{name!r} of shape {format_shape(shape)}")
            example[name] = tuple(tuple(b if n < 0 else n for n in shape) for b in (1, 4, 8))
    where = "it" if number is None else f"profile {number}"
    return MissingProfileError(
        f"the model has dynamic inputs that need a range of shapes: {', '.join(lines)}; "
        f"{where} gives none. Add, with your own bounds (min, opt, max): "
        f"profiles=[Profile({example!r})]",
        missing,
    )


def _node(model: bytes, index: int) -> tuple[str, str]:
    """Name and operator of a node, for releases whose parser does not tell."""
    import onnx

    try:
        node = onnx.load_model_from_string(model).graph.node[index]
    except Exception:  # the model is broken: that is what is being reported
        return "", ""
    return str(node.name), str(node.op_type)
