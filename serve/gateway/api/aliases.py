"""``/api/aliases``: which versions answer under which name, and the way back."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, JsonValue
from starlette.concurrency import run_in_threadpool

from serve.errors import BadRequest, NotFound
from serve.gateway.api import loading
from serve.gateway.api.access import Caller, check_name_allowed, name_of, version_for
from serve.gateway.api.alias_answers import AliasDetails, AliasList, AliasView, Pending, details, view
from serve.gateway.api.answers import Strict, reading, writing
from serve.gateway.api.management import NEEDS_KEY, AdaptersCaller, Here, Management, note
from serve.gateway.api.moves import Move, planned, put, way_back
from serve.gateway.policy import SamplingPolicy
from serve.gateway.presets import find_preset
from serve.names import NAME
from serve.registry import Alias, Version
from serve.registry.aliases import MOST_WEIGHT
from serve.registry.wants import holder_for

MOST_TARGETS = 16
LONGEST_WAIT = 300.0
USUAL_WAIT = 30.0

router = APIRouter(prefix="/api/aliases", tags=["aliases"], dependencies=[NEEDS_KEY])

AliasName = Annotated[
    str,
    Path(description="Name of the alias.", pattern=f"^{NAME.pattern}$", max_length=64, examples=["support"]),
]
Wait = Annotated[
    float,
    Field(
        strict=True,
        ge=0,
        le=LONGEST_WAIT,
        description="Seconds to wait until an engine has loaded the versions.",
    ),
]


class Sampling(Strict):
    """What an alias makes of a request's sampling; see docs/serving.md."""

    defaults: dict[str, JsonValue] = Field({}, description="For fields that a request leaves out.")
    min: dict[str, JsonValue] = Field({}, description="Lowest values that a request may ask for.")
    max: dict[str, JsonValue] = Field({}, description="Highest values that a request may ask for.")
    force: dict[str, JsonValue] = Field({}, description="Values that no request can change.")
    preset: str | None = Field(None, max_length=64, description="Preset that the defaults begin with.")


class NewTargets(Strict):
    """What an alias is to mean: either one ``target`` or several ``targets`` with weights."""

    target: str | None = Field(None, max_length=80, description="NAME@vN", examples=["support@v1"])
    targets: dict[str, Annotated[int, Field(strict=True, ge=0, le=MOST_WEIGHT)]] | None = Field(
        None, min_length=1, max_length=MOST_TARGETS, description="NAME@vN → weight, not all zero."
    )
    sampling: Sampling | None = Field(None, description="Replaces the alias's; without it, that stays.")
    force: bool = Field(
        False, strict=True, description="Overrule the gate; needs the scope admin and is recorded."
    )
    wait: Wait = USUAL_WAIT


class WayBack(Strict):
    """How long to wait."""

    wait: Wait = USUAL_WAIT


@router.get("", responses=reading(), summary="List aliases")
def list_aliases(here: Here, caller: AdaptersCaller) -> AliasList:
    """The aliases that the key may use."""
    return AliasList(aliases=[view(each) for each in here.registry.aliases() if caller.allows(each.name)])


@router.get("/{name}", responses=reading(404), summary="Show an alias")
def show_alias(name: AliasName, here: Here, caller: AdaptersCaller) -> AliasDetails:
    """One alias with every change of it, oldest first."""
    return details(_alias(here, caller, name), here.registry.history(name))


@router.put(
    "/{name}",
    responses={**writing(404, 409), 202: {"model": Pending, "description": "Nothing has changed yet."}},
    summary="Set an alias",
)
async def set_alias(
    name: AliasName,
    body: NewTargets,
    request: Request,
    response: Response,
    here: Here,
    caller: AdaptersCaller,
) -> AliasView | Pending:
    """Let an alias mean a version, or several with weights, that the gate lets answer users.

    Versions that no engine has ready are loaded first. Where that takes longer than ``wait`` seconds the answer is 202
    and the alias is as it was; the versions stay wanted for ten minutes, so send the same again.
    """
    check_name_allowed(caller, name)
    if body.force:
        await run_in_threadpool(here.authorise, request, "admin")
    sampling = _sampling(here, body.sampling)
    chosen = await run_in_threadpool(_versions, here, caller, body)
    move = Move(name, chosen, sampling, name_of(caller), force=body.force)
    await run_in_threadpool(planned, here.registry, move)
    return await _done(here, caller, move, body.wait, response)


@router.post(
    "/{name}/rollback",
    responses={**writing(404, 409), 202: {"model": Pending, "description": "Nothing has changed yet."}},
    summary="Roll an alias back",
)
async def roll_back(
    name: AliasName, response: Response, here: Here, caller: AdaptersCaller, body: WayBack | None = None
) -> AliasView | Pending:
    """Let an alias mean the version again that it meant before, which stayed loaded; the gate is not asked.

    An alias that is split goes back to the version that last had it alone.
    """
    alias = await run_in_threadpool(_alias, here, caller, name)
    version = await run_in_threadpool(way_back, here.registry, alias)
    move = Move(name, [(version, 1)], None, name_of(caller), back=True)
    return await _done(here, caller, move, body.wait if body is not None else USUAL_WAIT, response)


@router.delete("/{name}", status_code=204, responses=reading(404), summary="Remove an alias")
async def remove_alias(name: AliasName, here: Here, caller: AdaptersCaller) -> None:
    """Let a name mean nothing any more; its versions stay registered, keys that name it stay as they are.

    Requests that run are finished, new ones for the name are answered 404.
    """
    await run_in_threadpool(_alias, here, caller, name)
    alias = await run_in_threadpool(here.registry.remove_alias, name, by=name_of(caller))
    note(caller, f"removed the alias {alias.name}, which meant {alias.meaning}")
    await loading.routed(here)


async def _done(
    here: Management, caller: Caller, move: Move, wait: float, response: Response
) -> AliasView | Pending:
    """Make a move once its versions are loaded; otherwise say what is missing."""
    refs = [version.ref for version, weight in move.targets]
    missing = await loading.loaded(here, refs, holder_for(move.alias), wait)
    if missing:
        response.status_code = 202
        return Pending.of(move.alias, missing)
    alias = await run_in_threadpool(put, here.registry, move)
    note(caller, f"pointed {alias.name} at {alias.meaning}" + (" (forced)" if alias.forced else ""))
    await loading.routed(here)
    return view(alias)


def _alias(here: Management, caller: Caller, name: str) -> Alias:
    alias = here.registry.alias(name) if caller.allows(name) else None
    if alias is None:
        raise NotFound(f"there is no alias {name}", "GET /api/aliases lists what there is")
    return alias


def _versions(here: Management, caller: Caller, body: NewTargets) -> Sequence[tuple[Version, int]]:
    if (body.target is None) == (body.targets is None):
        raise BadRequest("either target or targets is needed", "give one of the two", param="target")
    given = body.targets if body.targets is not None else {str(body.target): 1}
    return [(version_for(here.registry, caller, text), weight) for text, weight in given.items()]


def _sampling(here: Management, given: Sampling | None) -> dict[str, Any] | None:
    if given is None:
        return None
    parts = given.model_dump()
    if given.preset is not None:
        parts["defaults"] = {**find_preset(here.rules.presets, given.preset), **given.defaults}
    return SamplingPolicy.parse(parts).stored()
