"""The data plane: checks a request, sends it to the engine under the engine's name, relays the answer.

Raw ASGI and connections of our own; it touches neither disk nor web framework. Nothing is retried: a
request that reached the engine may have cost it work.
"""

import asyncio
import contextlib
import io
import logging
import time
from typing import Any
from urllib.parse import parse_qs

import orjson

from serve.errors import TenonError, Unavailable
from serve.gateway.asgi import ClientGone, HangUp, Receive, Scope, Send, read_body
from serve.gateway.endpoints import INFO, RESPONSES, TOKENIZER_INFO, Endpoint
from serve.gateway.failures import Failure, engine_failure, http_failure
from serve.gateway.relay import BROKEN, Exchange, Relay, RelayFailed
from serve.gateway.routes import EngineView, Route, RouteTable
from serve.gateway.rules import Rules
from serve.gateway.salt import cache_salt, tenant_of
from serve.gateway.source import RouteSource
from serve.gateway.validate import check_request, parse_body, preset_of
from serve.gateway.wire import Reply, Wires

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0
"""How long the engine may send nothing at all: a long prefill in a full queue takes minutes."""
KEEP_ALIVE_SECONDS = 2.0
"""Below vLLM's 5 s, so that no request is sent into a connection that the engine is closing."""
LAST_BYTES_SECONDS = 1.0
"""How long to wait for the end of a stream after its last event, so that the connection can be used again."""
READ_BUFFER = 2**20
LARGE_BODY = 2**20
"""Bytes above which a body is written in pieces, so that other requests go on meanwhile."""
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


def open_session() -> Wires:
    """The connections to engines."""
    return Wires(
        connect=CONNECT_SECONDS, silence=SILENCE_SECONDS, keep=KEEP_ALIVE_SECONDS, buffer=READ_BUFFER
    )


class DataPlane:
    """Answers the endpoints of ``endpoints.py``."""

    def __init__(self, source: RouteSource, session: Wires, rules: Rules) -> None:
        self._source = source
        self._session = session
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint) -> None:
        """Answer one request, whatever happens, and count it."""
        started = time.perf_counter()
        meters = self._source.metrics.other
        try:
            raw = await read_body(scope, receive)
            asked = parse_body(raw, needs_model=endpoint.needs_model)
            del raw  # as long as the answer takes, only the engine's copy is kept
            table = self._source.table
            route, engine = _resolve(table, asked.get("model"))
            meters = route.meters
            body = check_request(asked, endpoint.kind, self._rules)
            keep_usage = (body.get("stream_options") or {}).get("include_usage") is True
            payload = self._for_engine(body, route, endpoint, tenant_of(scope))
        except ClientGone:
            meters.outcomes["disconnected"].inc()
            return
        except TenonError as error:
            failure = Failure.of(error)
            meters.outcomes[failure.outcome].inc()
            await failure.send(send)
            return
        exchange = Exchange(
            route=route,
            url=engine.address(endpoint.path),
            payload=payload,
            stream=body.get("stream") is True,
            keep_usage=keep_usage,
            single=body.get("n") in (None, 1),
            started=started,
            public_names=table.public_names,
            endpoint=endpoint,
        )
        with meters.running():
            await self._answer(exchange, receive, send)

    def _for_engine(
        self, body: dict[str, Any], route: Route, endpoint: Endpoint, tenant: str | None
    ) -> bytes:
        """Complete a checked body; of a stream the account is always asked for, as metrics need it."""
        if endpoint.length is not None:
            name, preset = preset_of(body, self._rules)
            if preset or route.policy:
                route.policy.apply(body, endpoint.length, preset, name)
        body["model"] = route.engine_name
        if endpoint is RESPONSES:
            body["store"] = False  # an engine that keeps answers keeps them for everybody
        elif body.get("stream") is True:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if tenant is not None and endpoint.salted:
            body["cache_salt"] = cache_salt(tenant)
        return orjson.dumps(body)

    async def tokenizer_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /tokenizer_info``, of the base or of what the query's ``model`` names."""
        names = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model")
        table = self._source.table
        try:
            route, engine = _resolve(table, names[-1] if names else None)
        except TenonError as error:
            await Failure.of(error).send(send)
            return
        url, started = engine.address(TOKENIZER_INFO), time.perf_counter()
        exchange = Exchange(
            route=route,
            url=url,
            payload=None,
            stream=False,
            keep_usage=False,
            single=False,
            started=started,
            public_names=table.public_names,
            endpoint=INFO,
        )
        await self._answer(exchange, receive, send)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        reply = None
        relay = Relay(exchange, send)
        try:
            async with HangUp(receive):
                reply = await self._ask(exchange)
                await relay.run(reply)
        except ClientGone:
            outcome = "disconnected"
        except RelayFailed as error:
            outcome = await relay.fail(error.failure)
        except asyncio.CancelledError:  # the server's deadline for running requests has passed
            outcome = await relay.fail(Failure.of(Unavailable("the gateway is shutting down", "try again")))
        except Exception:  # the edge of a request: the client gets an answer even to our own mistakes
            logger.exception("a request for %s failed", exchange.route.public_name)
            outcome = await relay.fail(http_failure(500, "something went wrong in the gateway; see its log"))
        else:
            outcome = "ok"
        exchange.route.meters.outcomes[outcome].inc()
        if reply is not None:
            await _let_go(reply, whole=outcome == "ok")

    async def _ask(self, exchange: Exchange) -> Reply:
        """Send the request; return the engine's good reply, of which only the head has been read."""
        model = exchange.route.public_name
        payload = exchange.payload
        try:
            if payload is None:
                reply = await self._session.get(exchange.url, headers=HEADERS)
            else:
                data = payload if len(payload) <= LARGE_BODY else io.BytesIO(payload)
                reply = await self._session.post(exchange.url, data=data, headers=HEADERS)
            self._source.note_reached()
            if reply.status == 200:
                return reply
            async with reply:
                body = await reply.read()
        except BROKEN as error:
            self._source.note_unreachable()
            raise RelayFailed.unreachable(error, exchange) from error
        if reply.status >= 500:
            logger.warning("engine answered %d for %s: %s", reply.status, model, body[:500])
        raise RelayFailed(engine_failure(reply.status, body, model, exchange.public_names))


def _resolve(table: RouteTable, model: str | None) -> tuple[Route, EngineView]:
    """The route of a name; without one, the base's."""
    if model is None and table.engine is not None:
        model = table.engine.base_name
    return table.resolve(model or "")


async def _let_go(reply: Reply, *, whole: bool) -> None:
    """Give the connection back if the answer is at its end, else close it, which aborts the engine's work."""
    if whole and not reply.content.at_eof():
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                await reply.content.readany()
    if not reply.content.at_eof():
        reply.close()
