"""Fetches base models from the Hugging Face hub and says in plain words why one could not be had."""

import re
from pathlib import Path

from serve.errors import BaseModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]


def download(model: str) -> Path:
    """The local snapshot of a hub id, downloaded where it is not cached; raises BaseModelError.

    Only weights in safetensors form, tokenizer and configuration are fetched. Without a network, or with
    HF_HUB_OFFLINE=1, a complete snapshot in the cache is used.
    """
    # This import takes longer than the whole of the registry, and most bases are local.
    import httpx2
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=WANTED))
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
