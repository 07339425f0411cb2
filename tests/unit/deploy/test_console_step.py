"""The line that tells how a step ended."""

import io
import re

import pytest
from rich.console import Console

from deploy import console
from serve.errors import InputError


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
