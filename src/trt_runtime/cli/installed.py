"""What is installed on this machine, found without trusting any of it to work.

A TensorRT is imported in a process of its own, which a broken library may bring down. What it means
that something is there or not is `doctor`'s to say.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_INSTALL_DRIVER = "download it: https://www.nvidia.com/drivers"
#: By the ID of /etc/os-release: what NVIDIA's and the distribution's own instructions say.
_INSTALL_DRIVER_ON = {
    "ubuntu": "sudo ubuntu-drivers install",
    "debian": "sudo apt install nvidia-driver",
    "fedora": "sudo dnf install akmod-nvidia",
    "arch": "sudo pacman -S nvidia-open",
}
_NVIDIA = "0x10de"  # the vendor's number on the PCI bus
_PROBE_SECONDS = 60

#: Prints one JSON object last, as some libraries print when they are imported.
_PROBE = """
import importlib, json, sys
try:
    module = importlib.import_module(sys.argv[1])
    told = {"version": str(module.__version__), "builder": hasattr(module, "Builder")}
except BaseException as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(told))
"""


def start_probe(name: str) -> subprocess.Popen[str] | None:
    """Import it in another process, which a broken library may bring down; None if not there."""
    try:
        if importlib.util.find_spec(name) is None:
            return None
    except (ImportError, ValueError):
        return None
    return subprocess.Popen(
        [sys.executable, "-c", _PROBE, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def probed(probe: subprocess.Popen[str]) -> dict[str, Any]:
    with probe:
        try:
            printed, complaint = probe.communicate(timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            probe.kill()
            return {"error": f"importing it took longer than {_PROBE_SECONDS} s"}
    try:
        told: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
        return told
    except (ValueError, IndexError):
        status = probe.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        last = complaint.strip().splitlines()[-1:]
        return {"error": ": ".join([f"importing it ends the process with {how}", *last])}


def cuda_major_of(name: str) -> int | None:
    """The CUDA that an installed wheel is for, as the name of its libraries' package tells."""
    stem = re.escape(name.replace("_", "-"))
    for distribution in metadata.distributions():
        package = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"] or "")).lower()
        match = re.fullmatch(rf"{stem}-cu(\d+)(-libs)?", package)
        if match:
            return int(match[1])
    return None


def has_nvidia_gpu() -> bool | None:
    """Whether the PCI bus has a display device of NVIDIA's; None where it cannot be seen."""
    folder = Path("/sys/bus/pci/devices")
    try:
        devices = list(folder.iterdir())
    except OSError:
        return None
    for device in devices:
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith("0x03"):
            return True
    return False


def driver_command() -> str:
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "start the container with --gpus all (NVIDIA Container Toolkit)"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return _INSTALL_DRIVER
    return _INSTALL_DRIVER_ON.get(release.get("ID", ""), _INSTALL_DRIVER)


def kernel_module_version() -> str:
    """Such as ``580.65.06``; empty where the kernel does not tell."""
    try:
        told = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", told)
    return match[1] if match else ""


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
