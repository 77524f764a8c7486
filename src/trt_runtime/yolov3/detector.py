"""`Detector`: images in, boxes out; a thin object over a `Session`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..build.config import BuildConfig
from ..build.model import read_model
from ..engine import Engine
from ..errors import ClosedError, InputError, ModelError, ShapeError
from ..ownership import Owned
from ..session import Session
from ..tensor import TensorSpec
from .cfg import Network
from .decode import CutOff, decode, lowest_logit, places_in_image
from .detections import BoxTable, Detections
from .images import load_image, read_images
from .in_graph import (
    FLOAT32_LAYERS,
    INPUT,
    SELECTED,
    SUPPRESSED,
    parts_read,
    read_selected,
    read_suppressed,
    surround,
)
from .layout import Layout, read_names
from .preprocess import Fit, Placement, preprocess, resize
from .suppress import check_nms_threshold

StrPath = str | os.PathLike[str]

_PLANS = (".engine", ".plan")

#: Page-locked inputs that are kept for the next call at most.
_KEPT_INPUTS = 16


class _Group(NamedTuple):
    """Images that go through the engine together."""

    #: What the engine is given.
    array: NDArray[Any]
    #: The detector's own memory that it is in, to be used again; None if it is the caller's.
    memory: NDArray[Any] | None
    placements: tuple[Placement, ...]


class Detector(Owned):
    """A YOLOv3 network, ready to find objects in images.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or Engine, optional
        Darknet's ``.weights``, with ``cfg``; an ONNX model, with ``cfg`` unless `to_onnx` made it;
        or an engine, with ``cfg``. By default the detector of handwritten digits that comes with
        this package.
    cfg : path or Network, optional
        Darknet's description of the network.
    names : path or sequence of str, optional
        One for each class; a ``.names`` file has one on each line.
    threshold : float
        The score that a box must have, from 0 to 1.
    nms_threshold : float
        The intersection over union above which the worse of two boxes of one class is dropped. For
        an engine that suppresses in its graph: as it was built.
    fit : {"letterbox", "stretch"}
        Whether images keep their aspect ratio in the network's input. For an engine that resizes
        in its graph: as it was built.
    in_graph : bool or "nms"
        Whether preprocessing and decoding become a part of the engine: bytes go in and a few boxes
        come out, see `surround`; with "nms" suppression as well, which leaves Python the least to
        do. An engine that was built so is recognised.
    image_size : tuple of int, optional
        Height and width of every image, for ``in_graph``: the engine resizes as well, and only the
        rows that it reads cross to the device. Without it images of any size are resized here.
    candidates : int
        For ``in_graph``: how many boxes come out at most, before suppression.
    batch : int
        How many images go through the engine together, for ``.weights``; another model has a batch
        of its own.
    **session
        Options of `Session`: ``device``, ``config``, ``cache``, ``contexts`` and the others.

    Attributes
    ----------
    session : Session
        Owned: it is closed with the detector.
    layout : Layout
    threshold, nms_threshold : float
    fit : {"letterbox", "stretch"}

    Notes
    -----
    Safe from any thread.

    Examples
    --------
    >>> with Detector("yolov3.weights", cfg="yolov3.cfg") as detector:   # doctest: +SKIP
    ...     for found in detector.detect("street.jpg"):
    ...         print(found.name, found.score, found.box)
    """

    __slots__ = (
        "_batch",
        "_camera",
        "_input",
        "_placements",
        "_places",
        "_ready",
        "fit",
        "layout",
        "nms_threshold",
        "session",
        "threshold",
    )

    session: Session
    layout: Layout
    threshold: float
    nms_threshold: float
    fit: Fit

    def __init__(
        self,
        model: StrPath | bytes | Engine | Any = None,
        *,
        cfg: StrPath | Network | None = None,
        names: StrPath | Sequence[str] | None = None,
        threshold: float = 0.6,
        nms_threshold: float = 0.5,
        fit: Fit = "letterbox",
        in_graph: bool | Literal["nms"] = False,
        image_size: tuple[int, int] | None = None,
        candidates: int = 100,
        batch: int = 1,
        **session: Any,
    ) -> None:
        lowest_logit(threshold)
        check_nms_threshold(nms_threshold)
        if image_size is not None and not in_graph:
            raise InputError("image_size is for in_graph=True: otherwise an image has any size")
        model, self.layout = _read(model, cfg, names, batch)
        network = (self.layout.height, self.layout.width)
        Placement.of(image_size or (1, 1), network, fit)
        if in_graph:
            model = surround(
                _model(model),
                self.layout,
                image=image_size,
                fit=fit,
                candidates=candidates,
                nms=in_graph == "nms",
                nms_threshold=nms_threshold,
            )
        if in_graph == "nms":
            session["config"] = _with_exact_boxes(session.get("config"))
        self.threshold, self.nms_threshold, self.fit = threshold, nms_threshold, fit
        with ExitStack() as stack:
            self.session = stack.enter_context(Session(model, **session))
            self.session._be_part()
            self._input = spec = _input_of(self.session, self.layout)
            if in_graph and image_size is not None:
                parts = parts_read(Placement.of(image_size, network, fit), spec.shape[0])
                self.session._upload_only({INPUT: parts})
            _check_outputs(self.session, self.layout)
            largest = [profile.max[0] for profile in spec.profiles]
            self._batch = spec.shape[0] if spec.shape[0] != -1 else max(largest)
            takes_bytes = spec.dtype == np.uint8
            size = (spec.shape[1], spec.shape[2]) if takes_bytes else network
            self._camera = size if size != network else None
            self._places = self.layout.places
            #: Of an image of the engine's size.
            self._placements = (Placement(size, size, (0, 0)),)
            if self._camera is not None:  # boxes are made in its pixels
                placement = Placement.of(size, network, fit)
                self._places = places_in_image(self._places, placement)
            #: The shape of an image that is what the engine takes.
            self._ready = spec.shape[1:] if takes_bytes and self._batch == 1 else None
            stack.pop_all()
            self._own(
                deque(maxlen=_KEPT_INPUTS),
                deque[NDArray[Any]].clear,
                parents=[self.session],
                then=[self.session.close],
                label=f"Detector {self.session.engine.name!r}",
            )

    def detect(self, image: Any) -> Detections:
        """Find the objects in one image and wait for them.

        Parameters
        ----------
        image : path, ndarray of uint8 or PIL.Image.Image
            An array is (height, width, 3), RGB.

        Raises
        ------
        InputError, ShapeError, DtypeError
            The image cannot be read, or is not as above.
        """
        if self._is_ready(image) and not self._record.closed:  # then the session's use is enough
            return self._interpret(self.session.infer(image[None]), self._placements)[0]
        with self._record as kept:
            array = load_image(image)
            self._check(array)
            group = self._prepare([array], kept)
            found = self._interpret(self.session.infer(group.array), group.placements)[0]
            self._keep(group)
            return found

    __call__ = detect

    def detect_many(self, images: Any) -> Generator[Detections, None, None]:
        """Find the objects in each image, in order, several images at a time.

        Parameters
        ----------
        images : path or iterable
            A folder of images, a video (the extra ``video``), or an iterable of what `detect`
            takes.

        Yields
        ------
        Detections

        Notes
        -----
        ``images`` is read a few images ahead. An image that cannot be read raises where its
        detections would have been. Arrays may be overwritten when the next image is asked for,
        page-locked ones when their detections are there.
        """
        groups: deque[_Group] = deque()
        failures: list[Exception] = []

        def arrays(source: Iterator[NDArray[np.uint8]]) -> Generator[NDArray[Any], None, None]:
            while not failures:
                ready: list[NDArray[np.uint8]] = []
                try:
                    for image in islice(source, self._batch):
                        self._check(image)
                        ready.append(image)
                except Exception as error:
                    failures.append(error)  # raised below, after the results before it
                if not ready:
                    return
                with self._record as kept:
                    groups.append(self._prepare(ready, kept))
                yield groups[-1].array

        # Whoever stops early has the files closed and the inferences finished at once.
        with (
            closing(read_images(images)) as source,
            closing(self.session.infer_many(arrays(source))) as results,
        ):
            for outputs in results:
                group = groups.popleft()
                found = self._interpret(outputs, group.placements)
                self._keep(group)
                yield from found
        if failures:
            raise failures.pop()

    def _check(self, image: NDArray[np.uint8]) -> None:
        """Raise unless the engine takes images of that size."""
        if self._camera is not None and image.shape[:2] != self._camera:
            height, width = self._camera
            raise ShapeError(
                f"this detector takes images {height} high and {width} wide, not {image.shape[0]} "
                f"and {image.shape[1]}; one made without image_size takes any"
            )

    def _is_ready(self, image: Any) -> bool:
        """Whether an image is the engine's input as it is."""
        return (
            type(image) is np.ndarray
            and image.shape == self._ready
            and image.dtype is self._input.dtype
            and image.flags.c_contiguous
        )

    def _prepare(self, images: Sequence[NDArray[np.uint8]], kept: deque[NDArray[Any]]) -> _Group:
        """The images as the engine's input."""
        if self._is_ready(images[0]):
            return _Group(images[0][None], None, self._placements)
        try:
            memory = kept.pop()
        except IndexError:
            shape = (self._batch, *self._input.shape[1:])
            memory = self.session.input_buffers({self._input.name: shape})[self._input.name]
        network = (self.layout.height, self.layout.width)
        placements = []
        for image, out in zip(images, memory, strict=False):
            if self._camera is not None:
                (placement,) = self._placements
                out[...] = image
            elif memory.dtype == np.uint8:
                _, placement = resize(image, network, fit=self.fit, out=out)
            elif memory.dtype == np.float32:
                _, placement = preprocess(image, network, fit=self.fit, out=out)
            else:
                out[...], placement = preprocess(image, network, fit=self.fit)
            placements.append(placement)
        array = memory[: len(images)] if self._input.shape[0] == -1 else memory
        return _Group(array, memory, tuple(placements))

    def _keep(self, group: _Group) -> None:
        """Another call may have the group's memory."""
        if group.memory is not None:
            with suppress(ClosedError), self._record as kept:
                kept.append(group.memory)

    def _interpret(
        self, outputs: Mapping[str, NDArray[Any]], placements: Sequence[Placement]
    ) -> list[Detections]:
        # What is left of an engine's batch was not filled by an image.
        return [
            self._place(found, placement)
            for found, placement in zip(self._read(outputs), placements, strict=False)
        ]

    def _read(self, outputs: Mapping[str, NDArray[Any]]) -> Sequence[BoxTable]:
        """What each image shows, best first."""
        threshold, nms_threshold = self.threshold, self.nms_threshold
        if SUPPRESSED[0] in outputs:
            return read_suppressed(
                outputs, len(self._places), threshold=threshold, nms_threshold=nms_threshold
            )
        if SELECTED[0] in outputs:
            found = read_selected(outputs, self._places, threshold=threshold)
        else:
            found = decode(outputs, self.layout, threshold=threshold)
        return [candidates.suppressed(nms_threshold) for candidates in found]

    def _place(self, found: BoxTable, placement: Placement) -> Detections:
        """Where that is in the image."""
        names, size = self.layout.names, placement.image
        if type(found) is CutOff and placement is self._placements[0]:
            return Detections._of(found.table, names, size)
        boxes = placement.to_image(found.boxes).T
        table = np.concatenate([boxes, found.table[4:]])
        visible = (boxes[2:] > boxes[:2]).all(axis=0)
        if not visible.all():  # a box may lie in the letterbox's padding
            table = table.compress(visible, axis=1)
        return Detections._of(table, names, size)

    def _describe(self) -> str:
        size = f"{self.layout.width}x{self.layout.height}"
        return f"{size}, {len(self.layout.names)} classes, {self.session!r}"


def _read(
    model: Any, cfg: StrPath | Network | None, names: StrPath | Sequence[str] | None, batch: int
) -> tuple[Any, Layout]:
    """What `Session` takes, and how its outputs are read."""
    if model is None:
        if cfg is not None:
            raise InputError("cfg= describes a model: give the model as well")
        digits = Path(__file__).with_name("digits")
        model, cfg = digits / "digits.weights", digits / "digits.cfg"
        names = digits / "digits.names" if names is None else names
    if isinstance(names, (str, os.PathLike)):
        names = read_names(names)
    if isinstance(cfg, (str, os.PathLike)):
        cfg = Network.load(cfg)
    if _suffix(model) == ".weights":
        if cfg is None:
            raise InputError(
                f"{os.fspath(model)!r} holds numbers only: give its network with cfg=, such as "
                f"{Path(model).with_suffix('.cfg').name!r}"
            )
        from .export import to_onnx
        from .weights import read_weights

        layout = Layout.of(cfg, names)
        return to_onnx(cfg, read_weights(model, cfg), batch=batch, names=layout.names), layout
    if batch != 1:
        raise InputError("batch= is for .weights: this model has a batch of its own")
    if cfg is not None:
        return model, Layout.of(cfg, names)
    if isinstance(model, Engine) or _suffix(model) in _PLANS:
        raise InputError("an engine does not say what its boxes are: give its network with cfg=")
    layout = Layout.from_onnx(model)
    if names is not None:
        if len(names) != len(layout.names):
            raise InputError(f"{len(layout.names)} classes need as many names, not {len(names)}")
        layout = replace(layout, names=tuple(names))
    return model, layout


def _with_exact_boxes(config: BuildConfig | None) -> BuildConfig:
    """The configuration under which boxes made in the graph are not rounded to float16."""
    config = config or BuildConfig()
    if config.precision == "as-typed":
        return config
    return replace(config, float32_layers=(*config.float32_layers, *FLOAT32_LAYERS))


def _suffix(model: Any) -> str:
    return Path(model).suffix.lower() if isinstance(model, (str, os.PathLike)) else ""


def _model(model: Any) -> Any:
    """An ONNX model in memory, its weights in it."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, Engine) or _suffix(model) in _PLANS:
        raise InputError(
            "in_graph changes a model before it is built, and an engine is built already; build "
            "one from what surround() gives, which is recognised"
        )
    data, path = read_model(model)
    try:
        proto = onnx.ModelProto.FromString(data)
        if path is not None:
            folder = os.path.dirname(os.path.abspath(path))
            onnx.load_external_data_for_model(proto, folder)
    except Exception as error:  # protobuf's exceptions differ between its implementations
        raise ModelError(f"the model cannot be read as ONNX: {error}") from error
    return proto


def _input_of(session: Session, layout: Layout) -> TensorSpec:
    """The session's one input, checked."""
    if len(session.inputs) != 1:
        raise InputError(
            f"a detector has one input, and the engine has {', '.join(map(str, session.inputs))}"
        )
    (spec,) = session.inputs
    fits = len(spec.shape) == 4 and (
        spec.shape[3] == 3 and -1 not in spec.shape[1:]
        if spec.dtype == np.uint8
        else spec.shape[1:] == (3, layout.height, layout.width)
    )
    if not fits:
        raise InputError(
            f"the network takes [batch, 3, {layout.height}, {layout.width}], or uint8 [batch, "
            f"height, width, 3], and the engine's input is {spec}"
        )
    return spec


def _check_outputs(session: Session, layout: Layout) -> None:
    names = {spec.name for spec in session.outputs}
    heads = {head.output for head in layout.heads}
    if not any(needed <= names for needed in (heads, set(SELECTED), set(SUPPRESSED))):
        raise InputError(
            f"the network's heads are {', '.join(sorted(heads))}, and the engine's outputs "
            f"{', '.join(sorted(names))}"
        )
