"""A process that writes to a registry until it is killed; each write is printed once it has been acknowledged.

python registry_writer.py register HOME URL BASE ADAPTER COUNT
python registry_writer.py nursery HOME URL

URL is that of a PostgreSQL database, or empty. The nursery forks a writer for each line that it reads, which flips an
alias back and forth, and says so when that one has ended: thousands can be killed without a new interpreter for each.
"""

import os
import sys
from itertools import cycle
from pathlib import Path

from serve.registry import Registry
from serve.registry.base import identify_base


def register(home: str, url: str, base: str, adapter: str, count: str) -> None:
    registry = Registry.open(Path(home), url or None)
    identity = identify_base(base)
    for _ in range(int(count)):
        print(registry.register(Path(adapter), "support", identity, max_rank=64).ref.number, flush=True)
    registry.close()


def nursery(home: str, url: str) -> None:
    Registry.open(Path(home), url or None).close()  # so that every import is done once
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            flip(home, url)
        os.waitpid(child, 0)
        tell("ended")


def flip(home: str, url: str) -> None:
    tell(os.getpid())
    registry = Registry.open(Path(home), url or None)
    for number in cycle((1, 2)):
        registry.set_alias("support", f"support@v{number}")
        tell(registry.revision())


def tell(what: object) -> None:
    # In one write: a line is told wholly or not at all, whenever we are killed.
    os.write(1, f"{what}\n".encode())


if __name__ == "__main__":
    {"register": register, "nursery": nursery}[sys.argv[1]](*sys.argv[2:])
