"""What the engine tests share: the base that they pretend to serve, and a registry without room."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from serve.registry.base import BaseIdentity
from serve.registry.registry import Registry

BASE = BaseIdentity(
    name="base",
    path=Path("/fake/base"),
    digest="b" * 64,
    architecture="Qwen3ForCausalLM",
    shapes={"model.layers.0.self_attn.q_proj.weight": (16, 16)},
    max_length=1024,
    vocab_size=64,
)


NONSENSE = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Nonsense(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Nonsense).serve_forever()
"""
"""A program that listens where vLLM would, says that it is well and answers no question as vLLM does."""


@contextlib.contextmanager
def unwritable(registry: Registry) -> Iterator[None]:
    """As if the disk were full: load states can be read but not written, by nobody."""
    kinds = ("INSERT", "UPDATE", "DELETE")
    with contextlib.closing(sqlite3.connect(registry.home / "registry.db", isolation_level=None)) as database:
        for kind in kinds:
            database.execute(
                f"CREATE TRIGGER full_{kind} BEFORE {kind} ON load_states "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        yield
        for kind in kinds:
            database.execute(f"DROP TRIGGER full_{kind}")
