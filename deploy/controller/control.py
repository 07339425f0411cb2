"""The process that keeps the stack as it should be: its engines, one gateway, the adapters that are desired.

``python -m deploy.controller --home DIR`` reads ``run/stack.json`` (written by ``tenon up``). It is
level-triggered: what it finds running it adopts, what is missing it starts, and it may itself be killed and
started again at any time without the engines or the gateway noticing.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from deploy.fleet import planned, planned_servers
from deploy.keepers import supervisor_of, watcher_of
from deploy.processes import GATEWAY_GRACE, NOT_STARTED, end, ending, holding, recorded, spawn
from deploy.stack_file import read_stack, stack_file
from deploy.status import STOPPING
from serve.config import PREFIX, Settings
from serve.engine.process import end_recorded
from serve.engine.state import forget, record_files, registered_name
from serve.errors import AlreadyUp, ConfigError, StorageError, TenonError
from serve.logs import logging_to_stderr
from serve.records import ProcessIdentity, read_json, write_json
from serve.registry import Registry

log = logging.getLogger("tenon.controller")

# The gateway's settings beside home, host and port.
GATEWAY_RULES = (
    "grammars",
    "media",
    "open_metrics",
    "presets",
    "prices",
    "unknown_fields",
    "log_level",
    "log_format",
    "otlp_endpoint",
    # What its management API needs.
    "model",
    "engine_args",
    "max_lora_rank",
    "max_adapter_mib",
    "adapter_timeout",
    "allow_private_sources",
    "api_adapter_folder",
)
TICK = 0.2  # seconds between two looks at the gateway
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before the gateway's next start, by recent failures
LONG_GONE = 24 * 3600.0  # seconds after which an engine of another machine is forgotten
HEALTHY_AFTER = 60.0  # seconds after which earlier failures are forgotten


class GatewayKeeper:
    """Keeps one gateway process running: adopts it, or starts it again with a growing pause."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.child: subprocess.Popen[bytes] | None = None
        self.failures = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until ``stop``, then let the gateway finish what it has in flight and end it."""
        record = self.settings.state / "gateway.json"
        while not stop.is_set():
            try:
                gateway = recorded(record) or self._start()
            except (StorageError, OSError) as error:  # no log, no memory, no process: there may be again
                reason = error.message if isinstance(error, StorageError) else str(error)
                self._failed(f"{NOT_STARTED}: {reason}")
                await pause(stop, self._pause)
                continue
            log.info("watching gateway %d", gateway.pid)
            since = time.monotonic()
            while gateway.alive and not stop.is_set():
                await pause(stop, TICK)
            if stop.is_set():
                await asyncio.to_thread(end, gateway, grace=GATEWAY_GRACE)
                record.unlink(missing_ok=True)
            else:
                self._ended(gateway, time.monotonic() - since)
                await pause(stop, self._pause)

    @property
    def _pause(self) -> float:
        return BACKOFF[min(self.failures, len(BACKOFF)) - 1]

    def _start(self) -> ProcessIdentity:
        settings = self.settings
        where = ("--home", str(settings.home), "--host", settings.host, "--port", str(settings.port))
        variables = {**secrets_in(settings), **rules_in(settings)}
        self.child = spawn("serve.gateway", *where, log=settings.logs / "gateway.log", variables=variables)
        return ProcessIdentity.of(self.child.pid)

    def _ended(self, gateway: ProcessIdentity, lived: float) -> None:
        if lived > HEALTHY_AFTER:
            self.failures = 0
        code = self.child.poll() if self.child is not None and self.child.pid == gateway.pid else None
        self._failed("ended" if code is None else ending(code), f" {gateway.pid}", f" after {lived:.0f} s")

    def _failed(self, reason: str, which: str = "", when: str = "") -> None:
        self.failures += 1
        log.warning("gateway%s %s%s", which, reason, when)
        fate = {"reason": reason, "at": time.time(), "failures": self.failures}
        try:
            write_json(self.settings.state / "gateway-exit.json", fate)
        except StorageError as error:  # a full disk must not end what keeps the gateway up
            log.warning("%s", error.message)


def secrets_in(settings: Settings) -> dict[str, str]:
    """The variables with the secrets of this stack, empty where it has none."""
    values = {"database_url": settings.database_url, "redis_url": settings.redis_url}
    return {
        f"{PREFIX}{name.upper()}": value.get_secret_value() if value is not None else ""
        for name, value in values.items()
    }


def rules_in(settings: Settings) -> dict[str, str]:
    """The variables that tell a gateway the rules that this stack was brought up with, whoever restarts it."""
    values = {name: getattr(settings, name) for name in GATEWAY_RULES}
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items() if value is not None}


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake at once when ``stop`` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


async def control(settings: Settings) -> None:
    """Run the stack until SIGTERM or SIGINT, then stop the gateway first and the engines last."""
    stop, stop_gateway = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to_stop() -> None:
        stop_gateway.set()
        with contextlib.suppress(StorageError):
            write_record(settings, stopping=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop)
    with Registry.of(settings) as registry:
        plan = planned(settings)
        servers = planned_servers(settings, plan)
        await retire(settings, registry, [part.name for part in plan] + [part.name for part in servers])
        bases = {engine.base.digest for engine in plan}
        supervisors = [supervisor_of(engine, settings, registry, bases) for engine in plan]
        engines = [asyncio.create_task(supervisor.run(stop)) for supervisor in supervisors]
        engines += [asyncio.create_task(watcher_of(server, settings).run(stop)) for server in servers]
        gateway = asyncio.create_task(GatewayKeeper(settings).run(stop_gateway))
        try:
            await asyncio.wait({*engines, gateway}, return_when=asyncio.FIRST_COMPLETED)
            stop_gateway.set()
            await gateway
        finally:
            stop.set()
            await asyncio.gather(*engines)


async def retire(settings: Settings, registry: Registry, kept: Collection[str]) -> None:
    """End the engines of an earlier stack that are not ``kept``, and forget what they held."""
    gone = set()
    for name, path in record_files(settings.state).items():
        if name not in kept:
            log.info("engine %s is not part of the stack any more", name)
            record = read_json(path)
            await end_recorded(record)
            gone.add(registered_name(name, record))
            forget(path)
    if not registry.shared:  # nobody else has engines in this registry
        gone |= {row.engine for row in registry.loaded()} - set(kept)
    try:
        if registry.shared:
            seen = {engine.name for engine in registry.engines(within=LONG_GONE)}
            gone |= {engine.name for engine in registry.engines()} - seen
        for name in gone:
            registry.forget_engine(name)
    except StorageError as error:  # what it held is not asked of it; the record of it is all that stays
        log.warning("%s", error.message)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the controller process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.controller", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    home: Path = parser.parse_args(argv).home
    try:
        settings = read_stack(home)
        if settings is None:
            raise ConfigError(f"{stack_file(home)} is missing", "start the stack with `tenon up`")
    except TenonError as error:
        with logging_to_stderr("text", "info"):
            log.error("%s (%s)", error.message, error.hint)
        return error.exit_code
    with logging_to_stderr(settings.log_format, settings.log_level):
        return run(settings)


def write_record(settings: Settings, *, stopping: bool = False) -> None:
    """Tell other processes who we are, and whether we were told to stop."""
    identity = ProcessIdentity.of(os.getpid())
    write_json(settings.state / "controller.json", {**identity.to_json(), STOPPING: stopping})


def run(settings: Settings) -> int:
    """Be the home's controller until a signal; returns the exit code."""
    record = settings.state / "controller.json"
    taken = AlreadyUp(f"another controller runs for {settings.home}", "see `tenon status`")
    try:
        with holding(settings.state / "controller.lock", taken):
            write_record(settings)
            asyncio.run(control(settings))
            record.unlink(missing_ok=True)
    except TenonError as error:
        log.error("%s (%s)", error.message, error.hint)
        return error.exit_code
    return 0
