"""A qualification's directory, ``artifacts/qualify-...``: what was asked for, and what of it is done.

``plan.json`` says what was asked for and never changes; ``runs/JOB/RUN`` are the runs of pytest, one an attempt. What
is done is read from their records, so that a qualification that was killed at any moment goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from xentests.errors import LabError, UsageError
from xentests.qualify.profile import Job, LeftOut, Part
from xentests.report import records
from xentests.report.records import Record
from xentests.report.run import RUN_NAME, UNCOLLECTED, Run, write_json

SCHEMA = 1
NAME = re.compile(r"qualify-\d{8}-\d{6}-[0-9a-f]{6}")
_ENDED = (0, 1, 5)
"""pytest's exit statuses of a run that came to its end: all passed, some failed, nothing to run."""

ATTEMPTS = 2
"""How often a job is tried whose pytest dies; a test that kills it is recorded, and not run again."""


class PlannedJob(msgspec.Struct, frozen=True):
    """A job as ``plan.json`` has it."""

    name: str
    arch: str
    part: Part


class Plan(msgspec.Struct, frozen=True):
    """What was asked for. ``against`` and ``quarantine`` are empty when they were not given.

    ``only``: the options that chose a part of the profile, as typed; empty for all of it.
    """

    schema: int
    id: str
    release: str
    against: str
    profile: str
    history: str
    quarantine: str
    mirror: str
    started: float
    jobs: list[PlannedJob]
    left_out: list[LeftOut]
    only: str = ""


@dataclass(frozen=True)
class Progress:
    """What is known of one job. ``selected`` is empty until its tests were collected; ``exit_status`` the last try's.

    ``ended``: it need not run any more. ``uncollected``: files whose tests are not among them, with the error.
    """

    records: dict[str, Record]
    selected: frozenset[str]
    exit_status: int | None
    attempts: int
    ended: bool
    uncollected: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Tests that were to be run and have no record."""
        return sorted(self.selected - self.records.keys())


class Qualification:
    """One qualification on the disk."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self.jobs = [Job(job.name, job.part, plan.release, job.arch) for job in plan.jobs]

    def runs(self, job: Job) -> list[Run]:
        """The runs of ``job`` so far, the oldest first."""
        found = sorted(path for path in self.folder(job).glob("*") if RUN_NAME.fullmatch(path.name))
        return [Run(path) for path in found]

    def folder(self, job: Job) -> Path:
        """Where runs of ``job`` are made."""
        return self.path / "runs" / job.name

    def progress(self, job: Job) -> Progress:
        """What of ``job`` is done, read from the disk."""
        runs = self.runs(job)
        known: dict[str, Record] = {}
        selected: set[str] = set()
        for run in runs:
            for record in records.read(run):
                known.setdefault(record.nodeid, record)
            selected |= set(records.selected(run))
        status = runs[-1].about.get("exit_status") if runs else None
        ended = status in _ENDED and not selected - known.keys()
        uncollected = tuple(dict.fromkeys(runs[-1].facts().get(UNCOLLECTED, ()))) if runs else ()
        return Progress(known, frozenset(selected | known.keys()), status, len(runs), ended, uncollected)

    def done_file(self, job: Job) -> Path | None:
        """A file of the tests of ``job`` that are done; None if there are none. LabError when the disk refuses."""
        done = self.progress(job).records
        if not done:
            return None
        path = self.folder(job) / "done.txt"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text("".join(f"{nodeid}\n" for nodeid in sorted(done)), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise LabError(f"cannot write {path}: {error.strerror}; free some space") from error
        return path

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Nobody else works on it, tests of an earlier call included: the lock's descriptor is theirs to inherit."""
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LabError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def new(root: Path, plan: Plan) -> Qualification:
    """Make the directory of a new qualification below ``root``. UsageError when that cannot be done."""
    path = root / plan.id
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--artifacts {root}: cannot make {path.name} there: {error.strerror}") from error
    write_json(path / "plan.json", msgspec.to_builtins(plan))
    return Qualification(path, plan)


def new_id() -> str:
    """A name for a qualification, ``qualify-20260131-235959-1a2b3c``: sorts by time."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"qualify-{stamp}-{secrets.token_hex(3)}"


def find(root: Path, name: str) -> Qualification:
    """The qualification ``name`` (or its beginning, or ``latest``) below ``root``, or at the path ``name``.

    UsageError that lists what there is; also for one of another version of xentests.
    """
    there = sorted((path for path in root.glob("qualify-*") if NAME.fullmatch(path.name)), reverse=True)
    found = [path for path in there if path.name.startswith(name)] if name != "latest" else there[:1]
    if (Path(name) / "plan.json").is_file():
        found = [Path(name).resolve()]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found or there[:5]) or "none"
        problem = "is not the name of one qualification" if found else "no such qualification"
        raise UsageError(f"{name!r}: {problem} below {root}. There are: {listed}")
    return load(found[0].resolve())


def load(path: Path) -> Qualification:
    """The qualification in the directory ``path``. UsageError if its plan cannot be used."""
    file = path / "plan.json"
    try:
        raw = json.loads(file.read_bytes())
        version = raw.get("schema") if isinstance(raw, dict) else None
        if version != SCHEMA:
            raise UsageError(f"{file}: its layout is version {version!r}, and this xentests knows {SCHEMA}")
        return Qualification(path, msgspec.convert(raw, Plan))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not the plan of a qualification: {error}") from error
