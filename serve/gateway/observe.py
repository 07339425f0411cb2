"""Around every request: gives it its id, and tells of its end in one log line and, where asked, a span."""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from serve.gateway.asgi import Message, Receive, Scope, Send
from serve.gateway.call import HEADER, Call
from serve.gateway.failures import http_failure
from serve.logs import SUBJECT

logger = logging.getLogger(__name__)
access = logging.getLogger("serve.gateway.access")

App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines; when all is well they are told at level debug only."""


class Tracer(Protocol):
    """Makes a span of a request; see ``spans``."""

    def begin(self, call: Call) -> None:
        """The request came."""

    def end(self, call: Call) -> None:
        """The request has been answered, or its client is gone."""


class Observer:
    """Runs an ASGI app and sees what becomes of each request."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    async def __call__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request with ``app``; its id stands in the answer and in each line logged meanwhile."""
        call = Call(scope)
        SUBJECT.set(call)  # and never reset: the task is this request's own
        if self._tracer is not None:
            self._tracer.begin(call)

        def told(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, call.id.encode())]
            return send(message)

        try:
            await app(scope, receive, told)
        except Exception:  # the edge of a request: the client gets an answer even to our own mistakes
            if call.status is not None:
                raise  # too late for one; the server logs it and closes the connection
            logger.exception("a request failed")
            await http_failure(500, "something went wrong in the gateway; see its log").send(told)
        finally:
            _tell(call)
            if self._tracer is not None:
                self._tracer.end(call)
            call.scope = {}  # lines that wait to be written hold the call, and need no headers


def _tell(call: Call) -> None:
    level = logging.DEBUG if call.path in PROBES and call.status == 200 else logging.INFO
    if access.isEnabledFor(level):
        # Made here, as the logger itself would look for the line of code that calls it.
        record = logging.LogRecord(access.name, level, __file__, 0, "request", None, None)
        record.fields = call.facts()
        access.handle(record)
