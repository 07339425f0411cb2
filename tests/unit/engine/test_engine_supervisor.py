"""The supervisor with real processes: the fake engine, started as vLLM would be."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from engine_base import BASE, NONSENSE, unwritable

from deploy.status import engine_part
from serve.engine.client import EngineClient
from serve.engine.fake import FakeEngine, Fault
from serve.engine.limits import GivenLimits
from serve.engine.process import EngineProcess
from serve.engine.spec import EngineSpec
from serve.engine.state import EngineState, StateFile
from serve.engine.supervisor import Supervisor
from serve.engine.trouble import Troubles
from serve.errors import ConfigError, StorageError
from serve.records import read_json, write_json

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
        return read_json(self.state_file)

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
        shutil.rmtree(state["scratch"], ignore_errors=True)


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


async def interrupted(home, supervisor, seconds):
    """Run the supervisor and stop it after so long."""
    async with home.running(supervisor):
        await asyncio.sleep(seconds)


def nothing_is_left(home, state):
    return (
        not alive(state["pid"])
        and not Path(state["scratch"]).exists()
        and (home.state["state"], home.state["pid"]) == ("down", None)
    )


@pytest.mark.parametrize("seconds", [0, 0.5])
async def test_an_adoption_that_is_interrupted_orphans_nothing(home, orphan, seconds):
    os.kill(orphan["pid"], signal.SIGSTOP)
    await interrupted(home, home.supervisor(), seconds)
    assert nothing_is_left(home, orphan)


SLOW_TO_END = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit()))
print("up", flush=True)
time.sleep(600)
"""


async def test_the_stop_of_an_old_engine_that_is_interrupted_orphans_nothing(home):
    spec = EngineSpec(Path("/models/base"), "base", device="cpu", command=(sys.executable, "-c", SLOW_TO_END))
    old = await EngineProcess.start(spec, home.folder / "old.log")
    write_json(home.state_file, old.record.to_json())
    await home.until(lambda: "up" in old.log_text())
    await interrupted(home, home.supervisor(), 0.3)
    assert not old.alive()
    assert nothing_is_left(home, old.record.to_json())


async def test_an_old_engine_that_answers_nonsense_is_ended_and_replaced(home):
    command = (sys.executable, "-c", NONSENSE)
    supervisor = home.supervisor(*command)
    old = await EngineProcess.start(supervisor.spec, home.folder / "old.log")
    write_json(home.state_file, old.record.to_json())
    async with EngineClient(old.url) as client, asyncio.timeout(20):
        while not await client.health():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    async with home.running(supervisor):
        await home.until(lambda: home.state["pid"] not in (None, old.record.pid))
        assert not old.alive()
    assert home.state["pid"] is None


async def test_our_own_engine_ends_when_another_is_attached(home, orphan):
    async with FakeEngine() as engine, home.running(home.supervisor(spec=None, engine_url=engine.url)):
        await home.until(lambda: home.state["state"] == "ready" and home.state["attached"])
        assert not alive(orphan["pid"])
        assert (home.state["pid"], home.state["url"]) == (None, engine.url)


async def test_a_state_file_that_cannot_be_written_ends_no_engine(home, add, caplog):
    home.registry.set_alias("support", add().ref)
    (home.state_file / "in the way").mkdir(parents=True)
    async with home.running(home.supervisor()) as supervisor:
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        pid = supervisor.state.pid
        await asyncio.sleep(1.2)
        assert alive(pid)
        assert caplog.text.count("telling how the engine does") == 1
        shutil.rmtree(home.state_file)
        await home.until(lambda: home.state.get("state") == "ready")
        assert (home.state["pid"], home.state["restarts"]) == (pid, 0)


async def test_a_registry_that_cannot_be_written_ends_no_engine(home, add, caplog):
    home.registry.set_alias("support", add().ref)
    async with home.running(home.supervisor()) as supervisor:
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        before = home.state
        home.registry.want(add().ref)
        with unwritable(home.registry):
            await home.until(lambda: "disk is full" in caplog.text)
            await asyncio.sleep(1.2)
            assert caplog.text.count("disk is full") == 1
            assert supervisor.state.state == "ready"
        await home.until(lambda: home.rows == {"support@v1": "ready", "support@v2": "ready"})
        assert (home.state["pid"], home.state["restarts"]) == (before["pid"], 0)


async def test_an_engine_that_dies_while_nothing_can_be_written_comes_back(home, add):
    home.registry.set_alias("support", add().ref)
    async with home.running(home.supervisor()) as supervisor:
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        pid = supervisor.state.pid
        with unwritable(home.registry):
            os.kill(pid, signal.SIGKILL)
            await home.until(lambda: supervisor.state.state == "ready" and supervisor.state.pid != pid)
            async with EngineClient(supervisor.state.url) as client, asyncio.timeout(20):
                while len(await client.models()) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


class Moody:
    """A registry whose first ``desired`` fails as no code of ours foresaw."""

    def __init__(self, registry):
        self._registry, self.failures = registry, 0

    def __getattr__(self, name):
        return getattr(self._registry, name)

    def desired(self):
        if not self.failures:
            self.failures = 1
            raise RuntimeError("nobody foresaw this")
        return self._registry.desired()


async def test_what_nobody_foresaw_ends_neither_engine_nor_supervisor(home, add, caplog):
    home.registry.set_alias("support", add().ref)
    supervisor = home.supervisor()
    supervisor.registry = Moody(home.registry)
    async with home.running(supervisor):
        await home.until(lambda: "nobody foresaw this" in caplog.text)
        pid = home.state["pid"]
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        assert (home.state["pid"], home.state["restarts"]) == (pid, 0)


async def test_a_log_that_cannot_be_written_is_told_and_tried_again(home):
    home.folder.joinpath("logs").write_text("in the way")
    async with home.running(home.supervisor()):
        await home.until(lambda: home.state.get("restarts", 0) >= 1)
        assert "engine.log" in home.state["error"]
        home.folder.joinpath("logs").unlink()
        await home.until(lambda: home.state["state"] == "ready")
        assert home.state["error"] == ""


async def test_an_adapter_that_does_not_go_ends_no_engine(home, add, caplog):
    version = add()
    home.registry.want(version.ref)
    async with FakeEngine() as engine, home.running(home.supervisor(spec=None, engine_url=engine.url)):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        engine.faults = [Fault("refuse_unload", times=-1, message="it is busy")]
        home.registry.unwant(version.ref)
        await home.until(lambda: "it is busy" in caplog.text)
        await asyncio.sleep(1)
        assert home.state["state"] == "ready"
        assert caplog.text.count("it is busy") == 1


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


async def test_gateways_of_other_machines_learn_how_an_engine_does(home):
    async with FakeEngine() as engine:
        supervisor = home.supervisor(spec=None, engine_url=engine.url, engine_id="far", announced=True)
        async with home.running(supervisor):
            await home.until(lambda: [seen.state for seen in home.registry.engines()] == ["ready"])
            (seen,) = home.registry.engines(within=30)
            assert (seen.name, seen.url, seen.base_name) == ("far", engine.url, "base")
            await engine.stop()
            await home.until(lambda: [seen.state for seen in home.registry.engines()] == ["down"])


async def test_an_attached_engine_that_restarts_gets_its_adapters_back(home, add):
    home.registry.set_alias("support", add().ref)
    async with FakeEngine() as engine, home.running(home.supervisor(spec=None, engine_url=engine.url)):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        await engine.stop()
        await home.until(lambda: home.state["state"] == "down")
        await home.until(lambda: home.rows == {"support@v1": "pending"})
        await engine.start()
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        assert len(engine.adapters) == 1
        assert (home.state["restarts"], home.state["error"]) == (0, "")


async def test_an_attached_engine_that_cannot_be_reached_is_told_with_what_to_check(home):
    engine = FakeEngine()
    await engine.start()
    await engine.stop()
    async with home.running(home.supervisor(spec=None, engine_url=engine.url)):
        await home.until(lambda: home.state.get("error"))
        assert (home.state["state"], home.state["restarts"]) == ("down", 0)
        assert engine.url in home.state["error"]
        assert "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in home.state["hint"]
        await engine.start()
        await home.until(lambda: home.state["state"] == "ready")
        await engine.stop()
        await home.until(lambda: home.state["state"] == "down")


async def test_an_attached_engine_of_another_base_is_refused_until_it_is_ours(home, add):
    home.registry.set_alias("support", add().ref)
    async with (
        FakeEngine(base_name="other", base_root="/models/other") as engine,
        home.running(home.supervisor(spec=None, engine_url=engine.url)),
    ):
        await home.until(lambda: home.state.get("error"))
        assert home.state["state"] == "down"
        assert "serves other (from /models/other), not base (from /fake/base)" in home.state["error"]
        assert "--served-model-name base" in home.state["hint"]
        assert engine.stats.loads == []
        engine.base_name = "Somebody/Base"
        await home.until(lambda: home.rows == {"support@v1": "ready"})
        assert (home.state["base_name"], home.state["restarts"]) == ("Somebody/Base", 0)


def test_it_needs_exactly_one_of_spec_and_url(home):
    with pytest.raises(ConfigError):
        home.supervisor(spec=None)
    with pytest.raises(ConfigError):
        home.supervisor(engine_url="http://x")


def test_a_state_that_could_not_be_told_is_told_later(tmp_path):
    (tmp_path / "run").write_text("in the way")
    file = StateFile(tmp_path / "run" / "engine.json", EngineState(), Troubles())
    file.tell("ready", pid=7)
    (tmp_path / "run").unlink()
    file.catch_up()
    assert (read_json(file.path)["state"], read_json(file.path)["pid"]) == ("ready", 7)
    file.path.unlink()
    file.catch_up()
    assert not file.path.exists(), "what was told is not told again"


def test_since_changes_with_the_state_only():
    first = EngineState().but(state="starting")
    assert first.but(state="starting", stage="x").since == first.since
    assert first.but(state="ready").since > first.since


async def test_the_slots_of_an_attached_engine_are_its_own_unless_somebody_says_others(home, add):
    """They are known from the first probe on, and no more are kept than it has room for by default."""
    for _ in range(2):
        home.registry.set_alias("support", add().ref)
    async with FakeEngine(max_loras=1) as engine:
        async with home.running(home.supervisor(spec=None, engine_url=engine.url)):
            await home.until(lambda: home.state.get("max_loras") == 1)
            assert (home.state["max_cpu_loras"], home.state["warning"]) == (1, "")
            await home.until(lambda: home.rows.get("support@v1") == "pending")
        given = GivenLimits(max_loras=4, max_cpu_loras=16)
        async with home.running(home.supervisor(spec=None, engine_url=engine.url, limits=given)):
            await home.until(lambda: home.state["warning"])
            assert "the engine computes 1 at once" in home.state["warning"]
            assert (home.state["max_loras"], home.state["max_cpu_loras"]) == (4, 16)
            assert home.state["warning"] in engine_part(home.state_file).detail


async def test_a_new_engine_that_serves_another_adapter_is_found_out(home, add):
    """The references outlive engine and supervisor; the old rows of both count for nothing."""
    version, other = add(), add()
    home.registry.set_alias("support", version.ref)
    answers = home.folder / "run" / "answers"
    async with home.running(home.supervisor(answers=answers)):
        await home.until(lambda: home.rows == {"support@v1": "ready"})
    async with FakeEngine() as engine:
        attached = {"spec": None, "engine_url": engine.url, "answers": answers}
        async with home.running(home.supervisor(**attached)):
            await home.until(lambda: home.rows == {"support@v1": "ready"})
        engine.adapters.clear()
        engine.faults = [Fault("swapped", voice=other.engine_name, times=-1)]
        async with home.running(home.supervisor(**attached)):
            await home.until(lambda: home.rows == {"support@v1": "failed"})
            (row,) = home.registry.loaded()
            assert "as it did when that was first proven" in row.reason
    kept = [read_json(path)["conditions"] for path in answers.rglob("*.json")]
    assert sorted(words[-1] for words in kept) == ["attached", "tenon_cpu_lora"]


@pytest.mark.parametrize(
    ("full", "told_states"), [(False, ["pending", "loading", "ready"]), (True, ["loading", "ready"])]
)
async def test_what_an_old_row_calls_ready_is_loading_in_a_new_process(home, orphan, full, told_states):
    """The engine died while no controller looked: its row is there, and says ready until it can be written."""
    os.killpg(orphan["pid"], signal.SIGKILL)
    await home.until(lambda: not alive(orphan["pid"]))
    assert home.rows == {"support@v1": "ready"}
    # It even lists the adapter from its start.
    supervisor = home.supervisor(*FAKE, "--adapter", home.registry.loaded()[0].engine_name)
    seen = []
    told = home.registry.set_loaded

    def set_loaded(engine, states, **given):
        if full and home.state["pid"] == orphan["pid"]:
            raise StorageError("the disk is full")
        seen.append({ref: state for ref, (state, _) in states.items()}["support@v1"])
        told(engine, states, **given)

    home.registry.set_loaded = set_loaded
    async with home.running(supervisor):
        await home.until(lambda: home.state["pid"] != orphan["pid"] and "ready" in seen)
        assert list(dict.fromkeys(seen)) == told_states
