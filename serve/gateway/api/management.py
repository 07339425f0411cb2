"""What the routes of the management API share: the registry, the rules of this gateway, and who asks."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from serve.config import Settings
from serve.errors import Overloaded
from serve.gateway.api.access import Authorise, Caller, everybody, name_of
from serve.gateway.rules import Rules
from serve.gateway.source import RouteSource
from serve.registry import Registry

MAX_REGISTRATIONS = 2
"""How many adapters are fetched and checked at once over HTTP."""
RETRY_SECONDS = 10

log = logging.getLogger("tenon.changes")
bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key; see `tenon keys create`. Needed once there are keys.",
)


@dataclass(frozen=True)
class Management:
    """One gateway as its management API sees it."""

    registry: Registry
    settings: Settings
    source: RouteSource
    rules: Rules = field(default_factory=Rules)
    authorise: Authorise = everybody
    places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_REGISTRATIONS)
    )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the few places for registrations; raises Overloaded at once where all are taken."""
        if not self.places.acquire(blocking=False):
            raise Overloaded(
                f"{MAX_REGISTRATIONS} adapters are being registered at this moment",
                "try again when they are done",
                retry_after=RETRY_SECONDS,
            )
        try:
            yield
        finally:
            self.places.release()


def note(caller: Caller, change: str) -> None:
    """Leave a line in the log that says who changed what."""
    log.info("%s %s", name_of(caller), change)


def management_of(request: Request) -> Management:
    """The management of the app that a request came to."""
    found: Management = request.app.state.management
    return found


def _adapters(request: Request) -> Caller:
    return management_of(request).authorise(request, "adapters")


def _admin(request: Request) -> Caller:
    return management_of(request).authorise(request, "admin")


Here = Annotated[Management, Depends(management_of)]
AdaptersCaller = Annotated[Caller, Depends(_adapters)]
AdminCaller = Annotated[Caller, Depends(_admin)]
NEEDS_KEY = Security(bearer)
"""Says in the description that a route takes a key; the key itself is ``Authorise``'s to read."""
