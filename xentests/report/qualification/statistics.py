"""The few statistical tests behind verdicts, each from scipy, with the sentence that says what it found.

Nothing here knows a test, a run or a release.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of the interval of a rate."""

SIGNIFICANT = 0.01
"""Two-sided p below which a difference is taken for one. Hundreds are looked at every night: 5 % would cry wolf."""

FEWEST = 3
"""Values on either side below which figures are not compared: no order of so few is rare enough to say anything."""

SMALLEST_CHANGE = 0.05
"""By how much a median must differ besides: what is measurable is not yet worth somebody's time."""


@dataclass(frozen=True)
class Rate:
    """``failed`` of ``runs``, with the Wilson interval of the rate behind it, 0 to 1."""

    failed: int
    runs: int
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.failed} of {self.runs} failed ({100 * self.low:.0f} to {100 * self.high:.0f} % "
            f"at {100 * CONFIDENCE:.0f} % confidence)"
        )


def rate(failed: int, runs: int) -> Rate:
    """The rate behind ``failed`` of ``runs``. ValueError unless 0 <= failed <= runs and runs > 0."""
    from scipy.stats import binomtest  # noqa: PLC0415 - half a second, for who asks

    interval = binomtest(failed, runs).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(failed, runs, float(interval.low), float(interval.high))


def fails_more(failed: int, runs: int, *, than: tuple[int, int]) -> float:
    """p that ``failed`` of ``runs`` comes from no higher a rate than ``than`` (failed, runs): Fisher's exact test."""
    import numpy as np  # noqa: PLC0415
    from scipy.stats import fisher_exact  # noqa: PLC0415

    before, runs_before = than
    table = np.array([[failed, runs - failed], [before, runs_before - before]])
    return float(fisher_exact(table, alternative="greater").pvalue)


@dataclass(frozen=True)
class Change:
    """Two samples of a figure beside each other.

    ``change`` is that of the medians, as a part of ``before``'s; None where that is 0. ``p`` is None where there are
    too few values to tell, or the medians differ too little to matter.
    """

    now: float
    before: float
    change: float | None
    p: float | None
    values: tuple[int, int]

    @property
    def small(self) -> bool:
        """Whether the medians differ by less than anybody would look into."""
        return self.now == self.before if self.change is None else abs(self.change) < SMALLEST_CHANGE

    @property
    def significant(self) -> bool:
        """Whether the two differ, by the test and by enough to matter."""
        return self.p is not None and self.p < SIGNIFICANT

    def __str__(self) -> str:
        moved = f"{100 * self.change:+.1f} %" if self.change is not None else f"from {self.before:g} to {self.now:g}"
        of = f"medians of {self.values[0]} and {self.values[1]} values"
        if self.small:
            return f"{moved}, {of}: no change to look into"
        if self.p is None:
            return f"{moved}, {of}: too few to tell from noise"
        verdict = "a change" if self.significant else "within noise"
        return f"{moved}, {of}, Mann-Whitney U p={self.p:.2g}: {verdict}"


def compare(now: Sequence[float], before: Sequence[float]) -> Change:
    """Whether a figure has changed: the Mann-Whitney U test, two-sided, which asks nothing of the distribution.

    ValueError if either is empty.
    """
    if not now or not before:
        raise ValueError("a figure is compared with values of its own on both sides")
    medians = statistics.median(now), statistics.median(before)
    change = medians[0] / medians[1] - 1 if medians[1] else None
    found = Change(*medians, change, None, (len(now), len(before)))
    if found.small or min(found.values) < FEWEST:
        return found
    from scipy.stats import mannwhitneyu  # noqa: PLC0415

    return dataclasses.replace(found, p=float(mannwhitneyu(now, before, alternative="two-sided").pvalue))
