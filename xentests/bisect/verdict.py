"""The end of a search in words, for a person, and as JSON, for a machine. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xentests.bisect.tree import Commit


@dataclass(frozen=True)
class Row:
    """What was seen of one commit; ``probability`` of its being the first bad one, None for the good end."""

    commit: Commit
    fails: int
    passes: int
    skips: int
    probability: float | None
    reason: str = ""
    """Why it was skipped, or how it failed, the last time."""


@dataclass(frozen=True)
class Verdict:
    """What a search found.

    ``suspects`` are the commits one of which is the first bad one, with probability ``sure``: one when it was found,
    several when only skipped commits separate them or the runs did not suffice. ``why`` says, of a search without a
    culprit, why there is none. ``rows`` are the commits that were run, oldest first. ``wrong_good`` and ``wrong_bad``:
    fails of how many runs before the likeliest commit, passes of how many from it on. ``again`` is a command line that
    shows the failure.
    """

    suspects: Sequence[Commit]
    sure: float
    rows: Sequence[Row]
    candidates: int
    why: str = ""
    wrong_good: tuple[int, int] = (0, 0)
    wrong_bad: tuple[int, int] = (0, 0)
    again: str = ""
    seconds: float = 0.0
    labels: Mapping[str, object] = field(default_factory=dict)

    @property
    def culprit(self) -> Commit | None:
        """The first bad commit, if it was found."""
        return self.suspects[0] if not self.why else None

    @property
    def runs(self) -> int:
        """How often the test was run, skipped runs among them."""
        return sum(row.fails + row.passes + row.skips for row in self.rows)

    @property
    def sentence(self) -> str:
        """The result in a sentence, such as ``first bad: 0123abcd4567 "subject" (author), 99.6 % sure after ...``."""
        effort = f"{_runs(self.runs)} of {_count(len(self.rows), 'commit')}{self._skipped()}"
        if self.culprit is not None:
            return f"first bad: {self.culprit}, {percent(self.sure)} sure after {effort}"
        if len(self.suspects) == 1:
            return f"undecided: {self.why}; likeliest: {self.suspects[0]}, {percent(self.sure)}, after {effort}"
        first, last = self.suspects[0], self.suspects[-1]
        return (
            f"undecided: {self.why}; one of the {len(self.suspects)} commits from {first} to {last}, "
            f"{percent(self.sure)} sure after {effort}"
        )

    def _skipped(self) -> str:
        skipped = [row for row in self.rows if row.skips and not row.fails + row.passes]
        if not skipped:
            return ""
        reasons = list(dict.fromkeys(row.reason for row in skipped))
        more = f"; and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
        return f" ({len(skipped)} skipped: {'; '.join(reasons[:2])}{more})"

    def lines(self) -> list[str]:
        """The table of what was seen, the flakiness, the sentence and the command line, for a terminal."""
        table = [f"{'commit':12}  {'fails':>5}  {'passes':>6}  {'skips':>5}  {'first bad':>9}  subject"]
        for row in self.rows:
            chance = "good end" if row.probability is None else percent(row.probability)
            said = f": {row.reason}" if row.reason and not row.fails + row.passes else ""
            table.append(
                f"{row.commit.short:12}  {row.fails:5}  {row.passes:6}  {row.skips:5}  {chance:>9}  "
                f"{row.commit.subject}{said}"
            )
        (alarms, good), (escapes, bad) = self.wrong_good, self.wrong_bad
        table.append(f"failed in {alarms} of {_runs(good)} before it, passed in {escapes} of {_runs(bad)} from it on")
        table.append(self.sentence)
        failed = [row for row in self.rows if row.commit == self.culprit and row.fails]
        table += [f"it fails so: {failed[0].reason}"] if failed and failed[0].reason else []
        return [*table, f"to see it: {self.again}"] if self.again else table

    def as_json(self) -> dict[str, object]:
        """All of it; ``culprit`` is null when undecided."""
        return {
            **self.labels,
            "culprit": _named(self.culprit) if self.culprit else None,
            "suspects": [_named(commit) for commit in self.suspects],
            "sure": round(self.sure, 6),
            "why": self.why,
            "candidates": self.candidates,
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "wrong_good": list(self.wrong_good),
            "wrong_bad": list(self.wrong_bad),
            "commits": [
                {
                    **_named(row.commit),
                    "fails": row.fails,
                    "passes": row.passes,
                    "skips": row.skips,
                    "probability": row.probability,
                    "reason": row.reason,
                }
                for row in self.rows
            ],
            "again": self.again,
        }


def percent(chance: float) -> str:
    """Such as ``99.6 %``, never rounded up to certainty."""
    if chance < 0.0005:
        return "0 %"
    return "> 99.9 %" if chance > 0.9994 else f"{100 * chance:.1f} %"


def _named(commit: Commit) -> dict[str, object]:
    return {"commit": commit.sha, "subject": commit.subject, "author": commit.author}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _runs(number: int) -> str:
    return _count(number, "run")
