"""What ``tenon status`` advises where not all runs."""

from pathlib import Path

import pytest

from deploy.cli_stack import show
from deploy.console import console
from deploy.status import Part, Status

UP, AGAIN, DOWN = Part("running", 1), Part("restarting"), Part("down")


@pytest.mark.parametrize(
    ("controller", "engine", "advice"),
    [
        (UP, UP, ""),
        (UP, AGAIN, "The controller brings back what it started"),
        (DOWN, UP, "Start or recover it with `tenon up --detach`"),
        (DOWN, DOWN, "Start or recover it with `tenon up --detach`"),
    ],
)
def test_the_way_out_fits_what_is_missing(controller: Part, engine: Part, advice: str) -> None:
    with console.capture() as said:
        show(Status(Path(), "http://127.0.0.1:1", "tiny", controller, engine, UP, {"engine": engine}))
    assert advice in said.get()
    assert ("tenon up" in said.get()) == bool(advice)
