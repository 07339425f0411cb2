"""Keys and usage over HTTP, and what one key may learn or make of others."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from api_harness import Api, running_api

from serve.registry import UsageDelta, hash_of
from serve.registry.usage import today

PRICES = "currency: EUR\ndefault: {prompt: 2, completion: 4}\nadapters: {qwen: {engine_hour: 3.6}}\n"


async def test_a_key_is_made_shown_changed_and_revoked(api: Api) -> None:
    body = {"name": "boss", "scopes": ["admin", "inference", "adapters"], "tenant": "us"}
    made = await api.ask("POST", "/api/keys", body)
    assert (made.status, made.headers["cache-control"], made.headers["location"]) == (
        201,
        "no-store",
        "/api/keys/1",
    )
    secret = api.secret = made.content.pop("secret")
    assert api.registry.key("boss").hash == hash_of(secret)
    shown = await api.ask("GET", "/api/keys/boss")
    assert shown.content == made.content == (await api.ask("GET", "/api/keys/1")).content
    shop = {"name": "shop", "adapters": ["support"], "requests_per_minute": 60, "monthly_tokens": 10**9}
    assert (await api.ask("POST", "/api/keys", shop)).content["scopes"] == ["inference"]
    again = await api.ask("POST", "/api/keys", shop)
    assert (again.status, again.code) == (409, "conflict")
    changed = await api.ask("PATCH", "/api/keys/shop", {"requests_per_minute": None, "max_concurrent": 3})
    found = changed.content
    assert (found["requests_per_minute"], found["max_concurrent"], found["adapters"]) == (
        None,
        3,
        ["support"],
    )
    assert found["monthly_tokens"] == 10**9
    gone = await api.ask("DELETE", "/api/keys/shop")
    assert (gone.status, gone.content["state"]) == (200, "revoked")
    listed = [row["name"] for row in (await api.ask("GET", "/api/keys")).content["keys"]]
    everything = (await api.ask("GET", "/api/keys?revoked=true")).content["keys"]
    assert (listed, [row["state"] for row in everything]) == (["boss"], ["active", "revoked"])
    assert secret not in str(everything)
    assert "hash" not in str(everything)
    for method, content in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        assert (await api.ask(method, "/api/keys/shop", content)).code == "key_not_found"


async def test_what_is_no_key(api: Api) -> None:
    for body in (
        {},
        {"name": "7"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": ["inference"], "allowed_routes": ["/*"]},
        {"name": "x", "adapters": ["../x"]},
        {"name": "x", "requests_per_minute": 0},
        {"name": "x", "monthly_tokens": 2**63},
        {"name": "x", "expires_at": "2030-01-01T00:00:00"},
        {"name": "x", "tenant": "\x00"},
    ):
        assert (await api.ask("POST", "/api/keys", body)).status == 400, body
    assert api.registry.keys() == []


async def test_scopes_open_what_they_are_for(api: Api) -> None:
    secrets = {scope: api.key(scope, scope) for scope in ("inference", "adapters", "admin")}
    for method, path, allowed in (
        ("GET", "/api/adapters", {"adapters", "admin"}),
        ("GET", "/api/aliases", {"adapters", "admin"}),
        ("GET", "/api/engines", {"adapters", "admin"}),
        ("GET", "/api/keys", {"admin"}),
        ("GET", "/api/usage", {"inference", "adapters", "admin"}),
        ("DELETE", "/api/keys/inference", {"admin"}),
    ):
        for scope, secret in secrets.items():
            status = (await api.ask(method, path, secret=secret)).status
            assert status == (200 if scope in allowed else 403), (method, path, scope)
        assert (await api.ask(method, path)).status == 401
        assert (await api.ask(method, path, secret="tn-wrong")).status == 401


async def test_nobody_creates_rights_that_he_lacks(api: Api) -> None:
    ends = datetime.now(UTC) + timedelta(days=1)
    mine = api.key(
        "mine", "admin", "inference", adapters=("support", "chat"), requests_per_minute=60, expires_at=ends
    )
    fine = {
        "name": "less",
        "adapters": ["support@v1", "chat"],
        "requests_per_minute": 60,
        "expires_at": ends.isoformat(),
    }
    assert (await api.ask("POST", "/api/keys", fine, mine)).status == 201
    for more in (
        {"adapters": None},
        {"adapters": ["support", "other"]},
        {"adapters": ["other@v1"]},
        {"requests_per_minute": 61},
        {"requests_per_minute": None},
        {"expires_at": (ends + timedelta(seconds=1)).isoformat()},
        {"expires_at": None},
    ):
        made = await api.ask("POST", "/api/keys", {**fine, "name": "more", **more}, mine)
        changed = await api.ask("PATCH", "/api/keys/less", more, mine)
        assert (made.status, made.code, changed.status) == (403, "forbidden", 403), more
        assert next(iter(more)) in made.message
    only_admin = api.key("only", "admin")
    refused = await api.ask("POST", "/api/keys", {"name": "more", "scopes": ["inference"]}, only_admin)
    assert (refused.status, "inference" in refused.message) == (403, True)
    assert {key.name for key in api.registry.keys(revoked=True)} == {"mine", "less", "only"}


async def test_a_key_sees_no_others_adapters_aliases_or_keys(api: Api) -> None:
    await api.bench.deploy("support")
    await api.bench.deploy("secret")
    mine = api.key("mine", "admin", "adapters", adapters=("support",))
    api.key("theirs", "inference", adapters=("secret",))
    api.key("all", "inference")
    names = {
        "adapters": [
            row["version"] for row in (await api.ask("GET", "/api/adapters", secret=mine)).content["adapters"]
        ],
        "aliases": [
            row["name"] for row in (await api.ask("GET", "/api/aliases", secret=mine)).content["aliases"]
        ],
        "keys": [row["name"] for row in (await api.ask("GET", "/api/keys", secret=mine)).content["keys"]],
    }
    assert names == {"adapters": ["support@v1"], "aliases": ["support"], "keys": ["mine"]}
    for method, path, body in (
        ("GET", "/api/adapters/{}@v1", None),
        ("DELETE", "/api/adapters/{}@v1", None),
        ("GET", "/api/aliases/{}", None),
        ("POST", "/api/aliases/{}/rollback", {}),
        ("PUT", "/api/aliases/support", {"target": "{}@v1"}),
        ("PUT", "/api/aliases/{}", {"target": "support@v1"}),
        ("POST", "/api/adapters", {"source": "./x", "name": "{}"}),
        ("GET", "/api/keys/{}", None),
        ("DELETE", "/api/keys/{}", None),
        ("PATCH", "/api/keys/{}", {}),
    ):
        answers = []
        for name in ("theirs" if "keys" in path else "secret", "absent"):
            sent = {key: value.format(name) for key, value in body.items()} if body is not None else None
            answer = await api.ask(method, path.format(name), sent, mine)
            answers.append((answer.status, answer.message.replace(name, "?")))
        assert answers[0] == answers[1], path
        assert answers[0][0] in (403, 404), path
    refused = await api.ask(
        "PUT", "/api/aliases/support", {"targets": {"support@v1": 1, "secret@v1": 1}}, mine
    )
    assert refused.code == "version_not_found"
    api.registry.set_alias("hidden", "support@v1")
    kept = await api.ask("DELETE", "/api/adapters/support@v1", secret=mine)
    assert (kept.status, "hidden" in kept.message) == (409, False)


async def test_the_last_admin_stays(api: Api) -> None:
    boss = api.key("boss", "admin", "inference")
    for method, body in (
        ("DELETE", None),
        ("PATCH", {"scopes": ["inference"]}),
        ("PATCH", {"expires_at": "2020-01-01T00:00:00Z"}),
    ):
        kept = await api.ask(method, "/api/keys/boss", body, boss)
        assert (kept.status, kept.code) == (409, "conflict")
    api.key("other", "admin")
    assert (await api.ask("DELETE", "/api/keys/boss", secret=boss)).status == 200


async def test_usage_is_told_in_tokens_and_money(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    async with running_api(tmp_path / "home", "tenon-tiny", prices=tmp_path / "prices.yaml") as api:
        shop, boss = api.key("shop", "inference"), api.key("boss", "admin")
        part = api.key("part", "admin", adapters=("support",))
        first = today().replace(day=1)
        api.registry.add_usage(
            [
                UsageDelta(first, 1, "support", "support@v1", 3, 1_000_000, 500_000, 10),
                UsageDelta(first, 1, "qwen", "qwen", 1, 10, 10, 1000),
                UsageDelta(first, 2, "qwen", "qwen", 1, 10, 10, 500),
                UsageDelta(first - timedelta(days=1), 1, "qwen", "qwen", 1, 10, 10, 1000),
            ]
        )
        told = (await api.ask("GET", "/api/usage", secret=boss)).content
        assert [(row["name"], row["requests"], round(row["cost"], 6)) for row in told["rows"]] == [
            ("shop", 4, 5.0),
            ("boss", 1, 0.5),
        ]
        assert (told["currency"], told["since"], round(told["total"]["cost"], 6)) == ("EUR", f"{first}", 5.5)
        own = (await api.ask("GET", "/api/usage?by=adapter&by=day", secret=shop)).content
        assert [(row["adapter"], row["day"], row["requests"], row["key"]) for row in own["rows"]] == [
            ("qwen", f"{first}", 1, None),
            ("support", f"{first}", 3, None),
        ]
        partly = (await api.ask("GET", "/api/usage?by=version", secret=part)).content
        assert [row["version"] for row in partly["rows"]] == ["support@v1"]
        before = f"/api/usage?since={first - timedelta(days=1)}&until={first}"
        assert (await api.ask("GET", before, secret=boss)).content["total"]["requests"] == 1
        nobodys = await api.ask("GET", "/api/usage?since=2020-01-01&until=2020-02-01", secret=boss)
        assert (nobodys.content["rows"], nobodys.content["total"]["requests"]) == ([], 0)
        for query in ("since=soon", "by=tenant", f"since={date.max}&until={date.min}"):
            assert (await api.ask("GET", f"/api/usage?{query}", secret=boss)).status == 400


async def test_engines_are_told_of_but_not_where_they_are(api: Api) -> None:
    await api.bench.deploy()
    api.registry.see_engine("gpu-1", "http://10.0.0.1:8000", "qwen", "down", "out of memory")
    told = (await api.ask("GET", "/api/engines")).content["engines"]
    assert [(row["name"], row["base"], row["state"], row["reason"]) for row in told] == [
        ("engine", "base", "ready", ""),
        ("gpu-1", "qwen", "down", "out of memory"),
    ]
    assert told[0]["versions"] == {"ready": 1}
    assert "10.0.0.1" not in str(told)


async def test_a_method_that_is_not_there_names_those_that_are(api: Api) -> None:
    for path, methods in (
        ("/api/keys/x", "DELETE, GET, PATCH"),
        ("/api/aliases/x", "DELETE, GET, PUT"),
        ("/api/keys", "GET, POST"),
    ):
        refused = await api.ask("TRACE", path)
        assert (refused.status, refused.headers["allow"]) == (405, methods)
