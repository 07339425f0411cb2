"""Keys: who is let in, by what, where, until when; the identity attacks 1 to 5 with keys in force."""

import json
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.routing import APIRoute
from gateway_harness import MESSAGES, Bench, running_bench, until
from hypothesis import given
from hypothesis import strategies as st
from test_gateway_attacks import HOSTS, raw, request, status_of
from test_gateway_errors import check_shape

from serve.errors import ConfigError, InvalidKey, MissingScope
from serve.gateway import auth
from serve.gateway.auth import Caller, Keyring, KeyTable
from serve.gateway.endpoints import ENDPOINTS
from serve.gateway.salt import cache_salt
from serve.net import check_reach, is_loopback, listen
from serve.operator import operator_key, operator_secret
from serve.registry import Registry, Rights, hash_of
from serve.registry.keys import SCOPES

CHAT = "/v1/chat/completions"
BODY = {"model": "support", "messages": MESSAGES}


@pytest.fixture
async def guarded(bench: Bench) -> Bench:
    """A bench with two deployed adapters, ``support`` and ``ticket``, and a key that nobody sends."""
    await bench.deploy("support")
    await bench.deploy("ticket")
    bench.registry.create_key("first")
    await bench.follow()
    return bench


async def new_key(bench: Bench, name: str, tenant: str = "", **rights: Any) -> str:
    made = bench.registry.create_key(name, Rights(**rights), tenant=tenant)
    await bench.follow()
    return made.secret


async def ask(
    bench: Bench, secret: str | None, path: str = CHAT, body: Any = BODY, method: str = "POST"
) -> tuple[int, bytes, Mapping[str, str]]:
    headers = {"authorization": f"Bearer {secret}"} if secret is not None else {}
    given = {"json": body} if method == "POST" else {}
    async with bench.http.request(method, path, headers=headers, **given) as reply:
        return reply.status, await reply.read(), reply.headers


def code_of(answer: bytes) -> str:
    return str(check_shape(json.loads(answer)))


async def test_without_any_key_nobody_is_asked_for_one(bench: Bench) -> None:
    await bench.deploy()
    assert (await ask(bench, None))[0] == 200
    assert (await ask(bench, "none"))[0] == 200
    assert (await ask(bench, None, "/metrics", method="GET"))[0] == 200
    assert (await ask(bench, None, "/api/status", method="GET"))[0] == 200


async def test_with_the_first_key_everybody_is(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop")
    assert (await ask(guarded, secret))[0] == 200
    before = guarded.engine.stats.running, dict(guarded.engine.stats.paths)
    for path in (*ENDPOINTS, "/v1/models", "/v1/models/support", "/v1/nothing", "/tokenizer_info", "/metrics",
                 "/api/status", "/api/nothing", "/openapi.json", "/nothing", "/"):  # fmt: skip
        for method in ("GET", "POST", "DELETE"):
            status, answer, headers = await ask(guarded, None, path, method=method)
            assert (status, code_of(answer)) == (401, "invalid_api_key"), path
            assert headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz"):
        for method in ("GET", "HEAD"):
            assert (await ask(guarded, None, path, method=method))[0] == 200
    assert before == (guarded.engine.stats.running, dict(guarded.engine.stats.paths))
    assert (await guarded.client.with_options(api_key=secret).models.list()).data


async def test_what_is_wrong_with_a_key_is_not_said(guarded: Bench) -> None:
    revoked = await new_key(guarded, "old")
    guarded.registry.revoke_key("old")
    past = await new_key(guarded, "past", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    answers = set()
    for wrong in ("tn-unknown", revoked, past, "", "é" * 20, "x" * 5000, "none", hash_of(revoked)):
        status, answer, _ = await ask(guarded, wrong)
        assert status == 401
        assert not wrong or wrong.encode() not in answer.replace(b"none", b"", wrong != "none")
        answers.add(answer)
    for header in ("Basic dG46eA==", "Bearer", "tn-x", "Digest tn-x"):
        async with guarded.http.post(CHAT, json=BODY, headers={"authorization": header}) as reply:
            assert reply.status == 401
            answers.add(await reply.read())
    assert len(answers) == 1


async def test_two_authorization_headers_are_refused(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop")
    body = json.dumps(BODY).encode()
    head = request("POST", CHAT, body=body)
    one = f"\r\nauthorization: Bearer {secret}"
    assert status_of(await raw(guarded, head + one, body)) == 200
    assert status_of(await raw(guarded, head + one + "\r\nauthorization: Bearer x", body)) == 401
    assert status_of(await raw(guarded, head + "\r\nx-api-key: " + secret, body)) == 401


async def test_1_the_host_header_opens_nothing(guarded: Bench) -> None:
    for host in (*HOSTS, "localhost/healthz?", "localhost/readyz#", "healthz"):
        for method, path in (
            ("POST", CHAT),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/api/status"),
        ):
            assert status_of(await raw(guarded, request(method, path, host), b"{}")) == 401, (host, path)
    for path in (
        "/healthz/../v1/models",
        "/healthz%2f..%2fmetrics",
        "/healthz/",
        "//healthz",
        "/readyz;/metrics",
    ):
        assert status_of(await raw(guarded, request("GET", path), b"{}")) == 401, path
    # In absolute form, only the path counts.
    answer = await raw(guarded, request("GET", "http://localhost/healthz/../metrics"), b"{}")
    assert status_of(answer) == 401
    assert guarded.engine.stats.paths == {}


SQL = (
    "' OR '1'='1", "tn-x' OR 1=1 --", "'; DROP TABLE keys; --", "x' UNION SELECT hash FROM keys --", "%00' OR ''='",
)  # fmt: skip


async def test_2_sql_in_the_header_reaches_no_database_and_no_log(
    guarded: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await new_key(guarded, "shop")
    for text in SQL:
        status, answer, _ = await ask(guarded, text)
        assert (status, code_of(answer)) == (401, "invalid_api_key")
    # The error path: the database is gone, and the last table goes on.
    guarded.registry.close()
    for path in guarded.home.glob("registry.db*"):
        path.unlink()
        path.mkdir()
    await until(lambda: "cannot be read" in caplog.text)
    for text in SQL:
        status, answer, _ = await ask(guarded, text)
        assert (status, code_of(answer)) == (401, "invalid_api_key")
    assert (await ask(guarded, secret))[0] == 200
    assert not [text for text in (*SQL, secret) if text in caplog.text]


def test_3_secrets_are_found_by_hash_and_compared_in_constant_time() -> None:
    for function in (KeyTable.find, Keyring._identify):
        assert "compare_digest" in function.__code__.co_names
    assert "hash_of" in Keyring._identify.__code__.co_names


async def test_4_another_tenants_adapter_is_as_absent_as_one_that_is_not(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop", adapters=("support",))
    waiting = guarded.register("waiting")
    guarded.registry.set_alias("waiting", waiting.ref)
    await guarded.follow()
    for name in ("ticket", "ticket@v1", "base", "waiting", "waiting@v1"):
        absent = "x" * len(name)
        for path, body in (
            (CHAT, {"messages": MESSAGES}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/embeddings", {"input": "x"}),
            ("/tokenize", {"prompt": "x"}),
            ("/score", {"text_1": "x", "text_2": "y"}),
            (CHAT, {"messages": "wrong", "unknown_field": 1}),
        ):
            theirs = await ask(guarded, secret, path, {**body, "model": name})
            none = await ask(guarded, secret, path, {**body, "model": absent})
            assert theirs[0] == none[0] == 404, (name, path)
            assert theirs[1].replace(name.encode(), absent.encode()) == none[1]
            assert {*theirs[2]} == {*none[2]}
        for path in ("/v1/models/{}", "/tokenizer_info?model={}"):
            theirs = await ask(guarded, secret, path.format(name), method="GET")
            none = await ask(guarded, secret, path.format(absent), method="GET")
            assert theirs[0] == 404
            assert (theirs[0], theirs[1].replace(name.encode(), absent.encode())) == none[:2]
    # Without a model, tokenizers are asked about the base, which this key may not use either.
    assert (await ask(guarded, secret, "/tokenize", {"prompt": "x"}))[0] == 404
    assert (await ask(guarded, secret, "/tokenizer_info", method="GET"))[0] == 404
    assert guarded.engine.stats.paths == {}
    assert (await ask(guarded, secret))[0] == 200


async def test_4_not_even_a_restarting_engine_tells_them_apart(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop", adapters=("support",))
    for state, url in (("down", guarded.engine.url), ("starting", None)):
        guarded.tell_engine(state=state, url=url)
        await until(lambda state=state: guarded.source.table.engine.state == state)
        theirs = await ask(guarded, secret, body={**BODY, "model": "ticket"})
        none = await ask(guarded, secret, body={**BODY, "model": "absent"})
        assert theirs[1].replace(b"ticket", b"absent") == none[1]
        assert theirs[0] == none[0]


async def test_5_no_request_makes_or_widens_a_key(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop", adapters=("support",))
    wish = {"name": "mine", "allowed_routes": ["/*"], "scopes": ["admin"], "adapters": None, "key_alias": "x"}
    before = guarded.registry.keys(revoked=True)
    for path in ("/key/generate", "/api/keys", "/api/key", "/v1/keys", "/keys", "/key/update", "/user/new"):
        for method in ("POST", "PUT", "PATCH"):
            headers = {"authorization": f"Bearer {secret}"}
            async with guarded.http.request(method, path, json=wish, headers=headers) as reply:
                assert reply.status in (403, 404, 405), path
    for extra in ({"allowed_routes": ["/*"]}, {"scopes": ["admin"]}, {"metadata": {"scopes": ["admin"]}}):
        await ask(guarded, secret, body={**BODY, **extra})
    for header in ("x-tenon-scopes", "x-scope", "x-forwarded-user", "x-tenant", "x-tenon-tenant"):
        headers = {"authorization": f"Bearer {secret}", header: "admin"}
        async with guarded.http.get("/metrics", headers=headers) as reply:
            assert reply.status == 403
    assert guarded.registry.keys(revoked=True) == before


async def test_scopes(guarded: Bench) -> None:
    secrets = {scope: await new_key(guarded, scope, scopes=(scope,)) for scope in SCOPES}
    allowed = {
        "/v1/models": {"inference"},
        "/metrics": {"admin"},
        "/api/status": {"admin"},
        "/openapi.json": {"admin"},
    }
    for path, scopes in allowed.items():
        for scope, secret in secrets.items():
            status, answer, _ = await ask(guarded, secret, path, method="GET")
            assert status == (200 if scope in scopes else 403), (path, scope)
            if status == 403:
                assert code_of(answer) == "missing_scope"
    guarded.source.keys.open_metrics = True
    assert (await ask(guarded, None, "/metrics", method="GET"))[0] == 200
    assert (await ask(guarded, None, "/metrics/", method="GET"))[0] == 401


def test_what_paths_need(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        wanted = Keyring(registry).wanted
    assert [wanted(path) for path in ("/healthz", "/readyz", "/healthz/", "/readyz/x", "")] == [
        None,
        None,
        "admin",
        "admin",
        "admin",
    ]
    assert {wanted(path) for path in (*ENDPOINTS, "/tokenizer_info", "/v1/", "/v1/x")} == {"inference"}
    assert [wanted(path) for path in ("/api/usage", "/api/usage/", "/api/keys", "/api", "/metrics")] == [
        "any",
        "adapters",
        "adapters",
        "admin",
        "admin",
    ]


async def test_no_route_of_the_control_plane_is_open_by_mistake(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop")
    routes = [route for route in guarded.gateway._control.routes if isinstance(route, APIRoute)]
    paths = {re.sub(r"{[^}]*}", "x", route.path): route.methods for route in routes}
    assert "/api/status" in paths
    for path in paths.keys() - {"/healthz", "/readyz"}:
        for method in paths[path]:
            assert (await ask(guarded, None, path, method=method))[0] == 401, (method, path)
            assert (await ask(guarded, secret, path, method=method))[0] == 403, (method, path)


async def test_models_are_those_that_the_key_may_use(guarded: Bench) -> None:
    async def names(secret: str) -> list[str]:
        _, answer, _ = await ask(guarded, secret, "/v1/models", method="GET")
        return [card["id"] for card in json.loads(answer)["data"]]

    everything = ["base", "support", "ticket", "support@v1", "ticket@v1"]
    assert await names(await new_key(guarded, "all")) == everything
    assert await names(await new_key(guarded, "one", adapters=("support",))) == ["support", "support@v1"]
    assert await names(await new_key(guarded, "pinned", adapters=("ticket@v1", "base"))) == [
        "base",
        "ticket@v1",
    ]
    assert await names(await new_key(guarded, "none", adapters=())) == []


async def test_an_alias_does_not_grant_the_versions_that_it_means(guarded: Bench) -> None:
    guarded.registry.set_alias("live", "ticket@v1")
    secret = await new_key(guarded, "shop", adapters=("live",))
    assert (await ask(guarded, secret, body={**BODY, "model": "live"}))[0] == 200
    for name in ("ticket", "ticket@v1", "live@v1"):
        assert (await ask(guarded, secret, body={**BODY, "model": name}))[0] == 404
    pinned = await new_key(guarded, "pinned", adapters=("ticket@v1",))
    assert (await ask(guarded, pinned, body={**BODY, "model": "ticket@v1"}))[0] == 200
    assert (await ask(guarded, pinned, body={**BODY, "model": "ticket"}))[0] == 404


NAMES = st.sampled_from(
    ["support", "support@v1", "support@v12", "ticket", "ticket@v1", "base", "support@v", "a@v1"]
)


@given(st.frozensets(NAMES), NAMES)
def test_a_name_is_allowed_by_itself_or_by_its_adapter(names: frozenset[str], name: str) -> None:
    adapter, _, number = name.partition("@v")
    expected = name in names or (number.isdigit() and adapter in names)
    assert Caller(names=names).allows(name) == expected
    assert Caller().allows(name)


async def test_revocation_and_new_rights_act_without_a_restart(guarded: Bench) -> None:
    secret = await new_key(guarded, "shop", adapters=("support",))
    assert (await ask(guarded, secret))[0] == 200
    guarded.registry.update_key("shop", Rights(adapters=("ticket",)))
    await guarded.follow()
    assert (await ask(guarded, secret))[0] == 404
    guarded.registry.update_key("shop", Rights(scopes=("admin",)))
    await guarded.follow()
    assert (await ask(guarded, secret))[0] == 403
    guarded.registry.revoke_key("shop")
    await guarded.follow()
    assert (await ask(guarded, secret))[0] == 401


async def test_a_key_ends_at_the_moment_that_it_says(guarded: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)
    secret = await new_key(guarded, "shop", expires_at=end)
    before = end - timedelta(microseconds=1)
    for at, status in ((before, 200), (end, 401), (before, 200)):
        monkeypatch.setattr(auth, "datetime", SimpleNamespace(now=lambda _, at=at: at))
        assert (await ask(guarded, secret))[0] == status


async def test_the_end_of_the_last_key_opens_no_door(bench: Bench) -> None:
    await bench.deploy()
    secret = await new_key(bench, "only")
    bench.registry.revoke_key("only")
    await bench.follow()
    assert (await ask(bench, secret))[0] == (await ask(bench, None))[0] == 401


async def test_tenants_have_caches_of_their_own(guarded: Bench) -> None:
    salts = []
    for name, tenant in (("a", "acme"), ("b", "acme"), ("c", ""), ("d", ""), ("e", "key:4")):
        await ask(guarded, await new_key(guarded, name, tenant))
        salts.append(guarded.engine.bodies[-1]["cache_salt"])
    assert salts[0] == salts[1] == cache_salt("tenant:acme")
    assert len(set(salts)) == 4


def test_addresses(tmp_path: Path) -> None:
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        assert is_loopback(address)
    for address in ("0.0.0.0", "::", "10.0.0.1", "::ffff:127.0.0.1", "fe80::1%eth0", "", "localhost"):
        assert not is_loopback(address)
    with listen("0.0.0.0", 0) as everywhere, listen("127.0.0.1", 0) as here:
        check_reach(here, keys=False)
        check_reach(everywhere, keys=True)
        with pytest.raises(ConfigError) as caught:
            check_reach(everywhere, keys=False)
        assert "tenon keys create" in caught.value.hint


def test_who_is_asked_for_a_key(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        scope: dict[str, Any] = {"path": "/v1/models", "headers": []}
        here, there = Keyring(registry), Keyring(registry, loopback=False)
        for keyring in (here, there):
            with pytest.raises(InvalidKey):
                keyring.admit(scope)  # nothing is known yet
            keyring.look(registry.revision())
        assert here.admit(scope).key is None
        with pytest.raises(InvalidKey):
            there.admit(scope)
        secret = registry.create_key("shop", Rights(expires_at=datetime.now(UTC) - timedelta(1))).secret
        for keyring in (here, there):
            keyring.look(registry.revision())
            with pytest.raises(InvalidKey):
                keyring.admit(scope)
            with pytest.raises(InvalidKey):
                keyring.admit({**scope, "headers": [(b"authorization", f"Bearer {secret}".encode())]})


def test_the_operators_key(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        registry.create_key("shop")
        with operator_key(tmp_path / "run") as secret:
            path = tmp_path / "run" / "operator.key"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert operator_secret(tmp_path / "run") == secret
            keyring = Keyring(registry, loopback=False, operator=hash_of(secret))
            scope = {"path": "/api/status", "headers": [(b"authorization", f"Bearer {secret}".encode())]}
            assert keyring.admit(scope).key_id == 0  # even before the keys were read
            later = Keyring(registry, loopback=False, operator=hash_of("another"))
            later.look(registry.revision())
            with pytest.raises(InvalidKey):
                later.admit(scope)
        assert operator_secret(tmp_path / "run") is None
        with operator_key(tmp_path / "run"), operator_key(tmp_path / "run") as newer:
            assert operator_secret(tmp_path / "run") == newer


def test_scopes_grant_no_others() -> None:
    for scope in SCOPES:
        caller = Caller(scopes=frozenset({scope}))
        for wanted in SCOPES:
            if wanted == scope or (scope, wanted) == ("admin", "adapters"):
                caller.require(wanted)  # type: ignore[arg-type]
            else:
                with pytest.raises(MissingScope):
                    caller.require(wanted)  # type: ignore[arg-type]


async def test_a_bench_on_every_address_stays_closed(tmp_path: Path) -> None:
    async with running_bench(tmp_path / "home") as bench:
        bench.source.keys.loopback = False
        assert (await ask(bench, None, "/v1/models", method="GET"))[0] == 401
        assert (await ask(bench, None, "/healthz", method="GET"))[0] == 200
        bench.source.keys.table = replace(bench.source.keys.table, used=True)
        assert (await ask(bench, None, "/v1/models", method="GET"))[0] == 401


async def test_asking_for_a_version_is_no_way_around_the_limits_of_its_alias(guarded: Bench) -> None:
    sampling = {"defaults": {"top_p": 0.5}, "max": {"temperature": 0.5}, "force": {"seed": 7}}
    guarded.registry.set_alias("support", "support@v1", sampling=sampling)
    tenant = await new_key(guarded, "tenant", adapters=["support"], scopes=("inference",))
    manager = await new_key(guarded, "manager", scopes=("inference", "adapters"))

    async def seen(secret: str, model: str, **fields: Any) -> Mapping[str, Any]:
        status, _, headers = await ask(guarded, secret, body={**BODY, "model": model, **fields})
        assert status == 200
        return {**guarded.engine.bodies[-1], "forced": headers.get("x-tenon-forced")}

    for model in ("support", "support@v1"):
        status, answer, _ = await ask(guarded, tenant, body={**BODY, "model": model, "temperature": 0.9})
        assert (status, json.loads(answer)["error"]["code"]) == (400, "outside_limits")
        found = await seen(tenant, model, temperature=0.4, seed=1)
        assert (found["seed"], found["forced"]) == (7, "seed")
        assert found.get("top_p") == (0.5 if model == "support" else None)
    free = await seen(manager, "support@v1", temperature=0.9, seed=1)
    assert (free["temperature"], free["seed"], free["forced"]) == (0.9, 1, None)
    assert (await seen(manager, "support", seed=1))["seed"] == 7
    assert (await seen(tenant, "support@v1", seed=1))["seed"] == 7
