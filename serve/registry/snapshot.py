"""The process that fetches a snapshot from the hub: ``python -m serve.registry.snapshot MODEL``.

Its standard output is one JSON object per line: how far it is (``say``), and last the ``path``, or the ``error``, in
plain words, with its ``hint``.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import orjson

from serve.errors import BaseModelError
from serve.interrupts import INTERRUPTED
from serve.registry.hub import Say, silent_bar

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
UNWANTED = ["consolidated*"]
"""The same weights once more, as Mistral's own programs have them."""


def fetch(model: str, say: Say) -> Path:
    """The local snapshot of a hub id, downloaded where it is not cached; raises BaseModelError.

    ``say`` is told how much of it is there. Only weights in safetensors form, tokenizer
    and configuration are fetched. Without a network, or with HF_HUB_OFFLINE=1, a complete snapshot in the cache is
    used.
    """
    import httpx2
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=WANTED, ignore_patterns=UNWANTED, tqdm_class=_meter(model, say)
            )
        )
    except errors.GatedRepoError as error:
        raise BaseModelError(
            f"the hub model {model} is gated",
            "accept its terms on the hub and set HF_TOKEN to a token of that account",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BaseModelError(
            f"there is no hub model {model}, and no local folder of that name",
            "check the spelling; for a private model set HF_TOKEN",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise BaseModelError(
            f"the hub model {model} is not on this machine and the hub cannot be reached, "
            "and there is no local folder of that name",
            "check the network and HF_HUB_OFFLINE, or give a local folder in hub format",
        ) from error
    except (errors.HfHubHTTPError, httpx2.HTTPError) as error:
        raise BaseModelError(
            f"the hub did not deliver {model}: {str(error).splitlines()[0]}",
            "try again later, or give a local folder in hub format",
        ) from error
    except (errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise BaseModelError(
            f"the hub model {model} cannot be used: {str(error).splitlines()[0]}",
            "use a model that has config.json and *.safetensors",
        ) from error
    except OSError as error:
        raise BaseModelError(
            f"the hub model {model} could not be saved: {error}",
            "free disk space, or set HF_HOME to another disk",
        ) from error


def _meter(model: str, say: Say) -> type[Any]:
    """Tells ``say`` of the bytes that are written; the library also counts files, and bytes that came."""

    def seen(bar: str, done: int, total: int) -> None:
        if "Reconstructing" in bar:
            say(f"{model}: {done / 2**20:,.1f} of {total / 2**20:,.1f} MiB")

    return silent_bar(seen)


def main(model: str) -> None:
    """As the module says."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the library prints is no line of ours

    def tell(**content: str) -> None:
        lines.write(orjson.dumps(content) + b"\n")

    threading.Thread(target=end_with_stdin, daemon=True).start()
    try:
        tell(path=str(fetch(model, lambda text: tell(say=text))))
    except BaseModelError as error:
        tell(error=error.message, hint=error.hint)
    except Exception as error:  # noqa: BLE001  the edge of the process: whatever it is, a person gets one line
        told = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        tell(
            error=f"the hub model {model} cannot be fetched: {told}", hint="check the HF_ and proxy variables"
        )


def end_with_stdin() -> None:
    """End this process once the one that started it is gone."""
    while os.read(0, 4096):
        pass
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main(sys.argv[1])
