"""What a FastAPI route needs: ``@app.get("/api/status", dependencies=[require("admin")])``."""

from typing import Any

from fastapi import Depends
from fastapi import Request as FastAPIRequest

from serve.gateway.auth import Caller, caller_of
from serve.registry.keys import Scope


def authorise(request: FastAPIRequest, wanted: Scope) -> Caller:
    """Whoever sent a request, if they have the scope; else raises MissingScope.

    That they have a valid key was seen before the request came to any route.
    """
    caller = caller_of(request.scope)
    caller.require(wanted)
    return caller


def require(wanted: Scope) -> Any:
    """A dependency that refuses callers without a scope, and gives the :class:`Caller` to whoever wants it."""

    def required(request: FastAPIRequest) -> Caller:
        return authorise(request, wanted)

    return Depends(required)
