"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path):
    """A temporary path beside `path` that takes its place when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path, remedy):
    """Refuse to replace a file.

    Raises:
      FileExistsError: there is one.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists already; {remedy}")
