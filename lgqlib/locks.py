"""A lock that dies with its process: one builder at a time, and no stale lock after a kill."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path` (made when missing); yield whether it is held.

    It is not held when another process has it and `wait` is false, or on a file system without
    locks, where the caller goes on with what is safe unlocked.
    """
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            held = False
        yield held
