"""Process records: they name one process for good."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.processes import Record, end, ending, write_json
from serve.errors import StorageError

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); time.sleep(60)"


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_record_survives_the_file_and_notices_death(tmp_path: Path) -> None:
    child = start(SLEEP)
    Record.of(child.pid, url="http://there").write(tmp_path / "record.json")
    record = Record.read(tmp_path / "record.json")
    assert record is not None
    assert record.alive
    assert record.details == {"url": "http://there"}
    child.kill()
    assert child.stdout is not None
    child.stdout.close()
    child.wait()
    assert not record.alive


def test_another_process_with_the_same_id_is_not_the_recorded_one() -> None:
    assert not Record(os.getpid(), 1.0, {}).alive


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_unreadable_record_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    assert Record.read(path) is None


def test_end_kills_what_does_not_obey() -> None:
    child = start(STUBBORN)
    assert child.stdout is not None
    child.stdout.readline()
    started = time.monotonic()
    record = Record.of(child.pid)
    assert not end(record, grace=0.3)
    assert time.monotonic() - started < 5
    child.stdout.close()
    child.wait()
    assert not record.alive


def test_end_takes_children_along() -> None:
    import psutil

    parent = start(PARENT)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.02)
    assert end(Record.of(parent.pid), grace=2.0)
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state" / "x.json"
    write_json(path, {"a": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_json(tmp_path / "file" / "x.json", {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_ending_names_the_signal() -> None:
    assert ending(-9) == "was killed by SIGKILL"
    assert ending(3) == "ended with exit code 3"
