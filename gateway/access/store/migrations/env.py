"""Alembic runs this file for each command. `migrate.py` gives it the connection, inside a transaction."""

from alembic import context

from gateway.access.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
