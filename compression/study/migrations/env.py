"""Alembic's entry: the migrations run on the connection that `compression.study.store.upgrade` hands over."""

from alembic import context

from compression.study.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
