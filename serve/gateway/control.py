"""The control plane: health, readiness, metrics and status, as a FastAPI app off the hot path."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from serve.errors import EngineUnavailable, TenonError
from serve.gateway.api import add_management, allowed_methods
from serve.gateway.api.answers import Alive, Ready, errors
from serve.gateway.api.management import Management
from serve.gateway.failures import Failure, http_failure
from serve.gateway.require import require
from serve.gateway.source import RouteSource

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def control_app(source: RouteSource, lifespan: Lifespan, management: Management | None = None) -> FastAPI:
    """The app for every path that is not ``/v1/*``; ``/openapi.json`` describes its routes.

    Its pages for a browser are off: they would fetch their scripts from somebody else's server. With ``management``
    there are the routes that manage adapters, aliases and keys.
    """
    app = FastAPI(
        title="Tenon gateway", docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False
    )

    # Some load balancers ask by HEAD.
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=Alive)
    async def healthz() -> Response:
        """The process serves; ``revision`` is the registry's that its routes were built from."""
        return _json({"status": "ok", "revision": source.table.revision})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_model=Ready, responses=errors(503))
    async def readyz() -> Response:
        """One engine of each base is ready too, so that requests can be answered."""
        if source.engine_ready:
            return _json({"status": "ready", "revision": source.table.revision})
        raise EngineUnavailable(source.lacking, "try again shortly")

    @app.get("/metrics", response_class=PlainTextResponse, responses=errors(401, 403, 429, 503))
    def metrics() -> Response:
        """Prometheus' text format; a plain function, as writing thousands of lines would hold up streams."""
        return Response(source.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get(
        "/api/status",
        response_model=dict[str, Any],
        responses=errors(401, 403, 429, 503),
        dependencies=[require("admin")],
    )
    async def status() -> Response:
        """Routes, versions and the engine's state, as the gateway sees them now."""
        pools = source.engines.status()
        return _json({**source.table.status, "engine_ready": source.engine_ready, "pools": pools})

    @app.exception_handler(TenonError)
    async def named(_: Request, error: TenonError) -> Response:
        return _failure(Failure.of(error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        headers = error.headers
        if error.status_code == 405:
            headers = {"allow": ", ".join(allowed_methods(app, request.scope))}
        return _failure(http_failure(error.status_code, message), headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return _failure(http_failure(500, f"something went wrong here ({type(error).__name__}); see the log"))

    if management is not None:
        add_management(app, management)
    return app


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _failure(failure: Failure, headers: Any = None) -> Response:
    response = Response(failure.body(), failure.status, headers, media_type="application/json")
    response.raw_headers.extend(failure.headers)
    return response
