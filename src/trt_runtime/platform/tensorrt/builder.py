"""Building a plan with whichever TensorRT is loaded: the parser, the network, the settings.

What a release lacks is refused by name before the build begins, and never dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ...errors import (
    BuildError,
    InputError,
    MissingProfileError,
    ModelError,
    UnsupportedError,
)
from ...tensor import Range, format_shape

if TYPE_CHECKING:
    from ...build.config import BuildConfig
    from . import TensorRT

Progress = Callable[[str, int, int], bool]


def build_plan(
    library: TensorRT,
    model: bytes,
    path: str | None,
    config: BuildConfig,
    on_progress: Progress | None,
) -> bytes:
    """Parse ``model`` and build it; the plan as bytes."""
    _refuse_what_is_missing(library, config)
    with library.log.capture() as lines:
        build = _Build(library, config, lines, on_progress)
        try:
            return build.run(model, path)
        except BaseException as error:
            _forget_objects(error)
            users, build.callback_error = error is build.callback_error, None
            # A builder that cannot start is a null pointer to the bindings: a TypeError.
            if users or not isinstance(error, (TypeError, RuntimeError)):
                raise
            raise BuildError(
                f"TensorRT {library.version} could not build: {error}", log_lines=lines
            ) from error


def _forget_objects(error: BaseException) -> None:
    """Drop TensorRT's objects from the traceback, which would keep them for as long as it lives."""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == __file__ and step.tb_frame is not sys._getframe(1):
            step.tb_frame.clear()
        step = step.tb_next


def _refuse_what_is_missing(library: TensorRT, config: BuildConfig) -> None:
    flavour = library.flavour
    release = f"{library.name} {library.version}"
    if flavour.typed_only and config.precision == "fp16":
        raise UnsupportedError(
            f"{release} builds strongly typed networks only: precision='fp16' needs a model whose "
            "tensors are float16; convert the ONNX model, or build with TensorRT 8.6 or 10"
        )
    if config.precision == "as-typed" and flavour.generation == 8:
        raise UnsupportedError(
            f"{release} has no strongly typed networks; use 'fp32', 'tf32' or 'fp16', or TensorRT "
            "10 or later"
        )
    if config.compute_capabilities and not flavour.compute_capabilities:
        raise UnsupportedError(
            f"{release} builds for the GPU at hand; compute_capabilities are TensorRT for RTX's"
        )


class _Build:
    """One build: what TensorRT gives out along the way, and the lines it logs."""

    def __init__(
        self, library: TensorRT, config: BuildConfig, lines: list[str], on_progress: Progress | None
    ) -> None:
        self.library = library
        self.config = config
        self.lines = lines
        self.on_progress = on_progress
        self.cancelled = False
        self.callback_error: BaseException | None = None
        self.module: Any = library.module

    def run(self, model: bytes, path: str | None) -> bytes:
        builder = self.module.Builder(self.library.log.logger)
        network = self._made(builder.create_network(self._network_flags()), "a network")
        parser = self.module.OnnxParser(network, self.library.log.logger)
        self._parse(network, parser, model, path)
        settings = self._made(builder.create_builder_config(), "a builder configuration")
        self._apply(settings)
        self._add_profiles(builder, network, settings)
        plan = builder.build_serialized_network(network, settings)
        if self.callback_error is not None:
            raise self.callback_error
        if self.cancelled:
            raise BuildError("the build was cancelled by on_progress", log_lines=self.lines)
        if plan is None:
            raise BuildError("TensorRT could not build the engine", log_lines=self.lines)
        return bytes(plan)

    def _made(self, thing: Any, what: str) -> Any:
        if thing is None:
            raise BuildError(f"TensorRT could not create {what}", log_lines=self.lines)
        return thing

    def _network_flags(self) -> int:
        flags = self.module.NetworkDefinitionCreationFlag
        if self.library.flavour.needs_explicit_batch:
            return 1 << int(flags.EXPLICIT_BATCH)
        if self.config.precision == "as-typed" or self.library.flavour.typed_only:
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

    def _apply(self, settings: Any) -> None:
        config, flags = self.config, self.module.BuilderFlag
        if config.precision == "fp16":
            settings.set_flag(flags.FP16)
        if config.precision == "fp32":
            settings.clear_flag(flags.TF32)
        if config.version_compatible:
            settings.set_flag(flags.VERSION_COMPATIBLE)
            if not config.embed_lean_runtime:
                settings.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
        if config.optimization_level is not None:
            settings.builder_optimization_level = config.optimization_level
        if config.workspace_bytes is not None:
            settings.set_memory_pool_limit(
                self.module.MemoryPoolType.WORKSPACE, config.workspace_bytes
            )
        if not self.library.flavour.shared_profiles:
            settings.set_preview_feature(self.module.PreviewFeature.PROFILE_SHARING_0806, True)
        if config.compute_capabilities:
            self._set_compute_capabilities(settings)
        if self.on_progress is not None and self.library.flavour.generation >= 10:
            settings.progress_monitor = self._monitor()

    def _set_compute_capabilities(self, settings: Any) -> None:
        known = self.module.ComputeCapability
        settings.num_compute_capabilities = len(self.config.compute_capabilities)
        for index, text in enumerate(self.config.compute_capabilities):
            name = "SM" + text.replace(".", "")
            if not hasattr(known, name):
                names = ", ".join(
                    f"{n[2:-1]}.{n[-1]}" for n in known.__members__ if n.startswith("SM")
                )
                raise UnsupportedError(
                    f"{self.library.name} {self.library.version} does not build for compute "
                    f"capability {text}; it knows {names}"
                )
            if not settings.set_compute_capability(getattr(known, name), index):
                raise BuildError(
                    f"TensorRT refused compute capability {text}", log_lines=self.lines
                )

    def _report(self, phase: str, done: int, steps: int) -> bool:
        """Tell the user; whether to go on. TensorRT would lose an exception, so it is kept."""
        if not self.cancelled and self.on_progress is not None:
            try:
                self.cancelled = self.on_progress(phase, done, steps) is False
            except BaseException as error:
                self.callback_error = error
                self.cancelled = True
        return not self.cancelled

    def _monitor(self) -> Any:
        base = self.module.IProgressMonitor
        report = self._report

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)
                self._steps: dict[str, int] = {}

            def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
                self._steps[phase_name] = num_steps
                report(phase_name, 0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return report(phase_name, step + 1, self._steps.get(phase_name, 0))

            def phase_finish(self, phase_name: str) -> None:
                self._steps.pop(phase_name, None)

        return Monitor()

    def _add_profiles(self, builder: Any, network: Any, settings: Any) -> None:
        inputs = {
            str(tensor.name): tensor
            for tensor in (network.get_input(i) for i in range(network.num_inputs))
        }
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
    inputs: dict[str, Any],
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
