"""One call of ``xentests qualify``: what was asked for is checked before anything runs; then it is run and shown."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xentests.errors import UsageError
from xentests.qualify import outcome, plan, profile, progress, runner
from xentests.qualify.plan import Plan, PlannedJob, Qualification
from xentests.qualify.profile import Job, LeftOut
from xentests.release.spec import parse_release
from xentests.report.history import archive, database
from xentests.report.html import ROOT
from xentests.report.qualification import model, quarantine

_COLOURS = {0: "bold green", 1: "bold red", 3: "bold yellow"}
_SHOWN = 12


@dataclass(frozen=True)
class Request:
    """What the user asked for, as typed; ``history`` is a file or a URL."""

    release: str
    against: str
    arches: tuple[str, ...]
    suites: tuple[str, ...]
    profile: str
    history: str
    quarantine: Path | None
    artifacts: Path
    mirror: str


def begin(asked: Request, err: Console, *, root: Path = ROOT) -> Qualification:
    """A new qualification, of the suites of the checkout ``root``.

    UsageError for all that can be told to be wrong before anything has run.
    """
    name = str(parse_release(asked.release))
    jobs, left = profile.jobs(
        profile.read(asked.profile, root / "suites"), name, arches=asked.arches, suites=asked.suites
    )
    jobs, left = _that_fit(jobs, left)
    for entry in quarantine.read(asked.quarantine):
        if entry.until < datetime.datetime.now(datetime.UTC).date():
            err.print(f"[bold red]quarantine expired[/] on {entry.until}: {escape(entry.id)} ({escape(entry.owner)})")
    with database.opened(asked.history) as engine:
        outcome.baseline_of(engine, asked.against)
    made = Plan(
        plan.SCHEMA,
        plan.new_id(),
        name,
        asked.against,
        asked.profile,
        database.shown(asked.history),
        str(asked.quarantine.absolute()) if asked.quarantine else "",
        asked.mirror,
        time.time(),
        [PlannedJob(job.name, job.arch, job.part) for job in jobs],
        left,
        _only(asked) if any(each.why == profile.NOT_ASKED for each in left) else "",
    )
    return plan.new(asked.artifacts.absolute(), made)


def _only(asked: Request) -> str:
    chosen = [f"--suite {name}" for name in asked.suites] + [f"--arch {name}" for name in asked.arches]
    return " ".join(chosen)


def _that_fit(jobs: Sequence[Job], left: Sequence[LeftOut]) -> tuple[list[Job], list[LeftOut]]:
    """Without the jobs that this machine has no memory for, ever: to break every night is no news."""
    total = psutil.virtual_memory().total / (1 << 30)
    fit = [job for job in jobs if job.part.memory_gib <= total]
    if not fit:
        raise UsageError(f"every job of this profile needs more memory than the {total:.0f} GiB of this machine")
    too_large = [
        LeftOut(job.name, f"needs {job.part.memory_gib:g} GiB, and this machine has {total:.1f}")
        for job in jobs
        if job not in fit
    ]
    return fit, [*left, *too_large]


def run(
    qualification: Qualification, history: str, err: Console, *, allure: bool, root: Path = ROOT
) -> tuple[model.Qualification, outcome.Files]:
    """Run what is not done, and make the report."""
    err.print(f"qualifying {qualification.plan.release} in {qualification.path}", markup=False, soft_wrap=True)
    with qualification.locked() as lock:
        with database.opened(history) as engine:
            arches = {job.arch for job in qualification.jobs}
            durations = {arch: archive.durations(engine, arch) for arch in arches}
        with progress.Display(qualification, err, progress.expected_of(qualification, durations)) as display:
            states = runner.run(qualification, lock, watch=display, root=root)
        # Opened anew: hours may have passed.
        with database.opened(history) as engine:
            found = outcome.judge(qualification, engine, states, root=root)
        files = outcome.write(qualification, found, say=lambda text: err.print(text, markup=False), allure=allure)
    for problem in files.problems:
        err.print(problem, markup=False)
    return found, files


def show(found: model.Qualification, page: Path, out: Console) -> None:
    """The answer, its reasons, the findings, and where the time went."""
    colour = _COLOURS[found.answer.exit_code]
    against = f", compared with {found.baseline}" if found.baseline else ""
    out.print(f"\n{escape(found.release)}{escape(against)}: [{colour}]{found.answer}[/]")
    for reason in found.reasons:
        out.print(f"  {reason}", markup=False)
    if found.findings:
        table = Table(title="findings", title_justify="left", show_header=False)
        for finding in found.findings[:_SHOWN]:
            table.add_row(str(finding.effect), escape(finding.text))
        if len(found.findings) > _SHOWN:
            table.add_row("", f"and {len(found.findings) - _SHOWN} more, in the report")
        out.print(table)
    where = Table(title="where the time went", title_justify="left", show_header=False)
    for job in sorted(found.jobs, key=lambda job: -job.seconds):
        where.add_row(escape(job.name), f"{job.seconds:.0f} s", f"{job.tests} tests")
    out.print(where)
    out.print(f"{found.ended - found.started:.0f} s; the report: {page}", markup=False, soft_wrap=True)
