"""Which commit to test next, and how sure the answer is: a noisy binary search by Bayes' rule. Pure arithmetic.

Commits stand in a line. One of them, the first bad one, makes a test fail that passed before; the test may be wrong on
either side: a *false alarm* fails on a good commit, an *escape* passes on a bad one. Neither rate is known, so both
are integrated out under Beta priors, with every run seen so far: a test that was flaky on the ends is trusted less in
the middle, and has to be asked more often. For one candidate that leaves a ratio of Beta functions of four counts.

Beside the candidates stands the hypothesis that there is *no step*: the test fails everywhere at one rate, and the
ends looked different by chance. Without it the only commit between two ends would be found guilty with certainty.

Knows neither git nor pytest. Indexes: -1 is the good end, 0 to ``count - 1`` the candidates, the last the bad end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

CONFIDENCE = 0.99
REPEATS = 3
"""Fails of the culprit and passes of its parent before it is named, at least: osstest's rule."""

GOOD_END = -1
RATE = 0.2
"""Expected rate of false alarms and of escapes before anything is seen. A guess that is too low would be paid for in
wrong answers of flaky tests, this one costs a reliable test two runs (see docs/bisect.md)."""

_WEIGHT = 5.0  # the prior counts for as many runs
_NO_STEP = 0.05  # prior probability that the ends do not differ
_MOST_REPEATS = 12
_HOLE = 0.02  # that a commit between two that do not build does


@dataclass(frozen=True)
class Finding:
    """The best answer so far: the first bad commit is one of ``first`` to ``last``, both included.

    One commit, or several that only skipped commits separate. ``sure`` is the probability of that, ``no_step`` that
    of ends that do not differ. ``false_alarm`` and ``escape`` are the rates as they are estimated now.
    """

    first: int
    last: int
    sure: float
    no_step: float
    false_alarm: float
    escape: float


class Search:
    """What has been observed on ``count`` candidates, and what follows from it.

    ``false_alarm`` and ``escape``: the expected rates before the first observation. ValueError for no candidates and
    for rates or a confidence outside of 0 to 1.
    """

    def __init__(
        self, count: int, *, confidence: float = CONFIDENCE, false_alarm: float = RATE, escape: float = RATE
    ) -> None:
        if count < 1 or not all(0 < value < 1 for value in (confidence, false_alarm, escape)):
            raise ValueError("one candidate or more, rates and confidence between 0 and 1")
        self.count = count
        self.confidence = confidence
        self._alarm = (_WEIGHT * false_alarm, _WEIGHT * (1 - false_alarm))
        self._escape = (_WEIGHT * escape, _WEIGHT * (1 - escape))
        # By index + 1: the good end comes first.
        self._fails = [0] * (count + 1)
        self._passes = [0] * (count + 1)
        self._skipped: set[int] = set()
        self._belief: _Belief | None = None

    def observe(self, index: int, *, failed: bool) -> None:
        """The test was run on a commit, once."""
        (self._fails if failed else self._passes)[index + 1] += 1
        self._belief = None

    def skip(self, index: int) -> None:
        """A commit cannot be tested: never ask for it again. What was seen of it stands."""
        self._skipped.add(index)

    def seen(self, index: int) -> tuple[int, int]:
        """Fails and passes of a commit."""
        return self._fails[index + 1], self._passes[index + 1]

    @property
    def posterior(self) -> Sequence[float]:
        """The probability of each candidate. What is missing from 1 is that of no step."""
        return self._believe().weights

    def finding(self) -> Finding:
        """The best answer so far; candidates that nothing but skipped commits separates are one answer."""
        belief = self._believe()
        cuts = [at for at in range(self.count - 1) if at not in self._skipped]
        blocks = list(zip([0, *(at + 1 for at in cuts)], [*cuts, self.count - 1], strict=True))
        sums = [0.0, *accumulate(belief.weights)]
        first, last = max(blocks, key=lambda block: sums[block[1] + 1] - sums[block[0]])
        sure = min(1.0, sums[last + 1] - sums[first])
        best = max(range(first, last + 1), key=belief.weights.__getitem__)
        return Finding(first, last, sure, belief.no_step, belief.alarms[best], belief.escapes[best])

    def narrowest(self, chance: float = 0.9) -> tuple[int, int, float]:
        """The fewest neighbours that hold ``chance``: first, last, and their probability; all, where nothing does."""
        sums = [0.0, *accumulate(self.posterior)]
        best, first = (0, self.count - 1), 0
        for last in range(self.count):
            while first < last and sums[last + 1] - sums[first + 1] >= chance:
                first += 1
            if sums[last + 1] - sums[first] >= chance and last - first < best[1] - best[0]:
                best = first, last
        return (*best, min(1.0, sums[best[1] + 1] - sums[best[0]]))

    def next_commit(self) -> int | None:
        """The commit whose test tells most, be it a new one or again; None when there is nothing left to ask.

        A likely culprit is confirmed before the end: it and its parent are asked until each was seen to do as it
        should often enough.
        """
        found = self.finding()
        if found.no_step >= self.confidence:
            return None
        if found.sure >= self.confidence:
            return self._to_confirm(found)
        gains, builds = self._believe().gains(), self._builds()
        worth = [gain * likely for gain, likely in zip(gains, builds, strict=True)]
        best = max(range(self.count + 1), key=worth.__getitem__)
        return best - 1 if worth[best] > 0 else None

    def _to_confirm(self, found: Finding) -> int | None:
        culprit, parent = found.last, found.first - 1
        if culprit not in self._skipped and self.seen(culprit)[0] < self.needed(found.false_alarm):
            return culprit
        if parent not in self._skipped and self.seen(parent)[1] < self.needed(found.escape):
            return parent
        return None

    def needed(self, rate: float) -> int:
        """How often a commit must be seen to fail (pass) where chance alone does that at ``rate``.

        Three times, or until chance would do it as often more rarely than the confidence leaves room for.
        """
        alone = math.ceil(math.log(1 - self.confidence) / math.log(rate))
        return min(max(REPEATS, alone), _MOST_REPEATS)

    def _builds(self) -> list[float]:
        """How likely a commit can be tested; by index + 1.

        What does not build is seldom alone. Between one that was skipped and one that was not, the stretch may end
        anywhere; between two that were, it is unlikely to have a hole.
        """
        size = self.count + 1
        known = [at for at in range(size) if self._fails[at] or self._passes[at] or at - 1 in self._skipped]
        found = [1.0] * size
        for at in known:
            found[at] = 0.0 if at - 1 in self._skipped else 1.0
        for left, right in pairwise(known):
            step = (found[right] - found[left]) / (right - left)
            for at in range(left + 1, right):
                found[at] = max(_HOLE, found[left] + step * (at - left))
        return found

    def _believe(self) -> _Belief:
        if self._belief is None:
            self._belief = _Belief(self._fails, self._passes, self._alarm, self._escape)
        return self._belief


class _Belief:
    """The posterior after some observations; linear in the number of commits."""

    def __init__(
        self,
        fails: Sequence[int],
        passes: Sequence[int],
        alarm: tuple[float, float],
        escape: tuple[float, float],
    ) -> None:
        self._fails, self._passes = sum(fails), sum(passes)
        candidates = len(fails) - 1
        prior = math.log((1 - _NO_STEP) / candidates) - _log_beta(*alarm) - _log_beta(*escape)
        logs = [math.log(_NO_STEP) + _log_beta(1 + self._fails, 1 + self._passes)]
        self.alarms: list[float] = []
        """Posterior mean of P(fail | good), by candidate."""
        self.escapes: list[float] = []
        good_fails, good_passes = 0, 0
        for candidate in range(candidates):
            # Commits before the candidate are good. Where none of them was run since the last one nothing changes.
            if candidate and not fails[candidate] and not passes[candidate]:
                logs.append(logs[-1])
                self.alarms.append(self.alarms[-1])
                self.escapes.append(self.escapes[-1])
                continue
            good_fails += fails[candidate]
            good_passes += passes[candidate]
            good = alarm[0] + good_fails, alarm[1] + good_passes
            bad = escape[0] + self._passes - good_passes, escape[1] + self._fails - good_fails
            logs.append(prior + _log_beta(*good) + _log_beta(*bad))
            self.alarms.append(good[0] / sum(good))
            self.escapes.append(bad[0] / sum(bad))
        highest = max(logs)
        weights = [math.exp(value - highest) for value in logs]
        total = math.fsum(weights)
        self.no_step, *self.weights = [weight / total for weight in weights]

    @cached_property
    def _anywhere(self) -> float:
        """P(fail) where there is no step."""
        return (1 + self._fails) / (2 + self._fails + self._passes)

    def gains(self) -> list[float]:
        """Bits that one more run of each commit is expected to tell of where the step is; by index + 1.

        The entropy of the run's outcome, less what remains of it when the answer is known.
        """
        # Commit j (by index + 1) is good for candidates from j on, bad for those before.
        good = list(zip(self.weights, self.alarms, strict=True))
        bad = list(zip(self.weights, self.escapes, strict=True))
        chance = self.no_step * self._anywhere + math.fsum(weight * rate for weight, rate in good)
        noise = self.no_step * _entropy(self._anywhere) + math.fsum(weight * _entropy(rate) for weight, rate in good)
        found = [_entropy(chance) - noise]
        for (weight, alarm), (_, escape) in zip(good, bad, strict=True):
            chance += weight * (1 - escape - alarm)
            noise += weight * (_entropy(escape) - _entropy(alarm))
            found.append(_entropy(chance) - noise)
        return found


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@lru_cache(maxsize=4096)
def _entropy(chance: float) -> float:
    if not 0 < chance < 1:
        return 0.0
    return -(chance * math.log2(chance) + (1 - chance) * math.log2(1 - chance))
