"""What every public name means now: one immutable table, replaced as a whole when something changed.

A request takes its route from the table once and keeps it; no change of an alias reaches it any more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from yarl import URL

from serve.engine.state import FIRST
from serve.errors import AdapterNotReady, EngineUnavailable, ModelNotFound, TenonError
from serve.gateway.balance.flow import Limits
from serve.gateway.fine_tuned import FineTunedNames
from serve.gateway.metrics import Meters
from serve.gateway.policy import NO_POLICY, SamplingPolicy
from serve.net import bare

if TYPE_CHECKING:
    from serve.gateway.sides import Sides

NOTHING: Mapping[str, Any] = {}
MAX_LORAS, MAX_NUM_SEQS = 4, 256
"""What an engine is taken to do of which nobody says it."""


@dataclass(frozen=True)
class EngineView:
    """What the record of an engine says of it (``run/engine.json`` or one in ``run/engines``); ``record`` is all.

    ``url`` is empty as long as the engine has none yet. It may hold a password, which the record does not.
    """

    url: str = field(repr=False)
    base_name: str
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)
    name: str = FIRST

    @classmethod
    def of(cls, record: Mapping[str, Any], name: str = FIRST, url: str | None = None) -> "EngineView | None":
        """Read the record; None if it does not say which base the engine serves.

        ``url`` is the record's with the password, where there is one.
        """
        base_name = record.get("base_name")
        if not base_name:
            return None
        told = str(record.get("url") or "")
        shown = {**record, "url": bare(told)} if told else record  # older code wrote passwords there
        return cls(url or told, str(base_name), str(record.get("state")), shown, name)

    @property
    def usable(self) -> bool:
        """Whether requests may be sent there."""
        return bool(self.url) and self.state == "ready"

    @property
    def kind(self) -> str:
        """``vllm``, or ``openai`` for a server that adapters are not loaded into."""
        return str(self.record.get("kind") or "vllm")

    @property
    def served(self) -> Mapping[str, str]:
        """Of a server that is only asked: public names with what it calls them."""
        return self.record.get("served") or NOTHING

    @cached_property
    def limits(self) -> Limits:
        """How much the engine takes at once."""
        return Limits(
            slots=self.record.get("max_loras") or MAX_LORAS,
            running=self.record.get("max_num_seqs") or MAX_NUM_SEQS,
        )

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
    """Where one public name leads; answers say ``public_name`` where the engine says ``engine_name``.

    ``base`` is the base by whose engines it is answered, ``salted`` whether these are vLLM's, which take a salt.
    ``lenient``: the policy binds only those who may not change it.
    """

    public_name: str
    engine_name: str
    meters: Meters
    policy: SamplingPolicy = NO_POLICY
    base: str = ""
    salted: bool = True
    lenient: bool = False

    @cached_property
    def adapter(self) -> str | None:
        """What an engine must hold for it; None for the base itself."""
        return None if self.engine_name == self.base else self.engine_name

    @cached_property
    def unbound(self) -> "Route":
        """The same for those whom a lenient policy does not bind."""
        return replace(self, policy=NO_POLICY, lenient=False) if self.lenient else self

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
    def _engine_field(self) -> bytes:
        return b'"model":"%b"' % self.engine_name.encode()

    @cached_property
    def _model_field(self) -> bytes:
        return b'"model":"%b"' % self.public_name.encode()

    def rename(self, text: bytes) -> bytes:
        """Put the public name for the engine's into the ``model`` field of a JSON text.

        The bytes that are replaced cannot stand inside a JSON string, as its quotes are escaped there.
        """
        if self._pattern is None:
            return text
        if self._engine_field in text:  # as vLLM writes it
            return text.replace(self._engine_field, self._model_field, 1)
        return self._pattern.sub(lambda _: self._model_field, text, count=1)


@dataclass(frozen=True)
class RouteTable:
    """All names at one moment.

    ``revision`` is the registry's, ``engines`` are known by their names, ``waiting`` says of known names why they
    cannot answer, ``models`` are the cards of ``/v1/models`` by name, ``status`` is what ``/api/status`` tells.
    ``sides`` are those of weighted aliases, whose routes are of the version that leads. ``held`` are the engine
    names that are ready, by engine, ``draining`` those that are kept for requests that were routed before; ``pinned``
    are the engine names of versions that aliases mean or would roll back to.
    ``fine_tuned`` knows the names that begin with ``ft:``.
    """

    revision: int
    engines: Mapping[str, EngineView]
    routes: Mapping[str, Route]
    waiting: Mapping[str, str]
    models: Mapping[str, Mapping[str, Any]]
    status: Mapping[str, Any]
    sides: Mapping[str, "Sides"] = field(default_factory=dict)
    held: Mapping[str, frozenset[str]] = field(default_factory=dict)
    draining: Mapping[str, frozenset[str]] = field(default_factory=dict)
    pinned: tuple[str, ...] = ()
    fine_tuned: FineTunedNames = field(default_factory=FineTunedNames)

    @cached_property
    def engine(self) -> EngineView | None:
        """The first engine; its base answers requests that name no model."""
        return next(iter(self.engines.values()), None)

    @cached_property
    def bases(self) -> Mapping[str, list[EngineView]]:
        """The engines of each base."""
        found: dict[str, list[EngineView]] = {}
        for engine in self.engines.values():
            found.setdefault(engine.base_name, []).append(engine)
        return found

    @cached_property
    def choices(self) -> bool:
        """Whether there is anything to choose by a request's conversation: versions of an alias, or engines."""
        return bool(self.sides) or len(self.engines) > 1

    @cached_property
    def usable(self) -> frozenset[str]:
        """The bases that some engine can be asked for."""
        return frozenset(engine.base_name for engine in self.engines.values() if engine.usable)

    def plain(self, name: str) -> str:
        """The plain form of a name that may be written as OpenAI writes those of adapted models."""
        return self.fine_tuned.plain(name)

    def resolve(self, name: str, conversation: str = "") -> Route:
        """The route of a public name for one conversation.

        Raises ModelNotFound, AdapterNotReady or EngineUnavailable.
        """
        sides = self.sides.get(name)
        route = sides.route(conversation) if sides is not None else self.routes.get(name)
        if route is not None and route.base in self.usable:
            return route
        raise self._missing(name, route)

    def _missing(self, name: str, route: Route | None) -> TenonError:
        if name in self.waiting:
            return AdapterNotReady(f"{name} cannot answer yet: {self.waiting[name]}", "try again shortly")
        if self.engines and route is not None:
            started = any(engine.url for engine in self.bases.get(route.base, ()))
            what = "is down or restarting" if started else "has not been started yet"
            return EngineUnavailable(f"the engine {what}", "try again shortly")
        return self.absent(name)

    def absent(self, name: str) -> TenonError:
        """What is said of a name that means nothing, or that the caller may not know to mean something."""
        if not self.engines:
            return EngineUnavailable("the engine has not been started yet", "try again shortly")
        return ModelNotFound(
            f"the model {name[:100]!r} does not exist", "GET /v1/models lists the names that are served"
        )

    @cached_property
    def public_names(self) -> Mapping[str, str]:
        """Engine name → public name, for the texts of an engine's errors."""
        return {route.engine_name: route.public_name for route in self.routes.values()}


EMPTY = RouteTable(-1, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
"""What is known before the first look at the registry."""
