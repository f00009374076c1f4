"""Opens the history: makes it if there is none, brings an older one up to date, and says what is wrong with a bad one.

Kept in the user's data directory and not in the cache: it cannot be made again once old artifacts are gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from platformdirs import user_data_path
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from xentests.errors import LabError, UsageError

VARIABLE = "XENTESTS_HISTORY"
_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_S = 30.0


def default_url() -> str:
    """``$XENTESTS_HISTORY`` (a path or a URL of SQLAlchemy's), or ``xentests/history.sqlite`` of the user's data."""
    return os.environ.get(VARIABLE) or str(user_data_path("xentests") / "history.sqlite")


@contextlib.contextmanager
def opened(where: str) -> Iterator[Engine]:
    """The history at ``where``, a file or a URL, in its newest layout.

    UsageError: no such kind of database, or one of a newer xentests. LabError: damaged, not reachable, not writable;
    also for what goes wrong while it is in use.
    """
    url, path = _url_of(where)
    try:
        engine = sqlalchemy.create_engine(url, connect_args={"timeout": _BUSY_S} if path else {})
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UsageError(f"history {where}: no URL of a database that is known here: {error}") from error
    if path:
        sqlalchemy.event.listen(engine, "connect", _prepare_sqlite)
        _make_folder(path)
    try:
        _bring_up_to_date(engine, where, path)
        yield engine
    except CommandError as error:
        raise UsageError(f"history {where}: {error}") from error
    except DBAPIError as error:
        raise LabError(f"history {shown(where)}: {_first_line(error.orig)}{_advice(path)}") from error
    finally:
        engine.dispose()


def shown(where: str) -> str:
    """``where`` without a password."""
    return make_url(where).render_as_string(hide_password=True) if "://" in where else where


def _url_of(where: str) -> tuple[str, Path | None]:
    """The URL, and the file where it is SQLite's."""
    if "://" not in where:
        path = Path(where).expanduser().absolute()
        return f"sqlite:///{path}", path
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise UsageError(f"history {where}: {error}") from error
    is_file = url.get_backend_name() == "sqlite" and url.database
    return where, Path(url.database).absolute() if is_file and url.database else None


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"history {path}: cannot make its folder: {error.strerror}; set {VARIABLE}") from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _bring_up_to_date(engine: Engine, where: str, path: Path | None) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    # SQLite lets two processes make the same table; a server has locks of its own for this.
    lock = FileLock(f"{path}.lock", timeout=_BUSY_S) if path else contextlib.nullcontext()
    with lock, engine.begin() as connection:
        has = MigrationContext.configure(connection).get_current_revision()
        newest = script.get_current_head()
        if has == newest:
            return
        if has is not None and has not in {step.revision for step in script.walk_revisions()}:
            raise UsageError(
                f"history {shown(where)}: its layout is version {has}, made by a newer xentests; this one knows "
                f"{newest}. Use that xentests, or another history: set {VARIABLE}"
            )
        _upgrade(config, connection)


def _upgrade(config: Config, connection: Connection) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _advice(path: Path | None) -> str:
    if path is None:
        return ""
    return (
        f". Nothing was lost from artifacts/: move {path} aside and make it anew with "
        "`xentests history import artifacts`"
    )


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
