"""Brings the two files of an adapter into a folder on this machine, from whatever source."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.registry.sources import flight
from serve.registry.sources.limits import Limits
from serve.registry.sources.source import Source, parse_source
from serve.registry.sources.transfer import Progress, Transfer, disk_errors
from serve.registry.store import FILES

FILES_FOLDER = "adapter"
ORIGIN = "origin"


@dataclass(frozen=True)
class Fetched:
    """An adapter's files on this machine; ``origin`` is the source with its revision or etags, for the lineage."""

    folder: Path
    origin: str


@contextmanager
def fetched(
    source: Source | str, home: Path, limits: Limits, *, progress: Progress | None = None
) -> Iterator[Fetched]:
    """Yield an adapter's files; those that were downloaded are gone when the block ends. Blocks: not for event loops.

    Only adapter_config.json and adapter_model.safetensors are ever fetched, under ``limits`` for what is announced
    and for what arrives. Callers who ask for the same source at once share one download. Raises SourceError,
    SourceUnavailable, AdapterRejected, ConfigError (a library is missing) and StorageError, with nothing left
    behind.
    """
    source = parse_source(source) if isinstance(source, str) else source
    if source.kind == "folder":
        folder = Path(source.place)
        _check_sizes(Transfer(source.shown, folder, limits), folder)
        yield Fetched(folder, source.shown)
        return

    def download(part: Path) -> None:
        with disk_errors(part):
            (part / FILES_FOLDER).mkdir()
        origin = _deliver(source, Transfer(source.shown, part / FILES_FOLDER, limits, progress))
        with disk_errors(part):
            (part / ORIGIN).write_text(origin)

    words = (source.kind, source.place, source.prefix, source.revision or "", repr(limits))
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]
    with flight.joined(home / "downloads", key, download) as result:
        yield Fetched(result / FILES_FOLDER, (result / ORIGIN).read_text())


def _deliver(source: Source, transfer: Transfer) -> str:
    # Imported here, as each brings a client that takes longer to import than the whole registry.
    if source.kind == "hub":
        from serve.registry.sources import hub

        return hub.deliver(source, transfer)
    if source.kind == "http":
        from serve.registry.sources import web

        return web.deliver(source, transfer)
    from serve.registry.sources import bucket

    return bucket.deliver(source, transfer)


def _check_sizes(transfer: Transfer, folder: Path) -> None:
    for name in FILES:
        path = folder / name
        if path.is_file():
            transfer.announce(name, path.stat().st_size)
