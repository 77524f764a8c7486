"""The plan: a model and what the builder decided about it, as bytes that can be checked.

Layout: magic, length of the header as a little-endian 64-bit integer, the header as JSON, the
ONNX model, and the SHA-256 of everything before it. This file knows bytes and reasons for
refusing them; what an engine makes of the contents is not its business.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

MAGIC = b"TRTHOST\x00"
FORMAT = 1
DEVICE = "host"

_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size


class PlanRefused(ValueError):
    """A plan that cannot be used; the message is what TensorRT logs."""


def pack(header: dict[str, Any], model: bytes) -> bytes:
    """Return the plan of `model`; `header` is JSON-able and says which ``tensorrt`` built it."""
    text = json.dumps({"format": FORMAT, "device": DEVICE, **header}, sort_keys=True).encode()
    body = b"".join((MAGIC, _LENGTH.pack(len(text)), text, model))
    return body + hashlib.sha256(body).digest()


def unpack(plan: bytes | memoryview, version: str) -> tuple[dict[str, Any], bytes]:
    """Return header and model of a plan that TensorRT `version` can run.

    Raises
    ------
    PlanRefused
        Not a plan, truncated or altered, of another version, or for another device.
    """
    data = memoryview(plan).cast("B")
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise PlanRefused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization "
            "(Serialization assertion stdArchiveReader failed. Magic tag does not match)"
        )
    body = data[:-_DIGEST_BYTES]
    start = len(MAGIC) + _LENGTH.size
    if len(body) < start or hashlib.sha256(body).digest() != bytes(data[-_DIGEST_BYTES:]):
        raise PlanRefused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization "
            f"(the checksum of the {len(data)} byte plan does not match: truncated or corrupt)"
        )
    (length,) = _LENGTH.unpack(body[len(MAGIC) : start])
    try:
        header: dict[str, Any] = json.loads(bytes(body[start : start + length]))
        device = header["device"]
        _check_version(header, version)
    except PlanRefused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise PlanRefused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization "
            f"(the header cannot be read, the plan is corrupt: {error!r})"
        ) from error
    if device != DEVICE:
        raise PlanRefused(
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file "
            f"is generated on an incompatible device, expecting {DEVICE} got {device}, "
            "please rebuild.)"
        )
    return header, bytes(body[start + length :])


def _check_version(header: dict[str, Any], version: str) -> None:
    current = f"{version} (format {FORMAT})"
    serialized = f"{header['tensorrt']} (format {header['format']})"
    same = header["tensorrt"] == version or header.get("version_compatible", False)
    if header["format"] != FORMAT or not same:
        raise PlanRefused(
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
            "stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match. Note: "
            f"Current Version: {current}, Serialized Engine Version: {serialized})"
        )
