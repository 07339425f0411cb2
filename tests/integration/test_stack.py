"""The stack's life with a fake engine: one up at a time, recovery, what a failed start takes back."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.commands import TENON, cause_and_hint, environment, tenon
from support.guarded import guarding
from support.ports import free_port
from support.stack import healthy, slowly_loaded_alias, until

from deploy import stack
from deploy.status import Status, status
from serve.records import ProcessIdentity


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    stack.down(tmp_path / "home")


def up(home: Path, fake_engine: str) -> Status:
    done = tenon(home, "up", "--detach", "--port", str(free_port()), "--engine-url", fake_engine)
    assert done.returncode == 0, done.stderr
    return healthy(home)


def kill(pid: int | None) -> None:
    assert pid is not None
    identity = ProcessIdentity.of(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not identity.alive)


def test_recovery_needs_no_options_but_its_port(home: Path, fake_engine: str) -> None:
    before = up(home, fake_engine)
    kill(before.controller.pid)
    kill(before.gateway.pid)
    assert before.url is not None
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(before.url.rsplit(":", 1)[1])))
        taken.listen()
        done = tenon(home, "up", "--detach")
    assert done.returncode == 4
    assert "is taken by another process" in cause_and_hint(done)[0]
    done = tenon(home, "up", "--detach")
    assert done.returncode == 0, done.stderr
    assert healthy(home).url == before.url


def test_up_waits_for_what_aliases_mean(home: Path, fake_engine: str, tmp_path: Path) -> None:
    slowly_loaded_alias(home, fake_engine, tmp_path / "adapter", seconds=10.0)
    now = up(home, fake_engine)
    body = {"model": "faq", "messages": [{"role": "user", "content": "x"}]}
    answer = httpx.post(f"{now.url}/v1/chat/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["model"]) == (200, "faq@v1")


def test_up_refused_and_down_as_text_and_as_json(home: Path, fake_engine: str) -> None:
    options = ("--detach", "--port", str(free_port()), "--engine-url", fake_engine, "--json")
    done = tenon(home, "up", *options)
    assert done.returncode == 0, done.stderr
    said, before = json.loads(done.stdout), healthy(home)
    assert (said["url"], said["healthy"]) == (before.url, True)
    assert (said["gateway"]["pid"], said["controller"]["pid"]) == (before.gateway.pid, before.controller.pid)
    assert "engine" in said["engines"]
    for command in (("up", "--detach", "--port", "1234"), ("run", "--port", "1234")):
        done = tenon(home, *command)
        assert done.returncode == 4
        cause, hint = cause_and_hint(done)
        assert "1234" in cause
        assert "tenon down" in hint
    refused = tenon(home, "up", "--detach", "--port", "1234", "--json")
    assert (refused.returncode, refused.stdout) == (4, "")
    error = json.loads(refused.stderr.splitlines()[-1])["error"]
    assert error["code"] == "already_up"
    assert "tenon down" in error["hint"]
    assert healthy(home) == before
    done = tenon(home, "down", "--json")
    assert done.returncode == 0, done.stderr
    assert "controller" in json.loads(done.stdout)["stopped"]
    done = tenon(home, "status")
    assert done.returncode == 5
    assert not (home / "run" / "stack.json").exists()


def test_two_ups_at_once_leave_one_stack(home: Path, fake_engine: str) -> None:
    command = [*TENON, "up", "--detach", "--port", str(free_port()), "--engine-url", fake_engine]
    both = [
        subprocess.Popen(
            command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], errors
    healthy(home)


def test_interrupted_recovery_leaves_what_served(home: Path, fake_engine: str) -> None:
    before = up(home, fake_engine)
    kill(before.controller.pid)
    with subprocess.Popen(
        [*TENON, "up", "--detach"],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        while not (home / "run" / "up.lock").exists() or status(home).controller.pid is None:
            time.sleep(0.02)
            if command.poll() is not None:
                pytest.skip("the recovery was done before it could be interrupted")
        command.send_signal(signal.SIGINT)
    assert status(home).gateway.pid == before.gateway.pid
    until(lambda: status(home).gateway.running)


def test_engine_that_cannot_be_reached_is_told_soon(home: Path) -> None:
    started = time.monotonic()
    url = f"http://127.0.0.1:{free_port()}"
    done = tenon(home, "up", "--detach", "--port", str(free_port()), "--engine-url", url)
    assert done.returncode == 5
    assert url.removeprefix("http://") in cause_and_hint(done)[0]
    assert time.monotonic() - started < 60
    assert status(home).down


def holds(path: Path, text: bytes) -> bool:
    """Whether it is a file with this in it; what is being written comes and goes."""
    with contextlib.suppress(FileNotFoundError):
        return path.is_file() and text in path.read_bytes()
    return False


def test_the_password_of_an_attached_engine_is_sent_and_shown_nowhere(home: Path, fake_engine: str) -> None:
    with guarding(fake_engine, "me", "s3cret") as place:
        now = up(home, f"http://me:s3cret@{place}")
        assert now.engine.detail == f"attached to http://{place}"
        body = {"model": "tenon-tiny", "messages": [{"role": "user", "content": "x"}]}
        assert httpx.post(f"{now.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        other = tenon(home, "up", "--detach", "--engine-url", f"http://me:0ther@{place}")
        assert (other.returncode, f"http://{place}" in cause_and_hint(other)[0]) == (4, True)
        told = tenon(home, "status", "--json").stdout + tenon(home, "status").stdout + other.stderr
        told += httpx.get(f"{now.url}/api/status", timeout=60).text
        assert f"http://{place}" in told
        assert "s3cret" not in told
        assert "0ther" not in told
        holders = {path for path in home.rglob("*") if holds(path, b"s3cret")}
        assert holders == {home / "run" / "stack.json", home / "run" / "engine.access"}
        assert {path.stat().st_mode & 0o777 for path in holders} == {0o600}
        assert tenon(home, "down").returncode == 0
    assert not any(path.exists() for path in holders)


def test_a_closed_terminal_stops_a_foreground_stack(home: Path, fake_engine: str) -> None:
    # Run under nohup, the tests would hand on that the signal is ignored.
    as_in_a_terminal = ["env", "--default-signal=HUP"]
    command = [*as_in_a_terminal, *TENON, "up", "--port", str(free_port()), "--engine-url", fake_engine]
    with subprocess.Popen(
        command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while b"ctrl-C" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGHUP)
        process.stdout.read()
    assert status(home).down


def test_a_users_train_py_does_not_stand_in_for_ours(home: Path, fake_engine: str, tmp_path: Path) -> None:
    for name in ("train.py", "serve.py", "deploy.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    script = Path(sys.executable).with_name("tenon")
    done = subprocess.run(
        [script, "up", "--detach", "--port", str(free_port()), "--engine-url", fake_engine],
        cwd=tmp_path,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_brackets_in_what_is_shown_are_not_markup(home: Path) -> None:
    name = "[/b] [red]x"
    done = tenon(home, "up", "--detach", "--model", f"./{name}", TENON_PORT=str(free_port()))
    assert done.returncode == 2
    assert name in cause_and_hint(done)[0]
