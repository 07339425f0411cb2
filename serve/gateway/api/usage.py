"""``/api/usage``: who used what, in tokens and in money."""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from serve.costs import amounts_by, total_of
from serve.errors import BadRequest, ConfigError, Unavailable
from serve.gateway.api.access import Caller, may
from serve.gateway.api.answers import Day, reading
from serve.gateway.api.management import NEEDS_KEY, Here, Management
from serve.prices import Prices
from serve.registry import ApiKey, UsageSum
from serve.registry.keys import Scope
from serve.registry.usage import UsageField, today

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/usage", tags=["usage"], dependencies=[NEEDS_KEY])


class By(StrEnum):
    """What usage is summed by."""

    KEY = "key"
    ADAPTER = "adapter"
    VERSION = "version"
    DAY = "day"


FIELDS: Mapping[By, UsageField] = {
    By.KEY: "key_id",
    By.ADAPTER: "adapter",
    By.VERSION: "version",
    By.DAY: "day",
}


class Amount(BaseModel):
    """What was used, and what it costs by the prices of now; 0 where there are none."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    engine_seconds: float = Field(description="Share of an engine's time.")
    cost: float


class UsageRow(Amount):
    """One row; what it is not summed by is null."""

    key: int | None = Field(description="Number of the key; 0 for requests without one.")
    name: str | None = Field(description="Name of the key.")
    tenant: str | None
    adapter: str | None
    version: str | None
    day: date | None


class UsageAnswer(BaseModel):
    """Usage from the day ``since`` to the day before ``until``."""

    since: date
    until: date | None
    by: list[By]
    currency: str
    rows: list[UsageRow]
    total: Amount


def any_key(request: Request, here: Here) -> Caller:
    """The caller, whatever scope its key has."""
    scopes: tuple[Scope, ...] = ("inference", "adapters", "admin")
    scope = next((each for each in scopes if may(here.authorise, request, each)), scopes[0])
    return here.authorise(request, scope)


@router.get("", responses=reading(), summary="Tell usage")
def tell_usage(
    request: Request,
    here: Here,
    since: Annotated[Day | None, Query(description="A day of UTC, such as 2026-11-01.")] = None,
    until: Annotated[Day | None, Query(description="The day after the last one.")] = None,
    by: Annotated[list[By] | None, Query(max_length=4, description="Default: key.")] = None,
) -> UsageAnswer:
    """What was used; of this month unless ``since`` says otherwise.

    A key without the scope admin sees its own use alone.
    """
    caller = any_key(request, here)
    first = since if since is not None else today().replace(day=1)
    if until is not None and until <= first:
        raise BadRequest("until: must be after since", param="until")
    chosen = list(dict.fromkeys(by or [By.KEY]))
    fields = [FIELDS[each] for each in chosen]
    told: list[UsageField] = [*fields, "key_id", "adapter"]
    sums = here.registry.usage(first, until, by=list(dict.fromkeys(told)))
    admin = may(here.authorise, request, "admin")
    seen = [used for used in sums if _visible(used, caller, admin)]
    keys = {key.id: key for key in here.registry.keys(revoked=True)}
    prices = _prices(here)
    amounts = amounts_by(fields, seen, prices)
    return UsageAnswer(
        since=first,
        until=until,
        by=chosen,
        currency=prices.currency,
        rows=[UsageRow(**_who(fields, place, keys), **amount) for place, amount in amounts.items()],
        total=Amount(**total_of(amounts.values())),
    )


def _visible(used: UsageSum, caller: Caller, admin: bool) -> bool:
    if caller.key is None:
        return True
    return used.key_id == caller.key.id or (admin and caller.allows(str(used.adapter)))


def _prices(here: Management) -> Prices:
    # Read each time: a table of prices is small, and changes without a restart.
    try:
        return Prices.load(here.settings.prices)
    except ConfigError as error:
        logger.error("%s (%s)", error.message, error.hint)
        raise Unavailable("the prices cannot be read", "see the gateway's log") from None


def _who(fields: Sequence[UsageField], place: tuple[Any, ...], keys: Mapping[int, ApiKey]) -> dict[str, Any]:
    known: dict[str, Any] = dict(zip(fields, place, strict=True))
    key = keys.get(known.get("key_id") or 0)
    return {
        "key": known.get("key_id"),
        "name": key.name if key is not None else None,
        "tenant": key.tenant if key is not None else None,
        "adapter": known.get("adapter"),
        "version": known.get("version"),
        "day": known.get("day"),
    }
