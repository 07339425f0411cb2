"""The data plane: checks a request, sends it to the engine under the engine's name, relays the answer.

Raw ASGI and connections of our own; it touches neither disk nor web framework.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any
from urllib.parse import parse_qs

import orjson

from serve.errors import TenonError, Unavailable
from serve.gateway.asgi import ClientGone, HangUp, Push, Receive, Scope, Send, push_of, read_body
from serve.gateway.auth import Caller, caller_of
from serve.gateway.balance.cost import estimate_tokens
from serve.gateway.balance.side import HEADER, conversation_key
from serve.gateway.books import Books, Tally
from serve.gateway.call import note_outcome, note_route
from serve.gateway.courier import Courier
from serve.gateway.endpoints import INFO, RESPONSES, Endpoint
from serve.gateway.failures import Failure, http_failure
from serve.gateway.limits import estimate, turn_of
from serve.gateway.relay import BROKEN, Exchange, Relay, RelayFailed
from serve.gateway.routes import Route, RouteTable
from serve.gateway.rules import Rules
from serve.gateway.salt import cache_salt
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


def open_session() -> Wires:
    """The connections to engines."""
    return Wires(
        connect=CONNECT_SECONDS, silence=SILENCE_SECONDS, keep=KEEP_ALIVE_SECONDS, buffer=READ_BUFFER
    )


class DataPlane:
    """Answers the endpoints of ``endpoints.py``."""

    def __init__(self, source: RouteSource, session: Wires, rules: Rules, books: Books) -> None:
        self._source = source
        self._books = books
        self._session = session
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint) -> None:
        """Answer one request, whatever happens, and count it."""
        started = time.perf_counter()
        meters = self._source.metrics.other
        turn = turn_of(scope)
        try:
            raw = await read_body(scope, receive)
            asked = parse_body(raw, needs_model=endpoint.needs_model)
            del raw  # as long as the answer takes, only the engine's copy is kept
            table = self._source.table
            conversation = conversation_key(asked, conversation_header(scope)) if table.choices else ""
            route = _resolve(table, asked.get("model"), caller_of(scope), conversation)
            meters = route.meters
            note_route(asked.get("model"), route)
            body = check_request(asked, endpoint.kind, self._rules)
            keep_usage = (body.get("stream_options") or {}).get("include_usage") is True
            payload = self._for_engine(body, route, endpoint, caller_of(scope).tenant)
            if turn is not None:
                await turn.charge(estimate(body, len(payload), endpoint))
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
            payload=payload,
            stream=body.get("stream") is True,
            keep_usage=keep_usage,
            single=body.get("n") in (None, 1),
            started=started,
            public_names=table.public_names,
            endpoint=endpoint,
            conversation=conversation,
            cost=estimate_tokens(body, len(payload)),
            caller=caller_of(scope),
            turn=turn,
        )
        with meters.running():
            await self._answer(exchange, receive, send, push_of(scope))

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
        if tenant is not None and endpoint.salted and route.salted:
            body["cache_salt"] = cache_salt(tenant)
        return orjson.dumps(body)

    async def tokenizer_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /tokenizer_info``, of the base or of what the query's ``model`` names."""
        names = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model")
        table = self._source.table
        try:
            route = _resolve(table, names[-1] if names else None, caller_of(scope))
        except TenonError as error:
            await Failure.of(error).send(send)
            return
        note_route(names[-1] if names else None, route)
        started = time.perf_counter()
        exchange = Exchange(
            route=route,
            payload=None,
            stream=False,
            keep_usage=False,
            single=False,
            started=started,
            public_names=table.public_names,
            endpoint=INFO,
            caller=caller_of(scope),
        )
        await self._answer(exchange, receive, send)

    async def _answer(
        self, exchange: Exchange, receive: Receive, send: Send, push: Push | None = None
    ) -> None:
        relay = Relay(exchange, send, push)
        courier = Courier(
            self._source.engines, self._source.metrics, self._books.meter, self._session, exchange, relay
        )
        try:
            with HangUp(receive):
                await courier.run()
        except ClientGone:
            outcome = "disconnected"
        except RelayFailed as error:
            outcome = await relay.fail(error.failure)
        except TenonError as error:
            outcome = await relay.fail(Failure.of(error))
        except asyncio.CancelledError:  # the server's deadline for running requests has passed
            outcome = await relay.fail(Failure.of(Unavailable("the gateway is shutting down", "try again")))
        except Exception:  # the edge of a request: the client gets an answer even to our own mistakes
            logger.exception("a request for %s failed", exchange.route.public_name)
            outcome = await relay.fail(http_failure(500, "something went wrong in the gateway; see its log"))
        else:
            outcome = "ok"
        exchange.route.meters.outcomes[outcome].inc()
        note_outcome(outcome)
        self._account(exchange, courier, relay.tally, outcome)
        if courier.reply is not None:
            await _let_go(courier.reply, whole=outcome == "ok")

    def _account(self, exchange: Exchange, courier: Courier, tally: Tally, outcome: str) -> None:
        """Count what a request took; one that waited for an engine in vain took nothing."""
        size = len(exchange.payload or b"") if exchange.endpoint.computes else 0
        seconds = courier.engine_seconds
        if courier.engine:
            caller, key = exchange.caller, exchange.caller.key
            use = self._books.book(caller, exchange.route, tally, seconds, outcome, size)
            self._source.metrics.key(key.name if key is not None else None).inc(use.tokens)
        if exchange.turn is not None:
            exchange.turn.settle(tally, outcome if courier.engine else "unavailable")


def _resolve(table: RouteTable, model: str | None, caller: Caller, conversation: str = "") -> Route:
    """The route of a name; without one, the base's. To a caller who may not use it, it does not exist."""
    if model is None:
        model = table.engine.base_name if table.engine is not None else ""
    plain = table.plain(model)
    if not caller.allows(plain):
        raise table.absent(model)
    route = table.resolve(plain, conversation)
    return route.unbound if route.lenient and caller.manages else route


def conversation_header(scope: Scope) -> str | None:
    """What the client calls its conversation, if it does."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return str(value, "latin-1")
    return None


async def _let_go(reply: Reply, *, whole: bool) -> None:
    """Give the connection back if the answer is at its end, else close it, which aborts the engine's work."""
    if whole and not reply.at_eof():
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                await reply.readany()
    if not reply.at_eof():
        reply.close()
