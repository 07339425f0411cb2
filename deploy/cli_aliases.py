"""``tenon aliases list | show | remove``; ``tenon deploy`` sets them."""

from typing import Annotated, Any

import typer
from rich.table import Table

from deploy.cli_stack import Json, registry_of, settings_of
from deploy.console import console, for_scripts, print_json, step
from deploy.weights import shares_of
from serve.errors import NotFound
from serve.names import check_name, targets_text
from serve.registry import Alias, AliasChange, Registry

app = typer.Typer(
    help="List, inspect and remove the names that clients use; `tenon deploy` gives them.",
    no_args_is_help=True,
    epilog="Examples: tenon aliases list · tenon aliases show support",
)

Name = Annotated[str, typer.Argument(help="Name of the alias.")]


@app.command("list", epilog="Example: tenon aliases list --json")
def list_aliases(context: typer.Context, as_json: Json = False) -> None:
    """List the aliases and what they mean."""
    with registry_of(context) as registry:
        rows = [row_of(alias) for alias in registry.aliases()]
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print("No aliases yet: `tenon deploy NAME@vN` gives a version a name for clients.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("alias", "means", "before", "verdict", "changed"):
        table.add_column(column)
    for row in rows:
        shares = [f"{ref} ({share})" for ref, share in row["shares"].items()] or [row["version"]]
        forced = " (forced)" * row["forced"]
        table.add_row(
            row["alias"],
            ", ".join(shares),
            row["previous"] or "",
            f"{row['verdict'] or ''}{forced}",
            f"{row['changed_at']:%Y-%m-%d %H:%M}",
        )
    console.print(table)


@app.command(epilog="Example: tenon aliases show support")
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Show an alias, or one that was removed: what it means and who changed it when."""
    with registry_of(context) as registry:
        alias, history = registry.alias(check_name(name)), registry.history(name)
    if alias is None and not history:
        raise NotFound(f"there is no alias {name}", "tenon aliases list shows what there is")
    if as_json:
        row = row_of(alias) if alias is not None else {"alias": name, "version": None}
        print_json({**row, "history": [change_row(change) for change in history]})
        return
    console.print(f"{name} means {alias.meaning if alias is not None else 'nothing any more'}.")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("changed", "to", "by", "verdict"):
        table.add_column(column)
    for change in history:
        when, verdict = f"{change.changed_at:%Y-%m-%d %H:%M}", "" if change.removed else change.verdict
        table.add_row(when, change_text(change), change.by, verdict or "")
    console.print(table)


@app.command(epilog="Example: tenon aliases remove support")
def remove(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Take a name away: requests for it get a 404. Its versions stay registered, and keys that name it stay."""
    from deploy.serving import remove_alias

    for_scripts(as_json)
    settings = settings_of(context)
    with Registry.of(settings) as registry, step("remove") as current:
        removed = remove_alias(registry, settings, check_name(name))
        current.result = f"alias {removed.name}, which meant {removed.meaning}"
    if as_json:
        print_json({"removed": removed.name, "version": str(removed.target.ref)})


def row_of(alias: Alias) -> dict[str, Any]:
    """What a list says of an alias."""
    return {
        "alias": alias.name,
        "version": str(alias.target.ref),
        "weights": {str(version.ref): weight for version, weight in alias.targets},
        "shares": {str(ref): share for ref, share in shares_of(alias).items()},
        "previous": str(alias.previous) if alias.previous else None,
        "sampling": dict(alias.sampling),
        "verdict": alias.verdict,
        "forced": alias.forced,
        "changed_at": alias.changed_at,
    }


def change_row(change: AliasChange) -> dict[str, Any]:
    """One entry of an alias's history for a script to read."""
    return {
        "version": None if change.removed else str(change.target),
        "weights": {str(ref): weight for ref, weight in change.targets},
        "sampling": dict(change.sampling),
        "verdict": change.verdict,
        "forced": change.forced,
        "removed": change.removed,
        "by": change.by,
        "changed_at": change.changed_at,
    }


def change_text(change: AliasChange) -> str:
    """What an alias was changed to."""
    if change.removed:
        return f"nothing (removed by {change.by})"
    return targets_text(change.targets) + (" (forced)" if change.forced else "")
