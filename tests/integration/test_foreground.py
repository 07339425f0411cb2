"""A stack in the foreground ends with the command that keeps it there, whatever ends that."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from support.commands import TENON, assert_gone, environment
from support.ports import free_port

IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def up(fake_engine: str) -> list[str]:
    return [*TENON, "up", "--port", str(free_port()), "--engine-url", fake_engine]


def assert_down(home: Path) -> None:
    assert_gone(home)
    assert not (home / "run" / "stack.json").exists()


def test_a_terminal_that_is_closed(tmp_path: Path, fake_engine: str) -> None:
    home, (ours, theirs) = tmp_path / "home", pty.openpty()
    command = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *up(fake_engine)],
        env=environment(home),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while b"Running until ctrl-C" not in said:
        said += os.read(ours, 65536)
    os.close(ours)
    assert command.wait(60) == 130
    assert_down(home)
    assert not list((home / "logs").glob("crash-*"))


def test_two_signals_in_one_moment(tmp_path: Path, fake_engine: str) -> None:
    home = tmp_path / "home"
    command = subprocess.Popen(
        up(fake_engine), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert command.stdout is not None
    while "Running until ctrl-C" not in command.stdout.readline():
        assert command.poll() is None
    command.terminate()
    time.sleep(0.003)
    command.terminate()
    command.communicate(timeout=60)
    assert command.returncode == 130
    assert_down(home)


def test_a_reader_that_is_gone(tmp_path: Path, fake_engine: str) -> None:
    home = tmp_path / "home"
    command = subprocess.Popen(
        up(fake_engine),
        env=environment(home, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.wait(60) != 0
    assert (home / "logs" / "gateway.log").exists(), "it was up"
    assert_down(home)
