"""``python -m trt_runtime`` is the command ``trt-runtime``."""

from trt_runtime.cli import app

app(prog_name="trt-runtime")
