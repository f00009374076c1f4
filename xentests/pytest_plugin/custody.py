"""Who has which host, from its start to its end: what a test used is watched, asked for evidence, and only then ended.

Fixtures put every machine they start into custody and say when they are done with it. The machine is ended (or, with
``--xen-keep``, left running) after the report of the tear-down has been made, so that evidence can be had of every
phase. Knows machines and consoles by a few protocols; pytest not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xentests.deadline import Deadline, until
from xentests.errors import DomainGone, HostHang, HypervisorCrash, LabError, OverBudget, XentestsError
from xentests.report import evidence
from xentests.report.evidence import Evidence, Inside, Machine, guarded
from xentests.report.run import file_name
from xentests.text import clean

_STATE_S = 3.0


class HeldMachine(Machine, Protocol):
    """See ``xentests.lab.domain.Domain``."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def closed(self) -> bool:
        """Whether it was closed on purpose."""

    @property
    def ended_because(self) -> str:
        """Why the lab itself ended it; empty if it has not."""

    def close(self) -> None:
        """End it, off the caller's path."""


class _WatchedConsole(Protocol):
    @property
    def crashed(self) -> bool: ...
    def check(self) -> None: ...
    def xen_keys(self, keys: str, /) -> bool: ...


class HeldHost(Inside, Protocol):
    """See ``xentests.host.host.Host``."""

    @property
    def console(self) -> _WatchedConsole:
        """Watches for crashes."""

    def ping(self) -> None:
        """Ask dom0 whether it is there. Raises HostHang, HypervisorCrash, DomainGone."""

    def close(self) -> None:
        """Let go of what is open towards it."""


@dataclass(eq=False)
class Charge:
    """One machine in custody. ``lost`` is why it must not be used any more; ``host`` is None until dom0 is ready."""

    machine: HeldMachine
    host: HeldHost | None = None
    done: bool = False
    failed: bool = False
    lost: XentestsError | None = None

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.machine.name


class Custody:
    """All machines of this process. ``keep`` leaves one running and says how to enter it; None to end all of them."""

    def __init__(self, keep: Callable[[HeldMachine], str] | None = None) -> None:
        self.keep = keep
        self.kept: list[str] = []
        self._charges: list[Charge] = []
        self._used: list[Charge] = []
        self._early: list[Evidence] = []

    def begin(self) -> None:
        """A test begins: it has used nothing yet."""
        self._used = []
        self._early = []

    def adopt(self, machine: HeldMachine) -> Charge:
        """Take a machine that was just started, for the test under way."""
        charge = Charge(machine)
        self._charges.append(charge)
        self._used.append(charge)
        return charge

    def lend(self, charge: Charge) -> None:
        """The test under way uses a machine that an earlier one had. Raises if it was lost in between."""
        if charge not in self._used:
            self._used.append(charge)
        self._check(charge)

    def release(self, charge: Charge) -> None:
        """Its fixture is done with it: it ends with the test under way."""
        charge.done = True

    def forget(self, charge: Charge) -> None:
        """It is no longer ours: somebody else has ended it."""
        for charges in (self._charges, self._used):
            with contextlib.suppress(ValueError):
                charges.remove(charge)

    def check(self, cause: BaseException | None = None) -> None:
        """Raise what befell a machine that the test under way used, or that is about to be ended.

        A crash of its hypervisor: HypervisorCrash. The end of its QEMU: DomainGone. Each is raised once, from
        ``cause``, the exception (if any) in which the phase ended.
        """
        concerned = [charge for charge in self._charges if charge.lost is None]
        for charge in concerned:
            if charge in self._used or charge.done:
                self._check(charge, cause)

    def check_alive(self) -> None:
        """Raise what is wrong with a host that the test under way leaves without an answer.

        A crash takes a moment to reach the console, and a test may be over by then; a host that answers has had none.
        Hosts that a test has closed, stopped or crashed on purpose are not asked.
        """
        for charge in self._used:
            host = charge.host
            asked = host is not None and charge.lost is None and not charge.machine.closed and not host.console.crashed
            if host is not None and asked and charge.machine.state() == "running":
                try:
                    host.ping()
                except (HostHang, HypervisorCrash, DomainGone) as error:
                    charge.lost = error
                    raise

    def collect(self, folder: Path) -> list[Evidence]:
        """Evidence of every machine that the test under way has used, below ``folder``; marks them as failed.

        What was collected early comes first, once.
        """
        collected, self._early = self._early, []
        for charge in self._used:
            charge.failed = True
            collected.append(
                evidence.collect(charge.name, charge.machine, charge.host, folder / file_name(charge.name))
            )
        return collected

    def collect_early(self, folder: Path) -> None:
        """Collect now what ``collect`` is to return: a machine is about to be ended by somebody else."""
        self._early = self.collect(folder)

    def sweep(self) -> None:
        """End, or keep, what is done with or lost. For after the last report of a test."""
        for charge in [charge for charge in self._charges if charge.done or charge.lost is not None]:
            self._end(charge)

    def end_all(self) -> None:
        """End, or keep, everything. Idempotent; goes on when interrupted half-way, and then raises."""
        interrupted: BaseException | None = None
        while self._charges:
            try:
                self._end(self._charges[0])
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _check(self, charge: Charge, cause: BaseException | None = None) -> None:
        if charge.lost is not None:
            raise charge.lost
        try:
            if charge.host is not None:
                charge.host.console.check()
        except HypervisorCrash as crash:
            charge.lost = crash
            if crash is cause:
                return
            raise crash from cause
        if isinstance(cause, HypervisorCrash) or charge.machine.closed:
            return
        if charge.host is not None and charge.host.console.crashed:
            return  # Xen on Arm powers the machine off at the end of its panic (machine_halt(), PSCI SYSTEM_OFF)
        # Its channels break before the lab knows: after an error of the lab's, look twice.
        if _is_gone(charge.machine, within_s=1.0 if isinstance(cause, LabError) else 0.0):
            if charge.machine.ended_because:
                charge.lost = OverBudget(charge.machine.ended_because)
                raise charge.lost from cause
            charge.lost = DomainGone(
                f"{charge.name}: its QEMU ended although nobody asked it to, so nothing is decided about Xen. Look at "
                f"the end of {charge.machine.console_log} and for an out-of-memory kill in the outer kernel's log"
            )
            if not isinstance(cause, DomainGone):
                raise charge.lost from cause

    def _end(self, charge: Charge) -> None:
        self.forget(charge)
        if charge.host is not None:
            with contextlib.suppress(XentestsError, OSError):
                charge.host.close()
        if self.keep is not None and charge.failed:
            try:
                self.kept.append(self.keep(charge.machine))
            except LabError as error:
                self.kept.append(f"{charge.name}: could not be kept: {clean(str(error), limit=300)}")
            return
        with contextlib.suppress(XentestsError):
            charge.machine.close()


def _is_gone(machine: HeldMachine, *, within_s: float) -> bool:
    """Whether its QEMU has ended, or does within ``within_s``. A lab that cannot tell in time proves nothing."""
    deadline = Deadline(within_s)
    gone = False

    def look() -> bool:
        nonlocal gone
        with contextlib.suppress(LabError, TimeoutError):
            gone = guarded(machine.state, limit_s=_STATE_S) == "gone"
        return gone or deadline.passed

    until(look, what="its end", deadline=within_s + 60, error=LabError)
    return gone
