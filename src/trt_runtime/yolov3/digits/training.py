"""Training of the digit detector: ``python -m trt_runtime.yolov3.digits.training``.

PyTorch builds the network that ``digits.cfg`` describes and trains it on scenes that worker
processes draw without end. It writes ``digits.weights``, in Darknet's order, and prints the mean
average precision on the held-out scenes as it goes. Linux only: the workers are forked.

The same seed draws the same scenes. How many steps fit into ``--minutes``, and which scenes a step
takes, depends on the machine; ``--steps`` with ``--workers 0`` is repeatable on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import math
import mmap
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..cfg import Convolutional, MaxPool, Network, Route, Shortcut, Upsample, Yolo
from ..decode import decode
from ..evaluation import Evaluation, evaluate
from ..layout import Layout
from ..preprocess import PADDING
from ..weights import EPSILON, ConvolutionWeights, Weights, write_weights
from .scenes import MOST_DIGITS, SIDE, Scene, draw_scene, held_out_scenes, load_digits

CFG = Path(__file__).with_name("digits.cfg")

#: A prediction that overlaps an object more than this is not told that nothing is there.
IGNORE_IOU = 0.7
#: Anchors whose shape fits an object this well learn it too, besides the best one.
ANCHOR_IOU = 0.6
#: As `evaluate` recommends.
EVALUATION_THRESHOLD = 0.01
#: Of the exponential moving average of the weights, which is what is kept.
AVERAGE_DECAY = 0.999


# The network -------------------------------------------------------------------------------------


class Darknet(nn.Module):
    """A network of a cfg as a PyTorch module; float images to the heads' raw numbers, by name."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.heads = [head.output for head in network.heads]
        self.convolutions = nn.ModuleDict(
            {str(layer.index): _convolution(layer) for layer in network.convolutions}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        results = {0: image}
        outputs = {}
        for layer in self.network.layers:
            inputs = [results[source] for source in layer.sources]
            match layer:
                case Convolutional():
                    result = self.convolutions[str(layer.index)](inputs[0])
                case Shortcut():
                    result = _activated(inputs[0] + inputs[1], layer.activation)
                case Route():
                    result = torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]
                case Upsample():
                    result = F.interpolate(inputs[0], scale_factor=layer.stride, mode="nearest")
                case MaxPool():
                    top, left, bottom, right = layer.padding
                    padded = F.pad(inputs[0], (left, right, top, bottom), value=-math.inf)
                    result = F.max_pool2d(padded, layer.size, layer.stride)
                case Yolo():
                    continue  # it says what the layer before it means
                case _:
                    raise AssertionError(layer)
            results[layer.index] = result
            if layer.name in self.heads:
                outputs[layer.name] = result
        return outputs

    def weights(self, seen: int = 0) -> Weights:
        """What a ``.weights`` file holds."""
        layers = {}
        for layer in self.network.convolutions:
            block = self.convolutions[str(layer.index)]
            kernel = _array(block.convolution.weight)
            if block.normalization is None:
                bias = _array(block.convolution.bias)
                layers[layer.index] = ConvolutionWeights(kernel, bias)
                continue
            norm = block.normalization
            layers[layer.index] = ConvolutionWeights(
                kernel,
                bias=_array(norm.bias),
                scale=_array(norm.weight),
                mean=_array(norm.running_mean),
                variance=_array(norm.running_var),
            )
        return Weights(layers, seen=seen)


class _Block(nn.Module):
    """A convolution, its batch normalisation if it has one, and its activation."""

    def __init__(self, layer: Convolutional) -> None:
        super().__init__()
        self.activation = layer.activation
        self.convolution = nn.Conv2d(
            layer.channels,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            bias=not layer.batch_normalize,
        )
        self.normalization = (
            nn.BatchNorm2d(layer.filters, eps=EPSILON, momentum=0.03)
            if layer.batch_normalize
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        if self.normalization is not None:
            x = self.normalization(x)
        return _activated(x, self.activation)


def _convolution(layer: Convolutional) -> _Block:
    block = _Block(layer)
    slope = 0.1 if layer.activation == "leaky" else 1.0
    nn.init.kaiming_normal_(block.convolution.weight, a=slope)
    if not layer.batch_normalize:
        nn.init.normal_(block.convolution.weight, std=0.01)
        # At first nothing is anywhere: a probability of 1 in 100.
        nn.init.constant_(block.convolution.bias, -math.log(99))
        numbers = block.convolution.bias.detach().view(-1, 15)
        numbers[:, :4] = 0
        numbers[:, 5:] = -math.log(9)
    return block


def _activated(x: Tensor, activation: str) -> Tensor:
    return F.leaky_relu(x, 0.1) if activation == "leaky" else x


def _array(parameter: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = parameter.detach().float().cpu().contiguous().numpy().copy()
    return array


# The loss ----------------------------------------------------------------------------------------


class Loss(nn.Module):
    """YOLOv3's loss of raw outputs against boxes in pixels.

    Each object is learned by the anchor whose shape fits it best (and by any that fits nearly as
    well), in the cell of its center. Objectness is learned everywhere, but for predictions that
    overlap an object well and are not the one to learn it.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.register_buffer("places", torch.tensor(layout.places))
        rows = []
        start = 0
        for head in layout.heads:
            height, width = head.grid
            for anchor in head.anchors:
                rows.append((*anchor, start, width, layout.width / width, layout.height / height))
                start += height * width
        #: For each anchor: width, height, first prediction, columns, a cell's width and height.
        self.register_buffer("anchors", torch.tensor(rows, dtype=torch.float32))

    def forward(
        self, outputs: dict[str, Tensor], boxes: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """The parts of the loss.

        Parameters
        ----------
        outputs : dict of str to Tensor
            (batch, anchors * (5 + classes), rows, columns) each.
        boxes : Tensor
            float32 (batch, most, 4), left, top, right, bottom.
        classes : Tensor
            int64 (batch, most); -1 where there is no object.
        """
        numbers = self._flattened(outputs)
        there = classes >= 0
        index, learns = self._assigned(boxes, there)
        weight = learns.float()
        count = weight.sum().clamp(min=1)

        with torch.no_grad():
            best = _best_overlap(self._boxes(numbers), boxes, there)
            ignored = best > IGNORE_IOU
            target = torch.zeros(
                (len(boxes), numbers.shape[1] + 1), device=numbers.device
            )  # the last one takes what no anchor learns
            target.scatter_(1, torch.where(learns, index, numbers.shape[1]), 1.0)
            target = target[:, :-1]
            counts = ~ignored | (target > 0)
        objectness = F.binary_cross_entropy_with_logits(numbers[..., 4], target, reduction="none")

        chosen = numbers.gather(1, index[..., None].expand(-1, -1, numbers.shape[2]))
        place = self.places[index]
        repeated = boxes.repeat_interleave(len(self.anchors), 1)
        center = (repeated[..., :2] + repeated[..., 2:]) / 2 / place[..., 2:4] - place[..., :2]
        size = (repeated[..., 2:] - repeated[..., :2]).clamp(min=1)
        area = size.prod(-1) / (self.layout.width * self.layout.height)
        scale = weight * (2 - area)
        position = F.binary_cross_entropy_with_logits(
            chosen[..., :2], center.clamp(0, 1), reduction="none"
        )
        shape = (chosen[..., 2:4] - torch.log(size / 2 / place[..., 4:])) ** 2
        kind = classes.clamp(min=0).repeat_interleave(len(self.anchors), 1)
        kinds = F.one_hot(kind, numbers.shape[2] - 5).float()
        naming = F.binary_cross_entropy_with_logits(chosen[..., 5:], kinds, reduction="none")
        return {
            "position": (position.sum(-1) * scale).sum() / count,
            "shape": (shape.sum(-1) * scale).sum() / count,
            "objectness": (objectness * counts).sum() / count,
            "class": (naming.sum(-1) * weight).sum() / count,
        }

    def _flattened(self, outputs: dict[str, Tensor]) -> Tensor:
        """All predictions as (batch, predictions, 5 + classes), in the order of `Layout.places`."""
        parts = []
        for head in self.layout.heads:
            output = outputs[head.output].float()
            split = output.view(len(output), len(head.anchors), 5 + head.classes, -1)
            parts.append(split.transpose(2, 3).flatten(1, 2))
        return torch.cat(parts, 1)

    def _boxes(self, numbers: Tensor) -> Tensor:
        centers = (numbers[..., :2].sigmoid() + self.places[:, :2]) * self.places[:, 2:4]
        halves = numbers[..., 2:4].clamp(max=8).exp() * self.places[:, 4:]
        return torch.cat([centers - halves, centers + halves], -1)

    def _assigned(self, boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """For each object and anchor, (batch, most * anchors): the prediction, and if it learns."""
        size = (boxes[..., 2:] - boxes[..., :2])[:, :, None]
        anchors = self.anchors[:, :2]
        shared = torch.minimum(size, anchors).prod(-1)
        fit = shared / (size.prod(-1) + anchors.prod(-1) - shared).clamp(min=1e-6)
        learns = (fit == fit.amax(-1, keepdim=True)) | (fit > ANCHOR_IOU)
        center = (boxes[..., :2] + boxes[..., 2:])[:, :, None] / 2
        cell = (center / self.anchors[:, 4:6]).long()
        columns, first = self.anchors[:, 3].long(), self.anchors[:, 2].long()
        index = first + cell[..., 1] * columns + cell[..., 0]
        return index.flatten(1), (learns & there[..., None]).flatten(1)


def _best_overlap(boxes: Tensor, objects: Tensor, there: Tensor) -> Tensor:
    """The highest intersection over union of each box with any of its image's objects."""
    best = torch.zeros(boxes.shape[:2], device=boxes.device)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    for number in range(objects.shape[1]):
        thing = objects[:, number, None]
        extent = torch.minimum(boxes[..., 2:], thing[..., 2:]) - torch.maximum(
            boxes[..., :2], thing[..., :2]
        )
        shared = extent.clamp(min=0).prod(-1) * there[:, number, None]
        union = area + (thing[..., 2:] - thing[..., :2]).prod(-1) - shared
        best = torch.maximum(best, shared / union.clamp(min=1e-6))
    return best


# Scenes to learn ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Scenes of the network's size in arrays of one block of memory, which processes can share."""

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]

    SCENES = 32

    @classmethod
    def in_(cls, memory: Any, start: int) -> Chunk:
        shapes = ((cls.SCENES, 3, SIDE, SIDE), (cls.SCENES, MOST_DIGITS, 4))
        images = np.frombuffer(memory, np.uint8, math.prod(shapes[0]), start).reshape(shapes[0])
        start += images.nbytes
        boxes = np.frombuffer(memory, np.float32, math.prod(shapes[1]), start).reshape(shapes[1])
        start += boxes.nbytes
        count = cls.SCENES * MOST_DIGITS
        classes = np.frombuffer(memory, np.int64, count, start).reshape(-1, MOST_DIGITS)
        return cls(images, boxes, classes)

    @classmethod
    def size(cls) -> int:
        """In bytes."""
        return cls.SCENES * (3 * SIDE * SIDE + MOST_DIGITS * (4 * 4 + 8))

    def draw(self, generator: np.random.Generator) -> None:
        """Fill it with new scenes."""
        self.boxes[...] = 0
        self.classes[...] = -1
        for number in range(self.SCENES):
            scene = _scene_in_network(generator)
            self.images[number] = scene.image.transpose(2, 0, 1)
            count = len(scene.classes)
            self.boxes[number, :count] = scene.boxes
            self.classes[number, :count] = scene.classes


def _scene_in_network(generator: np.random.Generator) -> Scene:
    """A scene to learn from; one in four is wide or high, and letterboxed as a photograph is."""
    digits = load_digits("training")
    if generator.random() < 0.75:
        return draw_scene(generator, digits)
    shorter = int(generator.integers(SIDE // 2, SIDE))
    offset = (SIDE - shorter) // 2
    image = np.full((SIDE, SIDE, 3), round(PADDING * 255), np.uint8)
    if generator.random() < 0.5:
        scene = draw_scene(generator, digits, height=shorter)
        image[offset : offset + shorter] = scene.image
        moved = scene.boxes + np.array([0, offset, 0, offset], np.float32)
    else:
        scene = draw_scene(generator, digits, width=shorter)
        image[:, offset : offset + shorter] = scene.image
        moved = scene.boxes + np.array([offset, 0, offset, 0], np.float32)
    return Scene(image, moved, scene.classes)


class Source(Protocol):
    """Where drawn chunks come from."""

    def ready(self, *, wait: bool) -> tuple[int, Chunk] | None: ...
    def release(self, number: int) -> None: ...


class Inline:
    """Draws when asked, in this process."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng([seed, 0])
        self._chunk = Chunk.in_(bytearray(Chunk.size()), 0)

    def ready(self, *, wait: bool) -> tuple[int, Chunk] | None:
        self._chunk.draw(self._generator)
        return 0, self._chunk

    def release(self, number: int) -> None:
        pass


class Workers:
    """Draws in processes of its own, as fast as they can, into memory that they share."""

    def __init__(self, count: int, seed: int) -> None:
        slots = 3 * count
        memory = mmap.mmap(-1, slots * Chunk.size())
        self._chunks = [Chunk.in_(memory, n * Chunk.size()) for n in range(slots)]
        context = multiprocessing.get_context("fork")
        self._free: Any = context.Queue()
        self._ready: Any = context.Queue()
        for number in range(slots):
            self._free.put(number)
        load_digits("training")  # once, before the fork
        self._processes = [
            context.Process(target=self._work, args=([seed, number + 1],), daemon=True)
            for number in range(count)
        ]
        for process in self._processes:
            process.start()

    def _work(self, seed: Sequence[int]) -> None:
        generator = np.random.default_rng(seed)
        while True:
            number = self._free.get()
            self._chunks[number].draw(generator)
            self._ready.put(number)

    def ready(self, *, wait: bool) -> tuple[int, Chunk] | None:
        try:
            # A worker that died must not leave the training waiting for ever.
            number = self._ready.get(block=wait, timeout=60)
        except queue.Empty:
            if wait:
                raise RuntimeError("no worker has drawn anything for a minute") from None
            return None
        return number, self._chunks[number]

    def release(self, number: int) -> None:
        self._free.put(number)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


@contextmanager
def scene_source(workers: int, seed: int) -> Iterator[Source]:
    """Worker processes, or none for 0. Open it before CUDA is used: they are forked."""
    if workers == 0:
        yield Inline(seed)
        return
    source = Workers(workers, seed)
    try:
        yield source
    finally:
        source.stop()


class Pool:
    """Scenes on the device, of which the oldest make room for new ones; batches are at random.

    Drawing need not keep up with training: a scene serves until it is replaced.
    """

    def __init__(self, source: Source, capacity: int, device: torch.device, seed: int) -> None:
        capacity -= capacity % Chunk.SCENES
        self._source = source
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._images = torch.zeros((capacity, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
        self._boxes = torch.zeros((capacity, MOST_DIGITS, 4), device=device)
        self._classes = torch.zeros((capacity, MOST_DIGITS), dtype=torch.int64, device=device)
        self.drawn = 0

    @property
    def filled(self) -> int:
        return min(self.drawn, len(self._images))

    def fill(self, scenes: int) -> None:
        """Wait until there are that many."""
        while self.filled < min(scenes, len(self._images)):
            self._take(wait=True)

    def renew(self, most: int) -> None:
        """Take what was drawn meanwhile, about ``most`` scenes of it."""
        for _ in range(-(-most // Chunk.SCENES)):
            if not self._take(wait=False):
                break

    def _take(self, *, wait: bool) -> bool:
        """Copy a chunk to the device, if there is one."""
        found = self._source.ready(wait=wait)
        if found is None:
            return False
        number, chunk = found
        start = self.drawn % len(self._images)
        place = slice(start, start + Chunk.SCENES)
        self._copy(chunk.images, self._images[place])
        self._copy(chunk.boxes, self._boxes[place])
        self._copy(chunk.classes, self._classes[place])
        self._source.release(number)
        self.drawn += Chunk.SCENES
        return True

    def _copy(self, array: NDArray[Any], target: Tensor) -> None:
        """To the device; the array may change afterwards, although the copy may not be done yet."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # a copy, which PyTorch keeps until it has been read
        target.copy_(tensor, non_blocking=True)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [0, 1] of changed colours, boxes and classes."""
        chosen = torch.randint(self.filled, (size,), generator=self._generator, device=self._device)
        images = self._images[chosen].float() / 255
        order = torch.rand((size, 3), generator=self._generator, device=self._device).argsort(1)
        images = images.gather(1, order[:, :, None, None].expand_as(images))
        inverse = torch.rand((size, 1, 1, 1), generator=self._generator, device=self._device) < 0.3
        images = torch.where(inverse, 1 - images, images)
        return images, self._boxes[chosen], self._classes[chosen]


# Training ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn."""

    minutes: float = 4.0
    steps: int | None = None
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.02
    capacity: int = 16_384
    workers: int = 0
    seed: int = 0
    held_out: int = 300


def train(plan: Plan, output: Path, device: torch.device, log: TextIO | None = None) -> Darknet:
    """Train, write ``digits.weights`` into the folder ``output``, and return what was learned."""
    network = Network.load(CFG)
    layout = Layout.of(network)
    started = time.monotonic()

    def say(text: str) -> None:
        line = f"[{time.monotonic() - started:6.1f} s] {text}"
        print(line, flush=True)
        if log is not None:
            print(line, file=log, flush=True)

    say(f"{network.parameters:,} weights, {plan}")
    with scene_source(plan.workers, plan.seed) as source:
        scenes = list(held_out_scenes(plan.held_out))
        torch.manual_seed(plan.seed)
        torch.backends.cudnn.benchmark = True
        model = Darknet(network).to(device, memory_format=torch.channels_last)
        average: Darknet = copy.deepcopy(model).eval()
        loss_of = Loss(layout).to(device)
        optimizer = _optimizer(model, plan)
        pool = Pool(source, plan.capacity, device, plan.seed)
        pool.fill(4 * plan.batch)
        say(f"on {_name(device)}; first scenes are drawn")
        learning_from = time.monotonic()
        step, reported, evaluated = 0, 0.0, 0.0
        while True:
            elapsed = time.monotonic() - learning_from
            progress = elapsed / (60 * plan.minutes) if plan.steps is None else step / plan.steps
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * _schedule(progress)
            pool.renew(plan.batch)
            images, boxes, classes = pool.batch(plan.batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                outputs = model(images.contiguous(memory_format=torch.channels_last))
            parts = loss_of(outputs, boxes, classes)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(parts.values())).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            step += 1
            _follow(average, model, min(AVERAGE_DECAY, step / (step + 10)))
            if progress >= reported:
                reported += 0.04
                figures = ", ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
                say(f"step {step}, {pool.drawn} scenes drawn: {figures}")
            if progress >= evaluated + 0.2:
                evaluated += 0.2
                some = scenes[: max(1, len(scenes) // 3)]
                precision = measure(average, layout, some, device).mean_average_precision
                say(f"mAP@0.5 {precision:.4f} on {len(some)} held-out scenes")
                write_weights(
                    output / "digits.weights", network, average.weights(step * plan.batch)
                )
    figures_of = measure(average, layout, scenes, device)
    say(
        f"{step} steps of {plan.batch}, {pool.drawn} scenes; mAP@0.5 "
        f"{figures_of.mean_average_precision:.4f} on {len(scenes)} held-out scenes of "
        f"{figures_of.objects} digits; of each digit "
        + " ".join(f"{precision:.3f}" for precision in figures_of.precisions)
    )
    write_weights(output / "digits.weights", network, average.weights(step * plan.batch))
    say(f"wrote {output / 'digits.weights'}")
    return average


def measure(
    model: Darknet, layout: Layout, scenes: Sequence[Scene], device: torch.device
) -> Evaluation:
    """Detect in scenes, in float32, as `Detector` does; and compare with what is there."""
    found = []
    with torch.no_grad():
        for start in range(0, len(scenes), 50):
            images = np.stack([scene.image for scene in scenes[start : start + 50]])
            batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
            outputs = {name: _array(output) for name, output in model(batch).items()}
            for candidates in decode(outputs, layout, threshold=EVALUATION_THRESHOLD):
                found.append(candidates.suppressed(0.5))
    return evaluate(found, scenes, classes=len(layout.names))


def _optimizer(model: Darknet, plan: Plan) -> torch.optim.Optimizer:
    """AdamW; kernels decay, biases and scales do not."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": plan.decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.rate)


def _schedule(progress: float) -> float:
    """Up within the first twentieth, then down along a cosine to a hundredth."""
    if progress < 0.05:
        return 0.01 + progress / 0.05
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)) / 2


def _follow(average: Darknet, model: Darknet, decay: float) -> None:
    """Move the average towards the model."""
    with torch.no_grad():
        pairs = [
            (kept, new)
            for kept, new in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            )
            if kept.is_floating_point()
        ]
        torch._foreach_lerp_([kept for kept, _ in pairs], [new for _, new in pairs], 1 - decay)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def cluster(sizes: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Anchors: k-means of widths and heights by intersection over union, smallest first."""
    order = np.argsort(sizes.prod(1))
    at = ((np.arange(count) + 0.5) / count * len(sizes)).astype(int)
    centers = sizes[order[at]]
    for _ in range(100):
        shared = np.minimum(sizes[:, None], centers).prod(2)
        fit = shared / (sizes.prod(1)[:, None] + centers.prod(1) - shared)
        nearest = fit.argmax(1)
        moved = np.stack([sizes[nearest == number].mean(0) for number in range(count)])
        if np.allclose(moved, centers):
            break
        centers = moved
    result: NDArray[np.float32] = centers[np.argsort(centers.prod(1))]
    return result


def _anchors(scenes: int, seed: int) -> str:
    generator = np.random.default_rng([seed, 0])
    boxes = np.concatenate([_scene_in_network(generator).boxes for _ in range(scenes)])
    centers = cluster(boxes[:, 2:] - boxes[:, :2], 9)
    return ", ".join(f"{width:.0f},{height:.0f}" for width, height in centers)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trt_runtime.yolov3.digits.training",
        description="Train the digit detector; writes digits.weights and training.log.",
    )
    parser.add_argument("--output", type=Path, default=Path(), help="an existing folder")
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--steps", type=int, help="train for so many steps, however long it takes")
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="the highest learning rate")
    parser.add_argument("--capacity", type=int, default=Plan.capacity, help="scenes kept at a time")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--held-out", type=int, default=Plan.held_out, help="scenes to measure on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--anchors", action="store_true", help="only print anchors for the cfg")
    chosen = vars(parser.parse_args(arguments))
    output, device = chosen.pop("output"), torch.device(chosen.pop("device"))
    if chosen.pop("anchors"):
        print(_anchors(2000, chosen["seed"]))
        return
    with open(output / "training.log", "w", encoding="utf-8") as log:
        train(Plan(**chosen), output, device, log)


if __name__ == "__main__":
    main()
