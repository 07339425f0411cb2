"""Fixtures that several rooms share: above all the one real stack, and the one PostgreSQL, of a test session."""

import atexit
import contextlib
import functools
import gc
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import hypothesis
import openai
import pytest
from support.ports import free_port
from support.postgres import Cluster, binaries, required
from support.stack import RunningStack

from deploy import stack as stacks
from deploy.net import answers
from deploy.status import status
from serve.config import Settings
from serve.errors import AlreadyUp
from serve.registry import Registry
from serve.registry.base import identify_base

START_TIMEOUT = 300

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of torch that wait for each other while other processes have the cores take several times as long.
    processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run by a script in its background, the tests would hand on to commands that ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all is imported and collected: nothing of that is garbage
# Every client of httpx reads the certificates of all authorities, which takes as long as many a test; now one does.
ssl.create_default_context = functools.cache(ssl.create_default_context)

# How fast a machine is must not decide: several processes share it.
hypothesis.settings.register_profile(
    "tenon", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tenon")


@pytest.fixture
def fake_engine() -> Iterator[str]:
    """A server that behaves as vLLM does, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "serve.engine.fake", "--port", str(port), "--model", "tenon-tiny"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not answers(f"http://127.0.0.1:{port}/health"):
        assert server.poll() is None, "it did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server for all tests of the session."""
    folder = binaries()
    if folder is None:
        assert not required(), (
            "PostgreSQL must be tested here, but no initdb is installed: apt-get install postgresql"
        )
        pytest.skip("no PostgreSQL is installed here (initdb): apt-get install postgresql")
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def session_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The stack that all tests of the session share; started once, in one of its processes."""
    folder = tmp_path_factory.mktemp("stack")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The processes' folders lie in one of the session's own.
        claim = tmp_path_factory.getbasetemp().parent / "stack"
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            pytest.fail("two test processes would each start an engine: their group was not kept together")
    tools = (
        "--enable-auto-tool-choice --tool-call-parser hermes"  # the built-in base's template names no tools
    )
    settings = Settings.read(home=folder / "home", port=free_port(), engine_args=tools)
    stacks.up(settings, lambda _: None)
    registry = Registry.of(settings)
    try:
        yield RunningStack(settings, registry, identify_base(settings.model), folder)
    finally:
        registry.close()
        stacks.down(settings.home)


@pytest.fixture
def stack(session_stack: RunningStack) -> RunningStack:
    """The shared stack, recovered if the test before this one broke it."""
    if not status(session_stack.settings.home).healthy:
        with contextlib.suppress(AlreadyUp):  # it may only have been too busy to answer in time
            stacks.up(session_stack.settings, lambda _: None)
    return session_stack


@pytest.fixture
def client(stack: RunningStack) -> Iterator[openai.OpenAI]:
    """An ``openai`` client of the shared stack."""
    with stack.client() as connected:
        yield connected


def pytest_collection_finish() -> None:
    """Have the collector of cycles look at what the tests make, and at that alone."""
    gc.freeze()
    gc.enable()


# Lets Python take apart at its end what was frozen, as libraries in C++ complain of what stays; and not before that, as
# pytest goes through all of it five times when it is done.
atexit.register(gc.unfreeze)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the engine's tests in one process, and give whichever is the first of them the time that its start takes.

    ``make test`` runs four processes: one has the engine, one the other stacks, two the rest, of which the first ones
    take their part when they are done. Much of it is waiting, so four keep two processors busy.
    """
    for item in items:
        if "session_stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("engine"))
            item.add_marker(pytest.mark.engine)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(START_TIMEOUT))
        elif not item.nodeid.startswith("tests/unit/"):
            item.add_marker(pytest.mark.xdist_group("stacks"))
