from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_places import Place
from registry_samples import write_base

from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place for a registry, on each database in turn."""
    url = request.getfixturevalue("cluster").create() if request.param == "postgresql" else None
    found = Place(tmp_path / "home", url)
    with found.opened:
        yield found


@pytest.fixture
def base(tmp_path: Path) -> BaseIdentity:
    return identify_base(str(write_base(tmp_path / "tiny")))


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.open()
