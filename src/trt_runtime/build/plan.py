"""`build_plan`: from an ONNX model and a `BuildConfig` to a plan, without loading it.

The order of a build is here: read and check, refuse what this TensorRT lacks, convert where the
types must come from the model, then let TensorRT build, in a thread that Ctrl-C can interrupt.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..device import Device, borrow_or_open
from ..errors import InputError
from ..interrupts import uninterrupted
from ..locks import Changes
from ..platform.tensorrt import TensorRT, load_tensorrt, offline_flavour
from .calibration import Batch, Calibration, CalibrationFeed
from .config import BuildConfig, Profile
from .digest import content_digest
from .model import external_files, read_model
from .precision import Reduced, check_names, quantisation, reduced, with_io_types
from .progress import OnProgress, Reporter
from .shared_file import SharedFile

logger = logging.getLogger("trt_runtime")


def build_plan(
    model: str | os.PathLike[str] | bytes | Any,
    config: BuildConfig | None = None,
    *,
    profiles: Sequence[Profile] = (),
    calibration: Calibration | Iterable[Batch] | None = None,
    device: Device | str | int | None = None,
    tensorrt: str | None = None,
    on_progress: OnProgress | None = None,
) -> bytes:
    """Build a plan from an ONNX model without loading it; parameters as `Engine.build`.

    TensorRT for RTX builds without a GPU: where ``tensorrt="tensorrt_rtx"`` or
    ``config.compute_capabilities`` ask for it, no device is opened and ``device`` is not looked at.
    """
    return build_reporting(
        model,
        with_profiles(config, profiles),
        calibration=calibration,
        device=device,
        tensorrt=tensorrt,
        reporter=Reporter(on_progress),
    )


def with_profiles(config: BuildConfig | None, profiles: Sequence[Profile]) -> BuildConfig:
    """The configuration with the profiles that were given beside it."""
    config = config or BuildConfig()
    if not profiles:
        return config
    if config.profiles:
        raise InputError("profiles were given twice: in the config and as an argument")
    return replace(config, profiles=tuple(profiles))


def build_reporting(
    model: str | os.PathLike[str] | bytes | Any,
    config: BuildConfig,
    *,
    calibration: Calibration | Iterable[Batch] | None,
    device: Device | str | int | None,
    tensorrt: str | None,
    reporter: Reporter,
) -> bytes:
    """`build_plan`, for one who goes on reporting after it."""
    data, path = read_model(model)
    external_files(data, path)  # TensorRT would open whatever they name
    given = None if calibration is None else Calibration.of(calibration)
    timings = None if config.timing_cache is None else SharedFile(config.timing_cache)
    offline = offline_flavour(tensorrt, bool(config.compute_capabilities))
    if offline is not None:
        library = load_tensorrt(offline)
        prepared = _prepare(library, data, path, config, given)
        return _interruptible(
            library,
            reporter,
            lambda: library.build(prepared, path, config, reporter, None, timings),
        )
    with ExitStack() as stack:
        opened, _ = borrow_or_open(device, stack)
        library = opened.platform.tensorrt(tensorrt)
        prepared = _prepare(library, data, path, config, given)
        primary = stack.enter_context(opened._record)
        feed = None
        if given is not None:
            identity = f"{library.name} {library.version} {content_digest(data)}"
            feed = CalibrationFeed(given, primary, identity)
            stack.callback(feed.release)

        def work() -> bytes:
            with primary.current():
                return library.build(prepared, path, config, reporter, feed, timings)

        return _interruptible(library, reporter, work)


def _prepare(
    library: TensorRT,
    model: bytes,
    path: str | None,
    config: BuildConfig,
    calibration: Calibration | None,
) -> bytes:
    """The model as this TensorRT is to be given it; raises for what cannot be built."""
    quantised = quantisation(model) if config.precision in ("int8", "fp8") or calibration else ()
    library.refuse(config, quantised, calibration is not None)
    if config.float32_layers:
        check_names(model, config.float32_layers)
    return prepared_model(library, model, path, config)


def prepared_model(library: TensorRT, model: bytes, path: str | None, config: BuildConfig) -> bytes:
    """The model with the types that a strongly typed build takes from it, as configured."""
    if not library.flavour.typed_only and config.precision != "as-typed":
        return model
    small: Mapping[str, Reduced] = {"fp16": "float16", "bf16": "bfloat16"}
    if config.precision in small:
        model = reduced(
            model,
            path,
            small[config.precision],
            reduced_io=config.reduced_io,
            keep=config.float32_layers,
        )
    if config.io_types:
        model = with_io_types(model, path, dict(config.io_types))
    return model


def _interruptible(library: TensorRT, reporter: Reporter, work: Callable[[], bytes]) -> bytes:
    """Run a build so that Ctrl-C reaches it: TensorRT does not return to Python while it builds.

    Only the main thread is ever interrupted, so only there the build moves to another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: list[bytes | BaseException] = []
    ended = Changes()

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)
        finally:
            ended.notify_all()

    def wait() -> None:
        # Without a limit Windows would not see Ctrl-C.
        while not ended.wait_for(lambda: bool(outcome), 0.2):
            pass

    thread = threading.Thread(target=run, name="trt_runtime build")
    try:
        with uninterrupted():
            thread.start()
        wait()
    except BaseException:
        reporter.cancel()
        if thread.ident is not None:
            _wait_out(library, outcome, wait)
        raise
    finally:
        if thread.ident is not None and outcome:
            thread.join()
    result = outcome.pop()
    if isinstance(result, BaseException):
        try:
            raise result
        finally:
            del result  # its traceback leads here
    return result


def _wait_out(library: TensorRT, outcome: Sequence[object], wait: Callable[[], None]) -> None:
    """Wait for a cancelled build, however often Ctrl-C is pressed: it uses the device's memory."""
    while not outcome:
        try:
            if not library.flavour.monitor:
                logger.warning(
                    "%s %s cannot cancel a build; waiting for it to end",
                    library.name,
                    library.version,
                )
            wait()
        except KeyboardInterrupt:
            continue
