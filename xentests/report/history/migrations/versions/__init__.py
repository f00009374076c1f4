"""Steps from one layout of the history to the next, run by alembic when a database is opened."""
