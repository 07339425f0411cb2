"""What a training's libraries go without."""

import gc
import importlib.metadata
import importlib.util
import sys

import pytest

from train.imports import UNUSED, importing_less


def test_what_is_not_used_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNUSED:
        assert importlib.util.find_spec(name) is not None
        monkeypatch.delitem(sys.modules, name, raising=False)
    read = importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", read)
    with importing_less():
        assert not gc.isenabled()
        assert [importlib.util.find_spec(name) for name in UNUSED] == [None] * len(UNUSED)
        once = importlib.metadata.packages_distributions
        assert once() is once()
        assert once() == read()
    assert gc.isenabled()
    for name in UNUSED:
        sys.modules.pop(name)
