"""Fetches an adapter from a bucket, through fsspec: Amazon's S3 and what speaks it, Google Cloud Storage.

Credentials, region and endpoint are those of the clouds' own tools (``AWS_*``, ``~/.aws``,
``GOOGLE_APPLICATION_CREDENTIALS``), never part of the source.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from serve.errors import ConfigError, SourceError, SourceUnavailable
from serve.registry.sources.source import Source
from serve.registry.sources.transfer import Transfer
from serve.registry.store import CONFIG, FILES

CHUNK = 16 * 2**20
LIBRARY = {"s3": "s3fs", "gs": "gcsfs"}
EXTRA = {"s3": "s3", "gs": "gcs"}
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of an account that may read it",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}
STAMPS = ("VersionId", "ETag", "generation", "etag")
"""What tells one content of an object from another, the strongest first."""


def deliver(source: Source, transfer: Transfer) -> str:
    """Fetch both files and return the source with their etags.

    Raises SourceError, SourceUnavailable, AdapterRejected, and ConfigError where the library is missing.
    """
    stamps = {}
    with _explained(source):
        system = _file_system(source.kind, transfer)
        for name in FILES:
            path = "/".join(part for part in (source.place, source.prefix, name) if part)
            before = _info(system, path, name, transfer)
            _save(system, path, name, int(before["size"]), transfer)
            stamps[name] = _stamp(before)
            if _stamp(_info(system, path, name, transfer)) != stamps[name]:
                raise SourceUnavailable(f"{source.shown} changed while it was read", "try again")
    known = [f"{name}={quote(stamp, safe='')}" for name, stamp in stamps.items() if stamp]
    return source.shown + (f"#{'&'.join(known)}" if known else "")


def _info(system: Any, path: str, name: str, transfer: Transfer) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = system.info(path)
    except FileNotFoundError:
        pickle = f"{path.rsplit('/', 1)[0]}/adapter_model.bin"
        raise transfer.missing(name, pickled=name != CONFIG and system.exists(pickle)) from None
    if info.get("type") != "file":
        raise transfer.missing(name)
    return info


def _save(system: Any, path: str, name: str, size: int, transfer: Transfer) -> None:
    # Ranges one after the other and no read-ahead: no more is asked for than fits the limits.
    with (
        transfer.file(name, size) as write,
        system.open(path, "rb", block_size=CHUNK, cache_type="none") as file,
    ):
        while piece := file.read(CHUNK):
            write(piece)


def _stamp(info: Mapping[str, Any]) -> str:
    return next((str(info[key]).strip('"') for key in STAMPS if info.get(key)), "")


def _file_system(kind: str, transfer: Transfer) -> Any:
    library = LIBRARY[kind]
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"adapters on {kind}:// need the package {library}",
            f"run `pip install 'tenon-llm[{EXTRA[kind]}]'`",
        ) from error
    limits = transfer.limits
    fresh = {"skip_instance_cache": True, "use_listings_cache": False}
    if kind == "gs":
        return module.GCSFileSystem(access="read_only", requests_timeout=limits.stall, **fresh)
    anonymous = importlib.import_module("botocore.session").get_session().get_credentials() is None
    client = {"connect_timeout": limits.connect, "read_timeout": limits.stall, "retries": {"max_attempts": 3}}
    return module.S3FileSystem(anon=anonymous, config_kwargs=client, **fresh)


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what the clouds' libraries raise into our errors."""
    shown, hint = source.shown, CREDENTIALS[source.kind]
    try:
        yield
    except PermissionError as error:
        raise SourceError(f"{shown} may not be read with the credentials here", hint) from error
    except FileNotFoundError as error:
        raise SourceError(f"there is no {shown}", "check the bucket and the folder in it") from error
    except _errors(source.kind) as error:
        raise SourceUnavailable(
            f"{shown} could not be fetched ({type(error).__name__})",
            f"check the network and the credentials: {hint}",
        ) from error


def _errors(kind: str) -> tuple[type[Exception], ...]:
    """What a cloud's library raises when something outside goes wrong."""
    import aiohttp

    plain = (OSError, aiohttp.ClientError)
    try:
        if kind == "s3":
            boto = importlib.import_module("botocore.exceptions")
            return (*plain, boto.BotoCoreError, boto.ClientError)
        google = importlib.import_module("google.auth.exceptions")
        retry = importlib.import_module("gcsfs.retry")
    except ImportError:  # the library is not installed, which is said elsewhere
        return plain
    return (*plain, google.GoogleAuthError, retry.HttpError, retry.ChecksumError, retry.NonRetryableError)
