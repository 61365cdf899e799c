"""A lock on a run folder, so that two processes never write into one."""

import datetime
import os
import platform
from pathlib import Path
from typing import IO

from common.shards import UsageError

_held: list[tuple[Path, IO[str]]] = []


def hold(folder: Path) -> None:
    """Keep other processes out of the folder until `release`, or until this process ends, however it ends.

    Raises UsageError, which says who holds it, where another process does.
    """
    path = folder / ".lock"
    file = _open(path)
    if file is None:
        holder = path.read_text().strip() or "another process"
        raise UsageError(f"{folder} is being written by {holder}; wait until it is done, or start another run")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()} since {datetime.datetime.now():%Y-%m-%d %H:%M}\n")
    file.flush()
    _held.append((path, file))


def held() -> list[Path]:
    """The folders that this process keeps others out of."""
    return [path.parent for path, _ in _held]


def release() -> None:
    """Give up all locks of this process."""
    while _held:
        path, file = _held.pop()
        if os.name == "posix":
            path.unlink(missing_ok=True)  # while it is still locked, so that it is nobody else's
            file.close()
        else:
            file.close()
            path.unlink(missing_ok=True)


def _open(path: Path) -> IO[str] | None:
    """The lock's file, held; None where another process holds it."""
    if os.name != "posix":
        try:
            path.unlink(missing_ok=True)  # which Windows refuses as long as a process has it open
            return open(path, "x")
        except (PermissionError, FileExistsError):
            return None
    import fcntl

    while True:
        try:
            file = open(path, "a")
        except OSError as error:
            raise UsageError(f"{path.parent}: {error.strerror}, expected a folder that can be written to") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder has just removed it
