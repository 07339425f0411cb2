"""The line that tells how a step ended."""

import io
import re

import pytest
from rich.console import Console

from deploy import console
from serve.errors import InputError


def test_what_is_printed_is_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = "I paid :100: at 10:on:20 [bold]a:x:b[/bold]"
    for each in (console.console, console.errors):
        each.print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


def test_scripts_stay_as_they_are_and_what_a_terminal_obeys_does_not() -> None:
    for text in ("86.5\N{NO-BREAK SPACE}%", "\u06a9\u200c\u0633", "👩\u200d👧", "1\u2009000", "plain [text]"):
        assert console.plain(text) == text
    assert console.plain("a\x1b[31m\nb\u202ec\u2028d\udc80") == r"a\x1b[31m\nb\u202ec\u2028d\udc80"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("the stack is up already"), "failed"),  # nothing that runs was stopped by it
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_step_says_how_it_ended(error: BaseException, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=written, width=100))
    with pytest.raises(type(error)), console.step("up"):
        raise error
    assert re.fullmatch(rf"✗ up +{told} +0\.0 s *\n", written.getvalue())
