"""Figures that the tests of a run measured (a downtime, a peak), beside those of an earlier run of the same release.

They come from the run's JUnit file, where each is a property ``figure.NAME`` of its test case. Does not judge: a figure
that has a limit is held to it by its test.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from xml.etree import ElementTree

from xentests.errors import UsageError
from xentests.report.run import RUN_NAME, Run

PREFIX = "figure."
"""How the names of properties that are figures begin."""

_SAME = ("release", "arch")


@dataclass(frozen=True)
class Figure:
    """What ``test`` measured as ``name`` (which ends in its unit): ``now``, and ``before`` where that run has it."""

    test: str
    name: str
    now: float
    before: float | None = None

    @property
    def change(self) -> str:
        """By how much it grew, ``+12 %``; empty where there is nothing to compare it with."""
        return f"{100 * (self.now / self.before - 1):+.0f} %" if self.before else ""


def measured(run: Run) -> dict[tuple[str, str], float]:
    """All figures of ``run`` by test and name; none where it has no JUnit file that can be read."""
    try:
        tree = ElementTree.parse(run.junit)
    except (OSError, ElementTree.ParseError):
        return {}
    found = {}
    for case in tree.iter("testcase"):
        test = f"{case.get('classname', '').removeprefix('suites.')}.{case.get('name', '')}"
        for item in case.iter("property"):
            with contextlib.suppress(ValueError):
                if (name := item.get("name", "")).startswith(PREFIX):
                    found[test, name.removeprefix(PREFIX)] = float(item.get("value", ""))
    return found


def compared(run: Run, against: Run | None) -> list[Figure]:
    """The figures of ``run``, in its order, each beside that of ``against``."""
    before = measured(against) if against is not None else {}
    return [Figure(*key, now, before.get(key)) for key, now in measured(run).items()]


def predecessor(run: Run) -> Run | None:
    """The newest run before this one, beside it, of the same release and architecture, that has a figure of its own.

    A run whose manifest is missing, since it was killed, is nobody's.
    """
    about, mine = run.about, set(measured(run))
    if not mine:
        return None
    for path in sorted(run.path.parent.glob("*"), reverse=True):
        other = Run(path)
        if not RUN_NAME.fullmatch(other.id) or other.id >= run.id:
            continue
        if all(other.about.get(key, "?") == about.get(key) for key in _SAME) and mine & set(measured(other)):
            return other
    return None


def require_same(run: Run, against: Run) -> None:
    """UsageError unless figures of the two can stand beside each other."""
    mine, its = run.about, against.about
    for key in _SAME:
        if mine.get(key) != its.get(key):
            raise UsageError(
                f"--against {against.id}: that run was of {key} {its.get(key, '(unknown)')}, {run.id} of "
                f"{mine.get(key, '(unknown)')}: their figures say nothing about each other"
            )
