"""How the process of vLLM's server ends; its life is seen on the real engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Stands where vLLM has its server.
SERVER = """
import atexit, sys

class Large:
    def __del__(self):
        print("taken apart")

def main():
    sys.modules["large"] = large = Large()
    atexit.register(print, "closed at exit")
    print("served", end="")
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return", 0, "servedclosed at exit\n"),
        ("sys.exit(2)", 2, "servedclosed at exit\ntaken apart\n"),
        ("raise ValueError('broken')", 1, "servedclosed at exit\ntaken apart\n"),
    ],
)
def test_a_server_that_served_is_not_taken_apart(tmp_path: Path, end: str, code: int, said: str) -> None:
    package = tmp_path
    for name in ("vllm", "entrypoints", "launchers", "api_server"):
        package /= name
        package.mkdir()
        (package / "__init__.py").touch()
    (package / "entry.py").write_text(SERVER.replace("{end}", end))
    ended = subprocess.run(
        [sys.executable, "-m", "serve.engine.vllm_server"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (code, said)
    assert ("ValueError: broken" in ended.stderr) == (code == 1)
