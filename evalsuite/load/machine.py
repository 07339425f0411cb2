"""The machine that a benchmark runs on: what it is, which cores a process may use, what a process has cost."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

CPU_INFO = Path("/proc/cpuinfo")


def describe() -> dict[str, object]:
    """Processor, cores, memory, system and date, for the head of a report."""
    names = [line for line in _lines(CPU_INFO) if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": [round(load, 2) for load in psutil.getloadavg()],
    }


def graphics() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.strip().splitlines()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def split_cores() -> tuple[set[int], set[int]]:
    """One core for what is measured and the others for what measures it; the same where there is only one."""
    cores = sorted(_affinity())
    return ({cores[0]}, set(cores[1:])) if len(cores) > 1 else (set(cores), set(cores))


def _affinity() -> set[int]:
    return (
        set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )


@contextlib.contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """Keep what is started in the block, and us meanwhile, to these cores (None: as it was)."""
    before = _affinity()
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def without_settings() -> dict[str, str]:
    """Our environment, but for the settings of Tenon."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TENON_")}


@contextlib.contextmanager
def child(
    command: Sequence[str],
    log: Path,
    *,
    variables: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that ends with the block; its output goes to ``log``, settings of ours are not passed on."""
    with log.open("ab") as output, on_cores(cores):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**without_settings(), **(variables or {})},
        )
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]", grace: float = 5.0) -> None:
    """End a child and its children, by force where they do not obey."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    if process.returncode is None:
        process.kill()
        process.wait()
    for member in psutil.wait_procs(family, timeout=1.0)[1]:
        with contextlib.suppress(psutil.Error):
            member.kill()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its living children have used, in user and system mode."""
    total = 0.0
    process = psutil.Process(pid)
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total
