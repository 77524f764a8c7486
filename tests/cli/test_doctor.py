"""``trt-runtime doctor``: it tells what is there, and nothing it looks at can bring it down."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trt_runtime import Device, NoDeviceError
from trt_runtime.cli import doctor as doctor_module
from trt_runtime.platform.tensorrt import FLAVOURS
from trt_runtime.platform.tensorrt.gpus import recommended, supported_gpus

from .conftest import invoke

H200, RTX_4090 = (9, 0), (8, 9)


def doctor(*arguments: str, status: int = 0) -> Any:
    result = invoke("doctor", *arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def check(told: Any, name: str) -> Any:
    (only,) = [row for row in told["checks"] if row["name"] == name]
    return only


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with these GPUs, and with modules of this source as its TensorRTs."""

    def of(*capabilities: tuple[int, int], driver: int = 13000, **modules: str) -> None:
        def platform() -> Any:
            if not capabilities:
                raise NoDeviceError("no CUDA driver was found")
            return SimpleNamespace(
                driver=SimpleNamespace(
                    driver_version=lambda: driver,
                    device_count=lambda: len(capabilities),
                    device_name=lambda n: f"GPU {n}",
                    compute_capability=lambda n: capabilities[n],
                    total_memory=lambda n: 24 * 2**30,
                )
            )

        folder = tmp_path / "modules"
        folder.mkdir()
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(doctor_module, "cuda_platform", platform)
        monkeypatch.setattr(doctor_module, "cuda_major_of", lambda name: None)
        found = importlib.util.find_spec

        def find(name: str, *rest: Any) -> Any:
            return None if name in FLAVOURS and name not in modules else found(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return of


TENSORRT_10 = "__version__ = '10.16.1'\nclass Builder: pass\n"
RTX = "__version__ = '1.7.1'\nclass Builder: pass\n"


def test_without_a_gpu_the_host_device_is_enough(machine: Any) -> None:
    machine()
    told = doctor()
    assert told["ready"]
    assert told["auto"].startswith("host")
    assert told["gpus"] == []
    assert check(told, "tensorrt")["command"] == "pip install tensorrt"
    with pytest.warns(UserWarning, match="host device"), Device("auto") as device:
        assert device.kind == "host"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "0"])
def test_a_gpu_that_is_asked_for_and_missing_is_1(machine: Any, device: str) -> None:
    machine()
    told = doctor("--device", device, status=1)
    assert not told["ready"]
    assert "no GPU" in told["problems"][0]


def test_a_gpu_and_a_tensorrt_that_fits(machine: Any) -> None:
    machine(RTX_4090, tensorrt=TENSORRT_10)
    told = doctor("--device", "cuda", "--tensorrt", "tensorrt")
    assert told["auto"] == "cuda:0 with tensorrt 10.16.1"
    assert told["driver_cuda"] == "13.0"
    assert told["gpus"][0]["compute_capability"] == [8, 9]
    assert told["tensorrt"][0]["supports"] == {"0": True}


def test_a_tensorrt_that_does_not_fit_the_gpu_says_which_does(machine: Any) -> None:
    machine(H200, tensorrt_rtx=RTX)
    told = doctor("--device", "cuda", status=1)
    assert "pip install tensorrt" in told["problems"][0]
    assert "not on cuda:0" in check(told, "tensorrt_rtx")["detail"]
    assert check(told, "tensorrt")["status"] == "missing"
    told = doctor(status=1)  # it is what device="auto" would take
    assert "TRT_RUNTIME_DEVICE=host" in told["problems"][0]
    assert doctor("--device", "host")["ready"]


def test_a_gpu_of_several_can_be_asked_for(machine: Any) -> None:
    machine(H200, RTX_4090, tensorrt_rtx=RTX)
    assert doctor("--device", "cuda:1")["ready"]
    assert not doctor("--device", "cuda:0", status=1)["ready"]
    assert "no GPU of number 2" in doctor("--device", "cuda:2", status=1)["problems"][0]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise ImportError('libnvinfer.so.10 is missing')", "libnvinfer.so.10"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import os; os._exit(3)", "exit status 3"),
        ("raise SystemExit('goodbye')", "goodbye"),
        ("print('noise')\nraise RuntimeError('broken')", "broken"),
        ("version = 1", "__version__"),
        ("__version__ = '8.5.3'", "too old"),
    ],
)
def test_a_broken_tensorrt_is_a_row(machine: Any, source: str, expected: str) -> None:
    machine(RTX_4090, tensorrt=source)
    told = doctor()
    assert check(told, "tensorrt")["status"] == "failed"
    assert expected in check(told, "tensorrt")["detail"]
    assert told["auto"].startswith("host")
    doctor("--device", "cuda", status=1)


def test_a_driver_that_breaks_in_the_middle_is_a_row(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()

    def broken() -> Any:
        raise RuntimeError("libcuda.so\nis from elsewhere")

    monkeypatch.setattr(doctor_module, "cuda_platform", broken)
    told = doctor()
    assert check(told, "CUDA driver")["status"] in ("missing", "note")


def test_a_driver_too_old_for_a_wheel_is_said(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(RTX_4090, driver=12040, tensorrt_rtx=RTX)
    monkeypatch.setattr(doctor_module, "cuda_major_of", lambda name: 13)
    row = check(doctor(status=1), "tensorrt_rtx")
    assert row["status"] == "failed"
    assert "CUDA 13" in row["detail"]
    assert "12.4" in row["detail"]


def test_without_a_gpu_and_onnxruntime_nothing_can_run(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *r: None if n == "onnxruntime" else found(n, *r)
    )
    told = doctor(status=1)
    assert check(told, "onnxruntime")["command"] == "pip install onnxruntime"
    assert "nowhere" in told["problems"][0]


def test_the_environment_is_taken_into_account(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(RTX_4090, tensorrt=TENSORRT_10, tensorrt_rtx=RTX)
    monkeypatch.setenv("TRT_RUNTIME_TENSORRT", "tensorrt_rtx")
    assert doctor()["auto"] == "cuda:0 with tensorrt_rtx 1.7.1"
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "host")
    assert doctor()["auto"].startswith("host, as TRT_RUNTIME_DEVICE says")
    monkeypatch.setenv("TRT_RUNTIME_DEVICE", "cuda:1")
    assert "no GPU of number 1" in doctor(status=1)["problems"][0]


def test_the_text_ends_with_the_verdict_and_lists_commands(machine: Any) -> None:
    machine()
    result = invoke("doctor")
    assert result.exit_code == 0
    assert result.stdout.endswith("ready\n")
    assert "tensorrt_lean: pip install tensorrt-lean" in result.stdout
    result = invoke("doctor", "--device", "cuda")
    assert result.exit_code == 1
    assert "not ready: there is no GPU" in result.stdout


@pytest.mark.parametrize("arguments", [["--device", "gpu"], ["--tensorrt", "trt"]])
def test_what_is_not_understood_is_a_usage_error(arguments: list[str]) -> None:
    assert invoke("doctor", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("capability", "fitting"),
    [
        ((7, 0), "8.6"),
        ((7, 5), "8.6 10 rtx"),
        (H200, "8.6 10"),
        ((10, 0), "10"),
        ((12, 0), "10 rtx"),
    ],
)
def test_the_facts_about_gpus(capability: tuple[int, int], fitting: str) -> None:
    releases = {
        "8.6": supported_gpus("tensorrt", "8.6.0"),
        "10": supported_gpus("tensorrt", "10.16.1"),
        "rtx": supported_gpus("tensorrt_rtx", "1.7.1"),
    }
    fits = [name for name, known in releases.items() if known and known.includes(capability)]
    assert fits == fitting.split()
    assert supported_gpus("tensorrt_lean", "10.16.1") is None
    assert recommended(H200) == "tensorrt"
    assert recommended(RTX_4090) == "tensorrt_rtx"
