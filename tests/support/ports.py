"""Free ports."""

import itertools
import os

from serve import net
from serve.errors import PortInUse

FIRST, EACH, BLOCKS = 20_000, 500, 24
"""Below what Linux gives to whoever asks for any port, and a block for each process of a test session."""

worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
offsets = (number % EACH for number in itertools.count(os.getpid()))
ports = (FIRST + EACH * (worker % BLOCKS) + offset for offset in offsets)


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that no other test is given."""
    for port in itertools.islice(ports, EACH):
        try:
            return net.free_port("127.0.0.1", port)
        except PortInUse:
            continue
    raise RuntimeError("no port is free")
