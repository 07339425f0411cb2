"""What is PostgreSQL's own: reaching it, its words, its locks; the rest of this folder runs on both databases."""

import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from registry_samples import write_adapter
from sqlalchemy import make_url
from support.ports import free_port
from support.postgres import PASSWORD, Cluster

from serve.errors import StorageError, TenonError
from serve.registry import Registry
from serve.registry import postgres as module
from serve.registry.base import BaseIdentity


def refusal(home: Path, url: str) -> TenonError:
    with pytest.raises(TenonError) as caught:
        Registry.open(home, url)
    return caught.value


def everything(error: BaseException | None) -> str:
    """What an error and all behind it say."""
    said = ""
    while error is not None:
        said += f"{error!r} {error} {getattr(error, 'hint', '')}\n"
        error = error.__cause__ or error.__context__
    return said


@pytest.fixture
def database(cluster: Cluster) -> str:
    """The name of an empty database."""
    return str(make_url(cluster.create()).database)


def test_by_tcp_with_a_password_that_no_message_shows(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    with Registry.open(tmp_path, cluster.tcp_url(database)) as registry:
        assert registry.revision() == 0
        assert registry._database.place == f"postgresql://tenon@127.0.0.1:{cluster.port}/{database}"
        assert "s3cret" not in repr(registry._database._engine)


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        ({"password": "wrong-s3cret"}, "password authentication failed", "password in TENON_DATABASE_URL"),
        ({"database": "nowhere"}, "does not exist", "createdb"),
        ({"port": -1}, "refused", "whether the server runs"),
    ],
    ids=["password", "database", "port"],
)
def test_what_cannot_be_reached_says_what_to_do(
    cluster: Cluster, database: str, tmp_path: Path, change: dict[str, Any], words: str, hint: str
) -> None:
    change = {**change, "port": free_port()} if "port" in change else change
    url = make_url(cluster.tcp_url(database)).set(**change).render_as_string(hide_password=False)
    error = refusal(tmp_path, url)
    assert isinstance(error, StorageError)
    assert words in error.message
    assert "\n" not in error.message
    assert hint in error.hint
    for secret in (PASSWORD, "s3cret", "p%40ss"):
        assert secret not in everything(error)


def test_other_ways_not_to_reach_it(cluster: Cluster, database: str, tmp_path: Path) -> None:
    gone = refusal(tmp_path, "postgresql://tenon:s3cret@no-such-host.invalid/tenon")
    assert "host's name" in gone.hint
    option = refusal(tmp_path, cluster.url(database) + "&pasword=s3cret")
    assert "after '?'" in option.hint
    assert "s3cret" not in everything(gone) + everything(option)


def test_a_password_in_the_query_is_not_shown_either() -> None:
    url = make_url("postgresql://me@host/tenon?password=s3cret&sslmode=require")
    assert module.shown(url) == "postgresql://me@host/tenon"


def test_a_user_without_rights(cluster: Cluster, database: str, tmp_path: Path) -> None:
    with psycopg.connect(cluster.url(database), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guest_{database} LOGIN")
    guest = make_url(cluster.url(database)).set(username=f"guest_{database}")
    error = refusal(tmp_path, guest.render_as_string())
    assert "permission denied" in error.message
    assert "grant the user" in error.hint


def test_a_server_that_only_answers_reads(cluster: Cluster, database: str, tmp_path: Path) -> None:
    url = cluster.url(database)
    Registry.open(tmp_path, url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with Registry.open(tmp_path, url) as registry:
        assert registry.versions() == []
        with pytest.raises(StorageError, match="read-only") as caught:
            registry.create_key("me")
        assert "primary server" in caught.value.hint


def test_a_writer_waits_for_another_but_not_for_ever(
    cluster: Cluster, database: str, tmp_path: Path, base: BaseIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKE_LOCK", module.TAKE_LOCK.replace("'30s'", "'300ms'"))
    registry = Registry.open(tmp_path / "home", cluster.url(database))
    with psycopg.connect(cluster.url(database)) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({module.LOCK})")
        assert registry.revision() == 0, "readers do not wait"
        with pytest.raises(StorageError, match="lock timeout") as caught:
            registry.create_key("me")
        assert "another process" in caught.value.hint
    assert registry.create_key("me").key.name == "me"
    registry.close()


def test_a_write_sees_what_was_committed_while_it_waited(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    registry = Registry.open(tmp_path / "home", cluster.url(database))
    with psycopg.connect(cluster.url(database)) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({module.LOCK})")
        late = threading.Thread(target=registry.create_key, args=("late",))
        late.start()
        time.sleep(0.2)
        other.execute("UPDATE revisions SET value = 41")
    late.join()
    assert registry.revision() == 42
    registry.close()


def test_a_read_sees_one_moment(cluster: Cluster, database: str, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home", cluster.url(database))
    with registry._database.read() as connection:
        before = connection.exec_driver_sql("SELECT value FROM revisions").scalar_one()
        registry.create_key("me")
        assert connection.exec_driver_sql("SELECT value FROM revisions").scalar_one() == before
    assert registry.revision() == before + 1
    registry.close()


def test_a_commit_reaches_the_disk_even_if_the_server_is_lax(
    cluster: Cluster, database: str, tmp_path: Path
) -> None:
    with psycopg.connect(cluster.url(database), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    registry = Registry.open(tmp_path / "home", cluster.url(database))
    with registry._database.write() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one() == "2min"
    with registry._database.read() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "off"
    registry.close()


def test_an_adapter_of_a_write_that_the_server_ended_is_not_left(
    cluster: Cluster, database: str, tmp_path: Path, base: BaseIdentity
) -> None:
    registry = Registry.open(tmp_path / "home", cluster.url(database))
    with psycopg.connect(cluster.url(database), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON versions DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION cut()"
        )
    with pytest.raises(StorageError, match="terminating connection") as caught:
        registry.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
    assert "may have happened" in caught.value.hint
    assert registry.versions() == []
    assert registry._store.digests() == []
    registry.close()
