import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from serve.registry import Registry
from serve.registry.migrations import HEAD
from serve.registry.schema import metadata

LIGHT = """
import sys
from pathlib import Path
from serve.registry import Registry
Registry.open(Path(sys.argv[1])).close()
print(sorted({"alembic", "numpy", "torch", "huggingface_hub"} & set(sys.modules)))
"""


def test_the_migrated_schema_is_the_one_in_the_code(registry: Registry) -> None:
    engine = create_engine(f"sqlite:///{registry.home}/registry.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_head_in_the_code_is_that_of_the_files() -> None:
    config = Config()
    config.set_main_option("script_location", "serve/registry/migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_durability_settings_hold_on_every_connection(registry: Registry) -> None:
    with registry._database.read() as first, registry._database.read() as second:
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


def test_opening_again_imports_neither_alembic_nor_numpy(registry: Registry) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIGHT, registry.home], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_newer_schema_is_used_as_it_is(tmp_path: Path) -> None:
    Registry.open(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/registry.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("ALTER TABLE versions ADD COLUMN colour TEXT"))
    engine.dispose()
    registry = Registry.open(tmp_path)
    assert registry.versions() == []
    registry.close()


@pytest.mark.parametrize("turn", range(3))
def test_many_can_create_it_at_once(tmp_path: Path, turn: int) -> None:
    barrier = Barrier(6)
    revisions: list[int] = []

    def enter() -> None:
        barrier.wait()
        registry = Registry.open(tmp_path)
        revisions.append(registry.revision())
        registry.close()

    threads = [Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert revisions == [0] * 6
