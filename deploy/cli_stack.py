"""``tenon up``, ``down`` and ``status``."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy import stack
from deploy.console import console, print_json, step
from deploy.controller import read_stack
from serve.config import Settings

Model = Annotated[
    str | None,
    typer.Option(help="Base model: built-in name, local folder or hub id.", show_default="tenon-tiny"),
]
Port = Annotated[int | None, typer.Option(help="Port of the gateway.", show_default="8080")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]

COLOURS = {
    "running": "green",
    "starting": "yellow",
    "restarting": "yellow",
    "ready": "green",
    "failed": "red",
    "down": "red",
}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Examples: tenon up --detach · tenon up --model ./Qwen3-0.6B --port 9000")(up)
    app.command(epilog="Example: tenon down")(down)
    app.command(epilog="Examples: tenon status · tenon status --json | jq .healthy")(status)


def settings_of(context: typer.Context, **options: Any) -> Settings:
    """The settings from the environment, with the options of the command line on top."""
    return Settings.read(home=context.obj, **options)


def running_settings(context: typer.Context, **options: Any) -> Settings:
    """The settings of the stack that was last brought up in this home, with the options on top."""
    settings = settings_of(context, **options)
    running = read_stack(settings.home)
    if running is None:
        return settings
    given = {key: value for key, value in options.items() if value is not None}
    return running.model_copy(update={**given, "home": settings.home})


def up(
    context: typer.Context,
    model: Model = None,
    port: Port = None,
    host: Annotated[
        str | None, typer.Option(help="Address that the gateway listens on.", show_default="127.0.0.1")
    ] = None,
    engine_url: Annotated[
        str | None, typer.Option(help="Attach to this vLLM server instead of starting one.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it answers; it goes on in the background.")
    ] = False,
) -> None:
    """Start the engine, the gateway and the controller, or recover what died."""
    settings = settings_of(context, model=model, port=port, host=host, engine_url=engine_url)
    with step("up") as current:
        now = stack.up(settings, current.say)
        current.result = f"{now.base} at {now.url}/v1"
    if detach:
        console.print("Stop it with [bold]tenon down[/].")
        return
    console.print("Running until ctrl-C.")
    try:
        while stack.status(settings.home).controller.running:
            time.sleep(1.0)
    finally:
        with step("down") as current:
            current.result = ", ".join(stack.down(settings.home)) or "nothing ran any more"


def down(context: typer.Context) -> None:
    """Stop the gateway, the engine and the controller; registered adapters stay."""
    settings = settings_of(context)
    with step("down") as current:
        current.say("letting requests in flight finish")
        current.result = ", ".join(stack.down(settings.home)) or "nothing ran"


def status(context: typer.Context, as_json: Json = False) -> None:
    """Say what runs; exits with 5 unless everything does."""
    home: Path = settings_of(context).home
    now = stack.status(home)
    if as_json:
        print_json(now.to_dict())
    else:
        show(now)
    raise typer.Exit(0 if now.healthy else 5)


def show(now: stack.Status) -> None:
    """Print the status for a person."""
    table = Table.grid(padding=(0, 2))
    for name in ("controller", "engine", "gateway"):
        part: stack.Part = getattr(now, name)
        colour = COLOURS.get(part.state, "yellow")
        table.add_row(name, f"[{colour}]{part.state}[/]", str(part.pid or ""), part.detail)
    console.print(table)
    if now.gateway.running:
        console.print(f"OpenAI API: {now.url}/v1   metrics: {now.url}/metrics   base: {now.base}")
    if now.adapters:
        versions = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("version", "alias", "state", "reason"):
            versions.add_column(column)
        for row in now.adapters:
            colour = COLOURS.get(row["state"], "yellow")
            versions.add_row(
                row["version"], row["alias"] or "", f"[{colour}]{row['state']}[/]", row["reason"] or ""
            )
        console.print(versions)
    if not now.healthy:
        console.print("Start or recover it with [bold]tenon up --detach[/].")
