"""Fetches base models from the Hugging Face hub and says in plain words why one could not be had."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve.errors import BaseModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
UNWANTED = ["consolidated*"]
"""The same weights once more, as Mistral's own programs have them."""


Say = Callable[[str], None]
"""Tells a person how far something is."""


def download(model: str, say: Say | None = None) -> Path:
    """The local snapshot of a hub id, downloaded where it is not cached; raises BaseModelError.

    ``say`` is told how much of it is there; without it nothing is shown. Only weights in safetensors form, tokenizer
    and configuration are fetched. Without a network, or with HF_HUB_OFFLINE=1, a complete snapshot in the cache is
    used.
    """
    # This import takes longer than the whole of the registry, and most bases are local.
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


def _meter(model: str, say: Say | None) -> type[Any]:
    """Tells ``say`` of the bytes that are written; the library also counts files, and bytes that came."""

    def seen(bar: str, done: int, total: int) -> None:
        if say is not None and "Reconstructing" in bar:
            say(f"{model}: {done / 2**20:,.1f} of {total / 2**20:,.1f} MiB")

    return silent_bar(seen)


def silent_bar(seen: Callable[[str, int, int], None]) -> type[Any]:
    """A progress bar for the hub's library that draws nothing, as that would run into ours.

    ``seen`` is told at each step what the bar is called, what is done and of how much, as far as that is known.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        done = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.called = str(options.get("desc"))
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            seen(self.called, self.done, int(self.total or 0))
            return None

    return Bar
