"""Writes a folder of files, all or none."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from serve.errors import StorageError


def write_folder(out: Path, files: Mapping[str, str]) -> None:
    """Make ``out`` hold exactly ``files`` (name → text), replacing what an earlier call wrote there.

    The files are written into a new folder beside ``out``, which then takes its place: a reader never sees
    a mixture of old and new files. Raises :class:`StorageError` where the disk refuses, or where ``out`` holds
    files of another origin; nothing is left behind then.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - set(files)):
        raise StorageError(f"{out} holds other files", "name a folder that is new or empty")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            for name, text in files.items():
                _write(new / name, text)
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror or error}",
            f"free some space or choose another folder ({_free(out)})",
        ) from error


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _free(out: Path) -> str:
    parent = next(folder for folder in out.parents if folder.exists())
    return f"{shutil.disk_usage(parent).free / 2**20:,.1f} MiB are free in {parent}"
