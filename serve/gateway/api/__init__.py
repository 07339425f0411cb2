"""The management API: adapters, aliases, keys, usage and engines over HTTP, one module per noun."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.routing import Match

from serve.errors import BadRequest, StorageError
from serve.gateway.api import adapters, aliases, engines, keys, usage
from serve.gateway.api.bodies import CheckedBodies
from serve.gateway.api.description import describe
from serve.gateway.api.management import Management
from serve.gateway.asgi import Scope
from serve.gateway.failures import Failure

logger = logging.getLogger(__name__)


def add_management(app: FastAPI, management: Management) -> None:
    """Give the control plane the routes that manage what it serves."""
    app.state.management = management
    for noun in (adapters, aliases, engines, keys, usage):
        app.include_router(noun.router)
    app.add_middleware(CheckedBodies)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StorageError, _storage)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]


def allowed_methods(app: FastAPI, scope: Scope) -> list[str]:
    """The methods of all routes of a path."""
    found: set[str] = set()
    for route in app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The failure that went deepest: of the forms that a field may have, the one that was meant.
    item = max(error.errors(), key=lambda item: len(item["loc"]))
    place = [str(part)[:100] for part in item["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    said = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        said = "there is no such field"
    return _answer(Failure.of(BadRequest(f"{param or 'the body'}: {said}", param=param)))


def _storage(_: Request, error: Exception) -> Response:
    # Its words tell where things lie on this machine, which is for the log alone.
    assert isinstance(error, StorageError)
    logger.error("%s (%s)", error.message, error.hint)
    return _answer(
        Failure.of(
            StorageError("the registry or the disk cannot be used now", "try again; see the gateway's log")
        )
    )


def _answer(failure: Failure) -> Response:
    response = Response(failure.body(), failure.status, media_type="application/json")
    response.raw_headers.extend(failure.headers)
    return response
