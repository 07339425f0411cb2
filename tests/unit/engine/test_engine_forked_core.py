"""When vLLM's core is forked from its API server, and that it ends with it."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from serve.engine import forked_core
from serve.engine.forked_core import START_METHOD, fork_the_core, may_fork
from serve.engine.spec import ONE_PROCESS
from serve.records import ProcessIdentity


class UniProcExecutor:
    """Called as vLLM's, which its settings name by the class or by its path."""


def parallel(backend: object, data_parallel_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(distributed_executor_backend=backend, data_parallel_size=data_parallel_size)


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        (parallel(ONE_PROCESS), True),
        (parallel(UniProcExecutor), True),
        (parallel("mp"), False),
        (parallel(None), False),
        (parallel(ONE_PROCESS, data_parallel_size=2), False),
    ],
)
def test_a_core_without_workers_is_forked(monkeypatch, settings, may):
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert may_fork(settings) is may


def test_a_process_with_threads_is_not_forked(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not may_fork(parallel(ONE_PROCESS))


@pytest.mark.parametrize(("backend", "method"), [(ONE_PROCESS, "fork"), ("mp", "spawn")])
def test_the_platform_decides_all_else_as_before(monkeypatch, backend, method):
    class Platform:
        """As vLLM's for CPUs: it asks for fresh interpreters whatever was set."""

        @classmethod
        def check_and_update_config(cls, vllm_config):
            vllm_config.checked_by = cls
            os.environ[START_METHOD] = "spawn"

    monkeypatch.setenv(START_METHOD, "spawn")
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(forked_core, "_end_forks_with", lambda *_: None)
    fork_the_core(Platform)
    config = SimpleNamespace(parallel_config=parallel(backend))
    Platform.check_and_update_config(config)
    assert config.checked_by is Platform
    assert os.environ[START_METHOD] == method


SERVER = textwrap.dedent("""
    import multiprocessing, os, sys, time
    from types import SimpleNamespace
    from serve.engine.forked_core import fork_the_core

    class Platform:
        @classmethod
        def check_and_update_config(cls, vllm_config): ...

    os.register_at_fork(after_in_child=lambda: time.sleep(float(sys.argv[1])))
    fork_the_core(Platform)
    core = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    core.start()
    print(core.pid, flush=True)
    time.sleep(600)
""")


@pytest.mark.parametrize("late", ["0", "0.5"])
def test_the_core_ends_with_a_server_that_is_killed(late):
    """Also with one that is killed before its fork has done anything."""
    command = [sys.executable, "-c", SERVER, late]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        core = ProcessIdentity.of(int(server.stdout.readline()))
        assert psutil.Process(core.pid).ppid() == server.pid
        server.kill()
    deadline = time.monotonic() + 20
    while core.alive:
        assert time.monotonic() < deadline, "the core outlives its server, and keeps its port"
        time.sleep(0.02)
