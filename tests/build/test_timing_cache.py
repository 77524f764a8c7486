"""The timing cache: read, used, and merged, so that no process loses what another measured."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import ModelProto, TensorProto, helper

from trt_runtime import BuildConfig, Device, build_plan
from trt_runtime.build.shared_file import SharedFile
from trt_runtime.platform import HostPlatform
from trt_runtime.platform.host.tensorrt.config import IBuilderConfig

from ..models import make_model

OPERATORS = ("Relu", "Neg", "Exp", "Abs", "Sigmoid", "Tanh", "Sqrt", "Floor")


def unary(operator: str) -> ModelProto:
    return make_model(
        [helper.make_node(operator, ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [2])},
        {"y": (TensorProto.FLOAT, [2])},
    )


def build(operator: str, path: Path, device: Device | str) -> None:
    build_plan(unary(operator), BuildConfig(timing_cache=path), device=device)


def entries(path: Path) -> int:
    """How many layers the host's timing cache knows."""
    return len(json.loads(path.read_bytes()[len(b"TRTHOSTTIMING\0") :])["keys"])


def test_a_second_build_knows_the_layers_of_the_first(
    host: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "below" / "timing.cache"
    with caplog.at_level(logging.INFO, "trt_runtime.tensorrt"):
        build("Relu", path, host)
        build("Relu", path, host)
    told = [record.message for record in caplog.records if "Timing cache" in record.message]
    assert [line.split(": ")[1] for line in told] == [
        "0 layers were known, 1 are new",
        "1 layers were known, 0 are new",
    ]


def test_builds_add_to_the_file(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    for count, operator in enumerate(OPERATORS, 1):
        build(operator, path, host)
        assert entries(path) == count


def test_processes_that_build_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    code = (
        "import sys; from pathlib import Path; from tests.build.test_timing_cache import build\n"
        "sys.stdin.read()\n"
        "build(sys.argv[1], Path(sys.argv[2]), 'host')\n"
    )
    root = Path(__file__).parents[2]
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", code, operator, str(path)], cwd=root, stdin=subprocess.PIPE
        )
        for operator in OPERATORS
    ]
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.close()  # all begin together
    assert [builder.wait(60) for builder in builders] == [0] * len(builders)
    assert entries(path) == len(OPERATORS)


def test_what_another_adds_during_the_build_is_kept(host: Device, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"

    def meanwhile(told: object) -> None:
        if not path.exists():
            build_plan_of_another(path)

    def build_plan_of_another(path: Path) -> None:
        with Device(HostPlatform()) as other:
            elsewhere = tmp_path / "other.cache"
            # The first build holds the only permission to build in this process.
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import sys; from pathlib import Path\n"
                    "from tests.build.test_timing_cache import build\n"
                    "build('Neg', Path(sys.argv[1]), 'host')\n",
                    str(path),
                ],
                cwd=Path(__file__).parents[2],
                check=True,
            )
            assert not elsewhere.exists()
            assert other

    config = BuildConfig(timing_cache=path)
    build_plan(unary("Relu"), config, device=host, on_progress=meanwhile)
    assert entries(path) == 2


@pytest.mark.parametrize("as_8_6", [False, True], ids=["refused", "taken for an empty one"])
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(
    host: Device,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    as_8_6: bool,
) -> None:
    if as_8_6:
        create = IBuilderConfig.create_timing_cache
        monkeypatch.setattr(
            IBuilderConfig,
            "create_timing_cache",
            lambda config, data: create(config, b"" if data == b"no timings" else data),
        )
    path = tmp_path / "timing.cache"
    path.write_bytes(b"no timings")
    build("Relu", path, host)
    warnings = [r for r in caplog.records if r.name == "trt_runtime" and r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "is damaged" in warnings[0].getMessage()
    assert entries(path) == 1


def test_a_file_of_another_release_is_left_as_it_is(
    host: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "timing.cache"
    with Device(HostPlatform(version="10.3.0")) as older:
        build("Neg", path, older)
    contents = path.read_bytes()
    build("Relu", path, host)
    assert "was not made by tensorrt_host 10.16.1" in caplog.text
    assert path.read_bytes() == contents


def test_a_file_that_cannot_be_written_does_not_fail_the_build(
    host: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    build("Relu", path, host)
    assert "cannot be read" in caplog.text
    assert "cannot be written" in caplog.text
    assert path.is_dir()


def test_a_shared_file_that_is_left_alone_stays(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "a")
    file.merge(lambda data: None)
    assert not file.path.exists()
    file.merge(lambda data: data + b"1")
    file.merge(lambda data: data + b"2")
    assert file.read() == b"12"
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "a.lock"}
