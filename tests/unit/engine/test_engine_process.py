"""Real processes: the fake engine, or a few lines of Python, in place of vLLM."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from engine_base import NONSENSE

from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess, EngineRecord, end_recorded
from serve.engine.spec import EngineSpec
from serve.errors import EngineStartFailed, PortInUse, StorageError

FAKE = (sys.executable, "-m", "serve.engine.fake")
LATE = """
import sys, time
from pathlib import Path
go_on = Path(sys.argv.pop(1))
while not go_on.exists():
    time.sleep(0.01)
from serve.engine.fake import main
main()
"""
WITH_CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", flush=True)
time.sleep(600)
"""


def spec(*command, **changes):
    return EngineSpec(Path("/models/tiny"), "tiny", device="cpu", command=command or FAKE, **changes)


def session(pid):
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
async def engine(tmp_path):
    process = await EngineProcess.start(spec(), tmp_path / "logs" / "engine.log")
    yield process
    await process.stop(grace=2)


async def test_it_becomes_ready_tells_how_far_it_is_and_stops(tmp_path):
    go_on, seen = tmp_path / "go on", []

    def tell(stage):
        seen.append(stage)
        go_on.touch()

    engine = await EngineProcess.start(spec(sys.executable, "-c", LATE, str(go_on)), tmp_path / "engine.log")
    await engine.wait_ready(30, tell)
    assert seen[0] == "importing vLLM"
    async with EngineClient(engine.url) as client:
        assert await client.models() == ["tiny"]
    assert "Application startup complete" in engine.log_text()
    await engine.stop()
    assert not engine.alive()
    assert session(engine.record.pid) == []
    assert not Path(engine.record.scratch).exists()


async def test_it_runs_in_a_session_of_its_own(engine):
    assert os.getsid(engine.record.pid) == engine.record.pid != os.getsid(0)


async def test_a_start_that_fails_says_why(tmp_path):
    crash = "import sys; sys.exit('ValueError: Model architectures [\"Foo\"] are not supported for now.')"
    process = await EngineProcess.start(spec(sys.executable, "-c", crash), tmp_path / "engine.log")
    with pytest.raises(EngineStartFailed) as caught:
        await process.wait_ready(30)
    assert "exit code 1" in caught.value.message
    assert "are not supported" in caught.value.message
    assert "choose another base" in caught.value.hint
    assert str(tmp_path / "engine.log") in caught.value.hint


async def test_only_this_start_is_quoted_from_a_log_that_is_kept(tmp_path):
    log = tmp_path / "engine.log"
    log.write_text("ValueError: from yesterday\n")
    process = await EngineProcess.start(spec(sys.executable, "-c", "raise OSError('from today')"), log)
    with pytest.raises(EngineStartFailed) as caught:
        await process.wait_ready(30)
    assert "from today" in caught.value.message
    assert "yesterday" not in caught.value.message
    assert "yesterday" in log.read_text()


async def test_a_start_that_takes_too_long_is_ended(tmp_path):
    process = await EngineProcess.start(spec(sys.executable, "-c", WITH_CHILD), tmp_path / "engine.log")
    with pytest.raises(EngineStartFailed, match="not ready after 1 s"):
        await process.wait_ready(1)
    assert session(process.record.pid) == []


async def test_a_taken_port_is_named_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            await EngineProcess.start(spec(port=port), tmp_path / "engine.log")


async def test_a_command_that_does_not_exist_is_a_failed_start(tmp_path):
    with pytest.raises(EngineStartFailed, match="cannot be run"):
        await EngineProcess.start(spec("/no/such/python"), tmp_path / "engine.log")


async def test_what_outlives_a_killed_engine_is_ended_too(tmp_path):
    process = await EngineProcess.start(spec(sys.executable, "-c", WITH_CHILD), tmp_path / "engine.log")
    await until(lambda: "started" in process.log_text())
    assert len(session(process.record.pid)) == 2
    os.kill(process.record.pid, signal.SIGKILL)
    await until(lambda: not process.alive())
    assert process.exit_code == -9
    assert len(session(process.record.pid)) == 1
    await process.stop(grace=1)
    assert session(process.record.pid) == []


async def test_one_that_ignores_the_polite_signal_is_killed(tmp_path):
    deaf = (
        "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    process = await EngineProcess.start(spec(sys.executable, "-c", deaf), tmp_path / "engine.log")
    await until(lambda: "deaf" in process.log_text())
    await process.stop(grace=0.2)
    assert session(process.record.pid) == []
    assert process.exit_code == -9


async def test_another_controller_adopts_a_running_engine(engine):
    await engine.wait_ready(30)
    record = EngineRecord.read({**engine.record.to_json(), "state": "ready", "restarts": 3})
    adopted = EngineProcess(record)
    assert await adopted.serves(spec())
    await adopted.stop()
    assert not engine.alive()
    assert session(record.pid) == []


async def test_an_engine_of_another_spec_is_not_adopted(engine):
    await engine.wait_ready(30)
    assert await engine.serves(spec())
    assert not await engine.serves(spec(max_loras=2))
    assert not await engine.serves(spec(port=1))
    assert engine.alive()


async def test_a_process_that_got_the_pid_later_is_neither_adopted_nor_ended(engine, tmp_path):
    await engine.wait_ready(30)
    earlier = replace(engine.record.identity, started=engine.record.identity.started - 100)
    found = EngineProcess(replace(engine.record, identity=earlier, scratch=str(tmp_path / "gone")))
    assert not await found.serves(spec())
    await found.stop(grace=0.1)
    assert engine.alive()


async def test_what_a_record_tells_of_is_ended_without_a_controller(engine):
    await engine.wait_ready(30)
    assert await end_recorded({**engine.record.to_json(), "state": "ready"})
    assert not engine.alive()
    assert not await end_recorded({"state": "ready", "attached": True})


async def test_a_stopped_engine_hears_that_it_is_to_end(engine):
    await engine.wait_ready(30)
    os.kill(engine.record.pid, signal.SIGSTOP)
    async with asyncio.timeout(14):  # after 15 seconds it would be killed
        await engine.stop()
    assert engine.exit_code == -signal.SIGTERM


async def test_modules_in_the_folder_that_we_are_called_from_are_not_ours(tmp_path, monkeypatch):
    (tmp_path / "serve.py").write_text("raise SystemExit('a module of the user was imported')")
    monkeypatch.chdir(tmp_path)
    process = await EngineProcess.start(spec(), tmp_path / "engine.log")
    try:
        await process.wait_ready(30)
    finally:
        await process.stop()


async def test_an_engine_that_answers_nonsense_is_not_ready(tmp_path):
    process = await EngineProcess.start(spec(sys.executable, "-c", NONSENSE), tmp_path / "engine.log")
    with pytest.raises(EngineStartFailed, match="not ready after 2 s"):
        await process.wait_ready(2)
    assert not await process.serves(spec(sys.executable, "-c", NONSENSE))


@pytest.mark.parametrize("command", [("/no/such/python",), (sys.executable, "a zero \0 byte")])
async def test_a_start_that_fails_leaves_no_scratch_folder(tmp_path, command):
    with pytest.raises((EngineStartFailed, ValueError)):
        await EngineProcess.start(spec(*command), tmp_path / "engine.log")
    assert list(Path(tempfile.gettempdir()).glob("tenon-*")) == []


async def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        await EngineProcess.start(spec(), tmp_path / "file" / "engine.log")


def test_a_record_with_gaps_is_none():
    assert EngineRecord.read({}) is None
    assert EngineRecord.read({"pid": 1, "url": "http://x"}) is None
