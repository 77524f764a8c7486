"""The text of a ``.cfg``: its sections and their options, each with its line.

What a section means as a layer is not here but in `cfg`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..errors import CfgError

Activation = Literal["leaky", "linear"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})", re.ASCII)

#: Darknet's names of the sections, short forms included.
_KINDS = {
    "net": "net",
    "network": "net",
    "convolutional": "convolutional",
    "conv": "convolutional",
    "shortcut": "shortcut",
    "route": "route",
    "upsample": "upsample",
    "maxpool": "maxpool",
    "max": "maxpool",
    "yolo": "yolo",
}

#: Of every layer: these concern training only.
_TRAINING = {"stopbackward", "onlyforward", "learning_rate", "smooth", "truth"}
#: What a [yolo] of Darknet or of its forks says about training and suppression.
_YOLO_TRAINING = {
    *("jitter", "random", "resize", "max", "map", "focal_loss", "max_delta", "counters_per_class"),
    *("ignore_thresh", "truth_thresh", "iou_thresh", "iou_thresh_kind", "iou_loss"),
    *("iou_normalizer", "obj_normalizer", "cls_normalizer", "uc_normalizer", "delta_normalizer"),
    *("label_smooth_eps", "objectness_smooth", "nms_kind", "beta_nms"),
}

#: Options that would change the result, and the value at which they do not.
_NEUTRAL: dict[str, dict[str, float]] = {
    "convolutional": {
        "groups": 1,
        "dilation": 1,
        "flipped": 0,
        "binary": 0,
        "xnor": 0,
        "antialiasing": 0,
    },
    "shortcut": {"alpha": 1, "beta": 1},
    "route": {"groups": 1, "group_id": 0},
    "upsample": {"scale": 1},
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0},
    "yolo": {"scale_x_y": 1, "new_coords": 0},
}
_NEUTRAL_ANYWHERE: dict[str, float] = {
    "dontload": 0,
    "dontloadscales": 0,
    "dontsave": 0,
    "numload": 0,
}


@dataclass
class Section:
    """A section: its options as text, each with its line."""

    name: str
    kind: str
    line: int
    source: str
    options: dict[str, tuple[str, int]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def error(self, message: str, key: str | None = None) -> CfgError:
        line = self.options[key][1] if key in self.options else self.line
        return CfgError(message, self.source, line, self.name)

    def text(self, key: str, default: str | None = None) -> str:
        self.asked.add(key)
        if key in self.options:
            return self.options[key][0]
        if default is None:
            raise self.error(f"{key}= is missing")
        return default

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        text = self.text(key, None if default is None else str(default))
        if not _INTEGER.fullmatch(text) or int(text) < least:
            raise self.error(f"{key}= takes an integer from {least}, not {text!r}", key)
        return int(text)

    def flag(self, key: str) -> bool:
        text = self.text(key, "0")
        if text not in ("0", "1"):
            raise self.error(f"{key}= takes 0 or 1, not {text!r}", key)
        return text == "1"

    def integers(self, key: str) -> list[int]:
        return [int(item) for item in self._items(key, _INTEGER, "integers")]

    def numbers(self, key: str) -> list[float]:
        return [float(item) for item in self._items(key, _NUMBER, "numbers")]

    def _items(self, key: str, pattern: re.Pattern[str], what: str) -> list[str]:
        items = [item.strip() for item in self.text(key).split(",")]
        if len(items) > 1 and not items[-1]:  # Darknet takes a comma at the end
            del items[-1]
        for item in items:
            if not pattern.fullmatch(item):
                raise self.error(f"{key}= takes {what} with commas between, not {item!r}", key)
        return items

    def activation(self, default: str | None = None) -> Activation:
        text = self.text("activation", default)
        if text == "leaky":
            return "leaky"
        if text == "linear":
            return "linear"
        raise self.error(f"activation= takes leaky or linear, not {text!r}", "activation")

    def finish(self) -> None:
        """Refuse what was not asked for: it could change the result."""
        neutral = {**_NEUTRAL_ANYWHERE, **_NEUTRAL[self.kind]}
        ignored = _TRAINING | (_YOLO_TRAINING if self.kind == "yolo" else set())
        for key, (text, _) in self.options.items():
            if key in self.asked or key in ignored:
                continue
            if key not in neutral:
                known = ", ".join(sorted(self.asked))
                raise self.error(f"there is no option {key!r}; those known are {known}", key)
            if not _NUMBER.fullmatch(text) or float(text) != neutral[key]:
                raise self.error(
                    f"{key}={text} is not of YOLOv3, which knows {key}={neutral[key]:g} only", key
                )


def read_sections(text: str, source: str) -> Iterator[Section]:
    section: Section | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = re.split("[#;]", raw, maxsplit=1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if section is not None:
                yield section
            name = line[1:-1].strip()
            if not line.endswith("]") or name not in _KINDS:
                known = ", ".join(f"[{name}]" for name in sorted(set(_KINDS.values())))
                raise CfgError(
                    f"{line!r} is no section of YOLOv3; known are {known}", source, number
                )
            section = Section(name, _KINDS[name], number, source)
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or section is None:
            where = " in a section" if section is None else ""
            name = None if section is None else section.name
            raise CfgError(
                f"expected [section] or option=value{where}, not {line!r}", source, number, name
            )
        if key in section.options:
            first = section.options[key][1]
            raise CfgError(
                f"{key}= is given twice, first in line {first}", source, number, section.name
            )
        section.options[key] = (value, number)
    if section is not None:
        yield section
