"""What ``xentests bench`` measures of guests: how soon a running one answers, and what an unpacked kernel saves.

On hosts with one CPU, as suites have them for guests.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from xentests.host.capabilities import GUEST_KINDS
from xentests.host.guest_spec import GUEST_BZIMAGE, GuestSpec
from xentests.host.host import Host
from xentests.lab.template import Template
from xentests.session import Session

CREATIONS = 3
"""How often each kernel is booted; the two take turns, so that a slower moment hits both."""


@dataclass(frozen=True)
class Spread:
    """Seconds over ``n`` measurements."""

    min: float
    median: float
    max: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of a list of seconds, rounded to milliseconds."""
        return cls(
            min=round(min(values), 3),
            median=round(statistics.median(values), 3),
            max=round(max(values), 3),
            n=len(values),
        )


@dataclass(frozen=True)
class GuestFigures:
    """``answer_s``: by kind, from asking for a host on which a guest runs to the guest's first answer.

    ``create_s``: by kernel (``vmlinux``, ``bzImage``), from ``xl create`` of the small PV guest to its first answer;
    empty where there is but one form of the kernel (arm64).
    """

    answer_s: dict[str, Spread]
    create_s: dict[str, Spread]


def make_standby(session: Session, template: Template) -> None:
    """Have the next clone waiting, as it does while a test runs."""
    waiting = session.lab.prepare_standby(template)
    if waiting is not None:
        waiting.result()


def run(session: Session, *, clones: int, step: Callable[[str], None]) -> GuestFigures:
    """Measure ``clones`` times for each kind of guest, with a standby as a test has it."""
    machine = session.machine.with_(cpus=1)
    runs = session.options.run_dir
    step("guests: a host with one CPU")
    plain = session.template(machine)
    host = session.clone(plain, name="guests", log_dir=runs / "guests", standby=False)
    create_s = _creations(host, step) if host.domain.machine.arch == "amd64" else {}
    measured = [kind for kind, capability in GUEST_KINDS.items() if host.capabilities[capability]]
    session.end(host)

    answer_s: dict[str, Spread] = {}
    for kind in measured:
        spec = GuestSpec(kind=kind)
        step(f"guests: a host with a running {kind} guest")
        template = session.derive(plain, key=f"guest {spec}", prepare=partial(_freeze, spec=spec))
        answers = []
        for number in range(clones):
            make_standby(session, template)
            step(f"guests: {kind}, clone {number + 1}")
            name = f"{kind}{number}"
            started = time.perf_counter()
            host = session.clone(template, name=name, log_dir=runs / name, standby=False)
            host.guests.thaw(spec).succeed("true")
            answers.append(time.perf_counter() - started)
            session.end(host)
        answer_s[kind] = Spread.of(answers)
    return GuestFigures(answer_s, create_s)


def _freeze(host: Host, spec: GuestSpec) -> None:
    host.guests.freeze(spec)


def _creations(host: Host, step: Callable[[str], None]) -> dict[str, Spread]:
    seconds: dict[str, list[float]] = {"vmlinux": [], "bzImage": []}
    for number in range(CREATIONS):
        for kernel, taken in seconds.items():
            step(f"guests: xl create from a {kernel}, {number + 1}")
            path = GUEST_BZIMAGE if kernel == "bzImage" else ""
            started = time.perf_counter()
            guest = host.guests.create(GuestSpec(kind="pv", name=kernel, kernel=path))
            guest.succeed("true")
            taken.append(time.perf_counter() - started)
            host.guests.destroy(guest)
    return {kernel: Spread.of(taken) for kernel, taken in seconds.items()}
