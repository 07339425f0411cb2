"""The management API of a real gateway, with keys that are read from the registry."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from gateway_harness import Bench, running_bench

from serve.config import Settings
from serve.errors import Forbidden, TenonError
from serve.gateway.api.access import Anybody, Caller
from serve.gateway.api.management import Management
from serve.gateway.source import RouteSource
from serve.names import VERSION
from serve.registry import ApiKey, Registry, Rights, hash_of
from serve.registry.keys import Scope

OPERATOR = "tn-operator"
GRANTED = {"inference": {"inference"}, "adapters": {"adapters", "admin"}, "admin": {"admin"}}


class NoKey(TenonError):
    """No key was sent, or none that is valid."""

    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"


@dataclass
class KeyHolder:
    """A caller by the key that it sent."""

    key: ApiKey | None

    def allows(self, name: str) -> bool:
        names = self.key.rights.adapters if self.key is not None else None
        version = VERSION.fullmatch(name)
        return names is None or name in names or (version is not None and version["name"] in names)


class Keyed:
    """Asks the registry with each request; open as long as there are no keys."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __call__(self, request: Request, wanted: Scope) -> Caller:
        keys = self.registry.keys()
        secret = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not keys or secret == OPERATOR:
            return Anybody()
        key = next((key for key in keys if key.hash == hash_of(secret)), None)
        if key is None:
            raise NoKey("no API key", "send one")
        if not GRANTED[wanted] & set(key.rights.scopes):
            raise Forbidden(f"the API key lacks the scope {wanted}")
        return KeyHolder(key)


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

    @property
    def registry(self) -> Registry:
        return self.bench.registry

    async def ask(self, method: str, path: str, body: Any = None, secret: str | None = None) -> Answer:
        """Send a request and check that every error has its shape."""
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
        chosen = Settings.read(home=home, model=base, **settings)
        made.append(Management(registry, chosen, source, authorise=Keyed(registry)))
        return made[0]

    async with running_bench(home, manage) as bench:
        yield Api(bench, made[0])
