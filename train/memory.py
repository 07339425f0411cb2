"""How much memory a training finds free, without importing torch."""

import os
import subprocess
from dataclasses import dataclass

import psutil

from serve.engine.device import Device, installed_device

ENGINE_HOLDS = (
    "a running engine holds GPU memory too: restart it with TENON_ENGINE_ARGS='--gpu-memory-utilization 0.5'"
)
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Free memory in bytes, of the GPU that a training would use or, without one, of the machine."""

    bytes: int
    on_gpu: bool

    @property
    def kind(self) -> str:
        """What memory it is, in words."""
        return "GPU memory" if self.on_gpu else "memory"


def free_memory(device: Device | None = None) -> FreeMemory:
    """What is free where a training would compute; ``device`` is by default that of the installed packages."""
    on_gpu = _gpu_memory() if (device or installed_device()) == "cuda" else None
    if on_gpu is not None:
        return FreeMemory(on_gpu, on_gpu=True)
    return FreeMemory(psutil.virtual_memory().available, on_gpu=False)


def _gpu_memory() -> int | None:
    """Free bytes of the first GPU that CUDA would show us; None where nvidia-smi is absent or does not know."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first or first == "-1":
        return None
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return int(answer.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
