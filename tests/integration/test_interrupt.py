"""Ctrl-C at every stage ends the command and leaves no process behind."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from support.commands import TENON, assert_gone, environment, living
from support.ports import free_port
from support.stack import slowly_loaded_alias, until

from deploy.net import answers, get_json
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.registry import Registry
from serve.registry.base import identify_base

INTERRUPTED = 130


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Command:
    """A ``tenon`` command in a process group of its own, as a shell runs it."""

    def __init__(self, home: Path, *arguments: str, **more: str) -> None:
        self.home, self.seen = home, ""
        self.process = subprocess.Popen(
            [*TENON, *arguments],
            env=environment(home, PYTHONUNBUFFERED="1", **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def wait_for(self, text: str, seconds: float) -> None:
        """Read the output until it holds ``text``."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"no {text!r} in time:\n{self.seen}"
            self.seen += chunk.decode()

    def interrupt(self) -> int:
        """Press ctrl-C, as the terminal does: the whole group gets it; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        output, _ = self.process.communicate(timeout=90)
        self.seen += output.decode()
        return self.process.returncode

    def left(self) -> list[str]:
        """Command lines of living processes that belong to this home."""
        return living(self.home)

    def assert_gone(self) -> None:
        assert_gone(self.home)


def wait_until_left(command: Command, part: str, seconds: float) -> None:
    """Wait for a process of the home whose command line holds ``part``."""
    deadline = time.monotonic() + seconds
    while not any(part in line for line in command.left()):
        assert time.monotonic() < deadline, f"no {part} among {command.left()}"
        assert command.process.poll() is None, command.process.communicate()[0].decode()
        time.sleep(0.05)


@pytest.mark.parametrize("pause", [0.2, 1.0])
def test_while_it_starts(home: Path, pause: float) -> None:
    command = Command(home, "run", TENON_PORT=str(free_port()))
    time.sleep(pause)
    code = command.interrupt()
    # Python itself ends so where the signal comes before it has begun to run anything.
    assert code in (INTERRUPTED, -signal.SIGINT) or (code == 1 and "init_import_site" in command.seen)
    command.assert_gone()


def test_while_training(home: Path) -> None:
    command = Command(home, "run", TENON_PORT=str(free_port()))
    wait_until_left(command, "train.worker", 60)
    time.sleep(1.0)
    assert command.interrupt() == INTERRUPTED
    command.assert_gone()
    assert "Traceback" not in command.seen


def test_while_the_engine_starts(home: Path) -> None:
    command = Command(home, "up", "--detach", "--port", str(free_port()))
    wait_until_left(command, "vllm_server", 60)
    time.sleep(3.0)
    assert command.interrupt() == INTERRUPTED
    command.assert_gone()
    assert "Traceback" not in command.seen


def test_while_evaluating(home: Path, fake_engine: str) -> None:
    slow = {"kind": "slow_tokens", "seconds": 0.1, "times": -1}
    httpx.post(f"{fake_engine}/_fake/faults", json={"faults": [slow]}, timeout=60).raise_for_status()
    port = str(free_port())
    overrides = ("train.max_steps=1", "train.eval_rows=20", "data.limit=60")
    command = Command(home, "run", *overrides, TENON_PORT=port, TENON_ENGINE_URL=fake_engine)
    command.wait_for("✓ load", 110)
    until(lambda: get_json(f"{fake_engine}/_fake/stats").get("running", 0) > 1)  # questions are on their way
    assert command.interrupt() == INTERRUPTED
    command.assert_gone()
    assert "Traceback" not in command.seen


def test_up_in_the_foreground(home: Path, fake_engine: str) -> None:
    command = Command(home, "up", "--port", str(free_port()), TENON_ENGINE_URL=fake_engine)
    command.wait_for("ctrl-C", 60)
    assert any("serve.gateway" in line for line in command.left())
    assert command.interrupt() == INTERRUPTED
    command.assert_gone()


def test_up_in_the_foreground_while_it_waits_for_aliases(
    home: Path, tmp_path: Path, fake_engine: str
) -> None:
    slowly_loaded_alias(home, fake_engine, tmp_path / "adapter", seconds=60.0)
    command = Command(home, "up", "--port", str(free_port()), TENON_ENGINE_URL=fake_engine)
    wait_until_left(command, "serve.gateway", 60)
    while not answers(f"{status(home).url}/readyz"):
        time.sleep(0.1)
    time.sleep(1.5)  # the command has seen that, too, and waits for the adapter
    assert command.interrupt() == INTERRUPTED
    command.assert_gone()
    assert "Running until" not in command.seen


def test_a_stack_that_was_up_stays_up(home: Path, tmp_path: Path, fake_engine: str) -> None:
    port = str(free_port())
    base = identify_base("tenon-tiny")
    registry = Registry.open(home)
    registry.register(write_adapter(tmp_path / "adapter", base), "faq", base, max_rank=64)
    registry.close()
    up = Command(home, "up", "--detach", "--port", port, TENON_ENGINE_URL=fake_engine)
    up.process.communicate(timeout=60)
    assert up.process.returncode == 0
    try:
        command = Command(home, "run", "train.max_steps=1")
        wait_until_left(command, "train.worker", 60)
        assert command.interrupt() == INTERRUPTED
        assert any("serve.gateway" in line for line in up.left())
        assert not any("train.worker" in line for line in up.left())
    finally:
        subprocess.run([*TENON, "down"], env=environment(home), check=True, capture_output=True)
    up.assert_gone()
