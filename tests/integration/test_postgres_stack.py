"""The whole stack on a registry in PostgreSQL, with an engine attached that behaves as vLLM does."""

import json
from pathlib import Path

import pytest
from support.commands import tenon
from support.ports import free_port
from support.postgres import PASSWORD, Cluster

from deploy import stack as stacks
from deploy.net import get_json
from deploy.serving import move_alias
from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.registry import Registry
from serve.registry.base import identify_base


@pytest.fixture
def settings(cluster: Cluster, fake_engine: str, tmp_path: Path) -> Settings:
    url = cluster.tcp_url(cluster.create().split("/")[3].partition("?")[0])
    return Settings.read(home=tmp_path / "home", port=free_port(), engine_url=fake_engine, database_url=url)


def test_a_version_is_deployed_and_served(settings: Settings, tmp_path: Path) -> None:
    home, base = settings.home, identify_base(settings.model)
    try:
        url = stacks.up(settings, lambda _: None)[0].url
        with Registry.of(settings) as registry:
            folder = write_adapter(tmp_path / "a", base, seed=1)
            version = registry.register(folder, "support", base, max_rank=64)
            move_alias(registry, settings, "support", version, force=True, say=lambda _: None)
        routes = get_json(f"{url}/api/status")["routes"]
        assert routes["support"] == "support@v1"
        now = status(home)
        assert (now.registry, [row["aliases"] for row in now.adapters]) == ("", [["support"]])
        # Another shell knows nothing of the URL: the stack's own settings say where its registry is.
        listed = tenon(home, "adapters", "list", "--json")
        assert [row["version"] for row in json.loads(listed.stdout)] == ["support@v1"], listed.stderr
        assert (home / "run/stack.json").stat().st_mode & 0o077 == 0
    finally:
        stacks.down(home)
    assert not (home / "registry.db").exists()
    logs = "".join(path.read_text() for path in (home / "logs").iterdir())
    assert PASSWORD not in logs
    assert "s3cret" not in logs
