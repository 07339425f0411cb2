"""The two ends of one request in our server: what it is received by and what its answer is written to."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve.gateway.asgi import Message

CONTINUE = b"HTTP/1.1 100 "


class Incoming:
    """The ``receive`` of one request, which also tells of a hang-up without a task that waits for it."""

    __slots__ = ("_asked", "_cycle", "_gone", "_receive")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._receive: Callable[[], Awaitable[Any]] = cycle.receive
        self._gone: Callable[[], None] | None = None
        self._asked = False

    def __call__(self) -> Awaitable[Message]:
        """The next message, as ASGI has it."""
        self._asked = True
        return self._receive()

    def whole(self) -> bytes | None:
        """The body, if all of it came with the head and nobody has asked for it; this needs no timer."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or self._asked:
            return None
        self._asked = True
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        return body

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

    __slots__ = ("_begun", "_cycle", "_held", "_transport")

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._held = b""
        self._begun = False

    def push(self, part: bytes) -> bool:
        """Write a part of a streamed body without a task that waits for it; False: it must be sent as ASGI has it.

        That is so before the head and while the client reads too slowly.
        """
        cycle = self._cycle
        if cycle.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
            return False
        if not cycle.disconnected:
            self.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

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

    def let_go(self) -> None:
        """The answer is complete: what refers to itself in a circle would wait for the collector of cycles.

        A thousand requests per second kept it busy for ten milliseconds at a time, in which every request waits.
        """
        self.flush()
        cycle = self._cycle
        cycle.transport = self._transport
        cycle.__dict__.pop("receive", None)
        cycle.scope.pop("extensions", None)

    def is_closing(self) -> bool:
        """As of the connection."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, once all is written."""
        self.flush()
        self._transport.close()
