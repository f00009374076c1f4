"""Two releases, qualifications or runs of the history beside each other: whose verdicts differ, and which figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.engine import Engine

from xentests.errors import UsageError
from xentests.report.history import archive
from xentests.report.history.archive import Execution
from xentests.report.qualification import statistics
from xentests.report.qualification.rules import DECIDED
from xentests.report.verdict import Verdict


@dataclass(frozen=True)
class Difference:
    """A test whose newest verdicts differ; None where a side lacks it. ``message``: the second's, if it is there."""

    nodeid: str
    arch: str
    variant: str
    first: Verdict | None
    second: Verdict | None
    message: str


@dataclass(frozen=True)
class Moved:
    """A figure that both have: what the statistical test says, and whether that is a change."""

    nodeid: str
    arch: str
    name: str
    says: str
    changed: bool


@dataclass(frozen=True)
class Comparison:
    """What differs between ``first`` and ``second``; ``same`` is the number of tests of equal verdicts."""

    first: str
    second: str
    same: int
    differences: Sequence[Difference]
    figures: Sequence[Moved]


def compare(engine: Engine, first: str, second: str) -> Comparison:
    """Compare what the history has under two names. UsageError for a name that it does not have."""
    a, b = archive.by_test(_named(engine, first)), archive.by_test(_named(engine, second))
    differences, figures, same = [], [], 0
    for key in sorted({*a, *b}):
        left, right = a.get(key, []), b.get(key, [])
        verdicts = _verdict(left), _verdict(right)
        if verdicts[0] is verdicts[1]:
            same += 1
        else:
            newest = right[0] if right else left[0]
            differences.append(Difference(*key, *verdicts, newest.message))
        for name in sorted({name for each in left for name in each.figures}):
            change = _change(left, right, name)
            if change is not None:
                figures.append(Moved(key[0], key[1], name, str(change), change.significant))
    return Comparison(first, second, same, differences, figures)


def _change(left: Sequence[Execution], right: Sequence[Execution], name: str) -> statistics.Change | None:
    before = [each.figures[name] for each in left if name in each.figures]
    now = [each.figures[name] for each in right if name in each.figures]
    return statistics.compare(now, before) if now and before else None


def _named(engine: Engine, name: str) -> list[Execution]:
    for found in (
        archive.executions(engine, name, figures=True),
        archive.executions_of(engine, name),
        archive.executions_of(engine, run=name),
    ):
        if found:
            return found
    there = ", ".join(archive.releases(engine)) or "nothing yet"
    raise UsageError(f"{name}: the history has no release, qualification or run of that name. It has {there}")


def _verdict(executions: Sequence[Execution]) -> Verdict | None:
    """The newest that says something; else the newest."""
    decided = next((each.verdict for each in executions if each.verdict in DECIDED), None)
    return decided or (executions[0].verdict if executions else None)


def as_json(found: Comparison) -> str:
    """As JSON, :class:`Comparison`'s fields."""
    return json.dumps(dataclasses.asdict(found), indent=1)


def show(found: Comparison, out: Console) -> None:
    """As two tables: verdicts that differ, figures that changed."""
    both = [each for each in found.differences if each.first and each.second]
    only_first = sum(each.second is None for each in found.differences)
    only_second = len(found.differences) - len(both) - only_first
    out.print(
        f"{found.first} and {found.second}: {found.same} tests with equal verdicts, {len(both)} with others; "
        f"{only_first} only in {found.first}, {only_second} only in {found.second}",
        markup=False,
        soft_wrap=True,
    )
    if both:
        table = _table("test", "arch", escape(found.first), escape(found.second), "why")
        for each in both:
            where = " ".join(filter(None, (each.arch, each.variant)))
            why = each.message.partition("\n")[0]
            table.add_row(escape(each.nodeid), escape(where), str(each.first), str(each.second), escape(why))
        out.print(table)
    changed = [figure for figure in found.figures if figure.changed]
    out.print(f"{len(found.figures)} figures on both sides, {len(changed)} changed", markup=False)
    if changed:
        table = _table("test", "arch", "figure", "change")
        for figure in changed:
            table.add_row(escape(figure.nodeid), figure.arch, escape(figure.name), escape(figure.says))
        out.print(table)


def _table(*columns: str) -> Table:
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
