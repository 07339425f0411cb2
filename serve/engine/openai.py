"""Servers that speak OpenAI's routes and nothing of vLLM's: what they serve is found there, never loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from serve.engine.client import EngineClient
from serve.engine.kinds import OPENAI, SERVED
from serve.errors import AdapterLoadFailed, EngineUnavailable

ABSENT = (404, 405, 501)


class OpenAIClient(EngineClient):
    """An :class:`~serve.engine.interface.Engine` of which nothing but OpenAI's routes is asked, and ``/health``."""

    async def health(self) -> bool:
        """Whether ``/health`` says so, or where that is missing, whether ``/v1/models`` answers."""
        try:
            status, _ = await self._ask("GET", "/health", timeout=self._health_timeout)
            if status in ABSENT:
                status, _ = await self._ask("GET", "/v1/models", timeout=self._health_timeout)
        except EngineUnavailable:
            return False
        return status == 200

    async def load(self, engine_name: str, path: Path) -> float:
        """Refuse: such a server has no route for it."""
        raise AdapterLoadFailed(
            f"the server at {self.url} loads no adapters", "start it with them, or serve them by vLLM"
        )

    async def unload(self, engine_name: str) -> None:
        """Refuse: such a server has no route for it."""
        raise AdapterLoadFailed(f"the server at {self.url} unloads no adapters")


def client_of(kind: str, url: str, *, health_timeout: float) -> EngineClient:
    """The client of an engine of a kind."""
    client = OpenAIClient if kind == OPENAI else EngineClient
    return client(url, health_timeout=health_timeout)


def served_names(base: str, names: Mapping[str, str], listed: Iterable[str]) -> dict[str, str]:
    """Public names with what the server calls them, the base first.

    ``names`` are those that the operator gives; without any, all that the server lists are taken as they are. The
    base is listed under its own name unless ``names`` says otherwise. Raises :class:`EngineUnavailable` where it is
    not listed.
    """
    known = list(listed)
    given = {base: base, **names} if names else {base: base, **{name: name for name in known}}
    served = {name: theirs for name, theirs in given.items() if theirs in known and SERVED.fullmatch(name)}
    if base in served:
        return served
    raise EngineUnavailable(
        f"the server lists {', '.join(known)[:500] or 'no model'}, but not {given[base]}",
        f"say in TENON_FLEET which of them is {base}, as names: {{{base}: NAME}}",
    )
