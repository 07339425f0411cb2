"""``tenon keys``, ``tenon usage`` and ``tenon adapters gc``, as a user runs them."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from support.commands import cause_and_hint, tenon
from support.postgres import Cluster

from deploy.cli_usage import month_of
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.engine.reference import References
from serve.engine.state import answers_folder
from serve.registry import Registry, UsageDelta, Version, hash_of
from serve.registry.base import identify_base
from serve.registry.usage import today

PRICES = "currency: EUR\ndefault: {prompt: 2, completion: 4}\nadapters: {qwen: {engine_hour: 3.6}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_key_is_created_listed_and_revoked_on_postgresql(cluster: Cluster, home: Path) -> None:
    url = {"TENON_DATABASE_URL": cluster.create()}
    made = tenon(
        home, "keys", "create", "shop", "--adapter", "support", "--max-concurrent", "4", "--json", **url
    )
    key = json.loads(made.stdout)
    assert key["secret"].startswith("tn-")
    assert (key["adapters"], key["limits"]["max_concurrent"], key["state"]) == (["support"], 4, "active")
    with Registry.open(home, url["TENON_DATABASE_URL"]) as registry:
        assert registry.key("shop").hash == hash_of(key["secret"])
    listed = tenon(home, "keys", "list", **url)
    assert "shop" in listed.stdout
    assert "4 max concurrent" in listed.stdout
    assert key["secret"] not in listed.stdout
    revoked = tenon(home, "keys", "revoke", "shop", **url)
    assert revoked.returncode == 0
    assert "no key is left" in revoked.stdout
    assert json.loads(tenon(home, "keys", "list", "--json", **url).stdout) == []
    everything = json.loads(tenon(home, "keys", "list", "--all", "--json", **url).stdout)
    assert [(row["name"], row["state"]) for row in everything] == [("shop", "revoked")]
    assert not (home / "registry.db").exists()


def test_keys_that_cannot_be(home: Path) -> None:
    secret = tenon(home, "keys", "create", "shop").stdout.splitlines()
    assert any(line.startswith("tn-") and len(line) == 46 for line in secret)
    again = tenon(home, "keys", "create", "shop")
    assert again.returncode == 4
    assert "shop" in cause_and_hint(again)[0]
    wrong = tenon(home, "keys", "create", "other", "--scope", "root")
    assert wrong.returncode == 2
    assert "inference, adapters, admin" in cause_and_hint(wrong)[1]
    missing = tenon(home, "keys", "revoke", "nobody")
    assert missing.returncode == 2
    assert "tenon keys list" in cause_and_hint(missing)[1]


def test_usage_becomes_money(home: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    with Registry.open(home) as registry:
        registry.create_key("shop")
        first = today().replace(day=1)
        registry.add_usage(
            [
                UsageDelta(first, 1, "support", "support@v1", 3, 1_000_000, 500_000, 10),
                UsageDelta(first, 1, "qwen", "qwen", 1, 10, 10, 1000),
                UsageDelta(first, 0, "qwen", "qwen", 1, 10, 10, 500),
                UsageDelta(first - timedelta(days=1), 1, "qwen", "qwen", 1, 10, 10, 1000),
            ]
        )
    prices = {"TENON_PRICES": str(tmp_path / "prices.yaml")}
    by_key = json.loads(tenon(home, "usage", "--json", **prices).stdout)
    assert [(row["name"], row["requests"], row["cost"]) for row in by_key["rows"]] == [
        (None, 1, pytest.approx(0.5)),
        ("shop", 4, pytest.approx(5)),
    ]
    assert by_key["total"]["cost"] == pytest.approx(5.5)
    by_adapter = json.loads(tenon(home, "usage", "--by", "adapter", "--json", **prices).stdout)
    assert [(row["adapter"], row["engine_seconds"]) for row in by_adapter["rows"]] == [
        ("qwen", 1500),
        ("support", 10),
    ]
    shown = tenon(home, "usage", "--month", f"{first - timedelta(days=1):%Y-%m}").stdout
    assert "shop" in shown
    assert "total" in shown
    assert tenon(home, "usage", "--month", "2026-13").returncode == 2


def test_months() -> None:
    assert [f"{day}" for day in month_of("2026-12")] == ["2026-12-01", "2027-01-01"]
    assert month_of(None)[0] <= today() < month_of(None)[1]


def _answers_of(home: Path, version: Version) -> Path:
    """What an adapter answered when it was proven, as an engine would have written it down."""
    folder = answers_folder(Settings.read(home=home).state)
    path = References(folder).path(version.base_digest, version.digest, "/v1/completions")
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_collecting_garbage(home: Path, tmp_path: Path) -> None:
    base = identify_base("tenon-tiny")
    with Registry.open(home) as registry:
        folders = [write_adapter(tmp_path / str(seed), base, seed=seed) for seed in range(3)]
        versions = [registry.register(folder, "support", base, max_rank=64) for folder in folders]
        registry.set_alias("support", versions[-1].ref)
        with registry._database.write() as connection:
            connection.exec_driver_sql("UPDATE versions SET created_at = '2020-01-01 00:00:00.000000'")
    answers = {version.ref.number: _answers_of(home, version) for version in versions}
    told = tenon(home, "adapters", "gc", "--keep", "1", "--dry-run")
    assert "Would remove 2 of 3 versions" in told.stdout
    assert all(path.exists() for path in answers.values())
    done = json.loads(tenon(home, "adapters", "gc", "--keep", "1", "--json").stdout)
    assert done["versions"] == ["support@v1", "support@v2"]
    assert done["kept"] == {"support@v3": "the alias support means it"}
    assert done["bytes"] == sum(done["files"].values()) > 0
    assert {number: path.exists() for number, path in answers.items()} == {1: False, 2: False, 3: True}
    again = tenon(home, "adapters", "gc", "--keep", "1")
    assert "Removed 0 of 1 versions: 0 bytes" in again.stdout


def test_a_database_that_cannot_be_reached(cluster: Cluster, home: Path) -> None:
    url = {"TENON_DATABASE_URL": cluster.tcp_url("nowhere", "s3cret")}
    refused = tenon(home, "keys", "list", **url)
    assert refused.returncode == 7
    assert "TENON_DATABASE_URL" in cause_and_hint(refused)[1]
    status = tenon(home, "status", **url)
    assert status.returncode == 5
    assert "cannot be used" in status.stdout
    assert "s3cret" not in refused.stderr + status.stdout + status.stderr
