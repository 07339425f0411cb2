"""``tenon keys create | list | revoke``."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy.cli_stack import Json, registry_of
from deploy.console import console, note, print_json
from serve.registry import ApiKey, Rights

app = typer.Typer(
    help="Create, list and revoke API keys.",
    no_args_is_help=True,
    epilog="Examples: tenon keys create shop · tenon keys list · tenon keys revoke shop",
)


def limit(what: str) -> Any:
    """An option for a limit."""
    return typer.Option(min=1, help=f"{what}; unlimited if absent.")


@app.command(
    epilog="Examples: tenon keys create shop · "
    "tenon keys create shop --adapter support --requests-per-minute 60 --monthly-tokens 5000000 --days 90 · "
    "tenon keys create ops --scope admin --scope inference"
)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name that no other active key has.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="inference, adapters or admin.", show_default="inference")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="What it may ask: NAME or NAME@vN.", show_default="all")
    ] = None,
    requests_per_minute: Annotated[int | None, limit("Requests per minute")] = None,
    tokens_per_minute: Annotated[int | None, limit("Tokens per minute, of prompts and answers")] = None,
    max_concurrent: Annotated[int | None, limit("Requests at the same time")] = None,
    monthly_tokens: Annotated[int | None, limit("Tokens in a month of UTC")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36500, help="End it after so many days.")] = None,
    tenant: Annotated[str, typer.Option(help="Whom it belongs to.")] = "",
    as_json: Json = False,
) -> None:
    """Create a key and print its secret, which cannot be seen again."""
    rights = Rights(
        scopes=tuple(dict.fromkeys(scope or ["inference"])),
        adapters=tuple(dict.fromkeys(adapter)) if adapter else None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        monthly_tokens=monthly_tokens,
        expires_at=datetime.now(UTC) + timedelta(days=days) if days is not None else None,
    )
    with registry_of(context) as registry:
        new = registry.create_key(name, rights, tenant=tenant)
    if as_json:
        print_json({**row_of(new.key), "secret": new.secret})
        return
    console.print(f"Created the key {new.key.name} (number {new.key.id}). Its secret, shown this once:\n")
    console.print(new.secret, soft_wrap=True)
    console.print()
    note("clients send it as OPENAI_API_KEY, or in the header `Authorization: Bearer …`")
    note("from its first key on, the gateway asks every request for one; no restart is needed")


@app.command("list", epilog="Examples: tenon keys list · tenon keys list --all --json")
def list_keys(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Those that were revoked, too.")] = False,
    as_json: Json = False,
) -> None:
    """List the keys, without their secrets."""
    with registry_of(context) as registry:
        rows = [row_of(key) for key in registry.keys(revoked=everything)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print("No keys yet: create one with `tenon keys create NAME`.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("key", "name", "tenant", "begins", "state", "scopes", "adapters", "limits", "ends"):
        table.add_column(column)
    for row in rows:
        limits = ", ".join(f"{value:,} {what}" for what, value in row["limits"].items() if value is not None)
        table.add_row(
            str(row["id"]),
            row["name"],
            row["tenant"],
            f"{row['prefix']}…",
            row["state"],
            ", ".join(row["scopes"]),
            ", ".join(row["adapters"]) if row["adapters"] is not None else "all",
            limits.replace("_", " ") or "none",
            f"{row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "never",
        )
    console.print(table)


@app.command(epilog="Example: tenon keys revoke shop")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Name or number of the key.")],
    as_json: Json = False,
) -> None:
    """End a key for good, at once and without a restart."""
    with registry_of(context) as registry:
        revoked = registry.revoke_key(key)
        others = registry.keys()
    if as_json:
        print_json(row_of(revoked))
    else:
        console.print(f"Revoked the key {revoked.name} (number {revoked.id}).")
        if not any(other.active(datetime.now(UTC)) for other in others):
            note(
                "no key is left: the gateway goes on asking for one, and only this machine's commands have it"
            )


def row_of(key: ApiKey) -> dict[str, Any]:
    """What a list says of a key: all but its secret, and the hash of that."""
    rights = key.rights
    state = "active" if key.active(datetime.now(UTC)) else "revoked" if key.revoked_at else "expired"
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "prefix": key.prefix,
        "state": state,
        "scopes": rights.scopes,
        "adapters": rights.adapters,
        "limits": {
            "requests_per_minute": rights.requests_per_minute,
            "tokens_per_minute": rights.tokens_per_minute,
            "max_concurrent": rights.max_concurrent,
            "monthly_tokens": rights.monthly_tokens,
        },
        "created_at": key.created_at,
        "expires_at": rights.expires_at,
        "revoked_at": key.revoked_at,
    }
