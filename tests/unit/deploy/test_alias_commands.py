"""``tenon aliases``, as a user runs it."""

import json
from pathlib import Path

from support.commands import cause_and_hint, tenon
from support.postgres import Cluster

from evalsuite.load.adapters import write_adapter
from serve.registry import Registry
from serve.registry.base import identify_base


def test_aliases_are_listed_shown_and_removed(tmp_path: Path) -> None:
    home, base = tmp_path / "home", identify_base("tenon-tiny")
    assert "tenon deploy" in tenon(home, "aliases", "list").stdout
    with Registry.open(home) as registry:
        for seed in range(2):
            folder = write_adapter(tmp_path / str(seed), base, seed=seed)
            registry.register(folder, "support", base, max_rank=64)
        registry.set_alias("support", "support@v1", verdict="better")
        registry.set_alias("helpdesk", targets={"support@v1": 90, "support@v2": 10}, forced=True, by="boss")
    listed = json.loads(tenon(home, "aliases", "list", "--json").stdout)
    assert [(row["alias"], row["version"], row["forced"]) for row in listed] == [
        ("helpdesk", "support@v1", True),
        ("support", "support@v1", False),
    ]
    assert "support@v2 (10 %)" in tenon(home, "aliases", "list").stdout
    removed = tenon(home, "aliases", "remove", "helpdesk")
    assert removed.returncode == 0, removed.stderr
    assert "alias helpdesk, which meant support@v1=90, support@v2=10" in removed.stdout
    again = tenon(home, "aliases", "remove", "helpdesk")
    assert again.returncode == 2
    cause, hint = cause_and_hint(again)
    assert "there is no alias helpdesk" in cause
    assert "tenon aliases list" in hint
    shown = tenon(home, "aliases", "show", "helpdesk").stdout
    assert "helpdesk means nothing any more" in shown
    assert "removed by cli" in shown
    assert "boss" in shown
    history = json.loads(tenon(home, "aliases", "show", "helpdesk", "--json").stdout)["history"]
    assert [(row["removed"], row["by"]) for row in history] == [(False, "boss"), (True, "cli")]
    version = json.loads(tenon(home, "adapters", "show", "support@v2", "--json").stdout)
    assert [line[17:] for line in version["history"]] == [
        "helpdesk → support@v1=90, support@v2=10 (forced)",
        "helpdesk → nothing (removed by cli)",
    ]
    done = tenon(home, "aliases", "remove", "support", "--json")
    assert json.loads(done.stdout) == {"removed": "support", "version": "support@v1"}
    assert json.loads(tenon(home, "aliases", "list", "--json").stdout) == []
    assert len(json.loads(tenon(home, "adapters", "list", "--json").stdout)) == 2
    assert tenon(home, "aliases", "show", "nobody").returncode == 2
    assert tenon(home, "aliases", "remove", "No name").returncode == 2


def test_versions_of_an_adapter_that_is_not_there_are_an_error(tmp_path: Path) -> None:
    home, base = tmp_path / "home", identify_base("tenon-tiny")
    assert "No adapters yet" in tenon(home, "adapters", "list").stdout
    assert "train-and-deploy" in cause_and_hint(tenon(home, "adapters", "list", "support"))[1]
    with Registry.open(home) as registry:
        registry.register(write_adapter(tmp_path / "adapter", base), "support", base, max_rank=64)
    assert "support@v1" in tenon(home, "adapters", "list", "support").stdout
    wrong = tenon(home, "adapters", "list", "suport")
    assert wrong.returncode == 2
    assert cause_and_hint(wrong) == ("error: no adapter 'suport' is registered", "  → there are support")
    one = tenon(home, "adapters", "list", "support@v1", "--json")
    assert (one.returncode, one.stdout) == (2, "")
    assert "tenon adapters show support@v1" in json.loads(one.stderr)["error"]["hint"]


def test_they_are_those_of_a_shared_database(tmp_path: Path, cluster: Cluster) -> None:
    home, url = tmp_path / "home", {"TENON_DATABASE_URL": cluster.create()}
    with Registry.open(home, url["TENON_DATABASE_URL"]) as registry:
        base = identify_base("tenon-tiny")
        registry.register(write_adapter(tmp_path / "adapter", base), "support", base, max_rank=64)
        registry.set_alias("support", "support@v1", forced=True, by="boss")
    listed = json.loads(tenon(home, "aliases", "list", "--json", **url).stdout)
    assert [(row["alias"], row["version"]) for row in listed] == [("support", "support@v1")]
    assert tenon(home, "aliases", "remove", "support", **url).returncode == 0
    history = json.loads(tenon(home, "aliases", "show", "support", "--json", **url).stdout)["history"]
    assert [(row["removed"], row["by"]) for row in history] == [(False, "boss"), (True, "cli")]
