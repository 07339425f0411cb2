"""The edge of the command line: what is wrong becomes one line, for people or for scripts."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.commands import cause_and_hint, environment, tenon

from deploy.stack_file import write_stack
from serve.config import Settings

CRASHING = """
import sys
from deploy.cli import app, main
from deploy.cli_stack import Json

@app.command()
def crash(as_json: Json = False) -> None:
    raise LookupError("two\\nlines")

main(sys.argv[1:])
"""


def crashing(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CRASHING, *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("by_option", [False, True])
def test_an_unforeseen_error_is_one_line_and_a_traceback_among_the_logs(
    tmp_path: Path, by_option: bool
) -> None:
    home = tmp_path / "option" if by_option else tmp_path / "home"
    done = crashing(tmp_path / "home", *(("--home", str(home)) if by_option else ()), "crash")
    assert done.returncode == 1
    cause, hint = cause_and_hint(done)
    assert "LookupError: two lines" in cause
    (log,) = (home / "logs").glob("crash-*.log")
    assert str(log) in hint
    assert "Traceback (most recent call last)" in log.read_text()


def test_an_unforeseen_error_where_nothing_can_be_written_still_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    done = crashing(tmp_path / "home", "crash")
    assert done.returncode == 1
    assert "could not be written" in cause_and_hint(done)[1]


def test_an_unforeseen_error_is_json_for_a_script(tmp_path: Path) -> None:
    done = crashing(tmp_path / "home", "crash", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["code"] == "internal_error"


def test_what_a_file_holds_is_said_in_one_line_that_a_terminal_does_not_obey(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"te\x1b[31mxt\n": "a", "la\tbel": "b"}]))
    done = tenon(tmp_path / "home", "train", "default", f"data.train={tmp_path / 'rows.json'}")
    cause, _ = cause_and_hint(done)
    assert (done.returncode, r"te\x1b[31mxt\n" in cause, r"la\tbel" in cause) == (2, True, True)


@pytest.mark.parametrize("command", ["down", "status"])
def test_what_runs_is_stopped_and_shown_whatever_is_set_wrongly(tmp_path: Path, command: str) -> None:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    write_stack(Settings.read(home=home))
    done = tenon(home, command, TENON_PROT="1")
    assert done.returncode == (0 if command == "down" else 5), done.stderr
    wrong = tenon(home, "up", TENON_PROT="1")
    assert "TENON_PROT is no setting" in cause_and_hint(wrong)[0]


def test_an_empty_home_is_not_the_working_directory(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "--home=", "adapters", "list", cwd=tmp_path)
    assert done.returncode == 2
    assert "'--home': must name a folder" in cause_and_hint(done)[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("deploy", "none@v1"), "version_not_found"),
        (("train", "no.yaml"), "invalid_recipe"),
        (("keys", "revoke", "none"), "key_not_found"),
    ],
)
def test_an_error_is_json_for_a_script(tmp_path: Path, arguments: tuple[str, ...], code: str) -> None:
    done = tenon(tmp_path / "home", *arguments, "--json")
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == code


@pytest.mark.parametrize(
    ("arguments", "said", "command"),
    [
        (("eval",), "version", "tenon eval"),
        (("adapters", "show", "x", "--bogus"), "--bogus", "tenon adapters show"),
        (("up", "--port", "many"), "--port", "tenon up"),
        (("nonsense",), "nonsense", "tenon"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_arguments_that_are_not_understood_are_an_error_like_others(
    tmp_path: Path, arguments: tuple[str, ...], said: str, command: str, as_json: bool
) -> None:
    done = tenon(tmp_path / "home", *arguments, *(["--json"] if as_json else []))
    assert (done.returncode, done.stdout) == (2, "")
    if as_json:
        (line,) = done.stderr.splitlines()
        error = json.loads(line)["error"]
        assert error["code"] == "invalid_input"
        cause, hint = error["message"], error["hint"]
    else:
        cause, hint = cause_and_hint(done)
    assert said in cause.lower()
    assert hint.endswith(f"{command.removeprefix('tenon')} --help`")


def test_a_pair_that_is_none_is_json_for_a_script(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "deploy", "a@v1", "--set", "temperature", "--json")
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (2, "invalid_input")


@pytest.mark.parametrize("group", [(), ("adapters",), ("keys",)])
def test_who_asks_for_nothing_gets_help(tmp_path: Path, group: tuple[str, ...]) -> None:
    done = tenon(tmp_path / "home", *group)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    assert "error" not in done.stderr


def test_down_of_nothing_is_json_too(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "down", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"stopped": []})


def test_version_and_examples(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "--version")
    assert (done.returncode, done.stdout) == (0, f"tenon {version('tenon-llm')}{os.linesep}")
    assert "Examples: tenon run" in tenon(tmp_path / "home", "--help").stdout
