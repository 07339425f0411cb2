"""``/api/adapters``: versions, where they are loaded, and how new ones come in."""

import logging
import shlex
from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from serve.errors import BaseModelError, NotFound, Unavailable, VersionInUse
from serve.gateway.api.access import Caller, check_name_allowed, name_of, version_for
from serve.gateway.api.answers import Strict, reading, writing
from serve.gateway.api.engines import records_of
from serve.gateway.api.management import NEEDS_KEY, AdaptersCaller, Here, Management, note
from serve.gateway.api.sources import LONGEST, remote_source
from serve.names import NAME, check_name
from serve.registry import Alias, Lineage, LoadState, Version
from serve.registry.base import BaseIdentity, identify_base
from serve.registry.records import LoadStateName
from serve.registry.serving import Serving
from serve.registry.sources import Limits, fetched

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/adapters", tags=["adapters"], dependencies=[NEEDS_KEY])

REF = rf"^{NAME.pattern}@v[1-9][0-9]{{0,8}}$"
Ref = Annotated[str, Path(description="NAME@vN", pattern=REF, examples=["support@v1"])]


class NewAdapter(Strict):
    """Where an adapter is, and what it is to be called."""

    source: str = Field(
        min_length=1,
        max_length=LONGEST,
        description="Hub id (org/name, hf://org/name@revision), s3:// or gs:// prefix, or http(s) URL of a folder.",
    )
    name: str | None = Field(
        None,
        max_length=64,
        pattern=f"^{NAME.pattern}$",
        description="Name of the adapter; default: the source's.",
    )
    base: str | None = Field(
        None, max_length=64, description="Name of the served base that it was made for; default: the first."
    )


class EngineState(BaseModel):
    """What one engine says of a version; ``reason`` are its own words where it failed."""

    engine: str
    state: LoadStateName
    reason: str
    load_seconds: float | None
    changed_at: datetime


class AdapterVersion(BaseModel):
    """One immutable version: what it is, which aliases mean it, and where it is loaded."""

    version: str
    name: str
    digest: str
    base: str
    rank: int
    bytes: int
    verdict: str | None = Field(description="Of its latest evaluation.")
    aliases: list[str]
    engines: list[EngineState]
    created_at: datetime


class AdapterDetails(AdapterVersion):
    """A version with its lineage."""

    engine_name: str
    base_digest: str
    alpha: float
    parameters: int
    target_modules: list[str]
    all_zero: bool = Field(description="It answers exactly as the base.")
    warnings: list[str]
    source: str = Field(
        description="URL with its revision or etags; `run` or `folder` for what came from this machine."
    )
    run: str | None
    data_fingerprint: str | None
    registered_by: str | None = Field(description="Name of the API key that registered it.")
    verdicts: list[str] = Field(description="Of all its evaluations, oldest first.")


class AdapterList(BaseModel):
    """Versions by name and number."""

    adapters: list[AdapterVersion]


@router.get("", responses=reading(), summary="List adapter versions")
def list_adapters(here: Here, caller: AdaptersCaller) -> AdapterList:
    """The versions that the key may use, with their aliases and their state on each engine."""
    found = [version for version in here.registry.versions() if caller.allows(str(version.ref))]
    aliases, loaded = here.registry.aliases(), here.registry.loaded()
    return AdapterList(adapters=[_summary(here, caller, each, aliases, loaded) for each in found])


@router.get("/{version}", responses=reading(404), summary="Show a version")
def show_adapter(version: Ref, here: Here, caller: AdaptersCaller) -> AdapterDetails:
    """One version, with its lineage and verdicts."""
    return _details(here, caller, version_for(here.registry, caller, version))


@router.post("", status_code=201, responses=writing(404, 409), summary="Register an adapter")
def add_adapter(body: NewAdapter, response: Response, here: Here, caller: AdaptersCaller) -> AdapterDetails:
    """Fetch an adapter, check it against the base, and register it as the next version of its name.

    It answers when that is done. The gateway fetches with its own credentials. Two at once are taken, a third is told
    to try again; callers who ask for the same source at once share one download.
    """
    if body.name is not None:
        check_name_allowed(caller, body.name)
    where = remote_source(body.source, here.settings.api_adapter_folder)
    name = check_name(body.name if body.name is not None else where.name)
    check_name_allowed(caller, name)
    with here.place():
        base = _base(here, body.base)
        with fetched(where, here.settings.home, Limits.of(here.settings)) as arrived:
            lineage = Lineage(source=arrived.origin, by=name_of(caller))
            rank = here.settings.max_lora_rank
            version = here.registry.register(
                arrived.folder, name, base, max_rank=rank, lineage=lineage, remote=True
            )
    note(caller, f"registered {version.ref} from {where.shown}")
    response.headers["location"] = f"/api/adapters/{version.ref}"
    return _details(here, caller, version)


@router.delete("/{version}", status_code=204, responses=reading(404, 409), summary="Remove a version")
def remove_adapter(version: Ref, here: Here, caller: AdaptersCaller) -> None:
    """Remove a version; refused while an alias means it or would roll back to it."""
    found = version_for(here.registry, caller, version)
    try:
        here.registry.remove(found.ref)
    except VersionInUse as error:
        if all(caller.allows(alias.name) for alias in here.registry.aliases()):
            raise
        raise VersionInUse(
            f"{found.ref} cannot be removed: an alias means it or would roll back to it", error.hint
        ) from None
    note(caller, f"removed {found.ref}")


def _base(here: Management, name: str | None) -> BaseIdentity:
    """A base that engines here serve, by its name, or that of the settings; no caller names its folder."""
    try:
        if name is None:
            return identify_base(here.settings.model, shlex.split(here.settings.engine_args))
        records = [record for record in records_of(here).values() if record["base_name"] == name]
        places = [record for record in records if record.get("base_path")]
        if not places:
            raise NotFound(f"no base {name[:64]} is served here", "GET /api/engines lists them")
        # A hub's base lies in a folder that is not called as it is.
        found = identify_base(str(places[0]["base_path"]))
        return replace(found, name=name, serving=Serving.of_json(places[0].get("serving")))
    except BaseModelError as error:
        logger.error("the base cannot be read: %s (%s)", error.message, error.hint)
        raise Unavailable("the gateway cannot read its base now", "see the gateway's log") from None


def states_of(version: Version, loaded: list[LoadState]) -> list[EngineState]:
    """What each engine says of a version; the place of its files is not for HTTP."""
    return [
        EngineState(
            engine=row.engine,
            state=row.state,
            reason=row.reason.replace(str(version.path), version.engine_name),
            load_seconds=row.load_seconds,
            changed_at=row.changed_at,
        )
        for row in loaded
        if row.ref == version.ref
    ]


def _summary(
    here: Management, caller: Caller, version: Version, aliases: list[Alias], loaded: list[LoadState]
) -> AdapterVersion:
    verdicts = [record.verdict for record in here.registry.evaluations(version.ref)]
    return AdapterVersion(
        version=str(version.ref),
        name=version.ref.name,
        digest=version.digest,
        base=version.base_name,
        rank=version.facts.rank,
        bytes=version.facts.bytes,
        verdict=verdicts[-1] if verdicts else None,
        aliases=[each.name for each in aliases if version.ref in each.refs and caller.allows(each.name)],
        engines=states_of(version, loaded),
        created_at=version.created_at,
    )


def _details(here: Management, caller: Caller, version: Version) -> AdapterDetails:
    summary = _summary(here, caller, version, here.registry.aliases(), here.registry.loaded())
    facts, lineage = version.facts, version.lineage
    return AdapterDetails(
        **summary.model_dump(),
        engine_name=version.engine_name,
        base_digest=version.base_digest,
        alpha=facts.alpha,
        parameters=facts.parameters,
        target_modules=list(facts.target_modules),
        all_zero=facts.all_zero,
        warnings=list(facts.warnings),
        source=lineage.source if lineage.source == "run" or "://" in lineage.source else "folder",
        run=lineage.run,
        data_fingerprint=lineage.data_fingerprint,
        registered_by=lineage.by,
        verdicts=[record.verdict for record in here.registry.evaluations(version.ref)],
    )
