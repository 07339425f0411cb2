"""Errors as clients see them: always OpenAI's ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serve.errors import (
    AdapterNotReady,
    BadRequest,
    EngineFailed,
    EngineUnavailable,
    QuotaUsedUp,
    RouteNotSupported,
    TenonError,
)
from serve.gateway.asgi import Send, send_json

RETRY_AFTER = 2
"""Seconds after which a client may try again what is unavailable now."""

MAX_TYPE = 60
"""Letters of an engine's error type; vLLM's are names of classes."""


@dataclass(frozen=True)
class Failure:
    """One error in OpenAI's shape; ``status`` is its HTTP status."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, error: TenonError) -> "Failure":
        """The failure that clients see for one of our own errors; the hint follows the message."""
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        param = error.param if isinstance(error, BadRequest) else None
        retry_after = getattr(error, "retry_after", None)
        return cls(error.status, message, error.type, error.code, param, retry_after)

    @property
    def outcome(self) -> str:
        """The metric label for a request that ends so: ``rejected``, ``unavailable`` or ``failed``."""
        if self.status < 500:
            return "rejected"
        return "unavailable" if self.status == 503 else "failed"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Further response headers: how to ask for more, or ``retry-after`` where trying again can help."""
        if self.status == 401:
            return [(b"www-authenticate", b"Bearer")]
        if self.status in (429, 502, 503):
            headers = [(b"retry-after", b"%d" % (self.retry_after or RETRY_AFTER))]
            if self.code == QuotaUsedUp.code:  # OpenAI's clients would try again at once otherwise
                headers.append((b"x-should-retry", b"false"))
            return headers
        return []

    def body(self) -> bytes:
        """The JSON body."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": fields})

    def event(self, *, typed: bool = False) -> bytes:
        """The server-sent event that ends a stream which cannot go on; no ``[DONE]`` may follow it.

        ``typed``: in the form of ``/v1/responses``, whose events have names.
        """
        if not typed:
            return b"data: " + self.body() + b"\n\n"
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        event = {**fields, "type": "error", "sequence_number": 0, "error": fields}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"

    async def send(self, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with this failure; nothing may have been sent before."""
        await send_json(send, self.body(), self.status, [*self.headers, *headers])


def http_failure(status: int, message: str) -> Failure:
    """The failure for a plain HTTP error such as an unknown path or a wrong method."""
    if status >= 500:
        return Failure(status, message, "server_error", "internal_error")
    codes = {404: "not_found", 405: "method_not_allowed"}
    return Failure(status, message, "invalid_request_error", codes.get(status, "invalid_request"))


def engine_failure(status: int, body: bytes, model: str, public_names: Mapping[str, str]) -> Failure:
    """Translate an engine's error for a request to ``model``.

    The client's own mistakes are passed on, with engine names replaced (``public_names``: engine name →
    public name). An engine that does not know the model has lost it, which is not the client's mistake. All
    else is the engine's fault, and its words stay in our log.
    """
    error = _error_object(body)
    if _lacks_route(status, error):
        return Failure.of(RouteNotSupported(f"the engine behind {model} does not have this endpoint"))
    if status in (400, 413, 422, 429, 501):
        message = str(error.get("message") or "the engine rejected the request")
        for engine_name in sorted(public_names, key=len, reverse=True):
            message = message.replace(engine_name, public_names[engine_name])
        param = error.get("param")
        param = param.removeprefix("body.") if isinstance(param, str) else None
        kind = "server_error" if status == 501 else "invalid_request_error"
        return Failure(status, message, kind, _engine_code(status, message), param)
    if status == 404:
        return Failure.of(
            AdapterNotReady(f"the engine does not hold {model} at this moment", "try again shortly")
        )
    if status in (503, 504):
        return Failure.of(EngineUnavailable("the engine is overloaded or restarting", "try again shortly"))
    return Failure.of(EngineFailed(f"the engine failed to answer (HTTP {status})", "try again"))


def lost_adapter(status: int, body: bytes) -> bool:
    """Whether an engine's answer says that it does not know the adapter that it was asked for."""
    return status == 404 and not _lacks_route(status, _error_object(body))


def _lacks_route(status: int, error: Mapping[str, Any]) -> bool:
    """Whether the engine says that it has no such endpoint, and not that it lost a model or lacks a feature."""
    message = str(error.get("message") or "")
    if status == 404:
        return "does not exist" not in message
    return status == 405 or (status == 501 and message.startswith("The model does not support"))


def _engine_code(status: int, message: str) -> str:
    if "maximum context length" in message or "max_model_len" in message:
        return "context_length_exceeded"
    codes = {413: "request_too_large", 429: "rate_limit_exceeded", 501: "not_implemented"}
    return codes.get(status, "invalid_request")


def _error_object(body: bytes) -> Mapping[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = content.get("error", content) if isinstance(content, dict) else {}
    return error if isinstance(error, dict) else {}


def engine_words(body: bytes) -> str:
    """What a log may tell of an engine's error: its size and type, as its text may repeat the prompt."""
    kind = _error_object(body[body.find(b"{") :]).get("type")
    known = isinstance(kind, str) and len(kind) <= MAX_TYPE and kind.isascii() and kind.isalpha()
    return f"{kind if known else 'an error'} in {len(body)} bytes; the engine's log says more"


def engine_event_failure(event: bytes, model: str, public_names: Mapping[str, str]) -> Failure:
    """Translate an error event (``data: {"error": …}``) that an engine put into a stream."""
    body = event[event.find(b"data:") + 5 :]
    status = _error_object(body).get("code")
    return engine_failure(status if isinstance(status, int) else 500, body, model, public_names)
