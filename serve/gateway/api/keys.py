"""``/api/keys``: who may use what, and how much. A secret is told once, in the answer that creates it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from serve.errors import Conflict, KeyNotFound
from serve.gateway.api.access import Caller, check_rights, covers
from serve.gateway.api.answers import Moment, Strict, reading, writing
from serve.gateway.api.management import NEEDS_KEY, AdminCaller, Here, Management, note
from serve.names import NAME
from serve.registry import ApiKey, Registry, Rights
from serve.registry.keys import LIMITS, Scope

MOST_NAMES = 1000
PER_MINUTE, PER_MONTH = LIMITS["requests_per_minute"], LIMITS["monthly_tokens"]

router = APIRouter(prefix="/api/keys", tags=["keys"], dependencies=[NEEDS_KEY])

Which = Annotated[
    str,
    Path(
        description="Name or number of the key.",
        pattern="^[a-z0-9][a-z0-9._-]*$",
        max_length=64,
        examples=["shop"],
    ),
]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=3)]
Names = Annotated[list[Annotated[str, Field(max_length=80)]], Field(max_length=MOST_NAMES)]
Count = Annotated[int, Field(strict=True, ge=1, le=PER_MINUTE)]
Many = Annotated[int, Field(strict=True, ge=1, le=PER_MONTH)]
Ends = Annotated[Moment, Field(description="When it ends, with a time zone.")]


class RightsBody(Strict):
    """What a key may use and spend; a limit that is null or left out is none."""

    adapters: Names | None = Field(
        None, description="Aliases, versions, adapters and bases that it may use; null: all."
    )
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrent: Count | None = None
    monthly_tokens: Many | None = Field(None, description="In a month of UTC.")
    expires_at: Ends | None = None


class NewKeyBody(RightsBody):
    """A key to be made."""

    name: str = Field(max_length=64, pattern=f"^{NAME.pattern}$", description="No other active key has it.")
    tenant: str = Field("", max_length=64, description="Whom it belongs to.")
    scopes: Scopes = Field(["inference"])


class KeyChange(RightsBody):
    """What is to change; what is left out stays as it is."""

    scopes: Scopes | None = Field(None, description="Null leaves them as they are, too.")


class KeyView(BaseModel):
    """A key, without its secret."""

    id: int
    name: str
    tenant: str
    prefix: str = Field(description="How its secret begins.")
    state: Literal["active", "expired", "revoked"]
    scopes: list[str]
    adapters: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    monthly_tokens: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyWithSecret(KeyView):
    """A key that was just made; nobody is told its secret again."""

    secret: str


class KeyList(BaseModel):
    """Keys by number."""

    keys: list[KeyView]


@router.get("", responses=reading(), summary="List keys")
def list_keys(
    here: Here,
    caller: AdminCaller,
    revoked: Annotated[bool, Query(description="Those that were revoked, too.")] = False,
) -> KeyList:
    """The keys that have no more names than the caller's own."""
    found = here.registry.keys(revoked=revoked)
    return KeyList(keys=[view(key) for key in found if _sees(caller, key)])


@router.get("/{key}", responses=reading(404), summary="Show a key")
def show_key(key: Which, here: Here, caller: AdminCaller) -> KeyView:
    """One key that is not revoked."""
    return view(_key(here.registry, caller, key))


@router.post("", status_code=201, responses=writing(409), summary="Create a key")
def create_key(
    body: NewKeyBody, request: Request, response: Response, here: Here, caller: AdminCaller
) -> KeyWithSecret:
    """Make a key that can do no more than the caller; its secret is in this answer and nowhere else."""
    response.headers["cache-control"] = "no-store"
    adapters = tuple(dict.fromkeys(body.adapters)) if body.adapters is not None else None
    limits = {limit: getattr(body, limit) for limit in LIMITS}
    rights = Rights(tuple(dict.fromkeys(body.scopes)), adapters, expires_at=body.expires_at, **limits)
    _check(here, caller, request, rights)
    new = here.registry.create_key(body.name, rights, tenant=body.tenant)
    note(caller, f"created the key {new.key.name} (number {new.key.id})")
    response.headers["location"] = f"/api/keys/{new.key.id}"
    return KeyWithSecret(**view(new.key).model_dump(), secret=new.secret)


@router.patch("/{key}", responses=writing(404, 409), summary="Change a key")
def change_key(key: Which, body: KeyChange, request: Request, here: Here, caller: AdminCaller) -> KeyView:
    """Change rights of a key, at once and without a restart; it can get no more than the caller has."""
    found = _key(here.registry, caller, key)
    rights = _changed(found.rights, body)
    _check(here, caller, request, rights)
    at = datetime.now(UTC)
    if "admin" not in rights.scopes or not (rights.expires_at is None or at < rights.expires_at):
        _keep_an_admin(here, found)
    changed = here.registry.update_key(found.id, rights)
    note(caller, f"changed the key {changed.name} (number {changed.id})")
    return view(changed)


@router.delete("/{key}", responses=reading(404, 409), summary="Revoke a key")
def revoke_key(key: Which, here: Here, caller: AdminCaller) -> KeyView:
    """End a key for good, at once and without a restart; what it used stays counted."""
    found = _key(here.registry, caller, key)
    _keep_an_admin(here, found)
    revoked = here.registry.revoke_key(found.id)
    note(caller, f"revoked the key {revoked.name} (number {revoked.id})")
    return view(revoked)


def _changed(rights: Rights, body: KeyChange) -> Rights:
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    for name in ("scopes", "adapters"):
        if given.get(name) is not None:
            given[name] = tuple(dict.fromkeys(given[name]))
    if given.get("scopes", ()) is None:
        del given["scopes"]
    return Rights(**{**vars(rights), **given})


def _check(here: Management, caller: Caller, request: Request, rights: Rights) -> None:
    """Raise where a key would get what its maker lacks, be it a scope, a name or a limit."""
    rights.check()
    for scope in rights.scopes:
        here.authorise(request, scope)  # type: ignore[arg-type]
    check_rights(caller, rights)


def _sees(caller: Caller, key: ApiKey) -> bool:
    return caller.key is None or covers(caller.key.rights, key.rights.adapters)


def _key(registry: Registry, caller: Caller, text: str) -> ApiKey:
    try:
        found = registry.key(text)
    except KeyNotFound:
        found = None
    if found is None or not _sees(caller, found):
        raise KeyNotFound(f"there is no key {text}", "GET /api/keys lists what there is")
    return found


def _keep_an_admin(here: Management, key: ApiKey) -> None:
    """Raise Conflict if nobody could manage keys over HTTP any more without this one."""
    at = datetime.now(UTC)
    keys = [each for each in here.registry.keys(revoked=False) if each.active(at)]
    admins = {each.id for each in keys if "admin" in each.rights.scopes}
    if admins == {key.id}:
        raise Conflict(
            f"{key.name} is the last key with the scope admin",
            "create another first, or use `tenon keys revoke` on the gateway's machine",
        )


def view(key: ApiKey) -> KeyView:
    """What is told of a key."""
    rights = key.rights
    state: Literal["active", "expired", "revoked"] = "active" if key.active(datetime.now(UTC)) else "expired"
    return KeyView(
        id=key.id,
        name=key.name,
        tenant=key.tenant,
        prefix=key.prefix,
        state="revoked" if key.revoked_at is not None else state,
        scopes=list(rights.scopes),
        adapters=list(rights.adapters) if rights.adapters is not None else None,
        created_at=key.created_at,
        expires_at=rights.expires_at,
        revoked_at=key.revoked_at,
        **{limit: getattr(rights, limit) for limit in LIMITS},
    )
