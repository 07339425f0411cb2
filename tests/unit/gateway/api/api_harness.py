"""The management API of a real gateway, with its own keys."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_harness import Bench, running_bench

from serve.config import Settings
from serve.gateway.api.management import Management
from serve.gateway.auth import Keyring
from serve.gateway.require import authorise
from serve.gateway.source import RouteSource
from serve.registry import Registry, Rights, hash_of

OPERATOR = "tn-operator"


@dataclass
class Answer:
    """Status, decoded body and headers of one answer."""

    status: int
    content: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """The code of an error, whose shape is checked."""
        assert self.content["error"].keys() == {"message", "type", "param", "code"}
        return str(self.content["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.content["error"]["message"])


@dataclass
class Api:
    """A bench, and requests to its management API."""

    bench: Bench
    management: Management
    secret: str = ""
    broken: bool = False  # the registry, which nobody can follow then

    @property
    def registry(self) -> Registry:
        return self.bench.registry

    async def ask(self, method: str, path: str, body: Any = None, secret: str | None = None) -> Answer:
        """Send a request and check that every error has its shape."""
        if not self.broken:
            await self.bench.follow()
        secret = secret if secret is not None else self.secret
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        sent: dict[str, Any] = {} if body is None else {"json": body}
        if isinstance(body, bytes):
            sent = {"data": io.BytesIO(body)}
            headers["content-type"] = "application/json"
        async with self.bench.http.request(method, path, headers=headers, **sent) as reply:
            content = await reply.json() if reply.status != 204 else None
            answer = Answer(reply.status, content, reply.headers)
        assert answer.status < 400 or answer.code
        assert answer.status != 503 or int(answer.headers["retry-after"]) > 0
        return answer

    def key(self, name: str, *scopes: str, **rights: Any) -> str:
        """A new key; returns its secret."""
        return self.registry.create_key(name, Rights(scopes=scopes, **rights)).secret


@asynccontextmanager
async def running_api(home: Path, base: str, **settings: Any) -> AsyncIterator[Api]:
    """A gateway with its management API, on a base that is on disk."""
    made: list[Management] = []

    def manage(registry: Registry, source: RouteSource) -> Management:
        source.keys = Keyring(registry, operator=hash_of(OPERATOR))
        chosen = Settings.read(home=home, model=base, **settings)
        made.append(Management(registry, chosen, source, authorise=authorise))
        return made[0]

    async with running_bench(home, manage=manage) as bench:
        yield Api(bench, made[0])
