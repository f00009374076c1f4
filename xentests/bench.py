"""``xentests bench``: how long a pristine host takes from the asking to the first answer, cloned and booted cold.

What is measured of guests is in ``bench_guests``, of pairs of hosts in ``bench_migration``.

Measures what a test sees: from the call to the answer of the first command in dom0, waking included. Between two
measurements the lab is left alone until its next standby is made, as it is while a test runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from xentests import bench_guests, bench_migration
from xentests.bench_guests import GuestFigures, Spread, make_standby
from xentests.bench_migration import PairFigures
from xentests.errors import LabError
from xentests.host.host import Host
from xentests.lab.admission import private_mib
from xentests.session import Session, machine_of

IDLE_S = 4
"""How long a clone idles before its memory is read."""


@dataclass(frozen=True)
class Bench:
    """Figures of one architecture. ``clone_alone_s`` is a clone without a standby made ahead."""

    release: str
    arch: str
    accelerator: str
    cold_boot_s: float
    clone_ready_s: Spread
    clone_alone_s: Spread
    ratio: float
    private_mib: float
    guests: GuestFigures
    pairs: PairFigures | None

    def as_json(self) -> dict[str, object]:
        """The figures as JSON-able data."""
        return asdict(self)


def run(session: Session, *, clones: int, step: Callable[[str], None] = lambda text: None) -> Bench:
    """Measure one session's release and machine: one cold boot, ``clones`` clones with and a few without a standby."""
    if clones < 1:
        raise LabError(f"{clones} clones measure nothing: give at least 1")
    runs = session.options.run_dir
    template = session.template()

    step("cold boot")
    started = time.perf_counter()
    host = session.boot(name="cold", log_dir=runs / "cold")
    cold_boot_s = _answered(host, started)
    session.end(host)

    alone = []
    for number in range(min(clones, 5)):
        step(f"clone without standby {number + 1}")
        started = time.perf_counter()
        host = session.clone(template, name=f"alone{number}", log_dir=runs / f"alone{number}", standby=False)
        alone.append(_answered(host, started))
        session.end(host)

    ready = []
    make_standby(session, template)
    for number in range(clones):
        step(f"clone {number + 1}")
        started = time.perf_counter()
        host = session.clone(template, name=f"clone{number}", log_dir=runs / f"clone{number}")
        ready.append(_answered(host, started))
        make_standby(session, template)
        if number + 1 < clones:
            session.end(host)

    step(f"memory of a clone idle for {IDLE_S} s")
    host.succeed("sleep", str(IDLE_S))
    memory = _memory(host)
    session.end(host)
    guests = bench_guests.run(session, clones=clones, step=step)
    # Suites migrate on x86-64 only.
    pairs = (
        bench_migration.run(session, pairs=clones, step=step)
        if "pvh" in guests.answer_s and session.machine.arch == "amd64"
        else None
    )
    return Bench(
        release=session.options.release,
        arch=session.machine.arch,
        accelerator=session.lab.accelerator,
        cold_boot_s=round(cold_boot_s, 3),
        clone_ready_s=Spread.of(ready),
        clone_alone_s=Spread.of(alone),
        ratio=round(cold_boot_s / statistics.median(ready), 1),
        private_mib=round(memory, 1),
        guests=guests,
        pairs=pairs,
    )


def _answered(host: Host, started: float) -> float:
    host.succeed("true")
    return time.perf_counter() - started


def _memory(host: Host) -> float:
    pid = machine_of(host).pid()
    return private_mib(pid) if pid is not None else 0.0


def new_run_dir(base: Path) -> Path:
    """A directory of its own for one measurement's logs."""
    path = base / time.strftime("bench-%Y%m%d-%H%M%S")
    path.mkdir(parents=True, exist_ok=True)
    return path
