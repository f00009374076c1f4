"""What is measured of each scheduler, on one CPU: sections of a few seconds of load, each judged by tests.

Durations are short, since a second under load takes about one outside, and long against what a scheduler accounts in:
30 ms for credit (csched_acct), 10 ms for credit2 (CSCHED2_CREDIT_INIT), a period for rtds.
"""

from __future__ import annotations

from fixtures.scheduling import Plan
from xentests.errors import ProductFailure
from xentests.host.arinc653 import DOM0, Slot, domain_of, put
from xentests.host.host import Host
from xentests.load.bench import Section
from xentests.load.program import Told

MS = 1_000_000
CHUNKS_PER_MS = 454
"""What a guest on a CPU of its own does; for how long it is to work, not for judging."""
GUESTS = ("g0", "g1", "g2", "g3")

WEIGHTS = {"g0": 256, "g1": 512, "g2": 1024}
CAPS = {"g0": 15, "g1": 30}
CAP_ALONE = 40
LEAST_WEIGHT, OTHER_WEIGHT = 64, 1024
SLICE_MS, LIMIT_MS = 5, 5
LATENCY_PERIOD = 20 * MS
STEP = 20 * MS


def spin(window_s: int) -> Told:
    """Work without end."""
    return Told(step=STEP, window=window_s * 1000 * MS)


def sleeper(window_s: int) -> Told:
    """Wakes every 20 ms for a ninth of a ms of work."""
    return Told(offset=7 * MS, period=LATENCY_PERIOD, work=50, window=window_s * 1000 * MS)


def _set(scheduler: str, guest: str, **values: int) -> str:
    words = " ".join(f"-{name} {value}" for name, value in values.items())
    return f"xl sched-{scheduler} -d {guest} {words}"


def _weighted(scheduler: str, name: str, weights: dict[str, int], window_s: int, *, trace: bool = False) -> Section:
    return Section(
        name,
        {guest: spin(window_s) for guest in weights},
        window_s,
        before=[_set(scheduler, guest, w=weight) for guest, weight in weights.items()],
        after=[f"xl sched-{scheduler}", *(_set(scheduler, guest, w=256) for guest in weights)],
        trace=trace,
    )


def _capped(scheduler: str, name: str, caps: dict[str, int], others: tuple[str, ...], window_s: int) -> Section:
    return Section(
        name,
        {guest: spin(window_s) for guest in (*caps, *others)},
        window_s,
        before=[_set(scheduler, guest, c=cap) for guest, cap in caps.items()],
        after=[f"xl sched-{scheduler}", *(_set(scheduler, guest, c=0) for guest in caps)],
        trace=True,
    )


def sharing(scheduler: str) -> Plan:
    """What credit and credit2 promise alike."""
    starved = {"g0": LEAST_WEIGHT, "g1": OTHER_WEIGHT, "g2": OTHER_WEIGHT, "g3": OTHER_WEIGHT}
    half = Told(period=50 * MS, work=25 * CHUNKS_PER_MS, window=4000 * MS)
    sections = [
        Section("alone", {"g0": spin(1)}, 1),
        _weighted(scheduler, "weights", WEIGHTS, 8, trace=True),
        _capped(scheduler, "caps", CAPS, ("g2",), 5),
        _capped(scheduler, "cap on an idle CPU", {"g0": CAP_ALONE}, (), 3),
        Section("equals", {guest: spin(5) for guest in GUESTS}, 5, trace=True),
        Section("half asleep", {"g0": half, "g1": spin(4)}, 4),
        Section("wake-ups", {"g0": spin(6), "g1": spin(6), "g2": sleeper(6)}, 6, trace=True),
        _weighted(scheduler, "least weight", starved, 10),
        Section(
            "rate limit",
            {"g0": spin(2), "g1": sleeper(2)},
            2,
            before=[f"xl sched-{scheduler} -s -r {LIMIT_MS * 1000}"],
            after=[f"xl sched-{scheduler} -s -r 1000"],
            trace=True,
        ),
    ]
    if scheduler == "credit":
        sections.append(
            Section(
                "slices",
                {"g0": spin(2), "g1": spin(2)},
                2,
                before=[f"xl sched-credit -s -t {SLICE_MS}"],
                after=["xl sched-credit -s -t 30"],
                trace=True,
            )
        )
    return Plan(scheduler, sections, GUESTS, xen_args=(f"sched={scheduler}",))


BUDGETS = {"g0": (100, 20), "g1": (50, 5), "g2": (20, 6)}
"""Period and budget in ms: 20, 10 and 30 % of the CPU."""
LEFT = (100, 10)
"""That of the fourth guest."""
EQUAL = (20, 4)
RTDS_WAKE = (10, 2)


def _reserve(guest: str, period_ms: int, budget_ms: int, *, extra: bool = False) -> str:
    return f"xl sched-rtds -d {guest} -v all -p {period_ms * 1000} -b {budget_ms * 1000} -e {int(extra)}"


def reservations() -> Plan:
    """What rtds promises. dom0 has 40 % reserved (RTDS_DEFAULT_BUDGET of RTDS_DEFAULT_PERIOD), and is asleep."""
    every = "xl sched-rtds -v all"
    sections = [
        Section("alone", {"g0": spin(1)}, 1, before=[_reserve("g0", 10, 4, extra=True)]),
        Section(
            "budgets",
            {guest: spin(6) for guest in GUESTS},
            6,
            before=[*(_reserve(guest, *told) for guest, told in BUDGETS.items()), _reserve("g3", *LEFT)],
            after=[every],
            trace=True,
        ),
        Section(
            "budgets beside extra time",
            {guest: spin(6) for guest in GUESTS},
            6,
            before=[*(_reserve(guest, *told) for guest, told in BUDGETS.items()), _reserve("g3", *LEFT, extra=True)],
            after=[every],
            trace=True,
        ),
        Section("budget on an idle CPU", {"g0": spin(4)}, 4, before=[_reserve("g0", 100, 20)], trace=True),
        Section("extra time", {"g0": spin(2)}, 2, before=[_reserve("g0", 100, 20, extra=True)]),
        Section(
            "extra time beside a reservation",
            {"g0": spin(4), "g1": spin(4)},
            4,
            before=[_reserve("g0", 100, 20, extra=True), _reserve("g1", 100, 40)],
            trace=True,
        ),
        Section(
            "equals",
            {guest: spin(4) for guest in GUESTS[:3]},
            4,
            before=[_reserve(guest, *EQUAL) for guest in GUESTS[:3]],
            trace=True,
        ),
        Section(
            "wake-ups",
            {"g0": spin(6), "g1": spin(6), "g2": sleeper(6)},
            6,
            before=[
                _reserve("g0", 100, 20, extra=True),
                _reserve("g1", 100, 20, extra=True),
                _reserve("g2", *RTDS_WAKE),
            ],
            trace=True,
        ),
        Section(
            "least budget",
            {"g0": spin(10), "g1": spin(10)},
            10,
            before=[_reserve("g0", 100, 5), _reserve("g1", 100, 50, extra=True)],
        ),
        Section("idle", window_s=10, trace=True),
    ]
    return Plan("rtds", sections, GUESTS, xen_args=("sched=rtds",))


MAJOR_FRAME = 100 * MS
SLOTS = {"g0": 20 * MS, "g1": 30 * MS}
_DOM0_SLOT = 40 * MS


def _schedule(host: Host) -> None:
    slots = [Slot(DOM0, _DOM0_SLOT), *(Slot(domain_of(host, name), runtime) for name, runtime in SLOTS.items())]
    if refused := put(host, MAJOR_FRAME, slots):
        raise ProductFailure(f"{host.name}: Xen does not take the schedule {slots}: {refused}")


def arinc() -> Plan:
    """What arinc653 promises: 10 of 100 ms are nobody's."""
    sections = [
        Section("schedule", {name: spin(4) for name in SLOTS}, 4, trace=True),
        Section("one alone", {"g0": spin(3)}, 3),
    ]
    return Plan("arinc653", sections, tuple(SLOTS), ("sched=arinc653",), settle=_schedule, key=f"{SLOTS}")


PLANS = {"credit": sharing("credit"), "credit2": sharing("credit2"), "rtds": reservations(), "arinc653": arinc()}
