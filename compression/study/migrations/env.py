"""Alembic's entry point: migrates over the connection that `compression.study.database.upgrade` opened."""

from alembic import context

from compression.study.tables import Base

# Batches: SQLite cannot alter most of a table, so Alembic copies it.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
