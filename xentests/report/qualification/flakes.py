"""Tests that both passed and failed on the same revision of a release: how often, and how sure that is."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.engine import Engine

from xentests.errors import UsageError
from xentests.report.history import archive
from xentests.report.history.archive import Execution
from xentests.report.qualification.statistics import Rate, rate
from xentests.report.verdict import Verdict


@dataclass(frozen=True)
class Flake:
    """One test on one revision. ``last``: when it was last seen to fail, seconds since the epoch, and in which run."""

    nodeid: str
    release: str
    revision: str
    arch: str
    variant: str
    rate: Rate
    last: float
    run: str
    message: str


def flakes(engine: Engine, release: str = "") -> list[Flake]:
    """All that the history has (of ``release``), the most frequent failure first. UsageError: no such release."""
    there = archive.releases(engine)
    if release and release not in there:
        known = ", ".join(there) or "nothing yet"
        raise UsageError(f"{release}: the history has nothing of it. It has {known}")
    executions = (each for name in ([release] if release else there) for each in archive.executions(engine, name))
    return of(executions)


def of(executions: Iterable[Execution]) -> list[Flake]:
    """The flakes among ``executions``, which come newest first. What has no revision is not comparable."""
    groups: dict[tuple[str, ...], list[Execution]] = defaultdict(list)
    for each in executions:
        if each.revision and each.verdict in (Verdict.PASSED, Verdict.FAILED):
            groups[each.release, each.revision, each.arch, each.variant, each.nodeid].append(each)
    found = []
    for (release, revision, arch, variant, nodeid), group in groups.items():
        failed = [each for each in group if each.verdict is Verdict.FAILED]
        if 0 < len(failed) < len(group):
            newest = failed[0]
            found.append(
                Flake(
                    nodeid,
                    release,
                    revision,
                    arch,
                    variant,
                    rate(len(failed), len(group)),
                    newest.started,
                    newest.run,
                    newest.message,
                )
            )
    return sorted(found, key=lambda flake: (-flake.rate.failed / flake.rate.runs, flake.nodeid))


def as_json(found: list[Flake]) -> str:
    """As JSON, a list of objects with :class:`Flake`'s fields."""
    return json.dumps([dataclasses.asdict(flake) for flake in found], indent=1)


def show(found: list[Flake], out: Console) -> None:
    """As a table."""
    if not found:
        out.print("no test has both passed and failed on one revision")
        return
    table = Table(title="passed and failed on one revision", title_justify="left")
    for name in ("test", "where", "failed", "95 % interval", "last", "run"):
        table.add_column(name, overflow="fold")
    for flake in found:
        where = " ".join(filter(None, (flake.release, flake.arch, flake.variant)))
        interval = f"{100 * flake.rate.low:.0f} to {100 * flake.rate.high:.0f} %"
        last = datetime.datetime.fromtimestamp(flake.last, datetime.UTC).strftime("%Y-%m-%d")
        failed = f"{flake.rate.failed} of {flake.rate.runs}"
        table.add_row(escape(flake.nodeid), escape(where), failed, interval, last, flake.run)
    out.print(table)
