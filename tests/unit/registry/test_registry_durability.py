import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from registry_places import Place
from registry_samples import lora_tensors, write_adapter, write_base
from sqlalchemy import create_engine, text
from support.postgres import Cluster

from serve.errors import StorageError
from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base
from serve.registry.database import revision

WRITER = [sys.executable, str(Path(__file__).with_name("registry_writer.py"))]
PROCESSES, EACH = 4, 5
KILLS = int(os.environ.get("TENON_TEST_KILLS", "20"))  # `make test-kills` asks for a thousand


def test_processes_that_register_at_once_get_numbers_of_their_own(place: Place, tmp_path: Path) -> None:
    base = str(write_base(tmp_path / "tiny"))
    adapters = [str(write_adapter(tmp_path / f"a{n}", seed=n)) for n in range(PROCESSES)]
    writers = [
        subprocess.Popen(
            [*WRITER, "register", *place.arguments, base, adapter, str(EACH)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for adapter in adapters
    ]
    numbers = [int(line) for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * PROCESSES
    assert sorted(numbers) == list(range(1, PROCESSES * EACH + 1))
    registry = place.open()
    assert registry.revision() == PROCESSES * EACH
    for version in registry.versions():
        registry.verify(version.ref)
    assert len(list((place.home / "adapters").glob("[0-9a-f]*"))) == PROCESSES


class Nursery:
    """Writers to a registry, one after the other, that end by SIGKILL."""

    def __init__(self, place: Place) -> None:
        command = [*WRITER, "nursery", *place.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill_one(self, seconds: float) -> int:
        """Let a writer write once and for some seconds more, kill it, and return the last write that it told of."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        told = [self.process.stdout.readline()]
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        while told[-1] != "ended\n":
            told.append(self.process.stdout.readline())
        return int(told[-2])

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.mark.timeout(120 + KILLS)
def test_killed_writers_lose_nothing_that_was_acknowledged(
    place: Place, registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    for number in (1, 2):
        registry.register(write_adapter(tmp_path / str(number), seed=number), "support", base, max_rank=64)
    with closing(Nursery(place)) as nursery:
        for kill in range(KILLS):
            acknowledged = nursery.kill_one(0.003 * (kill % 20))
            assert acknowledged <= until_free(registry) <= acknowledged + 1
            if kill % 20 == 0 or kill == KILLS - 1:
                assert_intact(place)
    assert registry.revision() == 2 + len(registry.history("support"))
    assert registry.revision() > KILLS


def until_free(registry: Registry) -> int:
    """The revision once no transaction of a killed client is under way any more."""
    with registry._database.write() as connection:
        return revision(connection)


def assert_intact(place: Place) -> None:
    """Have the database check itself: the whole file, or every index against its table."""
    engine = create_engine(place.sqlalchemy_url)
    with engine.begin() as connection:
        if place.url is None:
            assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        else:
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS amcheck"))
            connection.execute(
                text(
                    "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
                    " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p'"
                )
            )
    engine.dispose()


def test_a_server_that_crashes_loses_nothing_that_was_acknowledged(
    cluster: Cluster, base: BaseIdentity, tmp_path: Path
) -> None:
    registry = Registry.open(tmp_path / "home", cluster.create())
    registry.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
    for turn in range(3):
        registry.set_alias("support", "support@v1", sampling={"seed": turn})
        cluster.stop(signal.SIGQUIT)
        with pytest.raises(StorageError) as caught:
            registry.revision()
        assert "see whether the server runs" in caught.value.hint
        cluster.start()
        assert registry.revision() == 2 + turn, "and the registry connects again by itself"
    registry.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    )
    if not made:
        pytest.skip("a small disk can only be made where this user may mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_registers_nothing(small_disk: Path, tmp_path: Path) -> None:
    width = 1024
    base = identify_base(str(write_base(tmp_path / "wide", width=width)))
    registry = Registry.open(small_disk / "home")
    large = write_adapter(tmp_path / "large", lora_tensors(64, width=width), r=64)
    with pytest.raises(StorageError, match="No space left") as caught:
        registry.register(large, "support", base, max_rank=64)
    assert "free disk space" in caught.value.hint
    assert registry.versions() == []
    assert registry.revision() == 0
    assert list((small_disk / "home/adapters").iterdir()) == []
    small = write_adapter(tmp_path / "small", lora_tensors(2, width=width), r=2)
    assert registry.register(small, "support", base, max_rank=64).ref.number == 1
    registry.close()


def flip_until_it_fails(registry: Registry) -> None:
    for _ in range(200):
        registry.set_alias("support", "support@v1", sampling={"stop": ["x" * 2000]})


def test_a_disk_that_fills_up_under_the_database(small_disk: Path, tmp_path: Path) -> None:
    base = identify_base(str(write_base(tmp_path / "tiny")))
    registry = Registry.open(small_disk / "home")
    registry.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 2**20)
    with pytest.raises(StorageError) as caught:
        flip_until_it_fails(registry)
    assert "free disk space" in caught.value.hint
    before = 1 + len(registry.history("support"))
    (small_disk / "ballast").unlink()
    assert registry.revision() == before
    registry.set_alias("support", "support@v1")
    assert registry.revision() == before + 1
    registry.close()


def test_a_home_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        Registry.open(tmp_path / "file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/registry.db").write_bytes(b"not a database, surely" * 100)
    with pytest.raises(StorageError, match="file is not a database") as caught:
        Registry.open(tmp_path / "home")
    assert "backup" in caught.value.hint


def test_a_registry_that_is_read_only_still_answers(base: BaseIdentity, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    registry.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
    try:
        with registry._database.read() as connection:
            connection.exec_driver_sql("PRAGMA query_only=ON")
        with pytest.raises(StorageError, match="readonly") as caught:
            registry.set_alias("support", "support@v1")
        assert "writable" in caught.value.hint
        assert registry.aliases() == []
        assert len(registry.versions()) == 1
    finally:
        registry.close()
