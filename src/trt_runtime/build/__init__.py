"""From ONNX to engine: what to build (`config`), and reading the model (`model`)."""

from .config import BuildConfig, Profile

__all__ = ["BuildConfig", "Profile"]
