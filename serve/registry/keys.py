"""API keys in the database: what each may use and spend. A secret is shown once and kept as its hash alone."""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, insert, select, update

from serve.errors import Conflict, InputError, KeyNotFound
from serve.names import NAME, VERSION, check_name
from serve.registry.database import bump, clock
from serve.registry.schema import keys

Scope = Literal["inference", "adapters", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
START = "tn-"
SHOWN = 8
"""How many characters of a secret are kept to tell it by; 256 random bits lie behind them."""
LIMITS = {
    "requests_per_minute": 2**31 - 1,
    "tokens_per_minute": 2**31 - 1,
    "max_concurrent": 2**31 - 1,
    "monthly_tokens": 2**63 - 1,
}


@dataclass(frozen=True)
class Rights:
    """What a key may use and spend; a limit that is None is none.

    ``adapters`` are public names: aliases, versions, adapters (all of their versions) and bases; None allows all.
    Months are those of UTC.
    """

    scopes: tuple[str, ...] = ("inference",)
    adapters: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    monthly_tokens: int | None = None
    expires_at: datetime | None = None

    def check(self) -> None:
        """Raise InputError with everything that is wrong."""
        problems = [f"{scope!r} is no scope" for scope in self.scopes if scope not in SCOPES]
        if not self.scopes:
            problems.append("it has no scope")
        for name in self.adapters or ():
            if not NAME.fullmatch(name) and not VERSION.fullmatch(name):
                problems.append(f"{name!r} is no name of an adapter, version or base")
        for limit, most in LIMITS.items():
            value = getattr(self, limit)
            if value is not None and (type(value) is not int or not 0 < value <= most):
                problems.append(f"{limit} is not a whole number from 1")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            problems.append("its end has no time zone")
        if problems:
            raise InputError(
                f"the key cannot be so: {'; '.join(problems)}", f"scopes are {', '.join(SCOPES)}"
            )


@dataclass(frozen=True)
class ApiKey:
    """A key as it is known; ``hash`` is :func:`hash_of` its secret, ``prefix`` how the secret begins."""

    id: int
    name: str
    tenant: str
    prefix: str
    rights: Rights
    created_at: datetime
    revoked_at: datetime | None
    hash: str = field(repr=False)

    def active(self, at: datetime) -> bool:
        """Whether it is neither revoked nor past its end."""
        return self.revoked_at is None and (self.rights.expires_at is None or at < self.rights.expires_at)


@dataclass(frozen=True)
class NewKey:
    """A key that was just created, with the secret that nobody will be told again."""

    key: ApiKey
    secret: str = field(repr=False)


def hash_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256, as 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def create(connection: Connection, name: str, rights: Rights, tenant: str) -> NewKey:
    """Make a key under a name that no other active key has; raises Conflict, InputError."""
    check_key_name(name)
    rights.check()
    if len(tenant) > 64 or not tenant.isprintable():
        raise InputError("the tenant's name cannot be so", "use at most 64 printable characters")
    taken = connection.execute(_of_name(name)).first()
    if taken is not None:
        raise Conflict(f"there is a key {name} already", "revoke it first, or choose another name")
    secret = START + secrets.token_urlsafe(32)
    values = {
        "name": name,
        "tenant": tenant,
        "hash": hash_of(secret),
        "prefix": secret[:SHOWN],
        "created_at": clock(connection),
        **_columns(rights),
    }
    row = connection.execute(insert(keys).values(**values).returning(keys)).one()
    bump(connection)
    return NewKey(to_key(row), secret)


def check_key_name(name: str) -> str:
    """Return ``name`` if a key may be called so, else raise InputError."""
    if name.isdigit():
        raise InputError(f"{name!r} is the number of a key, not a name", "use a letter, too")
    return check_name(name)


def read(connection: Connection, *, revoked: bool) -> list[ApiKey]:
    """All keys by number, with or without those that were revoked."""
    query = select(keys).order_by(keys.c.id)
    rows = connection.execute(query if revoked else query.where(keys.c.revoked_at.is_(None)))
    return [to_key(row) for row in rows]


def any_created(connection: Connection) -> bool:
    """Whether there is any row, as keys are never deleted."""
    return connection.execute(select(keys.c.id).limit(1)).first() is not None


def find(connection: Connection, key: int | str) -> ApiKey:
    """The key that is not revoked and has this number or name; raises KeyNotFound."""
    if isinstance(key, int) or key.isdecimal():
        query = select(keys).where(keys.c.id == min(int(key), 2**31 - 1), keys.c.revoked_at.is_(None))
    else:
        query = _of_name(key)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise KeyNotFound(f"there is no key {str(key)[:64]!r}", "tenon keys list shows all")
    return to_key(row)


def change(connection: Connection, key: int | str, rights: Rights) -> ApiKey:
    """Give a key other rights; raises KeyNotFound, InputError."""
    rights.check()
    return _update(connection, find(connection, key).id, _columns(rights))


def revoke(connection: Connection, key: int | str) -> ApiKey:
    """End a key for good; raises KeyNotFound."""
    return _update(connection, find(connection, key).id, {"revoked_at": clock(connection)})


def to_key(row: Row[Any]) -> ApiKey:
    """The record of a row of ``keys``."""
    rights = Rights(
        scopes=tuple(row.scopes),
        adapters=tuple(row.adapters) if row.adapters is not None else None,
        expires_at=row.expires_at,
        **{limit: getattr(row, limit) for limit in LIMITS},
    )
    return ApiKey(row.id, row.name, row.tenant, row.prefix, rights, row.created_at, row.revoked_at, row.hash)


def _of_name(name: str) -> Any:
    return select(keys).where(keys.c.name == name, keys.c.revoked_at.is_(None))


def _columns(rights: Rights) -> dict[str, Any]:
    adapters = list(rights.adapters) if rights.adapters is not None else None
    limits = {limit: getattr(rights, limit) for limit in LIMITS}
    return {"scopes": list(rights.scopes), "adapters": adapters, "expires_at": rights.expires_at, **limits}


def _update(connection: Connection, key_id: int, values: dict[str, Any]) -> ApiKey:
    row = connection.execute(update(keys).where(keys.c.id == key_id).values(**values).returning(keys)).one()
    bump(connection)
    return to_key(row)
