"""Fetches an adapter from the Hugging Face hub, with huggingface_hub."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serve.errors import SourceError, SourceUnavailable, StorageError
from serve.registry.hub import silent_bar
from serve.registry.sources.source import Source
from serve.registry.sources.transfer import Transfer
from serve.registry.store import FILES, WEIGHTS

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PICKLE = "adapter_model.bin"
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


def deliver(source: Source, transfer: Transfer) -> str:
    """Fetch both files and return the hub id with the commit that they are of.

    Raises SourceError, SourceUnavailable, AdapterRejected, StorageError. The hub decides where its files lie, so
    its redirects are followed wherever they lead; it is trusted as far as HF_ENDPOINT is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    prefix = f"{source.prefix}/" if source.prefix else ""
    # The library keeps notes of its own beside the files.
    landing = transfer.folder.with_name("hub")
    with _explained(source):
        info = HfApi().model_info(
            source.place, revision=source.revision, files_metadata=True, timeout=transfer.limits.stall
        )
        sizes = _sizes(info, prefix, transfer)
        for name in FILES:
            hf_hub_download(
                source.place,
                f"{prefix}{name}",
                revision=info.sha,
                local_dir=landing,
                etag_timeout=transfer.limits.connect,
                tqdm_class=_meter(transfer, name, sizes[name]),
            )
    for name in FILES:
        path = landing / prefix / name
        transfer.count(name, path.stat().st_size, sizes[name])
        path.rename(transfer.folder / name)
    shutil.rmtree(landing, ignore_errors=True)
    return f"hf://{source.place}@{info.sha}" + (f"/{source.prefix}" if source.prefix else "")


def _sizes(info: "ModelInfo", prefix: str, transfer: Transfer) -> dict[str, int | None]:
    """What the hub announces of the two files; raises AdapterRejected where one is missing or too large."""
    known = {item.rfilename: item.size for item in info.siblings or ()}
    for name in FILES:
        if f"{prefix}{name}" not in known:
            raise transfer.missing(name, pickled=name == WEIGHTS and f"{prefix}{PICKLE}" in known)
        transfer.announce(name, known[f"{prefix}{name}"])
    return {name: known[f"{prefix}{name}"] for name in FILES}


def _meter(transfer: Transfer, name: str, size: int | None) -> type[Any]:
    """A progress bar that shows nothing and stops the download where a limit is reached."""
    return silent_bar(lambda _, done, __: transfer.count(name, done, size))


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    import httpx2
    from huggingface_hub import errors

    shown = source.shown
    try:
        yield
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub and set HF_TOKEN to a token of that account"
        raise SourceError(f"{shown} is gated", hint) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the hub has no such revision: {shown}", "check the branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; for a private repository set HF_TOKEN"
        raise SourceError(
            f"the hub has no {shown}, and there is no local folder of that name", hint
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx2.TransportError) as error:
        hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or add the adapter from a local folder"
        raise SourceUnavailable(f"the hub cannot be reached for {shown}", hint) from error
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, httpx2.HTTPError) as error:
        raise SourceUnavailable(f"the hub did not deliver {shown}", "try again later") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{shown} is no adapter on the hub", "write it as hf://org/name") from error
    except OSError as error:
        if error.errno in DISK:
            raise StorageError(
                f"the download of {shown} cannot be written: {error.strerror}",
                "free disk space and try again",
            ) from error
        raise SourceUnavailable(f"the hub broke off the download of {shown}", "try again later") from error
