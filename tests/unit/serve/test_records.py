"""Records on a real disk, identities of real processes."""

import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serve.errors import StorageError
from serve.records import ProcessIdentity, read_json, write_json


@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_an_object_is_written_with_its_folder_and_read_again(tmp_path):
    file = tmp_path / "run" / "thing.json"
    write_json(file, {"pid": 7, "log": Path("/x"), "nested": {"a": [1, None]}})
    assert read_json(file) == {"pid": 7, "log": "/x", "nested": {"a": [1, None]}}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff"])
def test_what_is_no_object_reads_as_empty(tmp_path, content):
    file = tmp_path / "thing.json"
    if content is not None:
        file.write_bytes(content)
    assert read_json(file) == {}
    assert read_json(tmp_path) == {}


def test_a_file_that_cannot_be_replaced_is_named_and_no_part_is_left(tmp_path):
    file = tmp_path / "thing.json"
    (file / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match=str(file)) as caught:
        write_json(file, {"a": 1})
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_json(tmp_path / "run" / "thing.json", {})


def test_readers_never_see_half_of_an_object(tmp_path):
    file = tmp_path / "thing.json"
    write_json(file, {"text": ""})

    def write(letter):
        for count in range(50):
            write_json(file, {"text": letter * count * 1000})

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(set(read_json(file)["text"])) <= 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_process_is_found_again_through_its_record(tmp_path, child):
    identity = ProcessIdentity.of(child.pid)
    write_json(tmp_path / "record.json", {**identity.to_json(), "port": 1})
    found = ProcessIdentity.read(read_json(tmp_path / "record.json"))
    assert found == identity
    assert found.alive
    assert found.process.pid == child.pid


def test_the_start_is_counted_from_the_boot_and_not_by_the_clock(child):
    identity = ProcessIdentity.of(child.pid)
    ticks = os.sysconf("SC_CLK_TCK")
    assert identity.started / ticks == pytest.approx(
        psutil.Process(child.pid).create_time() - psutil.boot_time(), abs=2
    )
    assert identity.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_another_process_of_the_same_number_is_not_it(child):
    identity = ProcessIdentity.of(child.pid)
    assert not replace(identity, started=identity.started - 1).alive
    assert not replace(identity, boot="another").alive


def test_a_zombie_has_an_identity_and_does_not_live(child):
    identity = ProcessIdentity.of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessIdentity.of(child.pid) == identity
    assert not identity.alive
    child.wait()
    assert identity.process is None
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(child.pid)


def test_a_name_with_spaces_and_parentheses_is_no_obstacle(tmp_path):
    program = tmp_path / "a) b (c"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        try:
            assert ProcessIdentity.of(process.pid).alive
        finally:
            process.kill()


@pytest.mark.parametrize("pid", [-1, 0])
def test_a_number_that_names_no_process(pid):
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(pid)
    assert not ProcessIdentity(pid, 1, "").alive


@pytest.mark.parametrize(
    "content",
    [{}, {"pid": 1}, {"pid": None, "started": 1, "boot": ""}, {"pid": 1, "started": "1", "boot": ""}],
)
def test_a_record_with_gaps_names_no_process(content):
    assert ProcessIdentity.read(content) is None


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "open.json", {})
    write_json(tmp_path / "private.json", {"secret": 1}, private=True)
    assert (tmp_path / "private.json").stat().st_mode & 0o077 == 0
    assert (tmp_path / "open.json").stat().st_mode & 0o400
    write_json(tmp_path / "open.json", {"secret": 1}, private=True)
    assert (tmp_path / "open.json").stat().st_mode & 0o077 == 0


def test_a_process_lives_as_long_as_its_last_thread():
    number = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
    if number is None or sys.platform != "linux":
        pytest.skip("the number of the exit system call is known for x86-64 and arm64")
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        f"ctypes.CDLL(None).syscall({number}, 0)"  # ends the first thread alone
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        identity = ProcessIdentity.of(process.pid)
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert identity.alive
        process.kill()
        process.wait()
        assert not identity.alive
