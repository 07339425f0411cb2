"""How much a source may send, how long it may take, and which hosts it may be on."""

from dataclasses import dataclass
from typing import Self

from serve.config import Settings
from serve.registry.adapter_config import MAX_CONFIG_BYTES
from serve.registry.store import CONFIG

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one download.

    ``weights_bytes`` bounds the weight file; ``seconds`` the whole download, ``connect`` and ``stall`` (seconds) the
    wait for a connection and for the next byte. ``allow_private`` lets http(s) sources be on this machine or in
    private networks.
    """

    weights_bytes: int = 2048 * MIB
    seconds: float = 3600.0
    connect: float = 10.0
    stall: float = 30.0
    allow_private: bool = False

    @classmethod
    def of(cls, settings: Settings, *, allow_private: bool = False) -> Self:
        """The bounds that the settings give; ``allow_private`` adds to them."""
        return cls(
            weights_bytes=settings.max_adapter_mib * MIB,
            seconds=settings.adapter_timeout,
            allow_private=allow_private or settings.allow_private_sources,
        )

    def most(self, name: str) -> int:
        """The bytes that a file of this name may have."""
        return MAX_CONFIG_BYTES if name == CONFIG else self.weights_bytes
