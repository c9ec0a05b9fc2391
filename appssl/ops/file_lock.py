"""Locks between processes of one machine, or of all that share a file system whose locks reach so far.

The kernel frees a lock when its process ends, however it ends; processes forked from it keep it until they end.
"""

import fcntl
import os
from pathlib import Path


def take(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Opens a file, made if need be, and locks it; `os.close` gives the lock back.

    Args:
        shared: many may hold it so at once, and nobody then holds it alone.
        wait: until it is free; else None is returned if it is not.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle
