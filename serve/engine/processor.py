"""What the processor can do, known without torch."""

from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
FOR_BFLOAT16 = {"avx512vl", "avx512bw", "avx512dq"}
"""What oneDNN needs on x86 to multiply bfloat16 matrices, if need be by way of float32."""


@cache
def multiplies_bfloat16(info: Path = CPU_INFO) -> bool:
    """Whether matrices of bfloat16 are multiplied by oneDNN here; True where nobody can say.

    Where they are not, torch multiplies them 4 to 8 times more slowly than those of float32: on desktops, laptops
    and AMD servers before Zen 4.
    """
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return True
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), None)
    return flags is None or set(flags.split()) >= FOR_BFLOAT16
