"""What every public name means now: one immutable table, replaced as a whole when something changed.

A request takes its route from the table once and keeps it; no change of an alias reaches it any more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from yarl import URL

from serve.errors import AdapterNotReady, EngineUnavailable, ModelNotFound, TenonError
from serve.gateway.metrics import Meters
from serve.gateway.policy import NO_POLICY, SamplingPolicy

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class EngineView:
    """What ``run/engine.json`` says of the engine; ``record`` is all of it.

    ``url`` is empty as long as the engine has none yet.
    """

    url: str
    base_name: str
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "EngineView | None":
        """Read the record; None if it does not say which base the engine serves."""
        base_name = record.get("base_name")
        if not base_name:
            return None
        return cls(str(record.get("url") or ""), str(base_name), str(record.get("state")), record)

    @cached_property
    def _addresses(self) -> dict[str, URL]:
        return {}

    def address(self, path: str) -> URL:
        """Where the engine answers ``path``, which is one of our own endpoints' and never a client's."""
        if path not in self._addresses:
            self._addresses[path] = URL(self.url.rstrip("/") + path)
        return self._addresses[path]


@dataclass(frozen=True)
class Route:
    """Where one public name leads; answers say ``public_name`` where the engine says ``engine_name``."""

    public_name: str
    engine_name: str
    meters: Meters
    policy: SamplingPolicy = NO_POLICY

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers that say which version answered, and which fields had forced values."""
        headers = [(b"x-tenon-version", self.public_name.encode())]
        if self.policy.forced:
            headers.append((b"x-tenon-forced", ", ".join(sorted(self.policy.forced)).encode()))
        return headers

    @cached_property
    def _pattern(self) -> re.Pattern[bytes] | None:
        if self.engine_name == self.public_name:
            return None
        return re.compile(rb'"model"\s*:\s*"%b"' % re.escape(self.engine_name).encode())

    @cached_property
    def _model_field(self) -> bytes:
        return b'"model":"%b"' % self.public_name.encode()

    def rename(self, text: bytes) -> bytes:
        """Put the public name for the engine's into the ``model`` field of a JSON text.

        The bytes that are replaced cannot stand inside a JSON string, as its quotes are escaped there.
        """
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda _: self._model_field, text, count=1)


@dataclass(frozen=True)
class RouteTable:
    """All names at one moment.

    ``revision`` is the registry's, ``waiting`` says of known names why they cannot answer, ``models`` are the
    cards of ``/v1/models`` by name, ``status`` is what ``/api/status`` tells.
    """

    revision: int
    engine: EngineView | None
    routes: Mapping[str, Route]
    waiting: Mapping[str, str]
    models: Mapping[str, Mapping[str, Any]]
    status: Mapping[str, Any]

    def resolve(self, name: str) -> tuple[Route, EngineView]:
        """The route of a public name, and the engine.

        Raises ModelNotFound, AdapterNotReady or EngineUnavailable.
        """
        route = self.routes.get(name)
        engine = self.engine
        if route is not None and engine is not None and engine.url and engine.state != "down":
            return route, engine
        raise self._missing(name)

    def _missing(self, name: str) -> TenonError:
        if name in self.waiting:
            return AdapterNotReady(f"{name} cannot answer yet: {self.waiting[name]}", "try again shortly")
        if self.engine is not None and name in self.routes:
            what = "is down" if self.engine.url else "has not been started yet"
            return EngineUnavailable(f"the engine {what}", "try again shortly")
        return self.absent(name)

    def absent(self, name: str) -> TenonError:
        """What is said of a name that means nothing, or that the caller may not know to mean something."""
        if self.engine is None:
            return EngineUnavailable("the engine has not been started yet", "try again shortly")
        return ModelNotFound(
            f"the model {name[:100]!r} does not exist", "GET /v1/models lists the names that are served"
        )

    @cached_property
    def public_names(self) -> Mapping[str, str]:
        """Engine name → public name, for the texts of an engine's errors."""
        return {route.engine_name: route.public_name for route in self.routes.values()}


EMPTY = RouteTable(-1, None, NOTHING, NOTHING, NOTHING, NOTHING)
"""What is known before the first look at the registry."""
