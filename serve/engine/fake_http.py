"""HTTP in vLLM's manner for the fake engine: its error shape, JSON in and out, server-sent events."""

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web


class RefusalError(Exception):
    """An answer in vLLM's error shape."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class ScriptedDeathError(ConnectionResetError):
    """The connection was cut because a fault said so."""


@web.middleware
async def refusals(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Turn a RefusalError into its answer."""
    try:
        response: web.StreamResponse = await handler(request)
    except RefusalError as refusal:
        return json_answer(refusal.body, refusal.status)
    except ScriptedDeathError:
        return web.Response(status=500)  # never arrives: the connection is gone
    return response


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, else RefusalError."""
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise RefusalError(400, f"Invalid JSON: {error}", "Bad Request") from error
    if not isinstance(body, dict):
        raise RefusalError(400, "Input should be a valid dictionary", "Bad Request")
    return body


def json_answer(content: object, status: int = 200) -> web.Response:
    """An answer as JSON."""
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


def event(content: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"
