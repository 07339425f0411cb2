"""The command ``tenon``."""

import atexit
import gc
import os
import signal
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from deploy import cli_adapters, cli_aliases, cli_keys, cli_stack, cli_train, cli_usage, crash
from deploy.console import for_scripts, report_error
from serve.errors import InputError, TenonError
from serve.log_lines import one_line

app = typer.Typer(
    name="tenon",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Trains LoRA adapters, proves that they beat the base, and hot-loads them into a running vLLM server.",
    epilog="Examples: tenon run · tenon up --detach · tenon status · tenon adapters list\n\n"
    "Exit codes: 0 done · 1 unexpected · 2 wrong input · 3 refused by the gate · 4 in conflict with what runs · "
    "5 something that must run does not · 6 training failed · 7 storage · 130 interrupted",
)
cli_stack.add_to(app)
cli_train.add_to(app)
app.add_typer(cli_adapters.app, name="adapters")
app.add_typer(cli_aliases.app, name="aliases")
app.add_typer(cli_keys.app, name="keys")
cli_usage.add_to(app)


def say_version(wanted: bool) -> None:
    """Print the version and end, where that is ``wanted``."""
    if wanted:
        typer.echo(f"tenon {distribution_version('tenon-llm')}")
        raise typer.Exit


def folder(text: str) -> Path:
    """A folder by its name: an empty one, as from a variable that is not set, would mean the working directory."""
    if not text.strip():
        raise typer.BadParameter("must name a folder")
    return Path(text)


@app.callback()
def common(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="State folder (TENON_HOME).", show_default=".tenon", parser=folder, metavar="PATH"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and exit.", callback=say_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    context.obj = crash.home = home


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: the edge where errors become messages and exit codes."""
    atexit.register(gc.freeze)  # nothing is worth looking for then, and the search takes part of a second
    terminal = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def hang_up(number: int, frame: FrameType | None) -> None:
        for descriptor in terminal:  # it is gone, and whatever is still said must not fail for that
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        interrupt(number, frame)

    for number, handler in ((signal.SIGTERM, interrupt), (signal.SIGHUP, hang_up)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has its way
            signal.signal(number, handler)
    try:
        code = app(args=arguments, standalone_mode=False)
    except TenonError as error:
        report_error(error)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        for_scripts("--json" in (sys.argv[1:] if arguments is None else arguments))
        if error.format_message():  # else it was asked for nothing, and has printed its help
            report_error(misuse(error))
        sys.exit(InputError.exit_code)
    except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is, a person gets one line
        report_error(crash.report(error))
        sys.exit(TenonError.exit_code)
    sys.exit(code or 0)


def misuse(error: typer.TyperException) -> InputError:
    """What Typer says of arguments that it does not understand, as an error of ours."""
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "tenon"
    return InputError(one_line(error.format_message()).removesuffix("."), f"see `{command} --help`")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM and a closed terminal end a command as ctrl-C does, so that nothing is left behind."""
    raise KeyboardInterrupt
