"""What ``xentests bench`` measures of pairs: how soon two joined hosts are there, and how long a guest travels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from xentests.bench_guests import Spread, make_standby
from xentests.host import migration
from xentests.host.guest_spec import GuestSpec
from xentests.host.host import Host
from xentests.host.migration import Migration
from xentests.host.pair import Pair
from xentests.lab.template import Template
from xentests.session import Session, joined

SPEC = GuestSpec(kind="pvh")


@dataclass(frozen=True)
class PairFigures:
    """``ready_s``: from asking for two hosts to their reaching each other by their cable.

    ``migrate_s`` and ``downtime_s``: of the small PVH guest, there and back.
    """

    ready_s: Spread
    migrate_s: Spread
    downtime_s: Spread


def run(session: Session, *, pairs: int, step: Callable[[str], None]) -> PairFigures:
    """Measure ``pairs`` pairs with standbys, as tests have them, and a migration each way on the last."""
    step("pairs: two hosts with a cable")
    plain = session.template(session.machine.with_(cpus=1, link=True))
    sender = session.derive(plain, key=f"sender {migration.RECIPE} {SPEC}", prepare=_freeze)
    receiver = session.derive(plain, key=f"receiving {migration.RECIPE}", prepare=migration.prepare)
    ready, moves = [], []
    for number in range(pairs):
        for template in (sender, receiver):
            make_standby(session, template)
        step(f"pairs: pair {number + 1}")
        started = time.perf_counter()
        with _joined(session, sender, receiver, number) as pair:
            ready.append(time.perf_counter() - started)
            if number + 1 == pairs:
                step("pairs: a migration each way")
                guest = pair.a.guests.thaw(SPEC)
                guest.wait_tick()
                for _ in range(2):
                    moves.append(Migration(pair).migrate(guest))
                    guest = moves[-1].guest
    return PairFigures(
        ready_s=Spread.of(ready),
        migrate_s=Spread.of([moved.duration_s for moved in moves]),
        downtime_s=Spread.of([moved.downtime_s for moved in moves]),
    )


@contextmanager
def _joined(session: Session, sender: Template, receiver: Template, number: int) -> Iterator[Pair]:
    clone = partial(session.clone, standby=False)
    a, b = (
        clone(template, name=f"{side}{number}", log_dir=session.options.run_dir / f"{side}{number}")
        for side, template in (("sender", sender), ("receiver", receiver))
    )
    with joined(a, b) as pair:
        yield pair
    session.end(a)
    session.end(b)


def _freeze(host: Host) -> None:
    migration.prepare(host)
    host.guests.freeze(SPEC)
