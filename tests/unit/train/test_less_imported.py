"""What a training's libraries go without."""

import gc
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from train.imports import UNUSED, importing_less

WORKER = f"""
import sys, types
stand_in = types.ModuleType("train.methods.sft")
stand_in.train = lambda *_: print([sys.modules.get(name, "found") for name in {UNUSED}], file=sys.stderr)
sys.modules[stand_in.__name__] = stand_in
from train import worker
sys.exit(worker.main(["--run", sys.argv[1]]))
"""


def test_what_is_not_used_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNUSED:
        assert importlib.util.find_spec(name) is not None
        # Set and taken away again, so that what is put there meanwhile goes at the end, whatever happens.
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    read = importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", read)
    with importing_less():
        assert not gc.isenabled()
        assert [importlib.util.find_spec(name) for name in UNUSED] == [None] * len(UNUSED)
        once = importlib.metadata.packages_distributions
        assert once() is once()
        assert once() == read()
    assert gc.isenabled()


def test_the_worker_imports_less(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stderr is not None
        assert worker.stderr.read().strip() == str([None] * len(UNUSED))
    assert worker.returncode == 0
