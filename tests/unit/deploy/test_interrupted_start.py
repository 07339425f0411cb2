"""What a start leaves that was interrupted or failed, and a start beside a stack that goes down."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.interrupts import InterruptedPopen, ctrl_c_works
from support.ports import free_port

from deploy import stack
from deploy.processes import spawn, spawned
from deploy.stack_file import read_stack, write_stack
from deploy.status import STOPPING, processes
from deploy.waiting import Since, wait_until_up
from serve.config import Settings
from serve.errors import AlreadyUp, EngineStartFailed, StorageError, TenonError
from serve.records import ProcessIdentity, write_json

GOES_DOWN = """
import os, signal, sys, time
from pathlib import Path
from serve.records import ProcessIdentity, write_json
record = Path(sys.argv[1])
def stop(*_):
    write_json(record, ProcessIdentity.of(os.getpid()).to_json() | {"stopping": True})
    time.sleep(1.0)
    record.unlink()
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
write_json(record, ProcessIdentity.of(os.getpid()).to_json())
time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a stack whose engine nobody reaches."""
    return Settings(home=tmp_path / "home", port=free_port(), engine_url="http://127.0.0.1:1")


@pytest.fixture
def children() -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Processes that are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def controller(settings: Settings) -> "subprocess.Popen[bytes]":
    """A process that stands in for a controller, once it has left its record; it takes a second to go down."""
    record = settings.state / "controller.json"
    child = subprocess.Popen([sys.executable, "-c", GOES_DOWN, str(record)])
    while not record.exists():
        assert child.poll() is None
        time.sleep(0.01)
    return child


def test_a_controller_whose_start_is_interrupted_is_not_left_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    with ctrl_c_works(), pytest.raises(KeyboardInterrupt):
        stack.up(settings, lambda _: None)
    started = InterruptedPopen.started.pop()
    assert started.returncode is not None
    assert not psutil.pid_exists(started.pid)
    assert read_stack(settings.home) is None


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_start_that_fails_leaves_what_was_asked_for_before(settings: Settings, asked_before: bool) -> None:
    before = settings.model_copy(update={"port": free_port()})
    if asked_before:  # and nothing runs, as after the machine was started anew
        write_stack(before)
    settings.logs.parent.mkdir(exist_ok=True)
    settings.logs.write_text("a file where the folder should be")
    with pytest.raises(StorageError):
        stack.up(settings, lambda _: None)
    assert read_stack(settings.home) == (before if asked_before else None)


def test_a_second_interrupt_while_it_is_undone_leaves_nothing_of_what_was_asked_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, children: "list[subprocess.Popen[bytes]]"
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def start(_: Settings) -> "subprocess.Popen[bytes]":
        children.append(child := controller(settings))
        monkeypatch.setattr(child, "wait", interrupted)
        return child

    said: list[str] = []
    monkeypatch.setattr(stack, "start_controller", start)
    monkeypatch.setattr(stack, "wait_until_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.up(settings, said.append)
    assert said[-1] == "stopping what was started"
    assert read_stack(settings.home) is None
    monkeypatch.undo()
    # The next one waits for the controller that stops, and finds that the engine does not answer.
    with pytest.raises(TenonError) as failed:
        stack.up(settings, said.append)
    assert "waiting for the stack to go down" in said
    assert "127.0.0.1:1" in failed.value.message
    assert children[0].wait(10) == 0


def test_a_controller_that_ends_while_it_is_waited_for_has_a_successor(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, children: "list[subprocess.Popen[bytes]]"
) -> None:
    write_stack(settings)
    children.append(controller(settings))
    waited: list[subprocess.Popen[bytes] | None] = []
    really = stack.wait_until_up

    def wait(settings: Settings, child: "subprocess.Popen[bytes] | None", *rest: object) -> object:
        waited.append(child)
        if child is None:
            children[0].kill()
            children[0].wait()
        return really(settings, child, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stack, "wait_until_up", wait)
    with pytest.raises(TenonError, match=r"127\.0\.0\.1:1"):
        stack.up(settings, lambda _: None)
    assert [child is None for child in waited] == [True, False]
    assert processes(settings.home).down


def test_what_a_recovery_started_and_left_no_record_yet_is_ended_with_it(
    settings: Settings, children: "list[subprocess.Popen[bytes]]"
) -> None:
    adopted = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    children.append(adopted)
    write_json(settings.state / "engine.json", ProcessIdentity.of(adopted.pid).to_json() | {"state": "ready"})
    before = processes(settings.home)
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        gateway = ProcessIdentity.of(int(child.stdout.readline()))
        stack.undo(child, settings.home, before, None, lambda _: None)
        assert child.returncode is not None
    assert not gateway.alive
    assert adopted.poll() is None


def test_a_stack_that_does_not_go_down_is_not_waited_for_without_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, children: "list[subprocess.Popen[bytes]]"
) -> None:
    children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    record = ProcessIdentity.of(children[0].pid).to_json() | {STOPPING: True}
    write_json(settings.state / "controller.json", record)
    monkeypatch.setattr(stack, "CONTROLLER_GRACE", 0.5)
    said: list[str] = []
    with pytest.raises(AlreadyUp) as failed:
        stack.up(settings, said.append)
    assert "tenon down" in failed.value.hint
    assert set(said) == {"waiting for the stack to go down"}
    assert stack.down(settings.home) == ["controller"]


def test_two_commands_that_take_a_stack_down_wait_for_each_other(settings: Settings) -> None:
    settings.state.mkdir(parents=True)
    said: list[str] = []
    second = threading.Thread(target=stack.down, args=(settings.home, said.append))
    with stack.going_down(settings.home, said.append):
        second.start()
        while not said:
            time.sleep(0.01)
        write_stack(settings)  # as by a command that brings it up only after the first has ended
        assert read_stack(settings.home) is not None
    second.join(10)
    assert said == ["waiting for another command"]
    assert read_stack(settings.home) is None


def test_down_makes_no_folder_where_nothing_is(settings: Settings) -> None:
    assert stack.down(settings.home) == []
    assert not settings.home.exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("kill -9 $$", "the controller was killed by SIGKILL: it said nothing"),
        ("echo new words; exit 4", "the controller ended with exit code 4: new words"),
    ],
)
def test_a_controller_that_ends_is_told_of_in_its_own_words(
    settings: Settings, command: str, told: str
) -> None:
    settings.logs.mkdir(parents=True)
    log = settings.logs / "controller.log"
    log.write_text("words of another one\n")
    since = Since.now(settings.logs)
    with log.open("ab") as output:
        child = subprocess.Popen(["sh", "-c", command], stdout=output)
    child.wait()
    with pytest.raises(EngineStartFailed) as failed:
        wait_until_up(settings, child, since, lambda _: None)
    assert failed.value.message == told


def test_a_controller_that_was_told_to_stop_says_so(settings: Settings) -> None:
    write_stack(settings)
    child = spawn("deploy.controller", "--home", str(settings.home), log=settings.logs / "controller.log")
    try:
        while not (settings.state / "gateway.json").exists():
            time.sleep(0.05)
            assert child.poll() is None
        seen = set()
        child.terminate()
        while child.poll() is None:
            seen.add(processes(settings.home).controller.state)
        assert STOPPING in seen
    finally:
        child.kill()
        child.wait()
        spawned.remove(child)
        stack.down(settings.home)
