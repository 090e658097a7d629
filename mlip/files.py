"""Files that are written whole or not at all."""

import contextlib
import errno
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


def append(file, text, remedy):
    """Write all of a text at the end of a file, or nothing of it where the disk is full.

    Args:
      file: descriptor, open for reading and writing at the file's end.
      remedy: what to do besides making room.

    Raises:
      OSError: it could not be written.
    """
    data, start = text.encode(), os.lseek(file, 0, os.SEEK_CUR)
    try:
        if os.write(file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        os.ftruncate(file, start)
        os.lseek(file, start, os.SEEK_SET)
        raise no_room(error, remedy) from error


def no_room(error, remedy):
    """What to raise where a frame could not be written."""
    return OSError(
        f"a frame could not be written ({error.strerror or error}); make room on the disk and "
        f"{remedy}"
    )


def refuse_existing(path, remedy):
    """Refuse to replace a file.

    Raises:
      FileExistsError: there is one.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists already; {remedy}")
