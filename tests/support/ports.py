"""Free ports."""

from serve import net


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    return net.free_port("127.0.0.1")
