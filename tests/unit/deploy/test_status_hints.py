"""What ``tenon status`` advises where not all runs, and what commands make of a stack that does not answer."""

from pathlib import Path

import pytest

from deploy import status
from deploy.cli_stack import show
from deploy.console import console
from deploy.status import SILENT, STOPPING, Part, Status
from serve.errors import NotUp

UP, AGAIN, DOWN, LIVES = Part("running", 1), Part("restarting"), Part("down"), Part(SILENT, 1)
ADVICE = (
    "The controller brings back what it started; `tenon up --detach` waits for it.",
    "It was told to go down.",
    "Start or recover it with `tenon up --detach`.",
)


@pytest.mark.parametrize(
    ("controller", "engine", "advice"),
    [
        (UP, UP, ""),
        (UP, AGAIN, ADVICE[0]),
        (Part(STOPPING, 1), UP, ADVICE[1]),
        (DOWN, UP, ADVICE[2]),
        (DOWN, DOWN, ADVICE[2]),
    ],
)
def test_the_way_out_fits_what_is_missing(controller: Part, engine: Part, advice: str) -> None:
    with console.capture() as said:
        show(Status(Path(), "http://127.0.0.1:1", "tiny", controller, engine, UP, {"engine": engine}))
    assert [known for known in ADVICE if known in said.get()] == [
        known for known in ADVICE if known == advice
    ]


def at(home: Path, engine: Part, gateway: Part) -> Status:
    return Status(home, "http://there", "base", UP, engine, gateway, {"engine": engine})


def test_a_part_that_lives_is_given_time_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([at(tmp_path, LIVES, UP), at(tmp_path, UP, LIVES), at(tmp_path, UP, UP)])
    monkeypatch.setattr(status, "processes", lambda _: next(seen))
    assert status.require_up(tmp_path) == at(tmp_path, UP, UP)


@pytest.mark.parametrize(
    ("engine", "gateway", "told"),
    [(DOWN, UP, "does not run"), (UP, DOWN, "does not run"), (LIVES, UP, "does not answer")],
)
def test_a_stack_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Part, gateway: Part, told: str
) -> None:
    monkeypatch.setattr(status, "SILENT_PATIENCE", 0.1)
    monkeypatch.setattr(status, "processes", lambda _: at(tmp_path, engine, gateway))
    with pytest.raises(NotUp, match=told) as failed:
        status.require_up(tmp_path)
    assert "tenon status" in failed.value.hint
