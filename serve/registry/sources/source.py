"""What a source is called: text becomes a kind, a place, and a form that may be shown and kept."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from serve.errors import SourceError
from serve.registry.hub import HUB_ID
from serve.registry.store import FILES

Kind = Literal["folder", "hub", "s3", "gs", "http"]

FORMS = (
    "give a local folder, a hub id (org/name, hf://org/name@revision), s3://bucket/prefix, gs://bucket/prefix or "
    "the http(s) URL of a folder"
)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
ARCHIVE = re.compile(r"\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar|whl)$", re.IGNORECASE)
HUB_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
HUB_PAGE = re.compile(r"/(?P<id>[\w.-]+/[\w.-]+)(/tree/(?P<revision>[\w.-]+))?/?")


@dataclass(frozen=True)
class Source:
    """Where an adapter is.

    ``place`` is the folder, the hub id, the bucket, or the URL of the folder with all that is needed to fetch it;
    ``prefix`` the folder inside the repository or bucket. ``shown`` holds no credentials, ``place`` may.
    """

    kind: Kind
    shown: str
    place: str = field(repr=False)
    prefix: str = ""
    revision: str | None = None

    @property
    def name(self) -> str:
        """The last part of the place, spelt as names of adapters are; empty where there is none."""
        path = urlsplit(self.place).path if self.kind == "http" else self.place
        path = Path(path).resolve().name if self.kind == "folder" else path
        last = unquote(self.prefix or path).rstrip("/").rsplit("/", 1)[-1].lower()
        return re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:64].strip("._-")


def parse_source(text: str) -> Source:
    """Understand what a caller named; raises SourceError. Nothing is asked for but whether a folder exists."""
    scheme = SCHEME.match(text)
    if scheme is None:
        return _without_scheme(text)
    if any(ord(sign) <= 32 or ord(sign) == 127 for sign in text):
        raise SourceError("the source has spaces or control characters, which no URL has", FORMS)
    kind = scheme[1].lower()
    if kind == "hf":
        return _hub(text[scheme.end() :])
    if kind in ("s3", "gs"):
        return _bucket(kind, text[scheme.end() :])
    if kind in ("http", "https"):
        return _http(text)
    raise SourceError(f"adapters are not fetched from {kind}:// sources", FORMS)


def _without_scheme(text: str) -> Source:
    try:
        path = Path(text).expanduser()
        exists = path.exists() or path.is_symlink()
    except (RuntimeError, OSError, ValueError) as error:
        raise SourceError(f"{text!r} is no source of an adapter: {error}", FORMS) from error
    if text and (exists or text.startswith(("/", ".", "~"))):
        folder = str(path.absolute())
        return Source("folder", folder, folder)
    if HUB_ID.fullmatch(text.split("@", 1)[0]):
        return _hub(text)
    raise SourceError(f"there is no folder {text!r}, and it is no hub id", FORMS)


def _hub(text: str) -> Source:
    parts = text.rstrip("/").split("/", 2)
    name, _, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    place, prefix, revision = f"{parts[0]}/{name}", "".join(parts[2:]), unquote(revision)
    wrong_revision = "@" in text and not REVISION.fullmatch(revision)
    if not HUB_ID.fullmatch(place) or wrong_revision or not _plain(prefix):
        raise SourceError(
            f"hf://{text} is no adapter on the hub",
            "write it as hf://org/name, hf://org/name@revision or hf://org/name@revision/folder "
            "(a / in a revision as %2F)",
        )
    shown = f"hf://{place}" + (f"@{revision.replace('/', '%2F')}" if revision else "")
    return Source("hub", shown + (f"/{prefix}" if prefix else ""), place, prefix, revision or None)


def _bucket(kind: Literal["s3", "gs"] | str, text: str) -> Source:
    bucket, _, prefix = text.partition("/")
    prefix = prefix.strip("/")
    _refuse_archive(f"{kind}://{text}", prefix)
    if not BUCKET.fullmatch(bucket) or not _plain(prefix) or any(sign in prefix for sign in "*?[]#"):
        raise SourceError(
            f"the {kind}:// source names no folder in a bucket",
            f"write it as {kind}://bucket/prefix; credentials are those of the cloud's own tools",
        )
    shown = f"{kind}://{bucket}" + (f"/{prefix}" if prefix else "")
    return Source("s3" if kind == "s3" else "gs", shown, bucket, prefix)


def _http(text: str) -> Source:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SourceError("the source is no URL that can be read", FORMS) from error
    shown_host = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    folder = parts.path.rstrip("/") + "/"
    shown = f"{parts.scheme}://{shown_host}{folder}"
    if not host or "\\" in text or any(part in (".", "..") for part in unquote(folder).split("/")):
        raise SourceError(f"{shown} is no URL of a folder", FORMS)
    _refuse_archive(shown, folder.rstrip("/"))
    _explain_page(host, folder, shown)
    if folder.rstrip("/").endswith(FILES):
        raise SourceError(
            f"{shown.rstrip('/')} is one file of an adapter", "give the URL of the folder that holds both"
        )
    # The fragment never leaves a browser; ours keeps the etags of an earlier download.
    place = SplitResult(parts.scheme.lower(), parts.netloc, folder, parts.query, "").geturl()
    return Source("http", shown, place)


def _explain_page(host: str, folder: str, shown: str) -> None:
    page = HUB_PAGE.fullmatch(folder) if host in HUB_HOSTS else None
    if page is not None:
        revision = f"@{page['revision']}" if page["revision"] else ""
        raise SourceError(f"{shown} is a page of the hub, not a folder", f"give hf://{page['id']}{revision}")


def _refuse_archive(shown: str, path: str) -> None:
    if ARCHIVE.search(path):
        raise SourceError(
            f"{shown.rstrip('/')} is an archive, and archives are not taken",
            f"unpack it and give the folder that holds {' and '.join(FILES)}",
        )


def _plain(prefix: str) -> bool:
    return "\\" not in prefix and all(part not in ("", ".", "..") for part in prefix.split("/") if prefix)
