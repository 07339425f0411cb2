"""A process that writes to a registry until it is killed; each write is printed once it has been acknowledged.

python registry_writer.py register HOME BASE ADAPTER COUNT
python registry_writer.py flip HOME
"""

import sys
from itertools import cycle
from pathlib import Path

from serve.registry import Registry
from serve.registry.base import identify_base


def register(home: str, base: str, adapter: str, count: str) -> None:
    registry = Registry.open(Path(home))
    identity = identify_base(base)
    for _ in range(int(count)):
        print(registry.register(Path(adapter), "support", identity, max_rank=64).ref.number, flush=True)
    registry.close()


def flip(home: str) -> None:
    registry = Registry.open(Path(home))
    for number in cycle((1, 2)):
        registry.set_alias("support", f"support@v{number}")
        print(registry.revision(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "register":
        register(*sys.argv[2:])
    else:
        flip(*sys.argv[2:])
