"""Brings the stack of one home up and takes it down."""

import asyncio
import contextlib
import fcntl
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from deploy.fleet import planned, planned_servers
from deploy.processes import GATEWAY_GRACE, end, holding, recorded, spawn
from deploy.stack_file import read_stack, stack_file, write_stack
from deploy.status import STOPPING, Status, processes
from deploy.waiting import Since, wait_until_up
from serve.config import Settings
from serve.engine.state import forget, record_files
from serve.errors import AlreadyUp, StorageError
from serve.interrupts import interrupts_wait
from serve.net import check_reach, listen
from serve.prices import Prices
from serve.records import ProcessIdentity, read_json
from serve.registry import Registry

CONTROLLER_GRACE = GATEWAY_GRACE + 40.0  # seconds: also the engine's 15, and room


def up(settings: Settings, say: Callable[[str], None]) -> tuple[Status, bool]:
    """Bring the stack up and wait until it answers; adopts what a crashed controller left running.

    Returns how it is, and whether it was started from nothing. One that is about to go down is waited for. Raises
    :class:`AlreadyUp` where all of it runs, :class:`PortInUse`, :class:`BaseModelError` or :class:`EngineStartFailed`.
    After a failed or interrupted start, what ran before still runs, what was asked for before still holds, and nothing
    else does.
    """
    taken = AlreadyUp(
        f"another command brings the stack of {settings.home} up", "wait for it; see `tenon status`"
    )
    with holding(settings.state / "up.lock", taken):
        before = settled(settings.home, say)
        if before.healthy:
            raise AlreadyUp(
                f"the stack of {settings.home} is up already at {before.url} serving {before.base}",
                "see `tenon status`; to change its settings run `tenon down` first",
            )
        child: subprocess.Popen[bytes] | None = None
        asked_before, asked = None, False
        try:
            while True:
                since = Since.now(settings.logs)
                if not before.controller.running:
                    asked_before, asked = read_stack(settings.home), True
                    prepare(settings, before, say)
                    with interrupts_wait():
                        child = start_controller(settings)
                if (now := wait_until_up(settings, child, since, say)) is not None:
                    return now, before.down
                before = settled(settings.home, say)  # the controller that was there has ended since
        except BaseException:
            if asked:
                undo(child, settings.home, before, asked_before, say)
            raise


def settled(home: Path, say: Callable[[str], None]) -> Status:
    """What runs, once a stack that was told to go down has done so; raises AlreadyUp where it does not."""
    deadline = time.monotonic() + CONTROLLER_GRACE
    while True:
        with going_down(home, say):
            now = processes(home)
        if now.controller.state != STOPPING:
            return now
        if time.monotonic() > deadline:
            raise AlreadyUp(
                f"the stack of {home} was told to go down and does not",
                "run `tenon down`, which ends it by force",
            )
        say("waiting for the stack to go down")
        time.sleep(0.25)


def prepare(settings: Settings, before: Status, say: Callable[[str], None]) -> None:
    """Check and write what is wanted, for a controller that adopts an engine and a gateway that still live."""
    if before.gateway.pid is None:
        check_gateway(settings)
    planned_servers(settings, planned(settings, say))
    write_stack(settings)
    (settings.state / "gateway-exit.json").unlink(missing_ok=True)


def check_gateway(settings: Settings) -> None:
    """Find out at once what would keep a gateway from starting.

    Raises PortInUse, or ConfigError for an address of this machine's that is none, or that others reach while there
    are no keys, and for prices that cannot be read.
    """
    with contextlib.closing(listen(settings.host, settings.port)) as sock, Registry.of(settings) as registry:
        check_reach(sock, keys=registry.keys_used())
    Prices.load(settings.prices)


def start_controller(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a controller for what ``stack.json`` asks for."""
    return spawn("deploy.controller", "--home", str(settings.home), log=settings.logs / "controller.log")


def undo(
    child: "subprocess.Popen[bytes] | None",
    home: Path,
    before: Status,
    asked_before: Settings | None,
    say: Callable[[str], None],
) -> None:
    """Take back a start: what was down before goes down, what was adopted stays up."""
    with interrupts_wait():
        restore(home, asked_before)
        if child is not None and before.down:
            # Once it was told to, it ends what it started also where a second ctrl-C cuts off the rest.
            child.terminate()
    if child is None:
        return
    with suppress(OSError, SystemExit):  # as where nobody reads what we say any more
        say("stopping what was started")
    if before.down:
        with suppress(subprocess.TimeoutExpired):
            child.wait(CONTROLLER_GRACE)
        stop(home)
        return
    started = kill_leaving_children(child)  # asked politely, it would stop what it adopted
    (home / "run" / "controller.json").unlink(missing_ok=True)
    if before.gateway.pid is None:
        end_gateway(home)
    end_engines(home, {name for name, part in before.engines.items() if part.pid is not None})
    for identity in started:  # what has left no record of itself yet
        end(identity, grace=GATEWAY_GRACE)


def restore(home: Path, asked_before: Settings | None) -> None:
    """Have ``stack.json`` say again what the stack was asked for before, as well as the disk allows."""
    with suppress(OSError, StorageError):
        if asked_before is None:
            stack_file(home).unlink(missing_ok=True)
        else:
            write_stack(asked_before)


def kill_leaving_children(child: "subprocess.Popen[bytes]") -> list[ProcessIdentity]:
    """End a process at once; returns the children that it leaves."""
    left: list[ProcessIdentity] = []
    if child.poll() is not None:  # its number may be another's by now
        return left
    with interrupts_wait():
        child.send_signal(signal.SIGSTOP)  # it starts nothing more
        with suppress(psutil.Error):
            for process in psutil.Process(child.pid).children():
                with suppress(ProcessLookupError):
                    left.append(ProcessIdentity.of(process.pid))
        child.kill()
        child.wait()
    return left


def down(home: Path, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Stop all parts, also those that a dead controller left behind; returns what was stopped."""
    with going_down(home, say):
        found = tell_to_stop(home)
        return [*found, *(part for part in stop(home) if part not in found)]


def tell_to_stop(home: Path) -> list[str]:
    """Have the controller take all down, whatever becomes of who waits for it; nothing is asked for any more.

    Returns the controller, if there is one.
    """
    with interrupts_wait():
        stack_file(home).unlink(missing_ok=True)
        controller = recorded(home / "run" / "controller.json")
        process = controller.process if controller is not None else None
        if process is None:
            return []
        with suppress(psutil.Error):
            process.terminate()
        return ["controller"]


@contextlib.contextmanager
def going_down(home: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold off other commands that take the stack down, or wait for them, for as long as the block runs."""
    with contextlib.ExitStack() as held:
        # Without the folder nothing runs; on a full disk, or one without locks, a stack must be stopped all the same.
        with suppress(OSError):
            file = held.enter_context((home / "run" / "down.lock").open("w"))
            if not locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                with suppress(OSError, SystemExit):
                    say("waiting for another command")
                locked(file, fcntl.LOCK_EX)
        yield


def locked(file: IO[str], operation: int) -> bool:
    """Whether a file could be locked; false where another process holds it."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    return True


def stop(home: Path) -> list[str]:
    """Stop all parts that run; what the stack was asked for stays."""
    stopped = []
    controller = recorded(home / "run" / "controller.json")
    if controller is not None:
        end(controller, grace=CONTROLLER_GRACE)
        stopped.append("controller")
    stopped += ["gateway"] * end_gateway(home) + end_engines(home)
    for name in ("controller.json", "gateway-exit.json"):
        (home / "run" / name).unlink(missing_ok=True)
    return stopped


def end_gateway(home: Path) -> bool:
    """Let the gateway finish what it has in flight and end it; whether it ran."""
    path = home / "run" / "gateway.json"
    gateway = recorded(path)
    if gateway is not None:
        end(gateway, grace=GATEWAY_GRACE)
    path.unlink(missing_ok=True)
    return gateway is not None


def end_engines(home: Path, kept: Collection[str] = ()) -> list[str]:
    """End the engines of our own, but for those that are ``kept``, with all that they started; those that ended."""
    ended = []
    for name, path in record_files(home / "run").items():
        if name not in kept:
            record = read_json(path)
            if ProcessIdentity.read(record) is not None:  # it did not end in order
                # Imported here, as it brings the engine's client, which takes as long as the rest of most commands.
                from serve.engine.process import end_recorded

                ended += [name] * asyncio.run(end_recorded(record))
            forget(path)
    return ended
