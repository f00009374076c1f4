"""The end of a qualification: its runs go into the history, are judged by it, and become a report and its files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from xentests.errors import UsageError, XentestsError
from xentests.qualify.plan import NAME, Progress, Qualification
from xentests.qualify.profile import Job, suite_names
from xentests.qualify.runner import State
from xentests.report import html, records
from xentests.report.allure_results import write_run_files
from xentests.report.history import archive
from xentests.report.history.archive import Execution
from xentests.report.qualification import assemble, junit, kcidb, model, page
from xentests.report.qualification import quarantine as quarantine_
from xentests.report.qualification.assemble import Known, Now
from xentests.report.qualification.model import NotTested, Tested
from xentests.report.run import Run, write_json

PAGE = "index.html"
DATA = "qualification.json"


@dataclass(frozen=True)
class Baseline:
    """What a release is compared with: executions, and what to call them."""

    name: str
    executions: Sequence[Execution]


def baseline_of(engine: Engine, against: str, *, without: str = "") -> Baseline:
    """The baseline called ``against``: a release, or one qualification, in the history; without the one ``without``.

    Empty for an empty name. UsageError that lists what the history has.
    """
    if not against:
        return Baseline("", ())
    if NAME.fullmatch(against):
        found = archive.executions_of(engine, against)
    else:
        found = [each for each in archive.executions(engine, against, figures=True) if each.qualification != without]
    if found:
        return Baseline(against, found)
    there = archive.releases(engine)
    if not there:
        raise UsageError(
            f"--against {against}: the history is empty. Qualify it first (`xentests qualify {against}`), or put in "
            "what was run before: `xentests history import artifacts`"
        )
    raise UsageError(f"--against {against}: the history has nothing of it. It has {', '.join(there)}")


def judge(qualification: Qualification, engine: Engine, states: Sequence[State], *, root: Path) -> model.Qualification:
    """Put all runs into the history, and make the report's content."""
    plan = qualification.plan
    progress = {job.name: qualification.progress(job) for job in qualification.jobs}
    for job in qualification.jobs:
        for run in qualification.runs(job):
            if run.about or run.began:
                archive.add_run(engine, run, qualification=plan.id)
    baseline = baseline_of(engine, plan.against, without=plan.id)
    own = [each for each in archive.executions(engine, plan.release, figures=True) if each.qualification != plan.id]
    known = Known(own, baseline.executions, quarantine_.read(Path(plan.quarantine) if plan.quarantine else None))
    now = [each for job in qualification.jobs for each in _now(qualification, job, progress[job.name])]
    return assemble.assemble(
        assemble.asked_now(plan.id, plan.release, baseline.name, plan.profile, plan.started, only=plan.only),
        now,
        known,
        tested=[tested for job in qualification.jobs for tested in _tested(qualification, job)],
        jobs=[_job(state, progress[state.job.name], qualification) for state in states],
        not_tested=_not_tested(qualification, root),
    )


def _now(qualification: Qualification, job: Job, progress: Progress) -> list[Now]:
    places: dict[str, tuple[Run, str, str]] = {}
    for run in qualification.runs(job):
        about = {**run.began, **run.about}
        revision = archive.revision_of(run.facts())
        for record in records.read(run):
            places.setdefault(record.nodeid, (run, archive.variant_of(about), revision))
    usual = archive.variant_of({"qemu": job.part.qemu, "fresh_boot": job.part.fresh_boot})
    # A run that found all its tests in an earlier attempt knows no revision of its own.
    revisions = [revision for _, _, revision in places.values() if revision]
    found = []
    for nodeid in sorted(progress.selected):
        place = places.get(nodeid)
        where = str(place[0].path.relative_to(qualification.path)) if place else ""
        variant, revision = place[1:] if place else (usual, "")
        found.append(
            Now(nodeid, job.arch, variant, progress.records.get(nodeid), where, revision or (revisions or [""])[0])
        )
    return found


def _tested(qualification: Qualification, job: Job) -> list[Tested]:
    found: dict[str, Tested] = {}
    for run in qualification.runs(job):
        facts = {key: str(value) for key, value in run.facts().items() if key in archive.SHOWN and value}
        if revision := archive.revision_of(facts):
            variant = archive.variant_of({**run.began, **run.about})
            found[revision] = Tested(qualification.plan.release, job.arch, variant, revision, facts)
    return list(found.values())


def _job(state: State, progress: Progress, qualification: Qualification) -> model.Job:
    seconds = 0.0
    for run in qualification.runs(state.job):
        kept = records.read(run)
        if kept:
            seconds += max(record.started + record.seconds for record in kept) - kept[0].started
    part = state.job.part
    return model.Job(
        state.job.name,
        part.suite,
        state.job.arch,
        part.variant,
        round(max(seconds, state.seconds), 1),
        progress.attempts,
        len(progress.records),
        progress.exit_status,
        state.problem,
    )


def _not_tested(qualification: Qualification, root: Path) -> list[NotTested]:
    plan = qualification.plan
    left = [NotTested(each.what, each.why) for each in plan.left_out]
    ran = {job.part.suite for job in qualification.jobs}
    for suite in suite_names(root / "suites"):
        if suite not in ran:
            left.append(NotTested(f"suite {suite}", f"not part of this qualification (profile {plan.profile})"))
    for job in qualification.jobs:
        words = [f"only -k '{job.part.keywords}'"] if job.part.keywords else []
        words += [f"only -m '{job.part.markers}'"] if job.part.markers else []
        if words:
            left.append(NotTested(f"part of {job.name}", " and ".join(words)))
    return left


@dataclass(frozen=True)
class Files:
    """What was written, and what could not be made, each with the reason."""

    page: Path
    data: Path
    written: list[Path]
    problems: list[str]


def write(
    qualification: Qualification, found: model.Qualification, *, say: Callable[[str], None], allure: bool = True
) -> Files:
    """Write the report and the files beside it. LabError when the report itself cannot be written."""
    path = qualification.path
    model.write(found, path / DATA)
    page.write(found, path / PAGE)
    written, problems = [path / PAGE, path / DATA], []
    makers: Mapping[str, Callable[[Path], None]] = {
        "junit.xml": lambda file: junit.write(found, file),
        "kcidb.json": lambda file: write_json(file, kcidb.export(found)),
        **({"report": lambda file: _allure(qualification, found, say)} if allure else {}),
    }
    for name, make in makers.items():
        say(f"writing {name}")
        try:
            make(path / name)
            written.append(path / name)
        except (XentestsError, OSError) as error:
            problems.append(f"no {name}: {error}")
    return Files(path / PAGE, path / DATA, written, problems)


def _allure(qualification: Qualification, found: model.Qualification, say: Callable[[str], None]) -> None:
    """Allure's results of all runs in one place, and its report, with the history of earlier qualifications."""
    results = Run(qualification.path).allure_results
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    for job in qualification.jobs:
        for run in qualification.runs(job):
            for file in run.allure_results.glob("*"):
                if file.is_file() and file.suffix not in (".properties",):
                    _link(file, results / file.name)
    environment: dict[str, Any] = {"release": found.release, "profile": found.profile}
    for tested in found.tested:
        environment |= {f"{tested.arch} {name}": value for name, value in tested.facts.items()}
    write_run_files(Run(qualification.path), environment, name=f"{found.release} {found.profile}")
    history = qualification.path.parent / "allure-history.jsonl"
    html.build(Run(qualification.path), say=say, title=f"{found.release} · {found.answer}", history=history)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
