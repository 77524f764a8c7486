"""`SharedFile`: a file that several processes read and add to, such as a timing cache.

A reader finds the old contents or the new ones, whole. What is added is merged with what is there
under a lock, so that nobody's part is lost. What the bytes mean is the business of who merges them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ..files import write_whole

logger = logging.getLogger("trt_runtime")


class SharedFile:
    """A file, and the lock beside it. Nothing here raises: it is an aid, and not the work.

    What goes wrong is logged as text: an exception in a log record would keep its frames alive, and
    TensorRT's objects in them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> bytes:
        """The contents; nothing where there is no file, or one that cannot be read."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            logger.warning("%s cannot be read and is not used: %s", self.path, str(error))
            return b""

    def merge(self, merged: Callable[[bytes], bytes | None]) -> None:
        """Replace the contents by ``merged(contents)`` with nobody else in between.

        ``merged`` returns None to leave the file as it is.
        """
        from filelock import FileLock  # only who builds needs it

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                data = merged(self.read())
                if data is not None:
                    write_whole(self.path, lambda file: file.write(data))
        except OSError as error:
            logger.warning("%s cannot be written and stays as it is: %s", self.path, str(error))
