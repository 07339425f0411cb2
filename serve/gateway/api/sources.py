"""Which sources of adapters an HTTP caller may name: none on this machine's disk without the operator's leave."""

from pathlib import Path

from serve.errors import SourceError
from serve.registry.sources import Source, parse_source
from serve.registry.sources.source import SCHEME

LONGEST = 2048
FORMS = (
    "give a hub id (org/name, hf://org/name@revision), s3://bucket/prefix, gs://bucket/prefix or the http(s) URL of a "
    "folder"
)
PATH = ("/", ".", "~", "\\")


def remote_source(text: str, folder: Path | None) -> Source:
    """Understand the source that an HTTP caller named; raises SourceError.

    A path is taken only below ``folder``, links resolved, and is relative to it. Of any other path the answer does not
    tell whether it exists.
    """
    if SCHEME.match(text):
        return parse_source(text)
    if not text.startswith(PATH):
        # A hub id, even where the gateway's working folder happens to hold a folder of this name.
        return parse_source(f"hf://{text}")
    if folder is None:
        raise SourceError("folders of the gateway's machine are not taken over HTTP", FORMS)
    found = _below(folder, text)
    if found is None:
        raise SourceError(
            "there is no such folder below the one that the operator allows",
            f"name one that is there, or {FORMS}",
        )
    return Source("folder", str(found), str(found))


def _below(folder: Path, text: str) -> Path | None:
    try:
        root = folder.resolve(strict=True)
        found = (root / text).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return found if found.is_relative_to(root) and found != root and found.is_dir() else None
