"""Server-sent events from engine to client: whole events only, renamed, counted, honest about their end."""

from typing import Any

import orjson

from serve.gateway.routes import Route

DONE = (b"data: [DONE]", b"data:[DONE]")
ERROR = (b'data: {"error"', b'data:{"error"')


ENDS = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")
"""How the last event of ``/v1/responses`` begins; that endpoint knows no ``[DONE]``."""


class EventFilter:
    """Turns an engine's bytes into those for the client; it does no input or output of its own.

    ``tokens`` counts the events that carried an answer's text, ``usage`` is the engine's account of the whole
    answer, ``done`` says that the stream came to its proper end, ``error`` is the event with which the engine
    broke it off. After either nothing more is let through.
    """

    __slots__ = ("_buffer", "_keep_usage", "_route", "done", "error", "tokens", "usage")

    def __init__(self, route: Route, *, keep_usage: bool) -> None:
        self._route = route
        self._keep_usage = keep_usage
        self._buffer = b""
        self.tokens = 0
        self.usage: dict[str, Any] | None = None
        self.done = False
        self.error: bytes | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take what the engine sent; return the complete events that the client may have, perhaps none."""
        buffer = self._buffer + chunk if self._buffer else chunk
        if b"\r" in buffer:  # inside JSON it is escaped, so it can only end a line
            buffer = buffer.replace(b"\r\n", b"\n")
        *events, self._buffer = buffer.split(b"\n\n")
        written = [out for event in events if (out := self._pass(event))]
        if not written:
            return b""
        written.append(b"")
        return b"\n\n".join(written)

    def _pass(self, event: bytes) -> bytes:
        if self.done or self.error is not None:
            return b""
        if b'"choices":[{' in event:
            if b'"delta":{"role"' not in event or b'"content":""' not in event:
                self.tokens += 1
            return self._route.rename(event)
        if event.startswith(DONE):
            self.done = True
        elif event.startswith(ERROR):
            self.error = event
            return b""
        elif b'"usage"' in event and not self._take_usage(event):
            return b""
        return self._route.rename(event)

    def _take_usage(self, event: bytes) -> bool:
        """Note the usage of an event without choices; return whether the client asked to see it."""
        content = orjson.loads(event.removeprefix(b"data:"))
        usage = content.get("usage")
        if content.get("choices") or not usage:
            return True
        self.usage = usage
        return self._keep_usage


class ResponsesFilter(EventFilter):
    """The same for ``/v1/responses``, whose events have names and whose last holds the whole answer."""

    __slots__ = ()

    def _pass(self, event: bytes) -> bytes:
        if self.done or self.error is not None:
            return b""
        head, _, rest = event.partition(b"\n")
        if head.endswith(b".delta"):
            self.tokens += 1
            return event
        if head.startswith(b"event: error") or (b'"error"' in rest[:20] and head == b"event: unknown"):
            self.error = event
            return b""
        if head.startswith(ENDS):
            self.done = True
            answer = orjson.loads(rest.removeprefix(b"data:")).get("response") or {}
            self.usage = answer.get("usage")
        return self._route.rename(event)
