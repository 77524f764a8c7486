"""The plugin registry: it opens libraries, as NVIDIA's does, and has no use for what is in them."""

from __future__ import annotations

import ctypes
from typing import Any

from .interfaces import ILogger
from .seam import Platform, log


class IPluginRegistry:
    """Loads shared libraries that export ``getCreators``; one for each module."""

    def __init__(self, trt: Platform, logger: ILogger) -> None:
        self._trt = trt
        self._logger = logger

    def load_library(self, plugin_path: str) -> Any:
        """Return a handle, or None after logging why there is none."""
        if self._trt.driver.faults.fails("load_library"):
            return self._refuse("injected failure of load_library")
        try:
            library = ctypes.CDLL(plugin_path)
        except OSError as error:
            return self._refuse(f"Unable to load library: {plugin_path}: {error}")
        if not hasattr(library, "getCreators"):
            return self._refuse(f"Symbol getCreators could not be loaded from {plugin_path}")
        return library

    def _refuse(self, reason: str) -> None:
        log(self._logger, ILogger.ERROR, f"IPluginRegistry::loadLibrary: {reason}")
