"""One request as logs and traces tell of it: its id, how it ended, what it used; never what it said.

The request that a task answers is found by :func:`current`, so that the code on its way notes a fact in one
line. Where there is no request (a test that calls a part by itself) nothing is noted.
"""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from yarl import URL

from serve.gateway.asgi import Scope
from serve.gateway.routes import Route
from serve.log_lines import Fields
from serve.logs import SUBJECT

HEADER = b"x-request-id"
MAX_PATH = 200
"""Letters of a path that are told; ours are shorter."""
_TAKEN = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def new_id() -> str:
    """An id that no other request has: 128 random bits as hex digits."""
    return os.urandom(16).hex()


class Call:
    """What is known of one request so far.

    ``id`` is the client's if it can be taken, else new. ``model`` is the public name that was asked, once it
    is known to be one of ours; ``first_token`` counts in seconds from the arrival. ``trace_headers`` and
    ``trace_id`` are set where the request is traced.
    """

    __slots__ = (
        "_ours",
        "_sent",
        "completion_tokens",
        "engine",
        "engine_name",
        "first_token",
        "id",
        "method",
        "model",
        "outcome",
        "path",
        "prompt_tokens",
        "scope",
        "span",
        "started",
        "status",
        "stream",
        "trace_headers",
        "trace_id",
        "version",
    )

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.id = ""
        for name, value in scope["headers"]:
            if name == HEADER:
                if _TAKEN.fullmatch(value):
                    self.id = value.decode()
                break
        self._ours = not self.id
        self.id = self.id or new_id()
        self._sent = False
        self.status: int | None = None
        self.outcome: str | None = None
        self.model: str | None = None
        self.version: str | None = None
        self.engine_name: str | None = None
        self.engine: URL | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.first_token: float | None = None
        self.stream = False
        self.span: Any = None
        self.trace_id: str | None = None
        self.trace_headers: Mapping[str, str] = {}

    def engine_id(self) -> str:
        """An id for the engine, which no request of any client ever had: the second attempt gets another.

        vLLM ends all requests of one id when one of them is to end.
        """
        if self._ours and not self._sent:
            self._sent = True
            return self.id
        return f"{self.id}-{os.urandom(8).hex()}"

    def ended_as(self) -> str:
        """The outcome as it was noted, else as the status says."""
        if self.outcome is not None:
            return self.outcome
        if self.status is None:
            return "disconnected"
        if self.status < 400:
            return "ok"
        if self.status < 500:
            return "rejected"
        return "unavailable" if self.status == 503 else "failed"

    def facts(self) -> Fields:
        """What the line of a finished request tells; neither headers, query nor bodies are among it."""
        caller = (self.scope.get("state") or {}).get("caller")
        key = caller.key if caller is not None else None
        engine = self.engine
        return Fields(
            method=self.method,
            path=self.path[:MAX_PATH],
            status=self.status,
            outcome=self.ended_as(),
            model=self.model,
            version=self.version,
            engine_name=self.engine_name,
            engine=f"{engine.host}:{engine.port}" if engine is not None else None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            first_token_seconds=round(self.first_token, 6) if self.first_token is not None else None,
            seconds=round(time.perf_counter() - self.started, 6),
            key=key.name if key is not None else None,
        )


def current() -> Call | None:
    """The request that the running task answers."""
    call = SUBJECT.get()
    return call if isinstance(call, Call) else None


def note_route(model: object, route: Route) -> None:
    """The request asked for ``model``, which leads to ``route``; without a model it is the route's own."""
    if (call := current()) is not None:
        call.model = str(model) if model else route.public_name
        call.version = route.public_name
        call.engine_name = route.engine_name


def note_outcome(outcome: str) -> None:
    """The request ends with one of the outcomes that the metrics know, whatever its status was."""
    if (call := current()) is not None:
        call.outcome = outcome


def note_usage(prompt: int | None, completion: int | None, *, stream: bool) -> None:
    """Tokens as the engine counted them, or as they were relayed; None is not known."""
    if (call := current()) is not None:
        call.stream = stream
        call.prompt_tokens = prompt
        call.completion_tokens = completion


def headers_to(url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
    """``headers`` for an engine, with the id and the trace of the request; called once per attempt."""
    call = current()
    if call is None:
        return headers
    call.engine = url
    return {**headers, "x-request-id": call.engine_id(), **call.trace_headers}
