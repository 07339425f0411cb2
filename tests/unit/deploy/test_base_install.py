"""The base install, without torch and templates, runs the command line."""

import subprocess
import sys

BLOCKED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "vllm", "jinja2", "safetensors")
CODE = f"""
import sys
from importlib.machinery import PathFinder
class Filter:
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED} else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Filter() if finder is PathFinder else finder for finder in sys.meta_path]
from deploy.cli import main
main(sys.argv[1:])
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=False
    )


def test_help_and_status_work(tmp_path: object) -> None:
    assert run("--help").returncode == 0
    done = run("--home", str(tmp_path), "status")
    assert (done.returncode, done.stderr) == (5, "")
    assert run("--home", str(tmp_path), "adapters", "list").returncode == 0


def test_commands_import_no_client_of_engines() -> None:
    code = (
        "import sys, deploy.cli\n"
        "print([name for name in ('aiohttp', 'serve.engine.client', 'alembic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_needs_more_says_so(tmp_path: object) -> None:
    done = run("--home", str(tmp_path), "run")
    assert done.returncode == 2
    assert "tenon-llm[train]" in done.stderr
