"""Reads a request's body before FastAPI does: bounded, in time, and JSON of a sane shape."""

from starlette.types import ASGIApp
from starlette.types import Message as ASGIMessage

from serve.errors import TenonError
from serve.gateway.asgi import ClientGone, Receive, Scope, Send, read_body
from serve.gateway.failures import Failure
from serve.gateway.validate import parse_body

MAX_BODY = 2**20
"""Longest body of the control plane, in bytes."""
BELOW = "/api/"
"""Where there are routes that take bodies."""
WITHOUT = ("GET", "HEAD", "OPTIONS", "TRACE")


class CheckedBodies:
    """An ASGI app around another: what is no JSON object, or too large, deep or slow, goes no further."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body in one piece."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            body = bytes(await read_body(scope, receive, MAX_BODY))
            if body:
                parse_body(body, needs_model=False)
        except ClientGone:
            return
        except TenonError as error:
            await Failure.of(error).send(send)
            return
        told = False

        async def again() -> ASGIMessage:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)


def _has_body(scope: Scope) -> bool:
    """Whether a request has a body that a route may look at; one of no length may be declared as anything."""
    if scope["method"] in WITHOUT or not scope["path"].startswith(BELOW):
        return False
    sizes = [value for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")]
    return any(size != b"0" for size in sizes)
