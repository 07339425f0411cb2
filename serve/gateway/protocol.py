"""uvicorn's HTTP/1.1 protocol with the limits that it lacks: on the head of a request, and on what is thrown away.

The head of a request has a size and a time in which it must be complete. What a client goes on sending after
it has been refused is read and dropped, so that it sees the refusal, but only up to a limit.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.gateway.asgi import PUSH
from serve.gateway.ends import Incoming, Outgoing
from serve.gateway.refusal import NO_HTTP, with_id

MAX_HEAD = 64 * 2**10
"""Longest head of a request, in bytes: its first line and all headers."""
HEAD_SECONDS = 20.0
LINGER_SECONDS = 2.0
"""How long a client that was refused may go on before the connection is closed."""
MAX_DROPPED = 64 * 2**20
"""Bytes of a refused body that are read before the connection is cut."""
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 32\r\nconnection: close\r\n\r\nThe request's head is too large."
)


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head = True
        self._head = 0
        self._came = 0
        self._dropped = 0
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._incoming: Incoming | None = None
        self._outgoing: Outgoing | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the first head must come soon."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._head_is_here()
        super().connection_lost(exc)
        if self._incoming is not None:
            self._incoming.lost()

    def data_received(self, data: bytes) -> None:
        """Read on, unless the head grows too long."""
        if self._refused:
            self._drop(len(data))
            return
        self._came = len(data)
        super().data_received(data)
        if self._in_head and not self._refused and not self.transport.is_closing():
            self._head += self._came
            if self._head > MAX_HEAD:
                self._refuse()
            elif self._deadline is None:
                self._expect_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head, self._dropped = True, 0, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete; it may have come in one piece that is too long."""
        self._head_is_here()
        if self._head + self._came > MAX_HEAD and self._length_of_head() > MAX_HEAD:
            self._refuse()
            raise ValueError("the head is too long")  # ends the parser, which answers no more
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and (before is None or before.response_complete):
            self._incoming = Incoming(self.cycle)
            self.cycle.receive = self._incoming  # type: ignore[method-assign, assignment]
            self._outgoing = Outgoing(self.transport, self.cycle)
            self.cycle.transport = self._outgoing  # type: ignore[assignment]
            self.scope["extensions"] = {PUSH: self._outgoing.push}  # type: ignore[dict-item]

    def on_response_complete(self) -> None:
        """An answer is complete."""
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.let_go()
        super().on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, or drop it when the request has been answered already."""
        if self.cycle.response_complete:
            self._drop(len(body))
            return
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless it has been refused already."""
        if not self._refused:
            self.transport.write(with_id(NO_HTTP))
            self.transport.close()

    def _length_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _drop(self, count: int) -> None:
        self._dropped += count
        if self._dropped > MAX_DROPPED:
            self.transport.abort()

    def _refuse(self) -> None:
        """Say so, and read on for a while: closing at once would reset the connection before that arrives."""
        self._refused = True
        self.transport.write(with_id(TOO_LARGE))
        self._head_is_here()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_here(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
