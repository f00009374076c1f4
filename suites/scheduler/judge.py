"""What is made of figures: shares, fairness, percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fixtures.scheduling import Bench
from xentests.errors import ProductFailure
from xentests.load.bench import SECOND, Outcome
from xentests.load.guest import Heard

TOLERANCE = 0.05


def full_speed(bench: Bench) -> float:
    """Chunks of work in a ns of a guest that has the CPU for itself."""
    heard = bench.section("alone").guest("g0")
    return heard.chunks / (heard.ended_ns - heard.begun_ns)


def speeds(bench: Bench, outcome: Outcome, *, after_s: int = 0) -> dict[str, float]:
    """How fast each guest was, as a part of the CPU, by its own count of work.

    ``after_s`` leaves out the beginning, in which a guest lives on what it had been credited with while it slept.
    """
    whole = (outcome.section.window_s - after_s) * SECOND * full_speed(bench)
    return {name: work_of(outcome, name, after_s) / whole for name in outcome.section.load}


def work_of(outcome: Outcome, name: str, after_s: int) -> int:
    """Chunks of work that a guest did after so many seconds."""
    heard = outcome.guest(name)
    step = outcome.section.load[name].step
    return heard.chunks - (heard.table[after_s * SECOND // step - 1] if after_s else 0)


def shares(outcome: Outcome, *, after_s: int = 0) -> dict[str, float]:
    """Each guest's part of the work that all did."""
    done = {name: work_of(outcome, name, after_s) for name in outcome.section.load}
    total = sum(done.values())
    return {name: chunks / total for name, chunks in done.items()}


def by_xen(outcome: Outcome, name: str) -> float:
    """The part of the CPU that a guest had by Xen's account (its runstate)."""
    return outcome.guest(name).ran_ns / (outcome.section.window_s * SECOND)


def off(measured: float, wanted: float) -> float:
    """How far off, as a part of what was wanted."""
    return measured / wanted - 1


def require(
    what: str, measured: Mapping[str, float], wanted: Mapping[str, float], tolerance: float = TOLERANCE
) -> None:
    """ProductFailure unless each is what was wanted, within the tolerance."""
    wrong = {name: value for name, value in wanted.items() if abs(off(measured[name], value)) > tolerance}
    if wrong:
        told = "; ".join(
            f"{name} has {100 * measured[name]:.1f} % and should have {100 * value:.1f} %"
            for name, value in wanted.items()
        )
        raise ProductFailure(f"{what}: {told}; {tolerance:.0%} off is allowed")


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def percentile(values: Sequence[int], percent: float) -> int:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1).__int__())]


def standstills(heard: Heard, step_ns: int) -> int:
    """The longest time in which a guest that wanted to work did nothing, to a step, in ns."""
    longest = current = 0
    for before, after in zip(heard.table, heard.table[1:], strict=False):
        current = current + step_ns if after == before else 0
        longest = max(longest, current)
    return longest
