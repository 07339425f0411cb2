"""Adapter files, content-addressed and read-only: ``adapters/<digest>/``.

The digest is what ``sha256sum adapter_config.json adapter_model.safetensors | sha256sum`` prints there.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve.errors import StorageError
from serve.registry.tensor_file import CHUNK, open_plain

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
STAGING = ".staging-"
CLAIM = ".registry-"
STALE_SECONDS = 24 * 3600.0
DIGEST = re.compile("[0-9a-f]{64}")


class Store:
    """A folder of adapters, each in a folder named by the digest of its files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the files of ``digest`` are, or would be."""
        return self.root / digest

    @contextmanager
    def stage(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Copy the two files of ``folder`` into a folder of our own and yield that with its digest.

        The copy is on disk and read-only when it is yielded; unless it was placed, it is gone afterwards. Raises
        StorageError, with nothing left behind, where the disk is full or cannot be written.
        """
        with disk_errors(self.root):
            self.sweep()
            staged = Path(tempfile.mkdtemp(prefix=STAGING, dir=self.root))
        try:
            with disk_errors(self.root):
                manifest = [(name, _copy(folder / name, staged / name)) for name in FILES]
                staged.chmod(0o555)
                _sync_folder(staged)
            yield staged, _combine(manifest)
        finally:
            _delete(staged)

    def place(self, staged: Path, digest: str) -> None:
        """Move a staged copy to its digest's place; call it with the registry's write lock held.

        What lies there already is kept if it is intact, else replaced.
        """
        target = self.path(digest)
        with disk_errors(self.root):
            if target.exists():
                if _digest_or_none(target) == digest:
                    return
                self.discard(digest)
            staged.rename(target)
            _sync_folder(self.root)

    def digest(self, digest: str) -> str:
        """Read the files of ``digest`` again and return what their digest is now; raises StorageError."""
        folder = self.path(digest)
        try:
            return digest_of(folder)
        except OSError as error:
            raise StorageError(
                f"the adapter's files in {folder} cannot be read: {error}",
                "restore the folder from a backup, or register the adapter again",
            ) from error

    def strangers(self, digest: str) -> list[str]:
        """What lies in the folder of ``digest`` beside its two files; raises StorageError."""
        with disk_errors(self.root):
            return sorted(path.name for path in self.path(digest).iterdir() if path.name not in FILES)

    def discard(self, digest: str) -> None:
        """Remove the files of ``digest``; call it with the registry's write lock held. Missing files are fine."""
        target = self.path(digest)
        if target.exists():
            with disk_errors(self.root):
                trash = (
                    self.root / f"{STAGING}{uuid.uuid4().hex}"
                )  # a rename works on a full disk, a new folder may not
                target.rename(trash)
            _delete(trash)

    def digests(self) -> list[str]:
        """The digests of which there are files; raises StorageError."""
        with disk_errors(self.root):
            if not self.root.is_dir():
                return []
            return sorted(path.name for path in self.root.iterdir() if DIGEST.fullmatch(path.name))

    def size(self, digest: str) -> int:
        """The bytes that the files of ``digest`` take; 0 where they are missing."""
        sizes = [path.stat().st_size for path in self.path(digest).glob("*")]
        return sum(sizes)

    def claim(self, registry: str) -> None:
        """Leave a mark that a registry keeps files here."""
        mark = self.root / f"{CLAIM}{registry}"
        if not mark.exists():
            with disk_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                mark.touch()

    def others(self, own: Iterable[str]) -> list[Path]:
        """The marks of other registries: files that this one knows nothing of may be theirs."""
        return sorted(set(self.root.glob(f"{CLAIM}*")) - {self.root / f"{CLAIM}{mark}" for mark in own})

    def sweep(self) -> None:
        """Remove what processes that were killed have left behind."""
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"{STAGING}*"):
            with suppress(FileNotFoundError):  # another process may be done with it
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    _delete(left)


def digest_of(folder: Path) -> str:
    """The digest of an adapter's two files; raises OSError."""
    manifest = []
    for name in FILES:
        with open_plain(folder / name) as file:
            manifest.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
    return _combine(manifest)


def _digest_or_none(folder: Path) -> str | None:
    try:
        return digest_of(folder)
    except OSError:
        return None


def _combine(manifest: list[tuple[str, str]]) -> str:
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in manifest).encode()).hexdigest()


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with open_plain(source) as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
        os.fchmod(writer.fileno(), 0o444)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(folder: Path) -> None:
    # A read-only folder does not let go of its files. What cannot be deleted now is swept a day later.
    with suppress(OSError):
        folder.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path, what: str = "the adapter cannot be stored in") -> Iterator[None]:
    """Turn OSError into StorageError; ``what`` cannot be done with the folder."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} {folder}: {error.strerror or error}; nothing was registered",
            "free disk space, or make the folder writable, and try again",
        ) from error
