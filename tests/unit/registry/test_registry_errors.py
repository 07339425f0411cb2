"""Errors of the database show no rows: a log may tell of them with all that caused them."""

from pathlib import Path

import pytest
from sqlalchemy import text
from support.postgres import Cluster

from serve.errors import StorageError
from serve.log_lines import told
from serve.registry.database import Database
from serve.registry.postgres import PostgreSQL
from serve.registry.sqlite import SQLite

QUERY = text("SELECT * FROM nothing WHERE hash = :hash")


def check(database: Database) -> None:
    try:
        with pytest.raises(StorageError) as caught, database.read() as connection:
            connection.execute(QUERY, {"hash": "private-value"})
    finally:
        database.close()
    line = told(caught.value)
    assert "caused by" in line
    assert "private-value" not in line


def test_sqlite_shows_no_parameters(tmp_path: Path) -> None:
    check(SQLite.open(tmp_path / "registry.db"))


def test_postgresql_shows_no_parameters(cluster: Cluster) -> None:
    check(PostgreSQL.open(cluster.create()))
