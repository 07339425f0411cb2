"""Server-sent events from engine to client: whole events only, renamed, counted, honest about their end."""

from typing import Any

import orjson

from serve.gateway.routes import Route

DONE = (b"data: [DONE]", b"data:[DONE]")
ERROR = (b'data: {"error"', b'data:{"error"')


MAX_EVENT = 16 * 2**20
"""Longest event, in bytes; the last one of ``/v1/responses`` holds the whole answer."""
TOO_LONG = b'data: {"error": {"type": "EventTooLong", "code": 502}}'

ENDS = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")
"""How the last event of ``/v1/responses`` begins; that endpoint knows no ``[DONE]``."""


class EventFilter:
    """Turns an engine's bytes into those for the client; it does no input or output of its own.

    ``tokens`` counts the events that carried an answer's text, ``usage`` is the engine's account of the whole
    answer, ``done`` says that the stream came to its proper end, ``error`` is the event with which the engine
    broke it off. After either nothing more is let through.
    """

    __slots__ = ("_edge", "_held", "_keep_usage", "_route", "_size", "done", "error", "tokens", "usage")

    def __init__(self, route: Route, *, keep_usage: bool) -> None:
        self._route = route
        self._keep_usage = keep_usage
        self._held: list[bytes] = []
        self._edge = b""
        self._size = 0
        self.tokens = 0
        self.usage: dict[str, Any] | None = None
        self.done = False
        self.error: bytes | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take what the engine sent; return the complete events that the client may have, perhaps none.

        What begins an event is only looked at again once its end has come; an engine may not go on for ever.
        """
        if self._held:
            new = self._edge + chunk
            if b"\n\n" not in new and b"\n\r\n" not in new:
                return self._hold(chunk)
            chunk = b"".join([*self._held, chunk])
            self._held, self._edge, self._size = [], b"", 0
        if b"\r" in chunk:  # inside JSON it is escaped, so it can only end a line
            chunk = chunk.replace(b"\r\n", b"\n")
        *events, rest = chunk.split(b"\n\n")
        if rest:
            self._hold(rest)
        if len(events) == 1:
            out = self._pass(events[0])
            return out + b"\n\n" if out else b""
        written = [out for event in events if (out := self._pass(event))]
        if not written:
            return b""
        written.append(b"")
        return b"\n\n".join(written)

    def _hold(self, part: bytes) -> bytes:
        """Keep a part of an event until the rest comes; nothing is let through meanwhile."""
        self._size += len(part)
        if self._size > MAX_EVENT:
            self._held, self.error = [], TOO_LONG
        else:
            self._held.append(part)
            self._edge = (self._edge + part)[-2:]
        return b""

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
