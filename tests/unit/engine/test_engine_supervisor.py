"""The supervisor with real processes: the fake engine, started as vLLM would be."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from engine_base import BASE

from serve.engine.client import EngineClient
from serve.engine.fake import FakeEngine
from serve.engine.spec import EngineSpec
from serve.engine.state import EngineState, read_state, write_state
from serve.engine.supervisor import Supervisor
from serve.errors import ConfigError

FAKE = (sys.executable, "-m", "serve.engine.fake")


class Home:
    """What a controller has: a registry, files, and a supervisor that runs."""

    def __init__(self, registry, folder):
        self.registry, self.folder = registry, folder
        self.state_file = folder / "run" / "engine.json"

    def supervisor(self, *command, **changes):
        spec = EngineSpec(Path("/models/base"), "base", device="cpu", command=command or FAKE)
        given = {"spec": spec, "start_timeout": 30.0, **changes}
        return Supervisor(
            self.registry,
            BASE,
            state_file=self.state_file,
            log_file=self.folder / "logs" / "engine.log",
            **given,
        )

    @property
    def state(self):
        return read_state(self.state_file)

    @property
    def rows(self):
        return {str(row.ref): row.state for row in self.registry.loaded()}

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def running(self, supervisor):
        stop = asyncio.Event()
        task = asyncio.create_task(supervisor.run(stop))
        try:
            yield supervisor
        finally:
            stop.set()
            await task


@pytest.fixture
def home(registry, tmp_path):
    return Home(registry, tmp_path)


async def test_it_starts_loads_tells_and_stops(home, add):
    home.registry.set_alias("support", add().ref)
    async with home.running(home.supervisor()):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        state = home.state
        assert state["state"] == "ready"
        assert state["base_name"] == "base"
        assert state["restarts"] == 0
        assert not state["attached"]
        assert alive(state["pid"])
    assert home.state["state"] == "down"
    assert home.rows == {"support@v1": "pending"}
    assert not alive(state["pid"])


async def test_a_new_version_is_loaded_into_the_running_engine(home, add):
    home.registry.set_alias("support", add().ref)
    async with home.running(home.supervisor()):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        pid = home.state["pid"]
        home.registry.want(add().ref)
        await home.until(lambda: home.rows == {"support@v1": "ready", "support@v2": "ready"})
        assert home.state["pid"] == pid


async def test_a_killed_engine_comes_back_with_its_adapters(home, add):
    home.registry.set_alias("support", add().ref)
    async with home.running(home.supervisor()):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        before = home.state
        os.kill(before["pid"], signal.SIGKILL)
        await home.until(lambda: home.state["state"] != "ready")
        await home.until(lambda: home.rows == {"support@v1": "pending"})
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        after = home.state
        assert after["pid"] != before["pid"]
        assert (after["restarts"], after["last_exit"]) == (1, -9)
        async with EngineClient(after["url"]) as client:
            assert len(await client.models()) == 2


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from engine_base import BASE
from serve.engine.spec import EngineSpec
from serve.engine.supervisor import Supervisor
from serve.registry.registry import Registry

folder = Path(sys.argv[1])
spec = EngineSpec(Path("/models/base"), "base", device="cpu", command=(sys.executable, "-m", "serve.engine.fake"))
supervisor = Supervisor(
    Registry.open(folder / "home"), BASE, spec=spec, state_file=folder / "run" / "engine.json",
    log_file=folder / "logs" / "engine.log",
)
asyncio.run(supervisor.run(asyncio.Event()))
"""


@pytest.fixture
async def orphan(home, add):
    """The state of an engine whose controller was killed."""
    home.registry.set_alias("support", add().ref)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    controller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONTROLLER, str(home.folder), env=environment
    )
    await home.until(lambda: home.rows == {"support@v1": "ready"})
    controller.kill()
    await controller.wait()
    state = home.state
    assert alive(state["pid"])
    yield state
    with contextlib.suppress(ProcessLookupError):
        os.killpg(state["pid"], signal.SIGKILL)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_next_controller_adopts_the_engine(home, orphan):
    revision = home.registry.revision()
    async with home.running(home.supervisor()) as supervisor:
        await home.until(lambda: supervisor.state.state == "ready")
        await asyncio.sleep(1)
        assert home.state["pid"] == orphan["pid"]
        assert home.registry.revision() == revision, "nothing was pending in between"
    assert not alive(orphan["pid"])


async def test_an_adopted_engine_that_dies_is_replaced(home, orphan):
    async with home.running(home.supervisor()) as supervisor:
        await home.until(lambda: supervisor.state.state == "ready")
        os.kill(orphan["pid"], signal.SIGKILL)
        await home.until(lambda: home.state["state"] == "ready" and home.state["pid"] != orphan["pid"])
        await home.until(lambda: home.rows == {"support@v1": "ready"})


async def test_an_engine_of_other_settings_is_replaced(home, orphan):
    spec = EngineSpec(Path("/models/base"), "base", device="cpu", command=FAKE, max_loras=2)
    async with home.running(home.supervisor(spec=spec)):
        await home.until(lambda: home.state["state"] == "ready" and home.state["pid"] != orphan["pid"])
        assert not alive(orphan["pid"])


async def test_an_engine_that_cannot_start_is_reported_and_tried_again(home):
    crash = (
        sys.executable,
        "-c",
        "raise SystemExit('RuntimeError: DefaultCPUAllocator: can not allocate memory')",
    )
    async with home.running(home.supervisor(*crash)):
        await home.until(lambda: home.state.get("restarts", 0) >= 2)
        assert home.state["state"] in ("backoff", "starting", "down")
        assert "DefaultCPUAllocator" in home.state["error"]
        assert "too little free memory" in home.state["hint"]
        assert home.state["last_exit"] == 1


async def test_stopping_during_a_start_leaves_nothing(home):
    slow = (sys.executable, "-c", "import time; time.sleep(600)")
    async with home.running(home.supervisor(*slow)):
        await home.until(lambda: home.state.get("pid") is not None)
        pid = home.state["pid"]
    assert not alive(pid)
    assert home.state["state"] == "down"


async def test_an_attached_engine_is_used_and_left_alone(home, add):
    home.registry.set_alias("support", add().ref)
    async with FakeEngine(base_name="their-base") as engine:
        async with home.running(home.supervisor(spec=None, engine_url=engine.url)):
            await home.until(lambda: home.rows == {"support@v1": "ready"})
            assert home.state["attached"]
            assert home.state["base_name"] == "their-base"
            assert home.state["pid"] is None
        async with EngineClient(engine.url) as client:
            assert await client.health()


async def test_an_attached_engine_that_restarts_gets_its_adapters_back(home, add):
    home.registry.set_alias("support", add().ref)
    async with FakeEngine() as engine, home.running(home.supervisor(spec=None, engine_url=engine.url)):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        await engine.stop()
        await home.until(lambda: home.state["state"] in ("down", "backoff"))
        await home.until(lambda: home.rows == {"support@v1": "pending"})
        await engine.start()
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        assert len(engine.adapters) == 1


def test_it_needs_exactly_one_of_spec_and_url(home):
    with pytest.raises(ConfigError):
        home.supervisor(spec=None)
    with pytest.raises(ConfigError):
        home.supervisor(engine_url="http://x")


def test_state_survives_a_round_trip_and_garbage_is_none(tmp_path):
    file = tmp_path / "run" / "engine.json"
    write_state(file, EngineState().but(state="ready", pid=7))
    assert read_state(file)["pid"] == 7
    assert list(file.parent.iterdir()) == [file]
    file.write_text("{")
    assert read_state(file) == {}


def test_since_changes_with_the_state_only():
    first = EngineState().but(state="starting")
    assert first.but(state="starting", stage="x").since == first.since
    assert first.but(state="ready").since > first.since
