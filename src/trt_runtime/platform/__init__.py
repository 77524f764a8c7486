"""The seam: everything that NVIDIA's software does enters through a `Platform`.

A platform is a CUDA driver and a TensorRT. There are two: `cuda_platform` over NVIDIA's, and the
host platform, a driver of NumPy memory and a TensorRT of onnxruntime. Above this package nothing
asks which one it runs on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from ..errors import NoDeviceError, UnsupportedError
from ..locks import Lock
from .driver import Driver
from .tensorrt import TensorRT, load_tensorrt

if TYPE_CHECKING:
    from .host.faults import Faults

Kind = Literal["cuda", "host"]

_HOST_TENSORRT = "tensorrt_host"


class Platform:
    """A driver, and the TensorRT flavours that go with it."""

    def __init__(self, kind: Kind, driver: Driver) -> None:
        self.kind: Kind = kind
        self.driver = driver
        self._libraries: dict[str | None, TensorRT] = {}
        self._loading = Lock()

    def tensorrt(self, flavour: str | None = None) -> TensorRT:
        """The TensorRT of that flavour, or the first that is installed; loaded once."""
        flavour = self._choose(flavour)
        with self._loading:
            if flavour not in self._libraries:
                self._libraries[flavour] = self._load(flavour)
            return self._libraries[flavour]

    def _choose(self, flavour: str | None) -> str | None:
        return flavour or os.environ.get("TRT_RUNTIME_TENSORRT") or None

    def _load(self, flavour: str | None) -> TensorRT:
        return load_tensorrt(flavour)


class HostPlatform(Platform):
    """A platform without a GPU; each one has its own driver, ledger and faults.

    Parameters
    ----------
    faults : Faults, optional
        What shall fail; nothing by default.
    devices : int
        How many devices it pretends to have.
    version : str
        The TensorRT release that it imitates.
    """

    def __init__(
        self, faults: Faults | None = None, *, devices: int = 1, version: str = "10.16.1"
    ) -> None:
        from .host.driver import HostDriver

        self.host_driver = HostDriver(faults, devices=devices)
        self._version = version
        super().__init__("host", self.host_driver)

    def _choose(self, flavour: str | None) -> str | None:
        if flavour not in (None, _HOST_TENSORRT):
            raise UnsupportedError(
                f"the host device runs engines of its own TensorRT only, and {flavour} "
                "needs a GPU; leave tensorrt= out, or, to build for a GPU that is elsewhere, use "
                "build_plan(model, tensorrt='tensorrt_rtx')"
            )
        return _HOST_TENSORRT

    def _load(self, flavour: str | None) -> TensorRT:
        from .host.tensorrt import HostTensorRT

        return TensorRT(HostTensorRT(self.host_driver, version=self._version), _HOST_TENSORRT)


_host: HostPlatform | None = None
_cuda: Platform | None = None
_making = Lock()


def host_platform() -> HostPlatform:
    """The host platform that this process shares, made on first use."""
    global _host
    with _making:
        if _host is None:
            _host = HostPlatform()
        return _host


def cuda_platform() -> Platform:
    """NVIDIA's driver, initialised on first use; raises `NoDeviceError` where there is none."""
    global _cuda
    from .cuda import CudaDriver

    with _making:
        if _cuda is None:
            platform = Platform("cuda", CudaDriver())
            if platform.driver.device_count() == 0:
                raise NoDeviceError(
                    "the CUDA driver sees no GPU; choose device='host' to run without one"
                )
            _cuda = platform
        return _cuda
