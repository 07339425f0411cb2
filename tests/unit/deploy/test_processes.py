"""Processes that outlive a command: found again, and ended for good."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from deploy.processes import end, ending, recorded
from serve.records import ProcessIdentity, write_json

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); time.sleep(60)"


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def finish(child: "subprocess.Popen[bytes]") -> None:
    assert child.stdout is not None
    child.stdout.close()
    child.wait()


def test_recorded_process_is_found_while_it_lives(tmp_path: Path) -> None:
    child, path = start(SLEEP), tmp_path / "record.json"
    assert recorded(path) is None
    write_json(path, {**ProcessIdentity.of(child.pid).to_json(), "url": "http://there"})
    assert recorded(path) == ProcessIdentity.of(child.pid)
    child.kill()
    finish(child)
    assert recorded(path) is None


def test_end_kills_what_does_not_obey() -> None:
    child = start(STUBBORN)
    assert child.stdout is not None
    child.stdout.readline()
    started, identity = time.monotonic(), ProcessIdentity.of(child.pid)
    assert not end(identity, grace=0.3)
    assert time.monotonic() - started < 30
    assert not identity.alive
    finish(child)


def test_end_takes_children_along() -> None:
    parent = start(PARENT)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.02)
    family = [ProcessIdentity.of(child.pid) for child in children]
    assert end(ProcessIdentity.of(parent.pid), grace=20.0)
    finish(parent)
    assert not any(child.alive for child in family)


def test_a_module_of_the_users_does_not_stand_in_for_ours(tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text("raise SystemExit('the wrong serve')")
    code = (
        "from deploy.processes import spawn; from pathlib import Path; import sys;"
        " sys.exit(spawn('serve.gateway', '--help', log=Path('log')).wait())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert "--home" in (tmp_path / "log").read_text()


def test_ending_names_the_signal() -> None:
    assert ending(-9) == "was killed by SIGKILL"
    assert ending(3) == "ended with exit code 3"
