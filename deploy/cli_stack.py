"""``tenon up``, ``down`` and ``status``."""

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy import stack
from deploy.console import console, for_scripts, note, print_json, state_text, step
from deploy.serving import wait_for_aliases
from deploy.stack_file import read_stack
from deploy.status import STOPPING, Status, processes
from deploy.status import status as status_of
from serve.config import Home, Settings
from serve.errors import AlreadyUp, NotUp
from serve.registry import Registry

Model = Annotated[
    str | None,
    typer.Option(help="Base model: built-in name, local folder or hub id.", show_default="tenon-tiny"),
]
Port = Annotated[int | None, typer.Option(help="Port of the gateway.", show_default="8080")]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON for a script to read.", callback=for_scripts, is_eager=True)
]

UNBOUND = {"home", "log_level", "max_adapter_mib", "adapter_timeout", "allow_private_sources"}
"""Settings that a running stack does not depend on."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        epilog="Examples: tenon up --detach · tenon up -d --json | jq -r .url · tenon up --model ./Qwen3-0.6B"
    )(up)
    app.command(epilog="Examples: tenon down · tenon down --json")(down)
    app.command(epilog="Examples: tenon status · tenon status --json | jq .healthy")(status)


def registry_of(context: typer.Context) -> Registry:
    """The registry of the chosen home."""
    return Registry.of(settings_of(context))


def settings_of(context: typer.Context, **options: Any) -> Settings:
    """The settings of the stack of this home, with those on top that options or the environment give.

    What ``tenon up`` was asked for holds until ``tenon down``.
    """
    wanted = Settings.read(home=context.obj, **options)
    stack = read_stack(wanted.home)
    if stack is None:
        return wanted
    chosen = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    return Settings.stored({**stack.model_dump(), **chosen, "home": wanted.home})


def settings_to_run(context: typer.Context, **options: Any) -> Settings:
    """As :func:`settings_of`; raises AlreadyUp where something runs that was brought up with other settings."""
    settings = settings_of(context, **options)
    stack = read_stack(settings.home)
    if stack is None or processes(settings.home).down:
        return settings
    changed = [name for name in Settings.model_fields if getattr(stack, name) != getattr(settings, name)]
    changed = [name for name in changed if name not in UNBOUND]
    if changed:
        was = ", ".join(f"{name} {stack.shown(name)}, not {settings.shown(name)}" for name in changed)
        raise AlreadyUp(f"the stack of {settings.home} is up with {was}", "run `tenon down` first")
    return settings


def up(
    context: typer.Context,
    model: Model = None,
    port: Port = None,
    host: Annotated[
        str | None, typer.Option(help="Address that the gateway listens on.", show_default="127.0.0.1")
    ] = None,
    engine_url: Annotated[
        str | None,
        typer.Option(help="Attach to this vLLM server, or these with commas, instead of starting one."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it answers; it goes on in the background.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the engines, the gateway and the controller, or recover what died."""
    settings = settings_to_run(context, model=model, port=port, host=host, engine_url=engine_url)
    started = False
    try:
        with step("up") as current:
            stack.up(settings, current.say)
            started = True
            coming = wait_for_aliases(settings, current.say)
            now = status_of(settings.home)
            current.result = f"{now.base} at {now.url}/v1"
        for version in coming:
            note(f"{version} is still on its way; see `tenon status`", "yellow")
        if not asks_for_keys(settings):
            note("no keys: loopback only; with the first `tenon keys create NAME` the gateway asks for them")
        if as_json:
            print_json(now.to_dict())
        if detach:
            console.print("Stop it with `tenon down`.")
            return
        console.print("Running until ctrl-C.")
        while processes(settings.home).controller.pid == now.controller.pid:
            time.sleep(1.0)
    except BaseException:
        if started and not detach:  # a start that was cut off has undone itself
            told = stack.tell_to_stop(settings.home)
            with step("down") as current:
                ended = dict.fromkeys([*told, *stack.down(settings.home, current.say)])
                current.result = ", ".join(ended) or "nothing ran any more"
        raise
    after = processes(settings.home)
    if after.controller.pid is None and not after.down:
        raise NotUp(
            "the controller ended; engine and gateway go on", "recover it with `tenon up`, or `tenon down`"
        )


def asks_for_keys(settings: Settings) -> bool:
    """Whether a gateway of this home asks for API keys: one was created at any time."""
    with Registry.of(settings) as registry:
        return registry.keys_used()


def down(context: typer.Context, as_json: Json = False) -> None:
    """Stop the gateway, the engines and the controller; registered adapters stay."""
    home = Home.found(context.obj)  # whatever is set wrongly, what runs can be stopped
    with step("down") as current:
        current.say("letting requests in flight finish")
        ended = stack.down(home, current.say)
        current.result = ", ".join(ended) or "nothing ran"
    if as_json:
        print_json({"stopped": ended})


def status(context: typer.Context, as_json: Json = False) -> None:
    """Say what runs; exits with 5 unless everything does."""
    now = status_of(Home.found(context.obj))
    if as_json:
        print_json(now.to_dict())
    else:
        show(now)
    raise typer.Exit(0 if now.healthy else 5)


def show(now: Status) -> None:
    """Print the status for a person."""
    table = Table.grid(padding=(0, 2))
    engines = now.engines or {"engine": now.engine}
    for name, part in {"controller": now.controller, **engines, "gateway": now.gateway}.items():
        table.add_row(name, state_text(part.state), str(part.pid or ""), part.detail)
    console.print(table)
    if now.gateway.running:
        console.print(
            f"OpenAI API: {now.url}/v1   metrics: {now.url}/metrics   base: {now.base}", soft_wrap=True
        )
    if now.adapters:
        versions = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("version", "aliases", *["engine"] * (len(engines) > 1), "state", "reason"):
            versions.add_column(column)
        for row in now.adapters:
            where = [row["engine"]] if len(engines) > 1 else []
            names = ", ".join(row["aliases"])
            versions.add_row(row["version"], names, *where, state_text(row["state"]), row["reason"])
        console.print(versions)
    if now.registry:
        console.print(now.registry, style="red", soft_wrap=True)
    if not now.healthy:
        ways = {
            "running": "The controller brings back what it started; `tenon up --detach` waits for it.",
            STOPPING: "It was told to go down.",
        }
        console.print(ways.get(now.controller.state, "Start or recover it with `tenon up --detach`."))
