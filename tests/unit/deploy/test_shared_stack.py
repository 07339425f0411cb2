"""A whole run on a stack that others start, use or stop meanwhile."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import pipeline
from deploy.controller import control
from deploy.status import Part, Status
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.errors import AlreadyUp, EngineUnavailable, StorageError
from serve.records import read_json
from serve.registry import Registry
from serve.registry.base import identify_base
from train.recipe import Recipe

UP, DOWN = Part("running", 1), Part("down")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(home=tmp_path / "home", engine_start_timeout=0.001)


def status(settings: Settings, part: Part) -> Status:
    return Status(settings.home, "http://127.0.0.1:1", "base", part, part, part)


def test_a_stack_that_another_command_brings_up_is_waited_for_and_not_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([status(settings, DOWN), status(settings, UP)])

    def taken(*_: object) -> Status:
        raise AlreadyUp("another command brings it up", "wait for it")

    monkeypatch.setattr(pipeline, "processes", lambda _: next(seen))
    monkeypatch.setattr(pipeline.stack, "up", taken)
    said: list[str] = []
    assert pipeline.ensure_up(settings, said.append) == (status(settings, UP), False)
    assert said == ["another command brings the stack up"]


def test_a_stack_that_was_down_is_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "processes", lambda _: status(settings, DOWN))
    monkeypatch.setattr(pipeline.stack, "up", lambda *_: (status(settings, UP), True))
    assert pipeline.ensure_up(settings, lambda _: None) == (status(settings, UP), True)


def test_the_wait_for_another_command_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> Status:
        raise AlreadyUp("another command brings it up", "wait for it")

    monkeypatch.setattr(pipeline, "processes", lambda _: status(settings, DOWN))
    monkeypatch.setattr(pipeline.stack, "up", taken)
    monkeypatch.setattr(pipeline, "READY_AFTER_ENGINE", 0.0)
    with pytest.raises(AlreadyUp):
        pipeline.ensure_up(settings, lambda _: None)


@pytest.mark.parametrize(
    ("ours", "used", "stopped"),
    [
        (True, None, True),
        (True, "{machine}:1:ab", False),
        (True, "another-machine:1:ab", True),
        (True, "{machine}:{pid}:ab", True),  # our own, which a full disk kept
        (False, None, False),
    ],
)
def test_a_run_that_fails_stops_its_own_stack_unless_somebody_uses_it(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: bool,
    used: str | None,
    stopped: bool,
) -> None:
    base = identify_base("tenon-tiny")
    with Registry.of(settings) as registry:
        for seed in range(2):
            registry.register(write_adapter(tmp_path / str(seed), base, seed=seed), "faq", base, max_rank=64)
        version = registry.version("faq@v1")
        if used:
            holder = used.format(machine=socket.gethostname(), pid=os.getpid())
            registry.want("faq@v2", holder, 60)

    def fail(*_: object, **__: object) -> None:
        raise EngineUnavailable("it is gone", "see its log")

    downs: list[Path] = []
    monkeypatch.setattr(pipeline, "check_before", lambda _: None)
    monkeypatch.setattr(pipeline, "train_and_register", lambda *_, **__: version)
    monkeypatch.setattr(pipeline, "ensure_up", lambda *_: (status(settings, UP), ours))
    monkeypatch.setattr(pipeline, "recorded", lambda _: None)
    monkeypatch.setattr(pipeline, "judge", fail)
    monkeypatch.setattr(pipeline.stack, "down", downs.append)
    with pytest.raises(EngineUnavailable):
        pipeline.run(settings, Recipe.load(None, []))
    assert downs == [settings.home] * stopped


@pytest.fixture
def sleeper() -> Iterator["list[subprocess.Popen[bytes]]"]:
    """Processes that stand in for a gateway; those that were started are ended."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


async def test_a_gateway_that_cannot_be_started_now_is_started_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, sleeper: "list[subprocess.Popen[bytes]]"
) -> None:
    refusals: list[Exception] = [
        StorageError("the log cannot be written", "free some"),
        OSError(12, "no memory"),
    ]

    def spawn(*_: Any, **__: Any) -> "subprocess.Popen[bytes]":
        if refusals:
            raise refusals.pop()
        sleeper.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        started.set()
        return sleeper[0]

    started = asyncio.Event()
    monkeypatch.setattr(control, "spawn", spawn)
    monkeypatch.setattr(control, "BACKOFF", (0.01,))
    stop = asyncio.Event()
    keeper = control.GatewayKeeper(settings)
    keeping = asyncio.create_task(keeper.run(stop))
    await started.wait()
    fate = read_json(settings.state / "gateway-exit.json")
    assert (fate["failures"], fate["reason"]) == (2, "could not be started: the log cannot be written")
    stop.set()
    await keeping
    assert sleeper[0].poll() is not None
