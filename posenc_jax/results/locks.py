"""Locks between processes, on files and folders; the end of a process releases its locks."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

# Of file systems that cannot lock a folder (NFS), or nothing at all.
_UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock of a file, which is made if absent, during the `with` block.

    Args:
      wait: whether to wait for a process that holds the lock.

    Raises:
      BlockingIOError: another process holds it, and `wait` is False.
    """
    with _held(path, os.O_RDWR | os.O_CREAT, wait):
        yield


@contextlib.contextmanager
def _held(path: Path, kind: int, wait: bool) -> Iterator[None]:
    descriptor = os.open(path, kind, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the locks of a folder and of `.lock` in it, so that the folder stays locked if `.lock`
    is removed.

    Raises:
      BlockingIOError: another process holds one of the two locks, and `wait` is False.
    """
    with _held(folder, os.O_RDONLY | os.O_DIRECTORY, wait), locked(folder / ".lock", wait=wait):
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; False where there is none."""
    try:
        with lock_folder(folder):
            return False
    except BlockingIOError:
        return True
    except OSError:  # no folder, or none that can be locked
        return False
