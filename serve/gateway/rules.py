"""What the operator of a gateway lets requests do, read once from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.config import Settings
from serve.gateway.presets import BUILT_IN, read_presets


@dataclass(frozen=True)
class Rules:
    """The rules for bodies of requests.

    ``grammars``: regular expressions, grammars and structural tags may constrain an answer. ``media``: kinds
    of media (image, audio, video) that a message may carry as ``data:`` URLs. ``unknown_fields``: what becomes
    of a field that no endpoint knows. ``presets``: sampling values by name.
    """

    grammars: bool = False
    media: frozenset[str] = frozenset()
    unknown_fields: Literal["refuse", "drop"] = "refuse"
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: BUILT_IN)

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """The rules that the settings ask for; raises ConfigError when the presets cannot be read."""
        return cls(
            settings.grammars,
            frozenset(settings.media_kinds),
            settings.unknown_fields,
            read_presets(settings.presets_file, needed=settings.presets is not None),
        )
