"""Files are written whole, and only files are replaced."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from trt_runtime import Engine
from trt_runtime.files import write_whole

from .models import static


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"old")

    def half(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        write_whole(target, half)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, lambda file: file.write(b"through"))
    reader.join(10)
    assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path(os.devnull).is_char_device(), reason="the null device is elsewhere")
def test_an_engine_saved_to_the_null_device_leaves_it_there(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    with Engine.build(static().model, device="host") as engine:
        engine.save(link)
        engine.save(os.devnull)
    assert link.is_symlink()
    assert Path(os.devnull).is_char_device()
