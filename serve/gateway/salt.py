"""Keeps the prefix caches of tenants apart, so that nobody learns from its speed what others asked."""

from functools import lru_cache
from hashlib import sha256

from serve.gateway.asgi import Scope


def tenant_of(scope: Scope) -> str | None:
    """Whom a request belongs to, as the authentication in front noted it; None where there are no keys."""
    tenant = scope.get("state", {}).get("tenant")
    return str(tenant) if tenant is not None else None


@lru_cache(4096)
def cache_salt(tenant: str) -> str:
    """The salt of a tenant: the same in every gateway process, so that all share one cache per tenant.

    It need not be secret, as no client can set one.
    """
    return sha256(b"tenon-cache-salt:" + tenant.encode()).hexdigest()
