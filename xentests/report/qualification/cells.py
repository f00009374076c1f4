"""The feature matrix of a report, as data for its page: which tests make up a cell, and the one word that it says.

A cell is a feature of a suite on one architecture (and variant of the machine). Does not judge tests: see ``rules``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from xentests.report.qualification.model import BaselineRow, Qualification, Row
from xentests.report.qualification.rules import DECIDED, Class, Effect
from xentests.report.verdict import Verdict

_EFFECTS = {effect: weight for weight, effect in enumerate(Effect)}
_CLASSES = (
    *(Class.PASSED, Class.NEW, Class.FIXED, Class.SKIPPED, Class.NOT_HERE, Class.NOT_BUILT, Class.BLOCKED),
    *(Class.FLAKY, Class.QUARANTINED, Class.LIKE, Class.NEVER, Class.KNOWN, Class.BROKEN, Class.LOST),
    *(Class.NOT_RUN, Class.EXPIRED, Class.REGRESSION),
)
"""Of one effect, the later one is the cell's word."""

_WEIGHTS = {cls: weight for weight, cls in enumerate(_CLASSES)}
_VERDICTS = {verdict: weight for weight, verdict in enumerate(Verdict)}


_T = TypeVar("_T")

TAKEN = ("main", "answer", "facts", "findings", "regressions", "features", "flaky", "figures", "tests", "tested",
         "not-tested", "time")  # fmt: skip
"""Ids that the page's template gives itself, besides ``t1``, ``t2`` and so on, one a row."""


class _Placed(Protocol):
    """What has an architecture: a row of the release or of the baseline."""

    @property
    def arch(self) -> str: ...
    @property
    def variant(self) -> str: ...


@dataclass(frozen=True, order=True)
class Column:
    """An architecture and a variant of the machine, empty for the usual one."""

    arch: str
    variant: str

    def __str__(self) -> str:
        return f"{self.arch} {self.variant}".strip()

    @classmethod
    def of(cls, row: _Placed) -> Column:
        """The column in which ``row`` belongs."""
        return cls(row.arch, row.variant)

    @classmethod
    def all_of(cls, rows: Iterable[_Placed]) -> list[Column]:
        """Those that ``rows`` need, in order."""
        return sorted({cls.of(row) for row in rows})


class Names:
    """Unique ids within one page, made of what they name."""

    def __init__(self) -> None:
        self._given = set(TAKEN)

    def new(self, *words: str) -> str:
        """An id that nobody else has, of ``words``."""
        name = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)))
        if not name or re.fullmatch(r"t\d+", name):
            name = f"unnamed-{name}".rstrip("-")
        number, found = 1, name
        while found in self._given:
            number, found = number + 1, f"{name}-{number + 1}"
        self._given.add(found)
        return found


@dataclass(frozen=True)
class Cell:
    """What a cell says: ``word`` and its ``level`` (see :func:`level`), ``counts``, and what else is in it, in words.

    ``rows`` are (number in the qualification, row), the worst first, none on the baseline; ``target`` is the id of
    what the cell links to, ``dropped`` the baseline's tests that the release has no row of.
    """

    level: str
    word: str
    counts: str
    more: str
    target: str
    rows: Sequence[tuple[int, Row]] = ()
    dropped: Sequence[BaselineRow] = ()


@dataclass(frozen=True)
class Feature:
    """A row of the matrix; cells by column, of the release and of the baseline."""

    name: str
    id: str
    cells: dict[Column, Cell]
    baseline: dict[Column, Cell]


@dataclass(frozen=True)
class Suite:
    """A suite's features. ``classes`` says how many tests are what, the worst first, as (level, words)."""

    name: str
    id: str
    features: list[Feature]
    tests: int
    classes: list[tuple[str, str]]
    level: str


def level(row: Row) -> str:
    """How bad a row is: ``no``, ``ask``, ``warn``, ``ok``; ``none`` for what was not run and need not be."""
    levels = {Effect.FORBIDS: "no", Effect.UNDECIDED: "ask", Effect.ACCEPT: "warn"}
    return levels.get(row.effect, "ok" if row.verdict in DECIDED else "none")


def suites(made: Qualification, names: Names) -> list[Suite]:
    """The matrix, by suite and feature, each in the order of names."""
    here = _grouped((row, (number, row)) for number, row in enumerate(made.rows))
    there = _grouped((row, row) for row in made.baseline_rows)
    known = {(row.nodeid, row.arch, row.variant) for row in made.rows}
    found = []
    for suite in sorted({*here, *there}):
        id_ = names.new("suite", suite)
        ours, theirs = here.get(suite, {}), there.get(suite, {})
        features = []
        for name in sorted({*ours, *theirs}):
            feature = names.new("feature", suite, name)
            cells = {
                column: _cell(placed, names.new(suite, name, str(column)))
                for column, placed in sorted(ours.get(name, {}).items())
            }
            before = theirs.get(name, {})
            dropped = {
                column: [row for row in rows if (row.nodeid, row.arch, row.variant) not in known]
                for column, rows in before.items()
            }
            # Where a feature has another name now, its tests stand there, and nothing stands under this one.
            otherwise = feature if cells or any(dropped.values()) else id_
            baseline = {
                column: _baseline_cell(rows, cells[column].target if column in cells else otherwise, dropped[column])
                for column, rows in sorted(before.items())
            }
            features.append(Feature(name, feature, cells, baseline))
        every = [row for columns in ours.values() for placed in columns.values() for _, row in placed]
        found.append(Suite(suite, id_, features, len(every), *_summary(every)))
    return found


def _grouped(rows: Iterable[tuple[Row | BaselineRow, _T]]) -> dict[str, dict[str, dict[Column, list[_T]]]]:
    """What comes with each row, by its suite, feature and column."""
    groups: dict[str, dict[str, dict[Column, list[_T]]]] = {}
    for row, item in rows:
        features = groups.setdefault(row.suite, {})
        features.setdefault(row.feature, {}).setdefault(Column.of(row), []).append(item)
    return groups


def _badness(row: Row) -> tuple[int, int]:
    return _EFFECTS[row.effect], _WEIGHTS[row.cls]


def _cell(rows: list[tuple[int, Row]], target: str) -> Cell:
    ordered = sorted(rows, key=lambda item: (*(-each for each in _badness(item[1])), item[1].nodeid))
    worst = ordered[0][1]
    if worst.effect is Effect.NONE:
        # Nothing is wrong with it: what was decided is its word, if anything was; only then do others come.
        worst = next((row for _, row in ordered if row.verdict in DECIDED), worst)
    verdicts = Counter(row.verdict for _, row in rows)
    same = sum(row.cls is worst.cls for _, row in rows)
    word = f"{worst.cls} ({same})" if same > 1 and worst.cls is not Class.PASSED else str(worst.cls)
    undecided = {verdict: count for verdict, count in verdicts.items() if verdict not in DECIDED}
    more = ", ".join(f"{count} {verdict or Class.NOT_RUN}" for verdict, count in undecided.items())
    alone = len(undecided) == 1 and not any(verdict in DECIDED for verdict in verdicts)
    return Cell(level(worst), word, _counts(verdicts), "" if alone else more, target, ordered)


def _baseline_cell(rows: list[BaselineRow], target: str, dropped: list[BaselineRow]) -> Cell:
    verdicts: Counter[Verdict | None] = Counter(row.verdict for row in rows)
    decided = [row.verdict for row in rows if row.verdict in DECIDED]
    word = max(decided or [row.verdict for row in rows], key=_VERDICTS.__getitem__)
    sign = {Verdict.PASSED: "ok", Verdict.FAILED: "warn", Verdict.KNOWN: "warn"}.get(word, "none")
    return Cell(sign, str(word), _counts(verdicts), "", target, dropped=dropped)


def _counts(verdicts: Counter[Verdict | None]) -> str:
    decided = sum(count for verdict, count in verdicts.items() if verdict in DECIDED)
    return f"{verdicts[Verdict.PASSED]}/{decided}" if decided else ""


def _summary(rows: list[Row]) -> tuple[list[tuple[str, str]], str]:
    counts = Counter((level(row), row.cls) for row in rows)
    worst = {(level(row), row.cls): _badness(row) for row in rows}
    ordered = sorted(counts, key=lambda key: worst[key], reverse=True)
    words = [(sign, f"{counts[sign, cls]} {cls}") for sign, cls in ordered]
    return words, level(max(rows, key=_badness)) if rows else "none"
