"""vLLM's engine core on a CPU as a fork of its API server, which has imported all of it already.

vLLM asks for a fresh interpreter there, to give each worker process the variables that place its threads. Where the
core computes itself (:data:`serve.engine.spec.ONE_PROCESS`) there is no such worker, and the second import of some six
thousand modules is half of the time that a start takes.
"""

import ctypes
import os
import signal
import threading
from typing import Any

START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
_PR_SET_PDEATHSIG = 1


def fork_the_core(platform: Any) -> None:
    """Have ``platform``, vLLM's for CPUs, start the core of an engine without workers by a fork; on Linux."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "prctl"):
        return
    check = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        check(cls, vllm_config)
        if may_fork(vllm_config.parallel_config):
            os.environ[START_METHOD] = "fork"

    platform.check_and_update_config = classmethod(check_and_update_config)
    _end_forks_with(os.getpid(), libc)


def may_fork(parallel: Any) -> bool:
    """Whether a fork of this process may be the core: no workers, no ranks, and no thread that a copy would lack."""
    backend = parallel.distributed_executor_backend
    alone = str(getattr(backend, "__name__", backend)).endswith("UniProcExecutor")
    return alone and parallel.data_parallel_size == 1 and threading.active_count() == 1


def _end_forks_with(parent: int, libc: ctypes.CDLL) -> None:
    """A fork holds the port that the server listens on, so it must not outlive it; nor tell its loop of signals."""

    ours = True

    def end_with_parent() -> None:
        nonlocal ours
        if not ours:  # a fork of a fork
            return
        ours = False
        signal.set_wakeup_fd(-1)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended meanwhile
            os._exit(1)

    os.register_at_fork(after_in_child=end_with_parent)
