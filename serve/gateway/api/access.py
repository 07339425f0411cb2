"""Who may do what over the management API.

Authentication is not done here: ``Authorise`` is what the gateway is given for it.
"""

from collections.abc import Callable
from typing import Protocol

from fastapi import Request

from serve.errors import Forbidden, TenonError, VersionNotFound
from serve.names import VersionRef, parse_version
from serve.registry import ApiKey, Registry, Rights, Version
from serve.registry.keys import LIMITS, Scope

OPERATOR = "operator"
"""Who made a change that came without a key."""


class Caller(Protocol):
    """Whoever sent a request; without a ``key`` it is the operator, who may do everything."""

    @property
    def key(self) -> ApiKey | None:
        """The key that was sent."""

    def allows(self, name: str) -> bool:
        """Whether the key may use an alias, a version, an adapter or a base of this name."""


Authorise = Callable[[Request, Scope], Caller]
"""The caller of a request, if it may do such things; else raises an error with the status 401 or 403."""


class Anybody:
    """A caller where no keys are asked for."""

    key: ApiKey | None = None

    def allows(self, name: str) -> bool:
        """Everything is allowed."""
        return True


def everybody(request: Request, wanted: Scope) -> Caller:
    """The ``Authorise`` of a gateway that asks for no keys."""
    return Anybody()


def name_of(caller: Caller) -> str:
    """How histories and logs call whoever made a change."""
    return caller.key.name if caller.key is not None else OPERATOR


def may(authorise: Authorise, request: Request, wanted: Scope) -> bool:
    """Whether the caller of a request has a scope; raises what is wrong with the key itself."""
    try:
        authorise(request, wanted)
    except TenonError as error:
        if error.status != Forbidden.status:
            raise
        return False
    return True


def check_name_allowed(caller: Caller, name: str) -> None:
    """Raise Forbidden where the key may not use a name, whether or not anything is called so."""
    if not caller.allows(name):
        raise Forbidden(
            f"this key may not use the name {name}", "use a name that the key allows, or ask for another key"
        )


def version_for(registry: Registry, caller: Caller, text: str) -> Version:
    """The version that a caller names; what it may not use is absent. Raises InputError, VersionNotFound."""
    ref = parse_version(text)
    if caller.allows(str(ref)):
        try:
            return registry.version(ref)
        except VersionNotFound:
            pass  # whose hint names versions that are perhaps not the caller's
    raise absent(ref)


def absent(ref: VersionRef) -> VersionNotFound:
    """The error for a version that does not exist or is not for the caller."""
    return VersionNotFound(f"no version {ref} is registered", "GET /api/adapters lists what there is")


def covers(own: Rights, adapters: tuple[str, ...] | None) -> bool:
    """Whether a key's own names include all of ``adapters`` (None: every name)."""
    if own.adapters is None:
        return True
    return adapters is not None and all(
        name in own.adapters or name.partition("@")[0] in own.adapters for name in adapters
    )


def check_rights(caller: Caller, wanted: Rights) -> None:
    """Raise Forbidden where a key would get more than its maker has; scopes are ``Authorise``'s to check.

    More is another name, a higher limit or none, and a later end or none.
    """
    if caller.key is None:
        return
    own = caller.key.rights
    more = [] if covers(own, wanted.adapters) else ["adapters"]
    for limit in LIMITS:
        most, value = getattr(own, limit), getattr(wanted, limit)
        if most is not None and (value is None or value > most):
            more.append(limit)
    if own.expires_at is not None and (wanted.expires_at is None or wanted.expires_at > own.expires_at):
        more.append("expires_at")
    if more:
        raise Forbidden(
            f"a key cannot be given more than its maker has: {', '.join(more)}",
            "ask for no more than your own key has, or use one that has more",
        )
