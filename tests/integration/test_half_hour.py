"""A new user's half hour: a folder made by plain PEFT code, two commands and a chat, as docs/adapters.md has them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from support.commands import environment, files_below, tenon
from support.stack import RunningStack

ROOT = Path(__file__).parents[2]
USUAL_URL = "http://127.0.0.1:8080"


def walk_through() -> tuple[str, list[list[str]], str]:
    """What the page says: the code that makes the folder, the commands, the code that chats."""
    page = (ROOT / "docs" / "adapters.md").read_text()
    section = page.split("## From plain PEFT code to an answer")[1].split("\n## ")[0]
    blocks = re.findall(r"```(python|sh)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "sh", "python"]
    commands = [shlex.split(line) for line in blocks[1][1].splitlines()]
    assert [command[:2] for command in commands] == [["tenon", "adapters"], ["tenon", "deploy"]]
    return blocks[0][1], commands, blocks[2][1]


def run(code: str, home: Path, cwd: Path) -> str:
    """Run Python code in a process of its own, as one would paste it."""
    variables = environment(home, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def follow(home: Path, url: str, cwd: Path) -> None:
    """Give the two commands and chat; ``cwd`` holds the folder."""
    _, commands, chat = walk_through()
    for command in commands:
        done = tenon(home, *command[1:], cwd=cwd, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
    assert USUAL_URL in chat
    said = run(chat.replace(USUAL_URL, url), home, cwd)
    assert said.startswith("greeter@v1 ")
    assert len(said) > len("greeter@v1 \n")


def test_plain_peft_to_an_answer(stack: RunningStack, tmp_path: Path) -> None:
    made, _, _ = walk_through()
    (tmp_path / "train").symlink_to(ROOT / "train")  # the page's code runs in the clone
    run(made, stack.settings.home, tmp_path)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files_below(tmp_path / "my-lora").keys()
    follow(stack.settings.home, stack.url, tmp_path)
    found = stack.registry.version("greeter@v1")
    assert found.lineage.recipe is None
    assert not found.facts.all_zero
    assert found.facts.base_digest == stack.base.digest
    alias = stack.registry.alias("greeter")
    assert alias is not None
    assert (str(alias.target.ref), alias.forced) == ("greeter@v1", True)
