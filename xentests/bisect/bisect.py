"""A search from its ends to its verdict: asks a runner, notes what it says, and says how it goes.

Knows no pytest and no git: commits come as a list, a :class:`Runner` decides one, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xentests.bisect.notes import Notes
from xentests.bisect.search import CONFIDENCE, GOOD_END, Search
from xentests.bisect.step import Outcome, Result
from xentests.bisect.tree import Commit
from xentests.bisect.verdict import Row, Verdict, percent
from xentests.errors import LabError, UsageError

BUDGET = 100
"""Runs, skipped ones included."""

ENDS = 2
"""How often each end has to be seen to do as it was said to: osstest's rule before it searches."""

_MIXED = 3  # times as often where an end was seen to do both
_SKIPS = 2  # runs that break in the lab, before a commit is left alone


class Runner(Protocol):
    """Whoever decides a commit."""

    def decide(self, commit: Commit) -> Outcome:
        """Run the test on ``commit`` once."""


@dataclass(frozen=True)
class Limits:
    """When to stop: sure enough, or ``budget`` runs done. ``ends`` is how often each end is run before."""

    confidence: float = CONFIDENCE
    budget: int = BUDGET
    ends: int = ENDS


class Bisect:
    """One search: ``good``, and after it ``commits``, oldest first, the last of which is bad.

    What ``notes`` know already is not run again. Commits that broke in the lab before get another chance.
    """

    def __init__(
        self,
        good: Commit,
        commits: Sequence[Commit],
        runner: Runner,
        notes: Notes,
        *,
        limits: Limits = Limits(),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not 0.5 <= limits.confidence <= 0.99999:
            raise UsageError(f"--confidence {limits.confidence}: give a number from 0.5 to 0.99999")
        self._commits = [good, *commits]  # by index + 1
        self._runner, self._notes, self._limits, self._say = runner, notes, limits, say
        self._search = Search(len(commits), confidence=limits.confidence)
        self._broken: Counter[int] = Counter()
        at = {commit.sha: index for index, commit in enumerate(self._commits, start=GOOD_END)}
        for seen in notes.observations:
            if seen.commit not in at:
                raise UsageError(f"{notes.path}: {seen.commit} is none of the commits searched; remove the file")
            # What broke in the lab of an earlier call may be mended now.
            if seen.lasting or seen.result != Result.SKIP:
                self._learn(at[seen.commit], seen.outcome)

    def run(self) -> Verdict:
        """Search until it is decided, undecidable or out of runs.

        Raises UsageError when an end is not what it was said to be, LabError when the lab lets an end not be tested.
        """
        if done := len(self._notes.observations):
            self._say(f"taken up after {done} runs, from {self._notes.path}")
        bad_end = self._search.count - 1
        begun = any(any(self._search.seen(index)) for index in range(bad_end))
        if not begun and not (self._verify(GOOD_END, fails=False) and self._verify(bad_end, fails=True)):
            return self._verdict(out_of_runs=True)
        while (index := self._search.next_commit()) is not None:
            if not self._ask(index):
                return self._verdict(out_of_runs=True)
        return self._verdict()

    # -- the ends -----------------------------------------------------------------------------------------------------

    def _verify(self, index: int, *, fails: bool) -> bool:
        """Whether there were runs enough to see that an end is what it was said to be. UsageError if it is not.

        An end that does both is asked some more. A flaky test can be searched as long as it tells the ends apart, which
        is weighed all along: see :mod:`xentests.bisect.search`.
        """
        ends = self._limits.ends
        while True:
            failed, passed = self._search.seen(index)
            right, wrong = (failed, passed) if fails else (passed, failed)
            if right + wrong >= ends and (not right or not wrong or right + wrong >= _MIXED * ends):
                break
            if not self._ask(index, end=True):
                return False
        if right < wrong:
            does, end = ("passes", "bad") if fails else ("fails", "good")
            how = self._last_reason(self._commits[index + 1])
            raise UsageError(
                f"the test {does} on the {end} end too: {wrong} of {right + wrong} runs of {self._commits[index + 1]}"
                f"{f', the last one so: {how}' if how and not fails else ''}; choose another {end} commit, or run the "
                f"ends more often if the test does so now and then: --ends {ends + 3}"
            )
        return True

    def _refuse_end(self, index: int, outcome: Outcome) -> None:
        """Stop where an end cannot be tested."""
        if index not in (GOOD_END, self._search.count - 1):
            return
        end = "good" if index == GOOD_END else "bad"
        problem = f"the {end} end {self._commits[index + 1]} cannot be tested: {outcome.reason}"
        if outcome.lasting:
            raise UsageError(f"{problem}; choose another {end} commit, and remove {self._notes.path}")
        raise LabError(f"{problem} ({_SKIPS} times); mend the lab, and give the same command again")

    # -- one run ------------------------------------------------------------------------------------------------------

    def _ask(self, index: int, *, end: bool = False) -> bool:
        """Run the test on a commit and take in what came of it; False, without a run, when the budget is spent."""
        number = len(self._notes.observations) + 1
        if number > self._limits.budget:
            return False
        commit = self._commits[index + 1]
        self._say(f"run {number}: {commit} ...")
        outcome = self._runner.decide(commit)
        self._notes.add(commit.sha, outcome)
        gone = self._learn(index, outcome)
        reason = f" ({outcome.reason})" if outcome.reason else ""
        self._say(f"run {number}: {commit.short} {outcome.result}{reason}, {outcome.seconds:.0f} s; {self._standing()}")
        if gone and end:
            self._refuse_end(index, outcome)
        return True

    def _learn(self, index: int, outcome: Outcome) -> bool:
        """Take in one run; True when the commit is not to be run any more."""
        if outcome.result is not Result.SKIP:
            self._search.observe(index, failed=outcome.result is Result.BAD)
            return False
        self._broken[index] += 1
        if outcome.lasting or self._broken[index] >= _SKIPS:
            self._search.skip(index)
            return True
        return False

    def _standing(self) -> str:
        found = self._search.finding()
        first, last, _ = self._search.narrowest()
        best = self._commits[found.last + 1].short
        if found.first != found.last:
            best = f"{self._commits[found.first + 1].short} to {best}"
        return f"{last - first + 1} of {self._search.count} candidates left; {best}: {percent(found.sure)}"

    # -- the end ------------------------------------------------------------------------------------------------------

    def _verdict(self, *, out_of_runs: bool = False) -> Verdict:
        found = self._search.finding()
        why = self._why(out_of_runs=out_of_runs)
        first, last, sure = found.first, found.last, found.sure
        if sure < self._limits.confidence:
            first, last, sure = self._search.narrowest()
        before = [self._search.seen(index) for index in range(GOOD_END, first)]
        after = [self._search.seen(index) for index in range(last, self._search.count)]
        return Verdict(
            suspects=self._commits[first + 1 : last + 2],
            sure=sure,
            rows=self._rows(),
            candidates=self._search.count,
            why=why,
            wrong_good=(sum(fails for fails, _ in before), sum(map(sum, before))),
            wrong_bad=(sum(passes for _, passes in after), sum(map(sum, after))),
            seconds=sum(seen.seconds for seen in self._notes.observations),
        )

    def _why(self, *, out_of_runs: bool) -> str:
        """Why there is no culprit; empty when there is one."""
        found = self._search.finding()
        number = len(self._notes.observations)
        if found.no_step > 0.5:
            return f"nothing tells the ends apart ({percent(found.no_step)}): the test fails on both now and then"
        if out_of_runs:
            return f"out of runs after {number}; the same command with a larger --runs goes on"
        if found.first != found.last:
            return "only skipped commits separate them"
        return "" if found.sure >= self._limits.confidence else "nothing is left that could be tested"

    def _rows(self) -> list[Row]:
        skips = Counter(seen.commit for seen in self._notes.observations if seen.result == Result.SKIP)
        posterior = [None, *self._search.posterior]
        rows = []
        for index, commit in enumerate(self._commits, start=GOOD_END):
            fails, passes = self._search.seen(index)
            if fails or passes or skips[commit.sha]:
                reason = self._last_reason(commit)
                rows.append(Row(commit, fails, passes, skips[commit.sha], posterior[index + 1], reason))
        return rows

    def _last_reason(self, commit: Commit) -> str:
        """How the test failed there the last time; where it never did, why it was skipped."""
        seen = [one for one in self._notes.observations if one.commit == commit.sha and one.reason]
        failed = [one for one in seen if one.result == Result.BAD]
        return (failed or seen)[-1].reason if seen else ""
