"""The engine as a child process in its own session: started, watched, adopted, ended with all it started."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from serve.engine.client import EngineClient
from serve.engine.spec import EngineSpec
from serve.engine.startup import explain, stage_of
from serve.errors import EngineStartFailed, EngineUnavailable, StorageError
from serve.net import free_port
from serve.records import ProcessIdentity

HOST = "127.0.0.1"
POLL = 0.2
"""Seconds between two looks at a process or a port."""

_TRACKER = re.compile(r"multiprocessing\.resource_tracker")


@dataclass(frozen=True)
class EngineRecord:
    """What finds a running engine again.

    ``scratch`` is its folder for temporary files, which goes when it does: vLLM leaves its sockets behind.
    """

    identity: ProcessIdentity
    port: int
    url: str
    base_name: str
    fingerprint: str
    log: str
    scratch: str

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "EngineRecord | None":
        """The record in a JSON object that may hold more, or None if it is none."""
        identity = ProcessIdentity.read(content)
        names = ("port", "url", "base_name", "fingerprint", "log", "scratch")
        if identity is None or any(content.get(name) is None for name in names):
            return None
        return cls(identity, **{name: content[name] for name in names})

    @property
    def pid(self) -> int:
        """The process id of the API server, which leads its session."""
        return self.identity.pid

    def to_json(self) -> dict[str, Any]:
        """The fields, those of the identity among them."""
        fields = asdict(self)
        del fields["identity"]
        return self.identity.to_json() | fields


class EngineProcess:
    """A running engine: our child, or one that an earlier controller left behind."""

    def __init__(
        self, record: EngineRecord, child: subprocess.Popen[bytes] | None = None, log_start: int = 0
    ) -> None:
        self.record = record
        self.started = time.monotonic()
        self.exit_code: int | None = None
        self._child = child
        self._log_start = log_start

    @classmethod
    async def start(cls, spec: EngineSpec, log: Path) -> "EngineProcess":
        """Start an engine that appends to ``log``; it is not ready yet.

        Raises :class:`PortInUse` when another process listens on the spec's port, :class:`StorageError` when
        the log cannot be written, :class:`EngineStartFailed` when the command cannot be run.
        """
        port = free_port(HOST, spec.port)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log_start = log.stat().st_size if log.exists() else 0
            with contextlib.ExitStack() as undo:
                scratch = tempfile.mkdtemp(prefix="tenon-")  # a short path: sockets allow a hundred bytes
                undo.callback(shutil.rmtree, scratch, ignore_errors=True)
                child = _spawn(spec.argv(port), spec.environment() | {"TMPDIR": scratch}, log)
                undo.pop_all()
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError) and error.filename == spec.command[0]:
                text = f"the engine's command cannot be run: {error}"
                raise EngineStartFailed(text, "run `make setup`") from error
            text = f"the engine's log {log} or its folder for temporary files cannot be written: {error}"
            raise StorageError(text, "free some disk space") from error
        url = f"http://{HOST}:{port}"
        identity = ProcessIdentity.of(child.pid)  # until we wait for it, its number is not given away
        record = EngineRecord(identity, port, url, spec.base_name, spec.fingerprint(), str(log), scratch)
        return cls(record, child, log_start)

    async def serves(self, spec: EngineSpec) -> bool:
        """Whether the engine lives, was started to the same spec, and answers as its base."""
        record = self.record
        if record.fingerprint != spec.fingerprint() or spec.port not in (0, record.port) or not self.alive():
            return False
        async with EngineClient(self.url) as client:
            return await self._answers(client)

    async def _answers(self, client: EngineClient) -> bool:
        try:
            return await client.health() and self.record.base_name in await client.models()
        except EngineUnavailable:
            return False

    @property
    def url(self) -> str:
        """Where the engine listens."""
        return self.record.url

    def alive(self) -> bool:
        """Whether the API server runs; others of its session may outlive it, :meth:`stop` ends them."""
        if self._child is not None:
            self.exit_code = self._child.poll()
            return self.exit_code is None
        return self.record.identity.alive

    def log_text(self, most: int = 200_000) -> str:
        """What this engine has written to its log so far (the last ``most`` bytes)."""
        path = Path(self.record.log)
        try:
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(min(self._log_start, end), end - most))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    async def wait_ready(self, timeout: float, on_progress: Callable[[str], None] | None = None) -> None:
        """Wait until the engine answers as its base; ``on_progress`` gets what it does, in words.

        Raises :class:`EngineStartFailed` with the telling lines of its log when it ends, or takes longer than
        ``timeout`` seconds; nothing of it is left then.
        """
        async with EngineClient(self.url, health_timeout=5.0) as client:
            while not await self._answers(client):
                elapsed = time.monotonic() - self.started
                if not self.alive():
                    await self._fail(f"the engine ended before it was ready (exit code {self.exit_code})")
                if elapsed > timeout:
                    await self._fail(f"the engine was not ready after {timeout:.0f} s")
                if on_progress is not None:
                    on_progress(stage_of(self.log_text()))
                await asyncio.sleep(POLL)

    async def _fail(self, what: str) -> None:
        await self.stop(grace=2.0)
        said, hint = explain(self.log_text(), self.exit_code)
        raise EngineStartFailed(f"{what}: {said}", f"{hint} (log: {self.record.log})")

    async def stop(self, grace: float = 15.0) -> None:
        """End the engine and all processes of its session: SIGTERM, after ``grace`` seconds SIGKILL.

        The API server alone gets the SIGTERM while it lives, as it ends the others in order. What is left
        then is killed; the trackers of shared memory go last, since they remove what killed processes leave
        in /dev/shm. Where this is interrupted, another call carries on; the scratch folder goes at the end.
        """
        if self.alive():
            _send(self.record.pid, signal.SIGTERM)
            _send(self.record.pid, signal.SIGCONT)  # one that is stopped would not hear the other
            await self._wait_until(lambda: not self.alive(), grace)
        else:
            for process in self._members():
                _send(process.pid, signal.SIGTERM)
        await self._wait_until(lambda: not self._members(), 1.0)
        for process in self._members():
            if not _is_tracker(process):
                _send(process.pid, signal.SIGKILL)
        await self._wait_until(lambda: not self._members(), 3.0)
        for process in self._members():
            _send(process.pid, signal.SIGKILL)
        await self._wait_until(lambda: not self._members() and not self.alive(), 5.0)
        shutil.rmtree(self.record.scratch, ignore_errors=True)

    async def _wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not done():  # noqa: ASYNC110 - a process of an earlier controller gives no event
                    await asyncio.sleep(0.05)

    def _members(self) -> list[psutil.Process]:
        """Living processes of the engine's session, its leader included.

        A session's id is its first process's pid and is not given away while a member lives; the starting
        times guard against the case that all ended and another session got the number.
        """
        leader = self.record.identity
        with contextlib.suppress(ProcessLookupError):
            if ProcessIdentity.of(leader.pid) != leader:
                return []
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) != leader.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                member = ProcessIdentity.of(process.pid)
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue
            if member.boot == leader.boot and member.started >= leader.started:
                members.append(process)
        return members


async def end_recorded(content: Mapping[str, Any]) -> bool:
    """End the engine that ``run/engine.json`` tells of, and what a dead one left behind; whether it named one.

    For when no controller lives that would do it; an attached engine is named by no record and stays.
    """
    record = EngineRecord.read(content)
    if record is None:
        return False
    await EngineProcess(record).stop()
    return True


def _spawn(argv: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    # Popen, not asyncio's: that one kills the child when its event loop ends; the engine outlives us.
    with log.open("ab") as file:
        return subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return _TRACKER.search(" ".join(process.cmdline())) is not None
    except psutil.Error:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
