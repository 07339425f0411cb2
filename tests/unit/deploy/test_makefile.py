"""What the Makefile does beyond calling commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


ENVIRONMENTS = {
    "whole": '#!/bin/sh\ntest "$1" = -c || echo "$@" >>asked\n',
    "failing": '#!/bin/sh\ntest "$1" = -c\n',
    "broken": "#!/no/such/interpreter\n",
    "gone": None,
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with our Makefile alone."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def make(checkout: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def lay_out(checkout: Path, environment: str, home: Path | None) -> Path:
    """An environment whose Python does as it is called, and a stack that is up in ``home``; returns the Python."""
    python = checkout / ".venv" / "bin" / "python"
    (checkout / ".tenon" / "run").mkdir(parents=True)
    if (script := ENVIRONMENTS[environment]) is not None:
        python.parent.mkdir(parents=True)
        python.write_text(script)
        python.chmod(0o755)
    if home is not None:
        (home / "run").mkdir(parents=True, exist_ok=True)
        (home / "run" / "stack.json").write_text("{}")
    return python


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("up", [None, ".tenon", "elsewhere"])
def test_clean_removes_nothing_below_a_stack_that_cannot_be_stopped(
    checkout: Path, environment: str, up: str | None
) -> None:
    python = lay_out(checkout, environment, checkout / up if up else None)
    done = make(checkout, "clean", TENON_HOME=str(checkout / "elsewhere"))
    kept = environment == "failing" or (up is not None and environment != "whole")
    assert (done.returncode != 0) == kept
    assert ("nothing was removed" in done.stderr) == kept
    assert (checkout / ".tenon").exists() == kept
    assert python.exists() == (kept and environment != "gone")
    asked = (checkout / "asked").read_text().split("\n") if environment == "whole" else []
    assert asked == ["-m deploy down", "-m deploy --home .tenon down", ""] * (environment == "whole")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("up", [True, False])
def test_down_says_where_it_can_stop_nothing(checkout: Path, environment: str, up: bool) -> None:
    lay_out(checkout, environment, checkout / ".tenon" if up else None)
    done = make(checkout, "down")
    absent = environment in ("half", "broken", "gone")
    assert (done.returncode == 0) == (environment == "whole" or (absent and not up))
    assert ("run 'make setup' first" in done.stderr) == (absent and up)


def test_names_do_not_come_from_the_environment(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    command = ["-n", "train-and-deploy", "DATA=rows.csv"]
    assert "--name" not in make(checkout, *command, NAME="DESKTOP-7QX1").stdout
    assert "--name 'mine'" in make(checkout, *command, "NAME=mine").stdout
    assert "--data 'rows.csv'" in make(checkout, *command).stdout
