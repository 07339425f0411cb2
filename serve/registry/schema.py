"""The registry's tables. Change them only together with a new migration; a test compares the two.

A migration only adds, and what it adds to an old table may be left empty: code of the version before goes on
reading and writing the tables that it knows.
"""

import json
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


def to_json(content: Any) -> str:
    """JSON as every database takes it: what is no number (NaN, infinity) becomes null."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class UTCDateTime(TypeDecorator[datetime]):
    """Aware datetimes in Python, naive UTC in the database, as SQLite keeps no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Drop the time zone on the way in."""
        return value.astimezone(UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Put UTC back on the way out."""
        return value.replace(tzinfo=UTC) if value is not None else None


metadata = MetaData()

Name = String(64).with_variant(String(64, collation="C"), "postgresql")
"""A name, in the order of its bytes whatever the language of the database."""

# The last number given under each name. A number is never given twice, even after its version was removed.
names = Table(
    "names",
    metadata,
    Column("name", Name, primary_key=True),
    Column("last_number", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Name, nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("base_name", String(64), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("facts", JSON, nullable=False),
    Column("lineage", JSON, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    UniqueConstraint("name", "number", name="uq_versions_name_number"),
    CheckConstraint("number > 0", name="ck_versions_number"),
    Index("ix_versions_digest", "digest"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Name, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id"), nullable=False),
    Column("previous_id", Integer, ForeignKey("versions.id")),
    Column("sampling", JSON, nullable=False),
    Column("verdict", String(32)),
    Column("forced", Boolean, nullable=False),
    Column("changed_at", UTCDateTime, nullable=False),
)

# History names versions by text, so that it outlives them.
alias_changes = Table(
    "alias_changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("alias", Name, nullable=False),
    Column("target", String(80), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("previous", String(80)),
    Column("sampling", JSON, nullable=False),
    Column("verdict", String(32)),
    Column("forced", Boolean, nullable=False),
    Column("by", String(64), nullable=False),
    Column("changed_at", UTCDateTime, nullable=False),
    # [["support@v2", 9], ["support@v3", 1]] where there was more than one target.
    Column("targets", JSON(none_as_null=True)),
    Index("ix_alias_changes_alias", "alias"),
)

# The targets of aliases that have more than one. They hold only while ``changed_at`` is that of the alias: code
# that does not know this table changes the alias alone, and means one target.
alias_targets = Table(
    "alias_targets",
    metadata,
    Column("alias", Name, ForeignKey("aliases.name", ondelete="CASCADE"), primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("changed_at", UTCDateTime, nullable=False),
    CheckConstraint("weight >= 0", name="ck_alias_targets_weight"),
    Index("ix_alias_targets_version_id", "version_id"),
)
targets_hold = (alias_targets.c.alias == aliases.c.name) & (
    alias_targets.c.changed_at == aliases.c.changed_at
)

# What code before the leases asks for. A row that is ``leased`` only tells such code of a lease.
wants = Table(
    "wants",
    metadata,
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("wanted_at", UTCDateTime, nullable=False),
    Column("leased", Boolean),
)

# Who wants a version loaded, and until when; without an end, until it is taken back.
leases = Table(
    "leases",
    metadata,
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("holder", String(128), primary_key=True),
    Column("wanted_at", UTCDateTime, nullable=False),
    Column("ends_at", UTCDateTime),
)

load_states = Table(
    "load_states",
    metadata,
    Column("engine", Name, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("load_seconds", Float),
    Column("changed_at", UTCDateTime, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("result", JSON, nullable=False),
    Column("verdict", String(32), nullable=False),
    Column("report", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Index("ix_evaluations_version_id", "version_id"),
)

# One row that every write which routing depends on counts up, in its own transaction.
revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", Integer, nullable=False),
    CheckConstraint("id = 1", name="ck_revisions_one_row"),
)

# One row that tells this registry from every other.
identities = Table(
    "identities",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", String(32), nullable=False),
    CheckConstraint("id = 1", name="ck_identities_one_row"),
)

engines = Table(
    "engines",
    metadata,
    Column("name", Name, primary_key=True),
    Column("url", Text, nullable=False),
    Column("base_name", Name, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen_at", UTCDateTime, nullable=False),
)

# Keys are never deleted, only revoked, so that usage can be told of them.
keys = Table(
    "keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Name, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON(none_as_null=True)),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("max_concurrent", Integer),
    Column("monthly_tokens", BigInteger),
    Column("created_at", UTCDateTime, nullable=False),
    Column("expires_at", UTCDateTime),
    Column("revoked_at", UTCDateTime),
    Index("ux_keys_hash", "hash", unique=True),
    Index("ix_keys_name", "name"),
)

# By day in UTC. ``key_id`` is 0 for requests without a key; adapter and version are as in the metrics.
usage = Table(
    "usage",
    metadata,
    Column("day", Date, primary_key=True),
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("adapter", Name, primary_key=True),
    Column("version", String(80), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("engine_seconds", Float, nullable=False),
)
