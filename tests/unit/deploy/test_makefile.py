"""What the Makefile does beyond calling commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def clean(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TENON_")}
    return subprocess.run(
        ["make", "clean"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("up", [True, False])
def test_clean_removes_nothing_below_a_stack_that_cannot_be_stopped(
    tmp_path: Path, stops: bool, up: bool
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    tenon, stack = tmp_path / ".venv" / "bin" / "tenon", tmp_path / ".tenon" / "run" / "stack.json"
    for file in (tenon, stack):
        file.parent.mkdir(parents=True)
    tenon.write_text(f"#!/bin/sh\nexit {0 if stops else 2}\n")
    tenon.chmod(0o755)
    if up:
        stack.write_text("{}")
    done = clean(tmp_path)
    kept = up and not stops
    assert (done.returncode != 0) == kept
    assert ("nothing was removed" in done.stderr) == kept
    assert (tenon.exists(), stack.parent.exists()) == (kept, kept)
