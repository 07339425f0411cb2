"""A small base and rows to train it on, shared by the tests of this room."""

import pytest
from small_base import Room, make_row, write_base, write_data

from serve.registry.base import identify_base


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """The small base and 160 rows, 32 more for validation."""
    folder = tmp_path_factory.mktemp("room")
    base = identify_base(str(write_base(folder / "small")))
    rows = [make_row(number) for number in range(192)]
    return Room(base, write_data(folder / "data", rows[:160], rows[160:]))
