import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from registry_places import Place
from sqlalchemy import create_engine, text

from serve.errors import Conflict, InputError, KeyNotFound, StorageError
from serve.registry import Registry, Rights, UsageDelta, hash_of

MONDAY, TUESDAY = date(2026, 11, 23), date(2026, 11, 24)


def test_a_secret_is_told_once_and_kept_nowhere(place: Place, registry: Registry) -> None:
    rights = Rights(
        scopes=("inference", "adapters"),
        adapters=("support", "support@v3"),
        requests_per_minute=60,
        tokens_per_minute=10_000,
        max_concurrent=4,
        monthly_tokens=10**12,
        expires_at=datetime(2100, 1, 1, tzinfo=UTC),
    )
    new = registry.create_key("shop", rights, tenant="acme")
    assert new.secret.startswith("tn-")
    assert len(new.secret) == 3 + 43
    assert registry.keys() == [new.key]
    assert registry.key("shop") == registry.key(new.key.id) == registry.key(str(new.key.id)) == new.key
    assert (new.key.rights, new.key.tenant, new.key.prefix) == (rights, "acme", new.secret[:8])
    assert new.key.hash == hash_of(new.secret) == hashlib.sha256(new.secret.encode()).hexdigest()
    assert new.secret not in repr(new)
    engine = create_engine(place.sqlalchemy_url)
    with engine.connect() as connection:
        row = str(connection.execute(text("SELECT * FROM keys")).one())
    engine.dispose()
    assert new.secret[8:] not in row


def test_secrets_differ(registry: Registry) -> None:
    made = [registry.create_key(f"key-{number}") for number in range(20)]
    assert len({new.secret for new in made}) == len({new.key.hash for new in made}) == 20
    kept = registry.keys()
    assert [key.id for key in kept] == list(range(1, 21))
    assert made[0].key.rights == Rights()


def test_a_revoked_key_is_gone_for_good_and_its_name_is_free(registry: Registry) -> None:
    first = registry.create_key("shop").key
    with pytest.raises(Conflict, match="shop"):
        registry.create_key("shop")
    revoked = registry.revoke_key("shop")
    assert revoked.revoked_at is not None
    assert not revoked.active(revoked.revoked_at)
    assert registry.keys() == []
    assert registry.keys(revoked=True) == [revoked]
    for gone in ("shop", first.id, "nobody", "99999999999999999999", "²", "-1"):
        with pytest.raises(KeyNotFound):
            registry.revoke_key(gone)
    again = registry.create_key("shop").key
    assert again.id != first.id
    assert registry.key("shop") == again


def test_a_key_past_its_end_is_not_active(registry: Registry) -> None:
    end = datetime(2026, 12, 1, tzinfo=UTC)
    key = registry.create_key("shop", Rights(expires_at=end)).key
    assert key.active(end - timedelta(seconds=1))
    assert not key.active(end)


def test_rights_can_be_changed(registry: Registry) -> None:
    key = registry.create_key("shop", Rights(adapters=("support",), max_concurrent=2)).key
    changed = registry.update_key("shop", replace(key.rights, adapters=None, monthly_tokens=5))
    assert changed.rights == Rights(max_concurrent=2, monthly_tokens=5)
    assert registry.keys() == [changed]
    assert changed.hash == key.hash
    with pytest.raises(KeyNotFound):
        registry.update_key("nobody", Rights())
    with pytest.raises(InputError):
        registry.update_key("shop", Rights(scopes=()))
    assert registry.key("shop") == changed


def test_each_change_of_a_key_counts_the_revision_up(registry: Registry) -> None:
    registry.create_key("shop")
    registry.update_key("shop", Rights(max_concurrent=1))
    registry.revoke_key("shop")
    assert registry.revision() == 3
    registry.keys(revoked=True)
    registry.add_usage([UsageDelta(MONDAY, 1, "support", "support@v1", requests=1)])
    assert registry.revision() == 3


@pytest.mark.parametrize("name", ["", "Shop", "a b", "12", "x" * 65, "../x"])
def test_names_that_no_key_may_have(registry: Registry, name: str) -> None:
    with pytest.raises(InputError):
        registry.create_key(name)


def test_everything_that_is_wrong_with_rights_is_said_at_once(registry: Registry) -> None:
    rights = Rights(
        scopes=("inference", "root"),
        adapters=("Bad Name",),
        requests_per_minute=0,
        tokens_per_minute=2**31,
        max_concurrent=True,
        monthly_tokens=-1,
        expires_at=datetime(2026, 1, 1),
    )
    with pytest.raises(InputError) as caught:
        registry.create_key("shop", rights)
    for word in ("root", "Bad Name", "requests_per", "tokens_per", "max_con", "monthly", "time zone"):
        assert word in caught.value.message
    for tenant in ("x" * 65, "a\0b"):
        with pytest.raises(InputError, match="tenant"):
            registry.create_key("shop", tenant=tenant)
    assert registry.keys(revoked=True) == []


def test_usage_adds_up(registry: Registry) -> None:
    one = UsageDelta(MONDAY, 1, "support", "support@v1", 1, 10, 5, 0.25)
    registry.add_usage([one, one, replace(one, key_id=2), replace(one, version="support@v2")])
    registry.add_usage([one, replace(one, day=TUESDAY), UsageDelta(MONDAY, 0, "qwen", "qwen", 1, 2, 3, 0.5)])
    registry.add_usage([])
    rows = [
        (row.key_id, row.adapter, row.requests, row.prompt_tokens, row.completion_tokens, row.engine_seconds)
        for row in registry.usage()
    ]
    assert rows == [
        (0, "qwen", 1, 2, 3, 0.5),
        (1, "support", 5, 50, 25, 1.25),
        (2, "support", 1, 10, 5, 0.25),
    ]
    by_version = registry.usage(since=MONDAY, until=TUESDAY, by=["version"])
    assert [(row.version, row.requests, row.key_id) for row in by_version] == [
        ("qwen", 1, None),
        ("support@v1", 4, None),
        ("support@v2", 1, None),
    ]
    assert [(row.day, row.requests) for row in registry.usage(by=["day"])] == [(MONDAY, 6), (TUESDAY, 1)]
    assert [row.requests for row in registry.usage(by=[])] == [7]
    assert registry.usage(since=date(2027, 1, 1), by=[]) == []


def test_a_batch_counts_wholly_or_not_at_all(registry: Registry) -> None:
    good = UsageDelta(MONDAY, 1, "support", "support@v1", 1)
    bad = replace(good, version=None)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="version"):
        registry.add_usage([good, bad])
    assert registry.usage() == []


def test_large_counts(registry: Registry) -> None:
    large = UsageDelta(MONDAY, 1, "support", "support@v1", 1, 2**40, 2**40, 1e9)
    registry.add_usage([large])
    registry.add_usage([large])
    assert registry.usage(by=[])[0].prompt_tokens == 2**41
