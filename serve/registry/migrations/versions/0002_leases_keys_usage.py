"""Wants with holders and ends, aliases with several targets, engines, keys, usage, and the registry's identity.

It only adds, and code that knows nothing of it goes on serving: what it writes leaves the new columns empty.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("alias_changes", sa.Column("targets", sa.JSON))
    op.add_column("wants", sa.Column("leased", sa.Boolean))
    op.create_table(
        "alias_targets",
        sa.Column("alias", NAME, sa.ForeignKey("aliases.name", ondelete="CASCADE"), primary_key=True),
        sa.Column(
            "version_id", sa.Integer, sa.ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("changed_at", sa.DateTime, nullable=False),
        sa.CheckConstraint("weight >= 0", name="ck_alias_targets_weight"),
    )
    op.create_index("ix_alias_targets_version_id", "alias_targets", ["version_id"])
    op.create_table(
        "leases",
        sa.Column(
            "version_id", sa.Integer, sa.ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("holder", sa.String(128), primary_key=True),
        sa.Column("wanted_at", sa.DateTime, nullable=False),
        sa.Column("ends_at", sa.DateTime),
    )
    op.create_table(
        "engines",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("base_name", NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seen_at", sa.DateTime, nullable=False),
    )
    _create_accounts()
    identities = op.create_table(
        "identities",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.String(32), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_identities_one_row"),
    )
    op.bulk_insert(identities, [{"id": 1, "value": uuid.uuid4().hex}])


def _create_accounts() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", NAME, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("adapters", sa.JSON),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("max_concurrent", sa.Integer),
        sa.Column("monthly_tokens", sa.BigInteger),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime),
        sa.Column("revoked_at", sa.DateTime),
    )
    op.create_index("ux_keys_hash", "keys", ["hash"], unique=True)
    op.create_index("ix_keys_name", "keys", ["name"])
    op.create_table(
        "usage",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("adapter", NAME, primary_key=True),
        sa.Column("version", sa.String(80), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("engine_seconds", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in ("identities", "usage", "keys", "engines", "leases", "alias_targets"):
        op.drop_table(table)
    op.drop_column("wants", "leased")
    op.drop_column("alias_changes", "targets")
