"""What an engine is to the rest of Tenon: six things, so that it need not be vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve.errors import AdapterLoadFailed

POOLED = {"/classify": "probs", "/v1/embeddings": "embedding", "/pooling": "data"}
"""Routes of engines that read and do not write, and what one text's numbers are called in an answer."""


@dataclass(frozen=True)
class ModelCard:
    """One entry of the engine's ``/v1/models``; an adapter's ``parent`` is its base, a base has none."""

    name: str
    root: str
    parent: str | None
    max_model_len: int | None


@dataclass(frozen=True)
class Sample:
    """One number of an engine's ``/metrics``."""

    name: str
    labels: Mapping[str, str]
    value: float


class Engine(Protocol):
    """A server that answers requests at ``url``.

    What fails to answer raises :class:`~serve.errors.EngineUnavailable`, but for ``health``; an adapter that it
    does not take or let go raises :class:`~serve.errors.AdapterLoadFailed`.
    """

    @property
    def url(self) -> str:
        """Where it listens, without a path."""

    async def health(self) -> bool:
        """Whether it is well; False when it cannot be reached."""

    async def list(self) -> Sequence[ModelCard]:
        """What it serves: its base and its adapters."""

    async def load(self, engine_name: str, path: Path) -> float:
        """Load the adapter in a folder under a name; the seconds that it took."""

    async def unload(self, engine_name: str) -> None:
        """Forget an adapter; one that it does not know is fine."""

    async def metrics(self) -> Sequence[Sample]:
        """What it says of itself in numbers; nothing where it has none."""


class RouteMissing(AdapterLoadFailed):
    """The engine has no such route: it was started to do something else."""


class Speaker(Protocol):
    """What the effect probe asks; each raises :class:`RouteMissing` where the engine does something else."""

    async def next_logprobs(
        self, model: str, prompts: Sequence[str], most: int = 20
    ) -> Sequence[Mapping[str, float]]:
        """The log-probabilities of the likeliest next tokens after each prompt."""

    async def vectors(self, model: str, path: str, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """What a route of :data:`POOLED` answers to each text, as plain numbers."""


class AdapterEngine(Engine, Speaker, Protocol):
    """An engine that adapters are loaded into: each is believed only when it has answered otherwise than its base."""
