"""A client's connection that costs little, so that a load on the same machine leaves room for what it measures.

One request after the other over HTTP/1.1 with keep-alive; the answer's events are counted as they come.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
import orjson

CHAT = "/v1/chat/completions"
ERROR_EVENT = b'data: {"error"'
END_OF_STREAM = b"data: [DONE]\n\n"


class Broken(Exception):
    """The connection could not be made, or ended before its answer did; ``answer`` is what had come."""

    def __init__(self, reason: str, answer: "Answer | None" = None) -> None:
        super().__init__(reason)
        self.answer = answer


@dataclass(slots=True)
class Answer:
    """What came back; ``first`` and ``done`` are when its body began and ended (``perf_counter``)."""

    status: int = 0
    first: float = 0.0
    done: float = 0.0
    events: int = 0
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """All of the body that has come."""
        return b"".join(self.parts)

    @property
    def whole(self) -> bool:
        """Whether it is a stream that ended as it should; vLLM ends one that failed in the same way."""
        body = self.body
        return self.status == 200 and body.endswith(END_OF_STREAM) and ERROR_EVENT not in body


@dataclass(slots=True)
class Tally:
    """What all connections of one load have seen so far."""

    answers: int = 0
    events: int = 0
    failures: int = 0


def request_to(url: str, body: Mapping[str, Any], *, key: str | None = None, path: str = CHAT) -> bytes:
    """The bytes of a POST of JSON."""
    payload = orjson.dumps(body)
    lines = [f"POST {path} HTTP/1.1", f"host: {urlsplit(url).netloc}", "content-type: application/json"]
    lines += [f"authorization: Bearer {key}"] if key else []
    lines += [f"content-length: {len(payload)}", "", ""]
    return "\r\n".join(lines).encode() + payload


class Connection(asyncio.Protocol):
    """One connection; ``await connection.ask(request)`` gives the answer or raises :class:`Broken`."""

    def __init__(self, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()
        self.answer = Answer()
        self.closed = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Answer] | None = None
        self._first_event: asyncio.Future[None] | None = None
        self._tail = b""
        self._close_after = False

    @classmethod
    async def open(cls, url: str, tally: Tally | None = None) -> Self:
        """Connect to the host and port of ``url``; raises Broken."""
        where, loop = urlsplit(url), asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: cls(tally), where.hostname or "127.0.0.1", where.port or 80
            )
        except OSError as error:
            raise Broken(f"cannot connect: {error}") from error
        return connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send a request; the future gives its answer, whatever its status, or raises Broken."""
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting, self.answer, self._tail = waiting, Answer(), b""
        if self.closed:
            self._break("the connection is closed")
        else:
            self._transport.write(request)
        return waiting

    async def first_event(self) -> None:
        """Wait until the answer's body begins; raises Broken."""
        if not self.answer.first:
            self._first_event = asyncio.get_running_loop().create_future()
            await self._first_event

    def hang_up(self, *, hard: bool = False) -> None:
        """Close the connection, ``hard`` with a reset; who waits for an answer gets Broken."""
        if hard:
            self._transport.abort()
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._transport.abort()
            self._break(f"not HTTP: {error}")

    def on_headers_complete(self) -> None:
        """The head of an answer is complete."""
        self.answer.status = self._parser.get_status_code()
        self._close_after = not self._parser.should_keep_alive()

    def on_body(self, part: bytes) -> None:
        """A part of the answer."""
        answer = self.answer
        if not answer.first:
            answer.first = time.perf_counter()
            if self._first_event is not None and not self._first_event.done():
                self._first_event.set_result(None)
        answer.parts.append(part)
        count = (self._tail + part).count(b"\n\n")
        self._tail = b"\n" if part.endswith(b"\n") and not part.endswith(b"\n\n") else b""
        answer.events += count
        self.tally.events += count

    def on_message_complete(self) -> None:
        """The answer is complete."""
        self.answer.done = time.perf_counter()
        waiting, self._waiting = self._waiting, None
        if self._close_after:
            self.closed = True
            self._transport.close()
        if waiting is not None and not waiting.done():
            waiting.set_result(self.answer)

    def connection_lost(self, error: Exception | None) -> None:
        """End; an answer that is not complete then is broken."""
        self.closed = True
        self._break(str(error) if error else "the connection was closed")

    def _break(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, None
        for future in (waiting, self._first_event):
            if future is not None and not future.done():
                future.set_exception(Broken(reason, self.answer))
                future.exception()  # whoever does not wait for it need not be warned
        self._first_event = None


class TimedConnection(Connection):
    """A connection that notes when each part of the present answer came (``perf_counter``).

    vLLM sends each event as a part of its own, and ``[DONE]`` as the last one.
    """

    def __init__(self, tally: Tally | None = None) -> None:
        super().__init__(tally)
        self.moments: list[float] = []

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """Send a request, and forget the times of the last answer."""
        self.moments = []
        return super().ask(request)

    def on_body(self, part: bytes) -> None:
        """A part of the answer."""
        self.moments.append(time.perf_counter())
        super().on_body(part)

    @property
    def gaps(self) -> list[float]:
        """Seconds between the tokens of a stream: without its opening, which comes with the first, and its end."""
        tokens = self.moments[1:-1]
        return [later - earlier for earlier, later in itertools.pairwise(tokens)]
