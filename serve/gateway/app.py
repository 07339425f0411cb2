"""The gateway as one ASGI callable: data plane by exact path, control plane for the rest."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serve.errors import QuotaUsedUp, RateLimited, TenonError
from serve.gateway.api.management import Management
from serve.gateway.asgi import Receive, Scope, Send
from serve.gateway.auth import caller_of
from serve.gateway.books import Books
from serve.gateway.control import control_app
from serve.gateway.counters import Counters
from serve.gateway.endpoints import ENDPOINTS, TOKENIZER_INFO
from serve.gateway.failures import Failure, http_failure
from serve.gateway.ledger import Ledger
from serve.gateway.limits import Limiter
from serve.gateway.models import send_model, send_models
from serve.gateway.observe import Observer, Tracer
from serve.gateway.proxy import DataPlane, open_session
from serve.gateway.rules import Rules
from serve.gateway.source import RouteSource

logger = logging.getLogger(__name__)

MODELS = "/v1/models"


class Gateway:
    """The ASGI app; its lifespan opens the session to the engine and keeps the routes fresh."""

    def __init__(
        self,
        source: RouteSource,
        rules: Rules | None = None,
        tracer: Tracer | None = None,
        books: Books | None = None,
        counters: Counters | None = None,
        management: Management | None = None,
    ) -> None:
        self.source = source
        self.books = books or Books(Ledger(source.registry))
        self._limiter = Limiter(self.books.ledger, counters)
        self._observer = Observer(tracer)
        self._rules = rules or Rules()
        self._control = control_app(source, self._lifespan, management)
        self._data: DataPlane | None = None

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        async with (
            self.source.running(),
            self.books.ledger.running(),
            self._limiter.running(),
            open_session() as session,
        ):
            self._data = DataPlane(self.source, session, self._rules, self.books)
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, under an id and observed; the lifespan passes by."""
        if scope["type"] == "http":
            await self._observer(self._admit, scope, receive, send)
        else:
            await self._control(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of somebody who may ask it, within the limits of his key."""
        try:
            caller = self.source.keys.admit(scope)
        except TenonError as error:
            await self._refuse(error, send)
            return
        turn = self._limiter.turn(caller, send)
        if turn is None:
            await self._answer(scope, receive, send)
            return
        scope["state"]["turn"] = turn
        try:
            async with turn:
                await self._answer(scope, receive, turn.send)
        except (RateLimited, QuotaUsedUp) as error:
            await self._refuse(error, turn.send)

    async def _refuse(self, error: TenonError, send: Send) -> None:
        self.source.metrics.other.outcomes["rejected"].inc()
        await Failure.of(error).send(send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing that a client asks for is passed on by path."""
        path = scope.get("path", "")
        endpoint = ENDPOINTS.get(path)
        if endpoint is not None and self._data is not None:
            if scope["method"] == "POST":
                await self._data(scope, receive, send, endpoint)
            else:
                await _wrong_method(scope, send, b"POST")
        elif path == TOKENIZER_INFO and self._data is not None:
            if scope["method"] == "GET":
                await self._data.tokenizer_info(scope, receive, send)
            else:
                await _wrong_method(scope, send, b"GET")
        elif scope["type"] != "http" or not path.startswith("/v1/"):
            await self._control(scope, receive, send)
        elif path == MODELS:
            await self._models(scope, send, None)
        elif path.startswith(f"{MODELS}/"):
            await self._models(scope, send, path.removeprefix(f"{MODELS}/"))
        else:
            await http_failure(404, f"{scope['method']} {path[:200]}: no such path").send(send)

    async def _models(self, scope: Scope, send: Send, name: str | None) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _wrong_method(scope, send, b"GET")
        elif name is not None:
            await send_model(self.source.table, name, caller_of(scope), send)
        else:
            await send_models(self.source.table, caller_of(scope), send)


async def _wrong_method(scope: Scope, send: Send, allowed: bytes) -> None:
    failure = http_failure(405, f"{scope['method']} {scope['path']}: use {allowed.decode()}")
    await failure.send(send, [(b"allow", allowed)])
