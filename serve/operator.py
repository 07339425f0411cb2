"""The secret by which commands on this machine speak to a gateway that asks for keys.

Each start of a gateway makes a new one, in a file that only its owner can read; whoever can read it could read
the registry as well.
"""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from serve.records import read_json, write_json

FILE = "operator.key"


@contextlib.contextmanager
def operator_key(state: Path) -> Iterator[str]:
    """Write a new secret to the folder ``run/`` of a home while the block runs; raises StorageError."""
    path, secret = state / FILE, f"tn-op-{secrets.token_urlsafe(32)}"
    write_json(path, {"secret": secret}, private=True)
    try:
        yield secret
    finally:
        if operator_secret(state) == secret:  # else another gateway has started since
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def operator_secret(state: Path) -> str | None:
    """The secret of the gateway that runs now, if there is one and we may read it."""
    secret = read_json(state / FILE).get("secret")
    return secret if isinstance(secret, str) else None
