"""The registry's tables. Change them only together with a new migration; a test compares the two."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
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

# The last number given under each name. A number is never given twice, even after its version was removed.
names = Table(
    "names",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last_number", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
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
    Column("name", String(64), primary_key=True),
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
    Column("alias", String(64), nullable=False),
    Column("target", String(80), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("previous", String(80)),
    Column("sampling", JSON, nullable=False),
    Column("verdict", String(32)),
    Column("forced", Boolean, nullable=False),
    Column("by", String(64), nullable=False),
    Column("changed_at", UTCDateTime, nullable=False),
    Index("ix_alias_changes_alias", "alias"),
)

wants = Table(
    "wants",
    metadata,
    Column("version_id", Integer, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("wanted_at", UTCDateTime, nullable=False),
)

load_states = Table(
    "load_states",
    metadata,
    Column("engine", String(64), primary_key=True),
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
