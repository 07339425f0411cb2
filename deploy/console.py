"""What a person sees: one line per step with its time, live progress inside a step, errors with a way out."""

import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from serve.errors import TenonError
from serve.log_lines import one_line

# No markup and no emoji codes: paths, questions and the engine's words may hold brackets and colons. What is coloured
# is coloured by style.
console = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

NAME_WIDTH = 12
COLOURS = {"running": "green", "ready": "green", "failed": "red", "down": "red", "registered": "default"}


class Step:
    """A step that is going on; ``say`` shows what it does now, ``result`` is printed when it ends."""

    def __init__(self, name: str, live: Live | None) -> None:
        self.name = name
        self.result = ""
        self._live = live
        self._started = time.monotonic()
        self._spinner = Spinner("dots")

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """Show ``text`` beside the step's name while it goes on."""
        if self._live is not None:
            self._spinner.update(text=Text(f"{self.name:<{NAME_WIDTH}} {text}"))
            self._live.update(self._spinner)

    def show(self, content: RenderableType) -> None:
        """Show ``content`` instead of the step's line while it goes on."""
        if self._live is not None:
            self._live.update(content)

    def bar(self) -> Callable[[int, int], None]:
        """Show a progress bar; the function returned takes what is done and of how much."""
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        progress = Progress(text, BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        task = progress.add_task(f"  {self.name:<{NAME_WIDTH}}", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        self.show(progress)
        return advance


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Run one step; prints one line with what came of it and how long it took."""
    live = Live(console=console, transient=True, refresh_per_second=8) if console.is_terminal else None
    current = Step(name, live)
    try:
        if live is None:
            yield current
        else:
            with live:
                current.say("…")
                yield current
    except BaseException as error:
        ended = "failed" if isinstance(error, Exception) else "interrupted"
        console.print(line(Text("✗", "red"), name, current.result or ended, current.seconds))
        raise
    console.print(line(Text("✓", "green"), name, current.result, current.seconds))


def line(mark: Text, name: str, result: str, seconds: float) -> Table:
    """One step's line: mark, name, result, time."""
    row = Table.grid(padding=(0, 1), expand=False)
    row.add_column(width=1)
    row.add_column(width=NAME_WIDTH)
    row.add_column(width=max(20, min(console.width, 110) - NAME_WIDTH - 14), overflow="fold")
    row.add_column(justify="right", width=8)
    row.add_row(mark, name, result, Text(f"{seconds:.1f} s", "dim"))
    return row


def note(text: str, style: str = "dim") -> None:
    """Print a line that belongs to the step above it."""
    console.print(f"    {plain(text)}", style=style, soft_wrap=True)


def plain(text: str) -> str:
    """``text`` in one line, fit for a terminal: columns and labels of a file may hold what it would obey."""
    return "".join(
        letter if letter.isprintable() or _harmless(letter) else one_line(letter) for letter in text
    )


def _harmless(letter: str) -> bool:
    """Spaces of all widths, and the joiners of scripts and emoji; not what turns the direction of writing."""
    return unicodedata.category(letter) == "Zs" or letter in "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def state_text(state: str) -> Text:
    """The state of a process or a version in its colour."""
    return Text(state, COLOURS.get(state, "yellow"))


def report_error(error: TenonError) -> None:
    """Print an error: the cause in one line, the way out in the next; one line of JSON for a script."""
    if console.stderr:
        content = {"code": error.code, "message": error.message, "hint": error.hint}
        typer.echo(orjson.dumps({"error": content}).decode(), err=True)
        return
    errors.print(Text.assemble(("error: ", "bold red"), plain(error.message)), soft_wrap=True)
    if error.hint:
        errors.print(Text.assemble(("  → ", "bold"), plain(error.hint)), soft_wrap=True)


def print_json(content: Any) -> None:
    """Print ``content`` to standard output as JSON for a script to read."""
    typer.echo(
        orjson.dumps(content, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    )


def for_scripts(as_json: bool) -> bool:
    """With ``--json``, tell people what goes on through standard error, so that standard output is JSON alone."""
    console.stderr = as_json
    return as_json
