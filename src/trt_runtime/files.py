"""Files that are written whole: a reader finds the old one or the new one, and never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO


def write_whole(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` with a file that becomes ``path`` when everything is in it.

    What is there and is no file, such as ``/dev/null`` or a pipe, is written to and stays what it
    is. Raises what the system does; nothing is left then.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            write(file)
        return
    # Not tempfile's, which only the owner may read: the umask decides, as for any new file.
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with open(part, "xb") as file, ExitStack() as stack:
        stack.callback(part.unlink)
        write(file)
        file.close()
        os.replace(part, target)
        stack.pop_all()
