"""Every test is one that pytest finds."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    here = Path(__file__).parent
    folders = {
        part for path in here.rglob("test_*.py") for part in path.relative_to(here).parent.parts
    }
    assert folders >= {"build", "cli", "yolov3"}
    patterns = pytestconfig.getini("norecursedirs")
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)]
