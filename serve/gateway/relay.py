"""Brings an engine's answer to the client, whole or as a stream, and counts what it holds."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import orjson

from serve.errors import EngineFailed, EngineUnavailable
from serve.gateway.asgi import Push, Send, send_json
from serve.gateway.auth import ANYBODY, Caller
from serve.gateway.books import Tally
from serve.gateway.call import current, note_usage
from serve.gateway.endpoints import CHAT, RESPONSES, Endpoint
from serve.gateway.failures import Failure, engine_event_failure, engine_words
from serve.gateway.limits import Turn
from serve.gateway.routes import Route
from serve.gateway.stream import EventFilter, ResponsesFilter
from serve.gateway.wire import Reply
from serve.log_lines import named

logger = logging.getLogger(__name__)

BROKEN = (aiohttp.ClientError, TimeoutError, OSError)
"""What aiohttp raises when an engine cannot be reached or breaks off."""
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(slots=True)  # not frozen: that makes it five times as costly, and each request has one
class Exchange:
    """One request on its way: what is sent (None: nothing, it is a GET), to what route, what must come back.

    ``single`` says that one choice was asked for, ``started`` is when the request came (``perf_counter``),
    ``conversation`` names its conversation, ``cost`` is how many tokens it may take.
    """

    route: Route
    payload: bytes | None
    stream: bool
    keep_usage: bool
    single: bool
    started: float
    public_names: Mapping[str, str]
    endpoint: Endpoint = CHAT
    conversation: str = ""
    cost: int = 1
    caller: Caller = ANYBODY
    turn: Turn | None = None


class RelayFailed(Exception):
    """The answer cannot be completed; ``failure`` is what the client must be told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @classmethod
    def unreachable(cls, error: BaseException, exchange: Exchange) -> "RelayFailed":
        """The engine could not be reached, or broke off."""
        logger.warning("engine broke off for %s: %s", exchange.route.public_name, named(error))
        return cls(Failure.of(EngineUnavailable("the engine is down or restarting", "try again shortly")))


class Relay:
    """Relays the answer of one exchange.

    A streamed response starts with the first event, so that an engine that fails before it yields a plain
    HTTP error. A stream that breaks off later ends with an error event and never with ``[DONE]``. Where the server can
    write at once (``push``), the events after the first go from connection to connection without waking a task.
    """

    def __init__(self, exchange: Exchange, send: Send, push: Push | None = None) -> None:
        self.tally = Tally()
        self._exchange = exchange
        self._send = send
        self._push = push
        self._call = current()  # events that are passed on at once come outside of the request's task
        self._events: EventFilter  # of a stream
        self._left = b""
        self._streaming = False
        self._complete = False
        self._last_token = 0.0

    @property
    def begun(self) -> bool:
        """Whether the client has got anything of the answer."""
        return self._streaming or self._complete

    async def run(self, reply: Reply) -> None:
        """Relay the whole answer, else raise RelayFailed, after which :meth:`fail` tells the client."""
        try:
            if self._exchange.stream:
                await self._stream(reply)
            else:
                await self._whole(reply)
        except BROKEN as error:
            raise RelayFailed.unreachable(error, self._exchange) from error
        if not self._exchange.endpoint.timed:
            return
        self._exchange.route.meters.duration.observe(time.perf_counter() - self._exchange.started)

    async def fail(self, failure: Failure) -> str:
        """End the response with a failure: an event once the stream has started, else an HTTP error.

        Returns the outcome for the metrics; whatever breaks a stream off counts as ``failed``.
        """
        if self._streaming:
            await self._send(
                {
                    "type": "http.response.body",
                    "body": failure.event(typed=self._exchange.endpoint is RESPONSES),
                }
            )
            return "failed"
        if not self._complete:
            await failure.send(self._send)
        return failure.outcome

    async def _whole(self, reply: Reply) -> None:
        text = await reply.read()
        route = self._exchange.route
        try:
            content = orjson.loads(text)
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict) or self._exchange.endpoint.answer not in content:
            # Not the text itself: it may be an answer, or hold the prompt.
            logger.warning(
                "engine's answer for %s is not understood: %d bytes, not JSON with %r",
                route.public_name,
                len(text),
                self._exchange.endpoint.answer,
            )
            raise RelayFailed(Failure.of(EngineFailed("the engine's answer is not understood", "try again")))
        self.tally.take(content.get("usage") or {})
        self._count()
        self._complete = True
        await send_json(self._send, route.rename(text), 200, route.headers)

    async def _stream(self, reply: Reply) -> None:
        exchange = self._exchange
        kind = ResponsesFilter if exchange.endpoint is RESPONSES else EventFilter
        self._events = events = kind(exchange.route, keep_usage=exchange.keep_usage)
        try:
            while not events.done:
                if self._streaming and self._push is not None:
                    ended = not await reply.pour(self._pass)
                else:
                    part = await reply.readany()
                    self._left, ended = self._filter(part), not part
                if ended:
                    raise RelayFailed.unreachable(
                        EOFError("the stream ended before its last event"), self._exchange
                    )
                if self._left:
                    await self._write(self._left, more=not events.done)
                if events.error is not None:
                    raise RelayFailed(self._event_failure(events.error))
        finally:
            if events.usage is not None:
                self.tally.take(events.usage)
            else:
                self.tally.see(events.tokens)
            self._count()

    def _filter(self, part: bytes) -> bytes:
        """What the client may have of a part of the engine's stream; its tokens are timed."""
        events = self._events
        seen = events.tokens
        out = events.feed(part)
        if events.tokens != seen:
            self._time_tokens(events.tokens - seen)
        return out

    def _pass(self, part: bytes) -> bool:
        """Write what the client may have of a part, in the moment in which it comes.

        False: something is left to be written or told, as the stream ends or the client reads too slowly.
        """
        events, push = self._events, self._push
        self._left = out = self._filter(part)
        if events.done or events.error is not None:
            return False
        return not out or (push is not None and push(out))

    def _event_failure(self, event: bytes) -> Failure:
        name = self._exchange.route.public_name
        logger.warning("engine broke off the stream for %s: %s", name, engine_words(event))
        return engine_event_failure(event, name, self._exchange.public_names)

    async def _write(self, events: bytes, *, more: bool) -> None:
        if not self._streaming:
            self._streaming = True
            headers = [*STREAM_HEADERS, *self._exchange.route.headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if not more:
            self._streaming, self._complete = False, True
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    def _time_tokens(self, count: int) -> None:
        """Note that ``count`` tokens have just come; between those that came together no time has passed."""
        now = time.perf_counter()
        meters = self._exchange.route.meters
        if not self._last_token:
            meters.first_token.observe(now - self._exchange.started)
            if self._call is not None:
                self._call.first_token = now - self._exchange.started
            gap, count = 0.0, count - 1
        else:
            gap = (now - self._last_token) / count
        if self._exchange.single:
            for _ in range(count):
                meters.inter_token.observe(gap)
        self._last_token = now

    def _count(self) -> None:
        meters = self._exchange.route.meters
        tally = self.tally
        meters.prompt_tokens.inc(tally.prompt_tokens)
        meters.completion_tokens.inc(tally.completion_tokens)
        prompt = tally.prompt_tokens if tally.known else None
        completion = tally.completion_tokens if tally.known or tally.completion_tokens else None
        note_usage(prompt, completion, stream=self._exchange.stream)
