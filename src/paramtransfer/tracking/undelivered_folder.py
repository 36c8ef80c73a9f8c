"""A folder on disk for what a process has not delivered yet; its lock says that the process lives and will.

Folder and lock appear in one step and vanish in one, so that no other process meets one without the other.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

_LOCK, _LABEL = "lock", "store"
_PASSING = ("new-", "gone-")  # names of folders that are being made or removed
_OLD_SECONDS = 3600.0


class KeptFolder:
    """One such folder, once `make` or `take` has opened it.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it exists, locked by this process."""
        return self._lock is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been written yet."""
        return {path.name for path in self.path.rglob("*") if path.is_file()} <= {_LOCK, _LABEL}

    def make(self, label: str) -> None:
        """Open it, new.

        Args:
            label: one line or more that say what it is for.

        Raises:
            OSError: it cannot be made.
        """
        if self.is_open:
            return
        new = self.path.with_name(_PASSING[0] + uuid4().hex)
        new.mkdir(parents=True)
        lock = None
        try:
            lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (new / _LABEL).write_text(label)
            new.rename(self.path)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if lock is not None:
                os.close(lock)
            raise
        self._lock = lock

    def take(self) -> str | None:
        """Open what a dead process has left; its label, or None if there is nothing to take."""
        try:
            lock = os.open(self.path / _LOCK, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), os.stat(self.path / _LOCK)):
                raise FileNotFoundError
        except OSError:
            os.close(lock)
            return None
        self._lock = lock
        try:
            return (self.path / _LABEL).read_text()
        except OSError:  # without one it holds nothing
            self.remove()
            return None

    def leave(self) -> None:
        """To whom it may concern."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """With all that is in it."""
        if self._lock is not None:
            gone = self.path.with_name(_PASSING[1] + uuid4().hex)
            try:
                self.path.rename(gone)
            except OSError:
                gone = self.path
            shutil.rmtree(gone, ignore_errors=True)
            self.leave()

    def write(self, name: str, write: Callable[[Path], object], *, is_last: bool = False) -> None:
        """A file, all of it or nothing.

        Args:
            name: of the file.
            write: writes it.
            is_last: whether it says that the others are complete: then all are on the disk first.

        Raises:
            OSError: it cannot be written; or what `write` raises.
        """
        path, new = self.path / name, self.path / "new"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(new)
            for written in self.path.rglob("*") if is_last else ():
                _sync(written)
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def append(self, name: str, text: str) -> None:
        """To a file.

        Raises:
            OSError: it cannot be written.
        """
        with (self.path / name).open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def remove_remains(parent: Path) -> None:
    """What processes that were killed while they made or removed a folder have left in its parent."""
    for prefix in _PASSING:
        for path in parent.glob(f"{prefix}*"):
            with suppress(FileNotFoundError):  # a living process has gone on meanwhile
                if time.time() - path.stat().st_mtime > _OLD_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
