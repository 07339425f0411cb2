"""``tenon adapters list | show | add | verify | remove | gc``."""

import difflib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from deploy.cli_aliases import change_text
from deploy.cli_stack import Json, Model, registry_of, settings_of
from deploy.console import console, note, print_json, state_text, step
from deploy.fleet import engine_args
from deploy.weights import shares_of
from serve.engine.state import forget_answers
from serve.errors import InputError, NotFound
from serve.names import VERSION, check_name, parse_version
from serve.registry import Lineage, Registry, Version
from serve.registry.base import identify_base
from serve.registry.garbage import KEEP, ROLLBACKS
from serve.registry.sources import Fetched, Limits, Source, fetched, parse_source

app = typer.Typer(
    help="List, inspect, add, verify and remove adapter versions, and collect what nothing needs.",
    no_args_is_help=True,
    epilog="Examples: tenon adapters add ./my-lora --name support · tenon adapters list · tenon adapters gc --dry-run",
)

Ref = Annotated[str, typer.Argument(help="NAME@vN")]
FIRST = "run `make train-and-deploy`, or `tenon adapters add SOURCE --name NAME`"


@app.command("list", epilog="Example: tenon adapters list --json")
def list_versions(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Only the versions of this adapter.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered versions."""
    with registry_of(context) as registry:
        rows = [summary(registry, version) for version in versions_of(registry, name)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print(f"No adapters yet: {FIRST}.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("version", "aliases", "state", "verdict", "rank", "MiB", "base", "created"):
        table.add_column(column)
    for row in rows:
        size, state = f"{row['bytes'] / 2**20:.1f}", state_text(row["state"])
        shares, verdict = row["shares"], row["verdict"] or ""
        names = ", ".join(f"{name} ({shares[name]})" if name in shares else name for name in row["aliases"])
        table.add_row(
            row["version"], names, state, verdict, str(row["rank"]), size, row["base"], row["created"]
        )
    console.print(table)


def versions_of(registry: Registry, name: str | None) -> list[Version]:
    """All versions, or those of one adapter; raises NotFound where there is no such adapter."""
    found = registry.versions(name)
    if found or name is None:
        return found
    if VERSION.fullmatch(name):
        raise InputError(f"{name} is one version, not an adapter", f"see `tenon adapters show {name}`")
    known = sorted({version.ref.name for version in registry.versions()})
    near = difflib.get_close_matches(name, known, 3) or known[:5]
    raise NotFound(f"no adapter {name!r} is registered", f"there are {', '.join(near)}" if near else FIRST)


@app.command(epilog="Example: tenon adapters show support@v1")
def show(context: typer.Context, version: Ref, as_json: Json = False) -> None:
    """Show a version: files, lineage, evaluations."""
    with registry_of(context) as registry:
        found = registry.version(parse_version(version))
        content = {
            **summary(registry, found),
            "digest": found.digest,
            "path": str(found.path),
            "engine_name": found.engine_name,
            "base_digest": found.base_digest,
            "target_modules": list(found.facts.target_modules),
            "parameters": found.facts.parameters,
            "alpha": found.facts.alpha,
            "all_zero": found.facts.all_zero,
            "source": found.lineage.source,
            "run": found.lineage.run,
            "data_fingerprint": found.lineage.data_fingerprint,
            "recipe": found.lineage.recipe,
            "warnings": list(found.facts.warnings),
            "evaluations": [
                f"{record.created_at:%Y-%m-%d %H:%M} {record.verdict}, {record.report}"
                for record in registry.evaluations(found.ref)
            ],
            "history": [
                f"{change.changed_at:%Y-%m-%d %H:%M} {change.alias} → {change_text(change)}"
                for change in sorted(registry.history(), key=lambda change: change.alias)
                if found.ref in change.refs
            ],
        }
    if as_json:
        print_json(content)
        return
    content["shares"] = [f"{name} {share}" for name, share in content["shares"].items()]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in content.items():
        text = "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
        table.add_row(Text(key.replace("_", " "), "dim"), text)
    console.print(table)


@app.command(
    epilog="Examples: tenon adapters add ./my-lora --name support · tenon adapters add hf://org/name@v1.0 · "
    "tenon adapters add s3://bucket/my-lora · tenon adapters add https://example.org/my-lora/"
)
def add(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="PEFT folder, hub id (org/name, hf://org/name@revision), s3:// or gs:// prefix, http(s) folder."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the adapter; default: the source's.")] = None,
    model: Model = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts", help="Let an http(s) source be on this machine or in a private network."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch an adapter, check it against the base and register it as the next version.

    Of the source only adapter_config.json and adapter_model.safetensors are read.
    """
    settings = settings_of(context, model=model)
    where = parse_source(source)
    chosen = check_name(name if name is not None else where.name)
    base = identify_base(settings.model, engine_args(settings))
    limits = Limits.of(settings, allow_private=allow_private_hosts)
    with registry_of(context) as registry, _arrived(where, settings.home, limits) as arrived:
        lineage = Lineage(source=arrived.origin)
        version = registry.register(
            arrived.folder, chosen, base, max_rank=settings.max_lora_rank, lineage=lineage
        )
    if as_json:
        content = {
            "version": str(version.ref),
            "digest": version.digest,
            "source": version.lineage.source,
            "warnings": list(version.facts.warnings),
        }
        print_json(content)
        return
    console.print(f"Registered {version.ref} (rank {version.facts.rank}, digest {version.digest[:12]}).")
    if version.facts.all_zero:
        note("all its weights are zero: it answers exactly as the base", "yellow")
    for warning in version.facts.warnings:
        note(warning, "yellow")


@app.command(epilog="Example: tenon adapters verify support@v1")
def verify(context: typer.Context, version: Ref, as_json: Json = False) -> None:
    """Read a version's files again: their digest and content must be what was registered."""
    with registry_of(context) as registry:
        found = registry.version(parse_version(version))
        facts, strangers = registry.verify(found.ref), registry.strangers(found.ref)
    if as_json:
        content = {
            "version": str(found.ref),
            "digest": found.digest,
            "verified": True,
            "strangers": strangers,
        }
        print_json(content)
        return
    console.print(
        f"{found.ref} is intact: {facts.bytes / 2**20:.1f} MiB, digest {found.digest}", soft_wrap=True
    )
    if strangers:
        note(
            f"beside it in {found.path}, never registered and read by nobody: {', '.join(strangers)}",
            "yellow",
        )


@app.command(epilog="Example: tenon adapters remove support@v1")
def remove(context: typer.Context, version: Ref, as_json: Json = False) -> None:
    """Remove a version; refused while an alias or its rollback needs it."""
    with registry_of(context) as registry:
        found = registry.version(parse_version(version))
        registry.remove(found.ref)
    if as_json:
        print_json({"removed": str(found.ref)})
        return
    console.print(f"Removed {found.ref}.")


@app.command("gc", epilog="Examples: tenon adapters gc --dry-run · tenon adapters gc --keep 5")
def collect(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions of each name that stay.")] = KEEP,
    rollbacks: Annotated[
        int, typer.Option(min=0, help="Versions that each alias meant before and that stay.")
    ] = ROLLBACKS,
    as_json: Json = False,
) -> None:
    """Remove what nothing needs: versions that no alias, rollback, command or engine uses, and stray files."""
    with registry_of(context) as registry:
        found = registry.collect(keep=keep, rollbacks=rollbacks, dry_run=dry_run)
    if not dry_run:
        forget_answers(settings_of(context).state, found.files)
    removed = [str(version.ref) for version in found.versions]
    if as_json:
        kept = {str(ref): reason for ref, reason in found.kept.items()}
        print_json(
            {
                "dry_run": dry_run,
                "versions": removed,
                "files": found.files,
                "bytes": found.bytes,
                "kept": kept,
                "foreign": found.foreign,
            }
        )
        return
    for version in found.versions:
        size = found.files.get(version.digest, 0)
        shared = f"{size / 2**20:.1f} MiB" if size else "its files stay"
        console.print(f"{version.ref}  {shared}  digest {version.digest[:12]}")
    for digest in sorted(found.files.keys() - {version.digest for version in found.versions}):
        console.print(f"files of no version  {found.files[digest] / 2**20:.1f} MiB  digest {digest[:12]}")
    verb = "Would remove" if dry_run else "Removed"
    console.print(
        f"{verb} {len(removed)} of {len(removed) + len(found.kept)} versions: {found.bytes:,} bytes of files."
    )
    for mark in found.foreign:
        note(
            f"another registry keeps files here, so none go: {mark} (delete this mark if it is gone)",
            "yellow",
        )


@contextmanager
def _arrived(source: Source, home: Path, limits: Limits) -> Iterator[Fetched]:
    """The files of a source; a download is a step with its size and time."""
    if source.kind == "folder":
        with fetched(source, home, limits) as found:
            yield found
        return
    with ExitStack() as held:
        with step("fetch") as current:

            def say(done: int, size: int | None) -> None:
                of = f" of {size / 2**20:.1f}" if size is not None else ""
                current.say(f"{source.shown}: {done / 2**20:.1f}{of} MiB")

            current.say(source.shown)
            found = held.enter_context(fetched(source, home, limits, progress=say))
            current.result = found.origin
        yield found


def summary(registry: Registry, version: Version) -> dict[str, Any]:
    """What a list says of a version."""
    aliases = [alias for alias in registry.aliases() if version.ref in alias.refs]
    states = [row.state for row in registry.loaded() if row.ref == version.ref]
    evaluations = registry.evaluations(version.ref)
    return {
        "version": str(version.ref),
        "aliases": [alias.name for alias in aliases],
        "shares": {alias.name: share for alias in aliases if (share := shares_of(alias).get(version.ref))},
        "state": states[0] if states else "registered",
        "verdict": evaluations[-1].verdict if evaluations else None,
        "rank": version.facts.rank,
        "bytes": version.facts.bytes,
        "base": version.base_name,
        "created": version.created_at.strftime("%Y-%m-%d %H:%M"),
    }
