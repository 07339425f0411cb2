"""Runs migrations on the connection, and inside the transaction, that the registry hands over."""

from alembic import context

from serve.registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
