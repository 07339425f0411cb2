import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from registry_places import Place
from sqlalchemy import Connection, create_engine, text

from serve.registry import Registry
from serve.registry.database import identity
from serve.registry.migrations import HEAD
from serve.registry.schema import metadata


@contextmanager
def connected(place: Place) -> Iterator[Connection]:
    """A plain connection, in a transaction."""
    engine = create_engine(place.sqlalchemy_url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def migrate(connection: Connection, target: str) -> None:
    config = Config()
    config.set_main_option("script_location", "serve/registry/migrations")
    config.attributes["connection"] = connection
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    down = target == "base" or revisions.index(target) > 0
    (command.downgrade if down else command.upgrade)(config, target)


LIGHT = """
import sys
from pathlib import Path
from serve.registry import Registry
Registry.open(Path(sys.argv[1]), sys.argv[2] or None).close()
print(sorted({"alembic", "numpy", "torch", "huggingface_hub"} & set(sys.modules)))
print("psycopg" in sys.modules)
"""


def test_the_migrated_schema_is_the_one_in_the_code(place: Place) -> None:
    place.open()
    with connected(place) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_downgrading_and_upgrading_again(place: Place) -> None:
    place.open()
    for target in ("0001", "base", HEAD):
        with connected(place) as connection:
            migrate(connection, target)
    with connected(place) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_head_in_the_code_is_that_of_the_files() -> None:
    config = Config()
    config.set_main_option("script_location", "serve/registry/migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_durability_settings_hold_on_every_connection(tmp_path: Path) -> None:
    with (
        Registry.open(tmp_path) as registry,
        registry._database.read() as first,
        registry._database.read() as second,
    ):
        for connection in (first, second):
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert settings == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 30000,
            }


def test_an_empty_file_left_by_a_killed_process_is_upgraded(tmp_path: Path) -> None:
    (tmp_path / "registry.db").touch()
    registry = Registry.open(tmp_path)
    assert registry.revision() == 0
    registry.close()


def test_opening_again_imports_neither_alembic_nor_numpy(place: Place) -> None:
    place.open()
    run = subprocess.run(
        [sys.executable, "-c", LIGHT, *place.arguments], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["[]", str(place.url is not None)]


def test_a_newer_schema_is_used_as_it_is(place: Place) -> None:
    place.open()
    with connected(place) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("ALTER TABLE versions ADD COLUMN colour TEXT"))
    assert place.open().versions() == []


@pytest.mark.parametrize("turn", range(3))
def test_many_can_create_it_at_once(place: Place, turn: int) -> None:
    barrier = Barrier(6)
    revisions: list[int] = []

    def enter() -> None:
        barrier.wait()
        with Registry.open(place.home, place.url) as registry:
            revisions.append(registry.revision())

    threads = [Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert revisions == [0] * 6


def test_each_registry_has_an_identity_of_its_own(place: Place, tmp_path: Path) -> None:
    with place.open()._database.read() as connection:
        first = identity(connection)
    with place.open()._database.read() as connection:
        assert identity(connection) == first
    with Registry.open(tmp_path / "other") as other, other._database.read() as connection:
        assert identity(connection) != first
