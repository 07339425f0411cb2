"""Addresses: what is secret in them, and which ports are free."""

import base64
import socket

import pytest

from serve.errors import PortInUse
from serve.net import access_in, address_problem, bare, free_port


@pytest.mark.parametrize(
    ("url", "shown", "sent"),
    [
        ("http://gpu:8000", "http://gpu:8000", None),
        ("http://me:s3cret@gpu:8000/v", "http://gpu:8000/v", "me:s3cret"),
        ("https://me@[::1]:1", "https://[::1]:1", "me:"),
        ("http://a%40b:%E2%82%AC%3A@gpu", "http://gpu", "a@b:€:"),
        ("http://:pw@gpu", "http://gpu", ":pw"),
    ],
)
def test_what_is_secret_in_an_address(url: str, shown: str, sent: str | None) -> None:
    assert address_problem(url) is None
    found, headers = access_in(url)
    assert (found, bare(url)) == (shown, shown)
    encoded = base64.b64encode(sent.encode()).decode() if sent is not None else ""
    assert headers == ({"authorization": f"Basic {encoded}"} if sent is not None else {})


def test_what_is_no_address_shows_no_password_either() -> None:
    assert bare("http://me:s3cret@[gpu") == "[gpu"


@pytest.mark.parametrize(
    "url", ["gpu:8000", "ftp://gpu", "http://", "http://gpu:0", "http://gpu:x", "http://gpu?a"]
)
def test_what_is_no_address_of_an_engine(url: str) -> None:
    assert address_problem(url) is not None


def test_a_port_is_free_or_taken() -> None:
    port = free_port("127.0.0.1")
    assert free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUse, match=str(port)):
        free_port("127.0.0.1", port)
