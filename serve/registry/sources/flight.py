"""One download for all who ask for the same thing at the same time, in any thread or process.

A folder per source, ``downloads/<key>/``, lives as long as somebody is in it: each holds a shared lock on its file
``users``, and whoever downloads an exclusive one on ``turn``. The kernel drops the locks of a process that dies, so
what a killed process left behind is recognised and swept.
"""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve.registry.sources.transfer import disk_errors

FRESH = 60 * 10**9  # nanoseconds for which a result may be given to those who come while others still use it
STALE = 24 * 3600.0  # seconds after which a folder without locks is nobody's
GONE = ".gone-"


@contextmanager
def joined(root: Path, key: str, download: Callable[[Path], None]) -> Iterator[Path]:
    """Yield the folder that ``download`` has filled, for this caller or for another that asked at the same time.

    The folder is gone when the last of them is done. Raises what ``download`` raises, with nothing left behind;
    those who waited then try for themselves. Raises StorageError.
    """
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        folder = root / key
        users = _enter(folder)
    try:
        with _turn(folder):
            result = _recent(folder)
            if result is None:
                result = _filled(folder, download)
        yield result
    finally:
        _leave(folder, users)


def _enter(folder: Path) -> int:
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            users = os.open(folder / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
            except BaseException:
                os.close(users)
                raise
            if _same(users, folder / "users"):
                return users
            os.close(users)  # the last one left between our opening the file and our lock


def _leave(folder: Path, users: int) -> None:
    try:
        with _turn(folder):  # one after the other, so that exactly the last finds itself alone
            _remove_if_alone(folder, users)
    finally:
        os.close(users)


def _remove_if_alone(folder: Path, users: int) -> None:
    with suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = folder.with_name(f"{GONE}{uuid.uuid4().hex}")
        # In one step: whoever comes now finds no folder, or a new one.
        with suppress(OSError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    with disk_errors(folder):
        turn = os.open(folder / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield
    finally:
        os.close(turn)


def _recent(folder: Path) -> Path | None:
    done = {int(path.name.removeprefix("done-")): path for path in folder.glob("done-*")}
    newest = max(done, default=0)
    return done[newest] if newest > time.time_ns() - FRESH else None


def _filled(folder: Path, download: Callable[[Path], None]) -> Path:
    part = folder / f"part-{uuid.uuid4().hex}"
    with disk_errors(folder):
        part.mkdir(mode=0o700)
    try:
        download(part)
        with disk_errors(folder):
            return part.rename(folder / f"done-{time.time_ns()}")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        with suppress(OSError):
            if folder.name.startswith(GONE):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if not (folder / "users").exists():
                if time.time() - folder.stat().st_mtime > STALE:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            users = os.open(folder / "users", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(users, folder / "users"):
                    _remove_if_alone(folder, users)
            finally:
                os.close(users)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
