"""Who asks: finds the API key of a request in memory, and says what it may do.

The keys are held in an immutable table, which is replaced whenever the registry's revision has moved; a key's end
is looked at with each request. No request waits for a database, and nothing that a client sends reaches one.

Once a key was created, the gateway asks for one for good: the end of the last key must never open a door. Without
any key it lets everybody in who reaches it, and for that it must listen on the loopback address; on any other it
lets nobody in. Why: docs/decisions/010-keys-and-limits.md.
"""

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from serve.errors import InvalidKey, MissingScope, Unavailable
from serve.gateway.asgi import Scope as Request
from serve.gateway.endpoints import ENDPOINTS, TOKENIZER_INFO
from serve.names import VERSION
from serve.registry import ApiKey, Registry, hash_of
from serve.registry.keys import SCOPES, Scope
from serve.registry.usage import NO_KEY

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What load balancers and those who wait for the gateway ask without a key."""
METRICS = "/metrics"
USAGE = "/api/usage"
"""Tells every key its own use."""
LONGEST_SECRET = 256
Wanted = Scope | Literal["any"]
GRANTED: Mapping[str, frozenset[str]] = {
    "any": frozenset(SCOPES),
    "inference": frozenset({"inference"}),
    "adapters": frozenset({"adapters", "admin"}),
    "admin": frozenset({"admin"}),
}
"""Which scopes of a key grant a wanted one."""
INVALID = "the API key is not valid"
HINT = "send the secret of an active key as `Authorization: Bearer …`; `tenon keys create` makes one"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    ``key`` is None for the operator, and for everybody where there are no keys. ``tenant`` is what caches are kept
    apart by; None is nobody's in particular. ``names`` are the public names that it may use (None: all).
    """

    key: ApiKey | None = None
    tenant: str | None = None
    names: frozenset[str] | None = None
    scopes: frozenset[str] = frozenset(SCOPES)

    @property
    def key_id(self) -> int:
        """The number that its use is counted under."""
        return self.key.id if self.key is not None else NO_KEY

    @property
    def manages(self) -> bool:
        """Whether it may change adapters and aliases."""
        return not self.scopes.isdisjoint(GRANTED["adapters"])

    def allows(self, name: str) -> bool:
        """Whether it may use a public name.

        An alias grants itself, a version itself, a base itself, and the name of an adapter all of its versions:
        ``support`` grants ``support`` and ``support@v3``, but no version of another adapter that it may mean.
        """
        if self.names is None or name in self.names:
            return True
        version = VERSION.fullmatch(name)
        return version is not None and version["name"] in self.names

    def require(self, wanted: Wanted) -> None:
        """Raise MissingScope unless it may do that kind of thing."""
        if self.scopes.isdisjoint(GRANTED[wanted]):
            raise MissingScope(
                f"the API key lacks the scope {wanted}", "ask the operator for a key that has it"
            )


ANYBODY = Caller()
"""Whoever reaches a gateway without keys."""


@dataclass(frozen=True)
class KeyTable:
    """All keys at one revision of the registry, by the hashes of their secrets.

    ``used`` says that a key was created at any time, be it revoked since.
    """

    revision: int = -1
    callers: Mapping[str, Caller] = field(default_factory=dict)
    used: bool = False

    @classmethod
    def read(cls, registry: Registry, revision: int) -> "KeyTable":
        """Read the keys, of which those that were revoked only count; raises StorageError."""
        keys = registry.keys(revoked=True)
        return cls(revision, {key.hash: _caller(key) for key in keys if key.revoked_at is None}, bool(keys))

    @property
    def names(self) -> set[str]:
        """The names of all keys that were not revoked."""
        return {caller.key.name for caller in self.callers.values() if caller.key is not None}

    def find(self, digest: str, at: datetime) -> Caller | None:
        """Whom a secret belongs to, of which this is the hash, if it is one and its key is active."""
        caller = self.callers.get(digest)
        if caller is None or caller.key is None or not hmac.compare_digest(caller.key.hash, digest):
            return None
        return caller if caller.key.active(at) else None


def _caller(key: ApiKey) -> Caller:
    rights = key.rights
    # Keys of one tenant share a cache; one without a tenant is a tenant of its own.
    tenant = f"tenant:{key.tenant}" if key.tenant else f"key:{key.id}"
    names = frozenset(rights.adapters) if rights.adapters is not None else None
    return Caller(key, tenant, names, frozenset(rights.scopes))


class Keyring:
    """The keys of one gateway: ``look`` keeps them fresh, ``admit`` asks for them.

    ``loopback`` says that only this machine reaches the gateway. ``operator`` is the hash of the secret that the
    commands of this machine send, which may do everything.
    """

    def __init__(self, registry: Registry, *, loopback: bool = True, operator: str | None = None) -> None:
        self.table = KeyTable()
        self.loopback = loopback
        self.open_metrics = False
        self._operator = operator
        self._registry = registry

    def look(self, revision: int) -> bool:
        """Read the keys again if the registry's revision has moved, and say so; blocks, raises StorageError."""
        if revision == self.table.revision:
            return False
        self.table = KeyTable.read(self._registry, revision)
        return True

    @property
    def open(self) -> bool:
        """Whether requests need no key: none was ever created, and only this machine can send any."""
        return self.loopback and not self.table.used and self.table.revision >= 0

    def admit(self, request: Request) -> Caller:
        """Find out who sends a request and whether they may ask that path, and note it in the request's state.

        Raises InvalidKey, MissingScope, or Unavailable as long as the keys could not be read.
        """
        wanted = self.wanted(request["path"])
        caller = ANYBODY if wanted is None else self.check(request, wanted)
        request.setdefault("state", {})["caller"] = caller
        return caller

    def wanted(self, path: str) -> Wanted | None:
        """The scope that a path needs; None for the few that are open. What nobody thought of is the admin's.

        ``/api/*`` needs one of the two upper scopes here, and its routes say which.
        """
        if path in OPEN_PATHS or (path == METRICS and self.open_metrics):
            return None
        if path in ENDPOINTS or path == TOKENIZER_INFO or path.startswith("/v1/"):
            return "inference"
        if path == USAGE:
            return "any"
        return "adapters" if path.startswith("/api/") else "admin"

    def check(self, request: Request, wanted: Wanted) -> Caller:
        """Whoever sends a request, if they may do what is wanted; raises as :meth:`admit` does.

        Where no key is needed, what a client sends as one is not looked at: clients must send something.
        """
        if self.open:
            return ANYBODY
        caller = self._identify(request)
        caller.require(wanted)
        return caller

    def _identify(self, request: Request) -> Caller:
        given = [value for name, value in request["headers"] if name == b"authorization"]
        if not given:
            raise InvalidKey("no API key was sent", HINT)
        scheme, _, secret = given[0].strip().partition(b" ")
        if len(given) > 1 or scheme.lower() != b"bearer":
            raise InvalidKey(INVALID, HINT)
        secret = secret.strip()
        if len(secret) > LONGEST_SECRET:
            raise InvalidKey(INVALID, HINT)
        digest = hash_of(secret.decode("latin-1"))
        if self._operator is not None and hmac.compare_digest(self._operator, digest):
            return ANYBODY
        if self.table.revision < 0:
            raise Unavailable("the keys have not been read yet", "try again shortly")
        caller = self.table.find(digest, datetime.now(UTC))
        if caller is None:
            raise InvalidKey(INVALID, HINT)
        return caller


def caller_of(request: Request) -> Caller:
    """Who sent a request that :meth:`Keyring.admit` has let in."""
    caller: Caller = request["state"]["caller"]
    return caller
