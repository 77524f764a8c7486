"""From ONNX to engine.

`config` and `calibration` are what a user says, `model` and `precision` read and convert the ONNX,
`plan` builds, `progress` tells how far it is; `cache`, `key` and `store` keep engines, and
`shared_file` what several builds add to.
"""

from .config import BuildConfig, Profile

__all__ = ["BuildConfig", "Profile"]
