from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_samples import write_base

from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base


@pytest.fixture
def base(tmp_path: Path) -> BaseIdentity:
    return identify_base(str(write_base(tmp_path / "tiny")))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "home")
    yield opened
    opened.close()
