"""What goes into the history, and what is asked of it. A run goes in whole or not at all, and again without harm."""

from __future__ import annotations

import contextlib
import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, insert, select
from sqlalchemy.engine import Connection, Engine

from xentests.errors import UsageError
from xentests.report import records
from xentests.report.history.tables import EXECUTIONS, FIGURES, RUNS
from xentests.report.records import Record
from xentests.report.run import RUN_NAME, SCHEMA, Run
from xentests.report.verdict import Verdict

SHOWN = ("xen.version", "xen.package", "xen.build-id", "xen.changeset", "dom0.kernel", "qemu", "libvirt", "accelerator",
         "host.cpu")  # fmt: skip
"""Facts of a run that are kept: what was tested, and on what."""


@dataclass(frozen=True)
class Execution:
    """One test in one run. ``revision`` tells builds of a release apart."""

    nodeid: str
    verdict: Verdict
    started: float
    seconds: float
    message: str
    evidence: str
    run: str
    release: str
    arch: str
    variant: str
    revision: str
    qualification: str
    figures: dict[str, float] = field(default_factory=dict, compare=False)


def revision_of(facts: dict[str, Any]) -> str:
    """What tells builds of a release apart: its package, its change set, its build id."""
    return " ".join(str(facts[key]) for key in ("xen.package", "xen.changeset", "xen.build-id") if facts.get(key))


def variant_of(about: dict[str, Any]) -> str:
    """How the machine differed from the usual one, in words; empty when it did not."""
    words = [f"QEMU of {about['qemu']}"] if about.get("qemu", "system") != "system" else []
    return ", ".join([*words, *(["fresh boots"] if about.get("fresh_boot") else [])])


def add_run(engine: Engine, run: Run, *, qualification: str = "") -> int:
    """Put ``run`` into the history, in place of what was known of it; returns the number of its tests.

    UsageError when it is of another version of xentests, or is no run.
    """
    about = run.about or run.began
    if about.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(
            f"{run.path}: its run.json is version {about['schema']!r} and this xentests reads {SCHEMA}: use the "
            "xentests that made it"
        )
    if not {"release", "arch"} <= about.keys():
        raise UsageError(f"{run.path}: nothing says of which release this run was")
    facts = {key: value for key, value in {**about.get("facts", {}), **run.facts()}.items() if key in SHOWN}
    # The harness's own tests run on a release, too, and say nothing of it.
    kept = [record for record in records.read(run) if not record.nodeid.startswith("selftests/")]
    with engine.begin() as connection:
        connection.execute(delete(RUNS).where(RUNS.c.id == run.id))
        connection.execute(
            insert(RUNS).values(
                id=run.id,
                qualification=qualification,
                release=about["release"],
                arch=about["arch"],
                variant=variant_of(about),
                revision=revision_of(facts),
                machine=", ".join(str(facts[key]) for key in ("host.cpu", "accelerator") if facts.get(key)),
                started=_started(run, kept),
                exit_status=about.get("exit_status"),
                path=str(run.path),
                facts=facts,
            )
        )
        _insert_records(connection, run.id, kept)
    return len(kept)


def _started(run: Run, kept: Sequence[Record]) -> float:
    with contextlib.suppress(ValueError):
        stamp = datetime.datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=datetime.UTC)
        return stamp.timestamp()
    return min((record.started for record in kept), default=0.0)


def _insert_records(connection: Connection, run_id: str, kept: Sequence[Record]) -> None:
    if not kept:
        return
    connection.execute(
        insert(EXECUTIONS),
        [
            {
                "run_id": run_id,
                "nodeid": record.nodeid,
                "verdict": str(record.verdict),
                "started": record.started,
                "seconds": record.seconds,
                "title": record.title,
                "message": record.message,
                "evidence": record.evidence,
            }
            for record in kept
        ],
    )
    found = connection.execute(select(EXECUTIONS.c.nodeid, EXECUTIONS.c.id).where(EXECUTIONS.c.run_id == run_id))
    ids = {nodeid: number for nodeid, number in found}
    measured = [
        {"execution_id": ids[record.nodeid], "name": name, "value": value}
        for record in kept
        for name, value in record.figures.items()
    ]
    if measured:
        connection.execute(insert(FIGURES), measured)


def import_runs(engine: Engine, root: Path) -> Iterator[tuple[Run, int, str]]:
    """Put in all runs below ``root``, also those of qualifications: each run, its tests, and why it was left out.

    UsageError when there are none.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory")
    found = sorted({path.resolve() for path in root.rglob("*") if path.is_dir() and RUN_NAME.fullmatch(path.name)})
    if not found and RUN_NAME.fullmatch(root.resolve().name):
        found = [root.resolve()]
    if not found:
        raise UsageError(f"{root}: no runs in it; a run is a directory such as 20260131-235959-1a2b3c")
    for path in found:
        run = Run(path)
        try:
            yield run, add_run(engine, run, qualification=qualification_of(path)), ""
        except UsageError as error:
            yield run, 0, str(error)


def qualification_of(path: Path) -> str:
    """The qualification that the run at ``path`` is part of; empty for none."""
    return path.parents[2].name if len(path.parents) > 2 and path.parents[1].name == "runs" else ""


def releases(engine: Engine) -> list[str]:
    """All releases that have executions, the newest first."""
    query = select(RUNS.c.release, func.max(RUNS.c.started)).group_by(RUNS.c.release)
    with engine.connect() as connection:
        return [name for name, _ in sorted(connection.execute(query), key=lambda row: -row[1])]


_COLUMNS = (
    EXECUTIONS.c.id, EXECUTIONS.c.nodeid, EXECUTIONS.c.verdict, EXECUTIONS.c.started, EXECUTIONS.c.seconds,
    EXECUTIONS.c.message, EXECUTIONS.c.evidence, RUNS.c.id.label("run"), RUNS.c.release, RUNS.c.arch, RUNS.c.variant,
    RUNS.c.revision, RUNS.c.qualification,
)  # fmt: skip


def executions(
    engine: Engine, release: str, *, arches: Iterable[str] = (), since: float = 0.0, figures: bool = False
) -> list[Execution]:
    """All executions on ``release``, newest first; with what they measured if ``figures``."""
    wanted = and_(RUNS.c.release == release, EXECUTIONS.c.started >= since)
    if arches := list(arches):
        wanted = and_(wanted, RUNS.c.arch.in_(arches))
    return _select(engine, wanted, figures=figures)


def executions_of(engine: Engine, qualification: str = "", *, run: str = "", figures: bool = True) -> list[Execution]:
    """All executions of a qualification, or of one run."""
    return _select(engine, RUNS.c.id == run if run else RUNS.c.qualification == qualification, figures=figures)


def _select(engine: Engine, wanted: ColumnElement[bool], *, figures: bool) -> list[Execution]:
    query = (
        select(*_COLUMNS)
        .select_from(EXECUTIONS)
        .join(RUNS)
        .where(wanted)
        .order_by(EXECUTIONS.c.started.desc(), EXECUTIONS.c.id.desc())
    )
    with engine.connect() as connection:
        found = connection.execute(query).all()
        measured: dict[int, dict[str, float]] = {}
        if figures:
            of = select(FIGURES).select_from(FIGURES).join(EXECUTIONS).join(RUNS).where(wanted)
            for number, name, value in connection.execute(of):
                measured.setdefault(number, {})[name] = value
    return [_execution(row, measured.get(row.id, {})) for row in found]


def _execution(row: Any, figures: dict[str, float]) -> Execution:
    return Execution(
        row.nodeid, Verdict(row.verdict), row.started, row.seconds, row.message, row.evidence, row.run, row.release,
        row.arch, row.variant, row.revision, row.qualification, figures,
    )  # fmt: skip


Key = tuple[str, str, str]
"""Node id, architecture, variant: what makes it the same test in another run."""


def by_test(executions: Iterable[Execution]) -> dict[Key, list[Execution]]:
    """Executions by test, in their order."""
    found: dict[Key, list[Execution]] = defaultdict(list)
    for each in executions:
        found[each.nodeid, each.arch, each.variant].append(each)
    return found


def durations(engine: Engine, arch: str) -> dict[str, float]:
    """How long each test took when it last ran on ``arch``, whatever the release: for the time that is left."""
    query = (
        select(EXECUTIONS.c.nodeid, EXECUTIONS.c.seconds)
        .select_from(EXECUTIONS)
        .join(RUNS)
        .where(RUNS.c.arch == arch)
        .order_by(EXECUTIONS.c.started)
    )
    with engine.connect() as connection:
        return {nodeid: seconds for nodeid, seconds in connection.execute(query)}
