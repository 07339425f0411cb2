import hashlib
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from registry_samples import write_adapter, write_base

from serve.errors import AdapterRejected, Conflict, InputError, StorageError, VersionInUse, VersionNotFound
from serve.names import VersionRef
from serve.registry import Lineage, Registry
from serve.registry.base import BUILTIN, BaseIdentity, identify_base
from serve.registry.evidence import answered


def register(
    registry: Registry, base: BaseIdentity, folder: Path, seed: int = 0, name: str = "support"
) -> str:
    return str(registry.register(write_adapter(folder, seed=seed), name, base, max_rank=64).ref)


def files(registry: Registry) -> list[str]:
    return sorted(path.name for path in (registry.home / "adapters").iterdir() if path.name[0] != ".")


def test_a_version_is_immutable_and_knows_where_it_comes_from(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a")
    lineage = Lineage(run="r1", recipe={"lora": {"rank": 4}}, data_fingerprint="f", metrics={"loss": 0.5})
    version = registry.register(folder, "support", base, max_rank=64, lineage=lineage)
    (folder / "adapter_config.json").write_text("gone")
    assert registry.version("support@v1") == version
    assert version.lineage == Lineage(
        run="r1",
        recipe={"lora": {"rank": 4}},
        data_fingerprint="f",
        metrics={"loss": 0.5},
        base_digest=base.digest,
    )
    assert version.engine_name == f"support@v1-{version.digest[:8]}"
    assert (version.base_name, version.base_digest) == ("tiny", base.digest)
    assert version.created_at.utcoffset() is not None
    assert sorted(path.name for path in version.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert all(not path.stat().st_mode & 0o222 for path in [version.path, *version.path.iterdir()])
    assert registry.verify(version.ref) == version.facts


def test_the_digest_is_what_sha256sum_prints(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    version = registry.version(register(registry, base, tmp_path / "a"))
    names = ["adapter_config.json", "adapter_model.safetensors"]
    printed = subprocess.run(["sha256sum", *names], cwd=version.path, capture_output=True, check=True).stdout
    assert hashlib.sha256(printed).hexdigest() == version.digest


def test_numbers_count_by_name_and_are_never_given_twice(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    assert [register(registry, base, tmp_path / str(n), n) for n in range(2)] == ["support@v1", "support@v2"]
    assert register(registry, base, tmp_path / "b", name="banking") == "banking@v1"
    registry.remove("support@v2")
    assert register(registry, base, tmp_path / "c", 1) == "support@v3"
    assert [str(version.ref) for version in registry.versions("support")] == ["support@v1", "support@v3"]
    assert [str(version.ref) for version in registry.versions()] == ["banking@v1", "support@v1", "support@v3"]


def test_a_refused_adapter_leaves_nothing(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected):
        registry.register(write_adapter(tmp_path / "a", use_dora=True), "support", base, max_rank=64)
    assert registry.versions() == []
    assert not (registry.home / "adapters").exists()
    assert registry.revision() == 0


def test_lineage_of_another_base_is_refused(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    other = identify_base(str(write_base(tmp_path / "other", seed=1)))
    folder = write_adapter(tmp_path / "a")
    with pytest.raises(AdapterRejected, match="another base"):
        registry.register(folder, "support", base, max_rank=64, lineage=Lineage(base_digest=other.digest))


def test_the_base_that_an_adapter_was_trained_on_counts_and_not_what_it_calls_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "here" / "mine", seed=1)
    monkeypatch.chdir(tmp_path / "here")
    for name in (BUILTIN, "mine"):
        base = identify_base(str(write_base(tmp_path / "there" / name)))
        folder = write_adapter(tmp_path / name, base_model_name_or_path=name)
        with pytest.raises(AdapterRejected, match=f"{name}.*, which is"):
            registry.register(folder, "support", base, max_rank=64)
        lineage = Lineage(base_digest=base.digest)
        version = registry.register(folder, "support", base, max_rank=64, lineage=lineage)
        assert (version.base_digest, version.facts.base_digest) == (base.digest, base.digest)


@pytest.mark.parametrize("name", ["Support", "../x", "", "a b", "x" * 65])
def test_bad_names(registry: Registry, base: BaseIdentity, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        register(registry, base, tmp_path / "a", name=name)


def test_the_name_of_the_base_is_taken(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the base itself"):
        register(registry, base, tmp_path / "a", name="tiny")
    register(registry, base, tmp_path / "b")
    with pytest.raises(Conflict, match="the base itself"):
        registry.set_alias("tiny", "support@v1")


def test_an_unknown_version_names_the_nearest(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFound, match="support@v7"):
        registry.version("support@v7")
    register(registry, base, tmp_path / "a")
    for wrong in ("support@v7", "suport@v1", VersionRef("support", 2)):
        with pytest.raises(VersionNotFound) as caught:
            registry.version(wrong)
        assert "support@v1" in caught.value.hint
    with pytest.raises(InputError):
        registry.version("support")


def test_versions_with_the_same_files_share_them(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    first = registry.version(register(registry, base, tmp_path / "a"))
    second = registry.version(register(registry, base, tmp_path / "b", name="other"))
    assert first.digest == second.digest
    registry.remove(first.ref)
    assert registry.verify(second.ref) == second.facts
    registry.remove(second.ref)
    assert files(registry) == []


def test_tampering_is_caught_and_registering_again_heals(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    version = registry.version(register(registry, base, tmp_path / "a"))
    weights = version.path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(stat.S_IRUSR | stat.S_IWUSR)
    weights.write_bytes(content)
    with pytest.raises(StorageError, match="were changed"):
        registry.verify(version.ref)
    version.path.chmod(0o755)
    weights.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        registry.verify(version.ref)
    register(registry, base, tmp_path / "b")
    assert registry.verify(version.ref) == version.facts
    assert files(registry) == [version.digest]


def test_removal_waits_for_aliases(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    for number in range(3):
        register(registry, base, tmp_path / str(number), number)
    registry.set_alias("support", "support@v1")
    registry.set_alias("support", "support@v2")
    with pytest.raises(VersionInUse, match="the alias support would roll back to it"):
        registry.remove("support@v1")
    with pytest.raises(VersionInUse, match="the alias support means it"):
        registry.remove("support@v2")
    registry.set_alias("support", "support@v3")
    registry.remove("support@v1")
    with pytest.raises(VersionNotFound):
        registry.version("support@v1")
    assert [str(change.target) for change in registry.history("support")] == [
        "support@v1",
        "support@v2",
        "support@v3",
    ]


def test_leftovers_of_killed_processes_are_swept(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    import os

    old, young = registry.home / "adapters/.staging-old", registry.home / "adapters/.staging-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("half")
    yesterday = time.time() - 2 * 24 * 3600
    os.utime(old, (yesterday, yesterday))
    register(registry, base, tmp_path / "a")
    assert not old.exists()
    assert young.exists()


def test_threads_share_one_registry(registry: Registry, base: BaseIdentity, tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / str(n), seed=n) for n in range(8)]
    numbers: list[int] = []

    def add(folder: Path) -> None:
        numbers.append(registry.register(folder, "support", base, max_rank=64).ref.number)
        registry.revision()

    threads = [threading.Thread(target=add, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


def test_what_was_never_registered_is_found_beside_the_files(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    version = registry.version(register(registry, base, tmp_path / "a"))
    assert registry.strangers(version.ref) == []
    version.path.chmod(0o755)
    (version.path / ".DS_Store").write_text("x")
    assert registry.strangers(version.ref) == [".DS_Store"]
    assert registry.verify(version.ref) == version.facts, (
        "nobody reads it, so it keeps nothing from being served"
    )


def test_only_an_engine_that_is_alive_answers_where_machines_share_the_registry(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    ref = registry.version(register(registry, base, tmp_path / "a")).ref
    assert not answered(registry, ref)
    registry.set_loaded("engine@there", {str(ref): ("ready", "")})
    assert answered(registry, ref) == (not registry.shared)
    registry.see_engine("engine@there", "http://there:1", "base", "ready")
    assert answered(registry, ref)
    registry.set_loaded("engine@there", {str(ref): ("failed", "x")})
    assert not answered(registry, ref)
