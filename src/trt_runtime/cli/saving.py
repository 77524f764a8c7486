"""Writing what a command made: outputs as NumPy files, plans. A reader never finds half a file."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trt_runtime import InputError, files


def save_outputs(target: Path, outputs: Mapping[str, NDArray[Any]]) -> list[str]:
    """Write an ``.npz``, or a folder with an ``.npy`` for each output; the paths written."""
    if target.suffix.lower() == ".npz":
        write_whole(target, lambda file: _write_npz(file, outputs))
        return [str(target)]
    if target.exists() and not target.is_dir():
        raise InputError(f"--save takes an .npz file or a folder; {str(target)!r} is another file.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(target, error) from error
    saved, taken = [], set()
    for number, (name, array) in enumerate(outputs.items()):
        stem = re.sub(r"[^\w.-]+", "_", name).strip(".") or "output"
        while stem.lower() in taken:  # some file systems do not tell cases apart
            stem = f"{stem}_{number}"
        taken.add(stem.lower())
        path = target / f"{stem}.npy"
        write_whole(path, lambda file, array=array: np.save(file, array))  # type: ignore[misc]
        saved.append(str(path))
    return saved


def write_whole(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    """As `files.write_whole`, with an error that a user can read."""
    try:
        files.write_whole(target, write)
    except OSError as error:
        raise _not_writable(target, error) from error


def require_writable(target: Path, *, force: bool) -> None:
    """Raise before the work is done if its result could not be kept."""
    if target.is_dir():
        raise InputError(f"{str(target)!r} is a folder; name a file in it.")
    if target.is_file() and not force:
        raise InputError(f"{str(target)!r} exists; --force replaces it, -o names another file.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"there is no folder {str(target.absolute().parent)!r} to write to.")


def _write_npz(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """As `numpy.savez`, which takes names as keywords: an output may be called ``file``."""
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _not_writable(path: Path, error: OSError) -> InputError:
    return InputError(f"{str(path)!r} cannot be written: {error.strerror or error}")
