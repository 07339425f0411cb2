"""Writes a folder of files, all or none."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve.errors import StorageError
from serve.interrupts import interrupts_wait


def write_folder(out: Path, files: Mapping[str, str]) -> None:
    """Make ``out`` hold exactly ``files`` (name → text), replacing what an earlier call wrote there.

    The files are written into a new folder beside ``out``, which then takes its place: a reader never sees
    a mixture of old and new files. Where it holds just these files already, nothing is touched. Raises
    :class:`StorageError` where the disk refuses, or where ``out`` holds files of another origin; nothing is left
    behind then.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(out.parent):
            if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - set(files)):
                raise StorageError(f"{out} holds other files", "name a folder that is new or empty")
            if not _holds(out, files):
                _replace(out, files)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}",
            f"free some space or choose another folder ({_free(out)})",
        ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for others who write folders there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holds(out: Path, files: Mapping[str, str]) -> bool:
    return (
        out.is_dir()
        and {entry.name for entry in out.iterdir()} == set(files)
        and all((out / name).read_bytes() == text.encode() for name, text in files.items())
    )


def _replace(out: Path, files: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        for name, text in files.items():
            _write(new / name, text)
        with interrupts_wait():
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _free(out: Path) -> str:
    parent = next(folder for folder in out.parents if folder.exists())
    return f"{shutil.disk_usage(parent).free / 2**20:,.1f} MiB are free in {parent}"
