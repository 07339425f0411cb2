"""Which addresses a source may be on: a URL that someone sends must not make us ask our own network."""

import ipaddress
import socket

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
METADATA = {ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200")}
"""Where clouds hand out credentials to whoever asks; the best known, 169.254.169.254, is link-local."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def why_not(text: str, *, allow_private: bool) -> str | None:
    """What forbids an address (None: nothing). Link-local and metadata addresses are never allowed."""
    address = _inner(ipaddress.ip_address(text.split("%", 1)[0]))
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA:
        return f"{address} is a link-local, multicast or metadata address"
    if allow_private or address.is_global:
        return None
    return f"{address} is an address of this machine or of a private network"


class Guard:
    """Makes the sockets of one download, and none to an address that is not allowed.

    It sees the address itself, after all name lookups and redirects, so a name that changes its meaning between
    check and use gains nothing. ``refused`` lists what it has refused.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self.refused: list[str] = []

    def __call__(
        self,
        found: tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]],
    ) -> socket.socket:
        """A socket for one result of a name lookup; raises OSError."""
        family, kind, protocol, _, address = found
        reason = why_not(str(address[0]), allow_private=self.allow_private)
        if reason is not None:
            self.refused.append(reason)
            raise OSError(reason)
        return socket.socket(family, kind, protocol)


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address wraps, else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
