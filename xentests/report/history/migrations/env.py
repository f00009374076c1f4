"""Alembic's entry: called with a connection of ``database`` only; there is no ``alembic.ini``, nor a command line."""

from alembic import context

from xentests.report.history.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
