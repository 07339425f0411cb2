"""Code of the first schema serves on the newest one.

A clone may be too shallow to hold that code, so what it did to the database stands here as the SQL that it sent
(``serve/registry`` before migration 0002). It must work on the schema of today, next to the code of today.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from registry_places import Place
from registry_samples import write_adapter
from sqlalchemy import Connection, create_engine, text

from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.base import BaseIdentity

V1, V2, V3 = (VersionRef("support", number) for number in (1, 2, 3))


class OldCode:
    """The statements of the first version of the registry, each method a transaction."""

    def __init__(self, place: Place) -> None:
        self.engine = create_engine(place.sqlalchemy_url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    def register(self, name: str, digest: str) -> None:
        with self.transaction() as connection:
            last = self.run(
                connection, "SELECT last_number FROM names WHERE name = :name", name=name
            ).scalar()
            number = (last or 0) + 1
            if last is None:
                sql = "INSERT INTO names (name, last_number) VALUES (:name, :number)"
            else:
                sql = "UPDATE names SET last_number = :number WHERE name = :name"
            self.run(connection, sql, name=name, number=number)
            self.run(
                connection,
                "INSERT INTO versions (name, number, digest, base_name, base_digest, facts, lineage, created_at)"
                " VALUES (:name, :number, :digest, 'tiny', 'b', :facts, '{}', :now)",
                name=name,
                number=number,
                digest=digest,
                facts='{"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "parameters": 1, "bytes": 1,'
                ' "all_zero": false, "base_digest": null, "warnings": []}',
            )
            self.bump(connection)

    def set_alias(self, name: str, ref: VersionRef) -> None:
        with self.transaction() as connection:
            target = self.find(connection, ref)
            before = self.run(
                connection,
                "SELECT name, version_id, previous_id, sampling, verdict, forced, changed_at FROM aliases"
                " WHERE name = :name",
                name=name,
            ).one_or_none()
            previous = before and (
                before.previous_id if before.version_id == target.id else before.version_id
            )
            if before is None:
                sql = (
                    "INSERT INTO aliases (name, version_id, previous_id, sampling, verdict, forced, changed_at)"
                    " VALUES (:name, :version_id, :previous_id, '{}', NULL, false, :now)"
                )
            else:
                sql = (
                    "UPDATE aliases SET version_id = :version_id, previous_id = :previous_id, sampling = '{}',"
                    " verdict = NULL, forced = false, changed_at = :now WHERE name = :name"
                )
            self.run(connection, sql, name=name, version_id=target.id, previous_id=previous)
            self.run(
                connection,
                "INSERT INTO alias_changes (alias, target, digest, previous, sampling, verdict, forced, by, changed_at)"
                " VALUES (:name, :ref, :digest, NULL, '{}', NULL, false, 'old', :now)",
                name=name,
                ref=str(ref),
                digest=target.digest,
            )
            self.bump(connection)

    def aliases(self) -> dict[str, str]:
        """Each alias with the version that old code routes it to."""
        with self.transaction() as connection:
            rows = self.run(
                connection,
                "SELECT aliases.name AS alias, versions.name, versions.number FROM aliases"
                " JOIN versions ON versions.id = aliases.version_id ORDER BY aliases.name",
            ).all()
        return {row.alias: str(VersionRef(row.name, row.number)) for row in rows}

    def want(self, ref: VersionRef, wanted: bool = True) -> None:
        with self.transaction() as connection:
            found = self.find(connection, ref).id
            sql = "SELECT version_id, wanted_at FROM wants WHERE version_id = :found"
            if (self.run(connection, sql, found=found).first() is not None) == wanted:
                return
            if wanted:
                sql = "INSERT INTO wants (version_id, wanted_at) VALUES (:found, :now)"
            else:
                sql = "DELETE FROM wants WHERE version_id = :found"
            self.run(connection, sql, found=found)
            self.bump(connection)

    def desired(self) -> list[VersionRef]:
        with self.transaction() as connection:
            rows = self.run(
                connection,
                "SELECT name, number FROM versions WHERE id IN (SELECT version_id FROM wants"
                " UNION SELECT version_id FROM aliases"
                " UNION SELECT previous_id FROM aliases WHERE previous_id IS NOT NULL) ORDER BY name, number",
            ).all()
        return [VersionRef(*row) for row in rows]

    def set_loaded(self, engine: str, ref: VersionRef, state: str) -> None:
        with self.transaction() as connection:
            found = self.find(connection, ref).id
            self.run(connection, "DELETE FROM load_states WHERE engine = :engine", engine=engine)
            self.run(
                connection,
                "INSERT INTO load_states (engine, version_id, state, reason, load_seconds, changed_at)"
                " VALUES (:engine, :found, :state, '', 0.5, :now)",
                engine=engine,
                found=found,
                state=state,
            )
            self.bump(connection)

    def record_evaluation(self, ref: VersionRef) -> None:
        with self.transaction() as connection:
            self.run(
                connection,
                "INSERT INTO evaluations (version_id, base_digest, result, verdict, report, created_at)"
                " VALUES (:found, 'b', '{}', 'better', 'r', :now) RETURNING id",
                found=self.find(connection, ref).id,
            )

    def remove(self, ref: VersionRef) -> None:
        with self.transaction() as connection:
            found = self.find(connection, ref).id
            sql = "SELECT name FROM aliases WHERE version_id = :found OR previous_id = :found"
            assert self.run(connection, sql, found=found).all() == [], "old code refuses"
            self.run(connection, "DELETE FROM versions WHERE id = :found", found=found)
            self.bump(connection)

    def find(self, connection: Connection, ref: VersionRef) -> Any:
        sql = (
            "SELECT id, name, number, digest, base_name, base_digest, facts, lineage, created_at FROM versions"
            " WHERE name = :name AND number = :number"
        )
        return self.run(connection, sql, name=ref.name, number=ref.number).one()

    def bump(self, connection: Connection) -> None:
        self.run(connection, "UPDATE revisions SET value = value + 1")

    def run(self, connection: Connection, sql: str, **values: Any) -> Any:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA foreign_keys=ON")
        if ":now" in sql:
            values["now"] = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        return connection.execute(text(sql), values)


@pytest.fixture
def old(place: Place) -> Iterator[OldCode]:
    made = OldCode(place)
    yield made
    made.engine.dispose()


def desired(registry: Registry) -> list[VersionRef]:
    return [version.ref for version in registry.desired()]


def test_data_of_the_first_schema_survives_the_upgrade(place: Place, old: OldCode) -> None:
    place.home.mkdir()
    config = Config()
    config.set_main_option("script_location", "serve/registry/migrations")
    with old.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    for number in "123":
        old.register("support", number * 64)
    old.set_alias("support", V1)
    old.set_alias("support", V2)
    old.want(V3)
    old.set_loaded("engine", V2, "ready")
    old.record_evaluation(V2)
    registry = place.open()
    assert [version.ref for version in registry.versions()] == [V1, V2, V3]
    alias = registry.aliases()[0]
    assert (alias.target.ref, alias.previous, alias.refs) == (V2, V1, (V2,))
    assert [change.targets for change in registry.history("support")] == [((V1, 1),), ((V2, 1),)]
    assert desired(registry) == [V1, V2, V3]
    assert [state.ref for state in registry.loaded()] == [V2]
    assert len(registry.evaluations(V2)) == 1
    assert registry.revision() == 7


def test_old_code_serves_on_the_new_schema(place: Place, registry: Registry, old: OldCode) -> None:
    for number in "123":
        old.register("support", number * 64)
    old.set_alias("support", V1)
    old.set_alias("support", V2)
    old.want(V3)
    assert old.desired() == desired(registry) == [V1, V2, V3]
    old.want(V3, False)
    assert old.desired() == desired(registry) == [V1, V2]
    old.set_loaded("engine", V2, "loading")
    old.set_loaded("engine", V2, "ready")
    assert [(state.ref, state.state) for state in registry.loaded()] == [(V2, "ready")]
    old.record_evaluation(V3)
    old.remove(V3)
    assert [version.ref for version in registry.versions()] == [V1, V2]
    assert registry.revision() == 3 + 2 + 2 + 2 + 1


def test_a_new_command_wants_and_an_old_controller_loads(
    registry: Registry, old: OldCode, base: BaseIdentity, tmp_path: Path
) -> None:
    registry.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
    registry.want(V1, "eval", 60)
    registry.want(V1, "deploy", 60)
    assert old.desired() == [V1]
    registry.unwant(V1, "eval")
    assert old.desired() == [V1]
    registry.unwant(V1, "deploy")
    assert old.desired() == desired(registry) == []


def test_old_code_flips_an_alias_that_had_weights(registry: Registry, old: OldCode) -> None:
    for number in "123":
        old.register("support", number * 64)
    registry.set_alias("support", targets={V1: 9, V3: 1})
    assert old.aliases() == {"support": "support@v1"}
    old.set_alias("support", V2)
    alias = registry.aliases()[0]
    assert (alias.refs, alias.previous) == ((V2,), V1)
    assert desired(registry) == [V1, V2]
    assert [change.refs for change in registry.history("support")] == [(V1, V3), (V2,)]
    old.remove(V3)
    registry.set_alias("support", targets={V1: 1, V2: 1})
    assert registry.aliases()[0].refs == (V1, V2)
    assert old.aliases() == {"support": "support@v2"}, "a tie leaves the one before in the lead"


def test_an_alias_that_new_code_removed_is_absent_to_old_code(registry: Registry, old: OldCode) -> None:
    for number in "12":
        old.register("support", number * 64)
    registry.set_alias("support", targets={V1: 9, V2: 1})
    registry.remove_alias("support")
    assert (old.aliases(), old.desired()) == ({}, [])
    old.set_alias("support", V2)
    assert registry.aliases()[0].refs == (V2,)
    assert [change.removed for change in registry.history("support")] == [False, True, False]


def test_wants_of_old_commands_that_were_killed_end_after_a_day(registry: Registry, old: OldCode) -> None:
    old.register("support", "1" * 64)
    old.register("support", "2" * 64)
    old.want(V1)
    with old.transaction() as connection:
        old.run(connection, "UPDATE wants SET wanted_at = '2020-01-01 00:00:00.000000'")
    assert desired(registry) == []
    assert old.desired() == [V1]
    registry.want(V2, "anybody", 60)
    assert old.desired() == [V2], "new code clears it away"
    old.want(V1)
    registry.unwant(V1)
    assert old.desired() == [V2], "an unnamed holder speaks for old code"
