import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_samples import lora_tensors, write_adapter, write_base

from serve.errors import StorageError
from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base

WRITER = [sys.executable, str(Path(__file__).with_name("registry_writer.py"))]
PROCESSES, EACH, KILLS = 4, 5, 20


def test_processes_that_register_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    base = str(write_base(tmp_path / "tiny"))
    home = str(tmp_path / "home")
    writers = [
        subprocess.Popen(
            [*WRITER, "register", home, base, str(write_adapter(tmp_path / f"a{n}", seed=n)), str(EACH)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    numbers = [int(line) for writer in writers for line in writer.communicate(timeout=60)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * PROCESSES
    assert sorted(numbers) == list(range(1, PROCESSES * EACH + 1))
    registry = Registry.open(Path(home))
    assert registry.revision() == PROCESSES * EACH
    for version in registry.versions():
        registry.verify(version.ref)
    registry.close()
    assert len(list((tmp_path / "home/adapters").iterdir())) == PROCESSES


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    base = identify_base(str(write_base(tmp_path / "tiny")))
    home = tmp_path / "home"
    registry = Registry.open(home)
    for number in (1, 2):
        registry.register(write_adapter(tmp_path / str(number), seed=number), "support", base, max_rank=64)
    acknowledged = registry.revision()
    for kill in range(KILLS):
        with subprocess.Popen([*WRITER, "flip", str(home)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged = int(writer.stdout.readline())
            time.sleep(0.003 * kill)
            writer.kill()
            acknowledged = int((writer.stdout.read().split("\n")[:-1] or [str(acknowledged)])[-1])
        assert acknowledged <= registry.revision() <= acknowledged + 1
        with sqlite3.connect(home / "registry.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert registry.revision() == 2 + len(registry.history("support"))
    assert acknowledged > KILLS
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
