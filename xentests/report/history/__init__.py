"""The history of all executions of tests: what verdicts are judged by. SQLite by default, or any SQLAlchemy URL."""
