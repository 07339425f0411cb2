"""Adapters for classes and vectors through real engines, as docs/adapters.md has them.

Two more engines would add two minutes to every run of the tests, so this is for who asks:
``TENON_TEST_POOLING=1 python -m pytest -n 0 tests/integration/test_pooling_engines.py``.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import cause_and_hint, environment, tenon
from support.ports import free_port

from deploy import stack as stacks
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.registry.base import identify_base

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TENON_TEST_POOLING"), reason="TENON_TEST_POOLING is not set"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parents[2]
TEXTS = ["I was charged twice for one ticket", "Where is my parcel?", "The app crashes when I open it"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    stacks.down(tmp_path / "home")


def page() -> str:
    """The page's code that makes the base and the adapter."""
    section = (ROOT / "docs" / "adapters.md").read_text().split("## Vectors and classes")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


def do(home: Path, *words: str, **variables: str) -> None:
    done = tenon(home, *words, cwd=home.parent, PYTHONPATH=str(ROOT), **variables)
    assert done.returncode == 0, done.stderr


def ask(home: Path, path: str, model: str) -> list[dict[str, Any]]:
    answer = httpx.post(f"{status(home).url}{path}", json={"model": model, "input": TEXTS}, timeout=60)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def test_classes(home: Path) -> None:
    """An adapter with a head of its own, made by PEFT and larger than the base's, tells the texts it learnt apart."""
    code = page()
    folder = home.parent
    (folder / "train").symlink_to(ROOT / "train")  # the page's code runs in the clone
    variables = environment(home, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=variables, check=True)
    do(home, "up", "--detach", "--model", "./tiny-desk", "--port", str(free_port()))
    do(home, "adapters", "add", "./my-classes", "--name", "desk")
    do(home, "deploy", "desk@v1", "--force")
    answers = [item["probs"] for item in ask(home, "/classify", "desk")]
    print("classes", answers)
    assert [len(probs) for probs in answers] == [3, 3, 3], "the base has two labels, the adapter three"
    assert [probs.index(max(probs)) for probs in answers] == [0, 1, 2]


def test_vectors(home: Path) -> None:
    """An adapter named as AutoModel names its layers changes the vectors; one of zeros is found out."""
    args = "--runner pooling --convert embed"
    folder = write_adapter(home.parent / "vectors", identify_base("tenon-tiny"))
    zero = write_adapter(home.parent / "zero", identify_base("tenon-tiny"), zero=True)
    for made in (folder, zero):
        config = json.loads((made / "adapter_config.json").read_text())
        config["task_type"] = "FEATURE_EXTRACTION"
        (made / "adapter_config.json").write_text(json.dumps(config))
    do(home, "up", "--detach", "--port", str(free_port()), TENON_ENGINE_ARGS=args)
    do(home, "adapters", "add", "./vectors", "--name", "near")
    do(home, "deploy", "near@v1", "--force")
    mine, base = (ask(home, "/v1/embeddings", model) for model in ("near", "tenon-tiny"))
    cosines = [
        sum(a * b for a, b in zip(one["embedding"], other["embedding"], strict=True))
        for one, other in zip(mine, base, strict=True)
    ]
    print("cosines", cosines)
    assert all(cosine < 0.99 for cosine in cosines)
    do(home, "adapters", "add", "./zero", "--name", "zero")
    done = tenon(home, "deploy", "zero@v1", "--force", cwd=home.parent, PYTHONPATH=str(ROOT))
    assert done.returncode != 0
    assert "its weights are all zero" in cause_and_hint(done)[0]
