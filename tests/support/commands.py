"""Runs the command line as a user does: in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

TENON = (sys.executable, "-m", "deploy")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command on ``home``."""
    return {**os.environ, "TENON_HOME": str(home), "COLUMNS": "120", **more}


def tenon(
    home: Path, *arguments: str, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run ``tenon`` with ``arguments`` to its end."""
    return subprocess.run(
        [*TENON, *arguments],
        env=environment(home, **more),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def living(home: Path) -> list[str]:
    """Command lines of living processes that belong to ``home``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TENON_HOME") == str(home):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def assert_gone(home: Path) -> None:
    """Wait until no process belongs to ``home``."""
    deadline = time.monotonic() + 20
    while found := living(home):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def cause_and_hint(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The two lines of an error: what was wrong, and what to do."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    assert lines[1].startswith("  → "), done.stderr
    return lines[0], lines[1]


def files_below(folder: Path) -> Mapping[str, int]:
    """Relative path → size of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
