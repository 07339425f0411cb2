"""A command's want: it lives as long as the command, and a little longer where that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from deploy.serving import wanted
from evalsuite.load.adapters import write_adapter
from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.base import identify_base
from serve.registry.schema import leases

REF = VersionRef("support", 1)
COMMAND = """
import sys, time
from pathlib import Path
from deploy.serving import wanted
from serve.names import VersionRef
from serve.registry import Registry
with Registry.open(Path(sys.argv[1])) as registry, wanted(registry, VersionRef("support", 1), 3.0):
    print("wanted", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    base = identify_base("tenon-tiny")
    with Registry.open(tmp_path / "home") as opened:
        opened.register(write_adapter(tmp_path / "a", base, seed=0), "support", base, max_rank=64)
        yield opened


def ends_at(registry: Registry) -> datetime:
    """When the want ends, of which there is one."""
    with registry._database.read() as connection:
        return connection.execute(select(leases.c.ends_at)).scalar_one()


def is_wanted(registry: Registry) -> bool:
    return REF in [version.ref for version in registry.desired()]


def test_two_commands_do_not_take_a_version_from_each_other(registry: Registry) -> None:
    with wanted(registry, REF):
        with wanted(registry, REF):
            assert is_wanted(registry)
        assert is_wanted(registry)
    assert not is_wanted(registry)


def test_a_want_is_renewed_while_the_command_runs(registry: Registry) -> None:
    with wanted(registry, REF, 6.0):
        for _ in range(2):
            before, deadline = ends_at(registry), time.monotonic() + 20
            while ends_at(registry) == before:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert ends_at(registry) > before
        assert is_wanted(registry)
    assert not is_wanted(registry)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_want_of_a_killed_command_ends_by_itself(registry: Registry, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(registry.home)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"wanted\n"
        assert is_wanted(registry)
        os.kill(command.pid, number)
    if number == signal.SIGKILL:
        end = ends_at(registry)
        while is_wanted(registry):
            assert datetime.now(UTC) < end + timedelta(seconds=20)
            time.sleep(0.05)
        assert datetime.now(UTC) >= end
    assert not is_wanted(registry)


def test_a_version_that_was_removed_meanwhile(registry: Registry) -> None:
    with wanted(registry, REF, 0.2):
        registry.remove(REF)
        time.sleep(0.2)
    assert registry.versions() == []
