"""uvicorn's HTTP/1.1 protocol with the limits that it lacks: on the head of a request, and on what is thrown away.

The head of a request has a size and a time in which it must be complete. What a client goes on sending after
it has been refused is read and dropped, so that it sees the refusal, but only up to a limit.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serve.gateway.asgi import Message
from serve.gateway.call import HEADER, new_id
from serve.logs import SUBJECT

logger = logging.getLogger(__name__)

MAX_HEAD = 64 * 2**10
"""Longest head of a request, in bytes: its first line and all headers."""
HEAD_SECONDS = 20.0
LINGER_SECONDS = 2.0
"""How long a client that was refused may go on before the connection is closed."""
MAX_DROPPED = 64 * 2**20
"""Bytes of a refused body that are read before the connection is cut."""
CONTINUE = b"HTTP/1.1 100 "
REFUSAL = (
    b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%b: %b\r\n"
    b"connection: close\r\n\r\n%b"
)


class Refused(NamedTuple):
    """What a log line is about when no request could be read."""

    id: str
    trace_id: str | None = None


class Incoming:
    """The ``receive`` of one request, which also tells of a hang-up without a task that waits for it."""

    __slots__ = ("_cycle", "_gone", "_receive")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._receive: Callable[[], Awaitable[Any]] = cycle.receive
        self._gone: Callable[[], None] | None = None

    def __call__(self) -> Awaitable[Message]:
        """The next message, as ASGI has it."""
        return self._receive()

    def when_gone(self, gone: Callable[[], None] | None) -> None:
        """Have ``gone`` called once when the client hangs up, soon if it did already; None takes that back."""
        self._gone = gone
        if gone is not None:
            self._cycle.flow.resume_reading()  # a hang-up is seen by reading, which a large body has paused
            if self._cycle.disconnected:
                asyncio.get_running_loop().call_soon(self.lost)

    def lost(self) -> None:
        """The connection is lost."""
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()


class Outgoing:
    """What one answer is written to: its head goes out together with the first part of its body, in one write.

    A head that no body follows at once goes out by itself before the event loop's next round.
    """

    __slots__ = ("_begun", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._begun = False

    def write(self, data: bytes) -> None:
        """Write now, but for the head."""
        if self._held:
            self._transport.write(self._held + data)
            self._held = b""
        elif self._begun or data.startswith(CONTINUE):
            self._transport.write(data)
        else:
            self._begun, self._held = True, data
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what is held back."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def is_closing(self) -> bool:
        """As of the connection."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, once all is written."""
        self.flush()
        self._transport.close()


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head = True
        self._head = 0
        self._dropped = 0
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self._incoming: Incoming | None = None

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
        super().data_received(data)
        if self._in_head and not self._refused and not self.transport.is_closing():
            self._head += len(data)
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
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._refuse()
            raise ValueError("the head is too long")  # ends the parser, which answers no more
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and (before is None or before.response_complete):
            self._incoming = Incoming(self.cycle)
            self.cycle.receive = self._incoming  # type: ignore[method-assign, assignment]
            self.cycle.transport = Outgoing(self.transport)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, or drop it when the request has been answered already."""
        if self.cycle.response_complete:
            self._drop(len(body))
            return
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless it has been refused already."""
        if not self._refused:
            self._write_refusal(b"400 Bad Request", msg)
            self.transport.close()

    def _drop(self, count: int) -> None:
        self._dropped += count
        if self._dropped > MAX_DROPPED:
            self.transport.abort()

    def _refuse(self) -> None:
        """Say so, and read on for a while: closing at once would reset the connection before that arrives."""
        self._refused = True
        self._write_refusal(b"431 Request Header Fields Too Large", "The request's head is too large.")
        self._head_is_here()
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _write_refusal(self, status: bytes, text: str) -> None:
        """Answer what never became a request, under an id of its own."""
        refused, body = Refused(new_id()), text.encode()
        self.transport.write(REFUSAL % (status, len(body), HEADER, refused.id.encode(), body))
        token = SUBJECT.set(refused)
        logger.info("no request could be read, answered with %s", status.decode())
        SUBJECT.reset(token)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_here(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
