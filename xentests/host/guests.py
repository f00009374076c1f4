"""Guests of one host: made from a small spec through ``xl create``, waited for, asked, destroyed.

Test guests boot the same kernel as dom0 with a small initrd that says when it is up, ticks once a second and offers a
shell on its console. What they are made of is in ``guest_spec``; migration is not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from xentests.deadline import Deadline, until
from xentests.errors import CommandFailed, ProductFailure, UsageError, XentestsError
from xentests.host.command import Result, Word
from xentests.host.devices import Devices
from xentests.host.guest_console import Answer, GuestConsole
from xentests.host.guest_log import GuestFailure, GuestLog, Tick
from xentests.host.guest_spec import GuestSpec
from xentests.host.xl import DomainInfo
from xentests.text import clean

if TYPE_CHECKING:
    from xentests.host.host import Host

READY = r"^\r?xentests: guest ready"  # the shim begins lines with a carriage return
_SPOOL = "/run/xentests/guests"
_CREATE_S = 90.0
_UP_S = 180.0
"""Seconds (scaled) for a guest to come up: 2 to 7 on an idle lab, 50 where several runs share two cores. A guest that
dies is noticed at once, so nothing is lost by patience."""
_MIB_PER_S = 4096
"""Limits grow by a second for so much memory: Xen and libxc do something for each page, and so does the guest."""
_FAR_S = 3.0
"""A timer this far off is fired in a clone, which has nearer ones by then: those make Xen set the hardware again."""
T = TypeVar("T")


class Guest:
    """One guest that was created. ``domid`` changes when it reboots. ``boots``: how many its ``log`` is to show."""

    def __init__(self, host: Host, spec: GuestSpec, log: GuestLog, *, boots: int = 1) -> None:
        self.host = host
        self.spec = spec
        self.name = spec.name
        self.log = log
        self.domid = -1
        self._boots = boots
        self._rebooted = False
        self._console: GuestConsole | None = None

    def __repr__(self) -> str:
        return f"<guest {self.name} (domain {self.domid}) on {self.host.name}>"

    @property
    def info(self) -> DomainInfo | None:
        """Its line of ``xl list``; None when Xen does not have it."""
        return self.host.xl.find(self.name)

    @property
    def console(self) -> GuestConsole:
        """A dialogue with the shell on its console, opened when first asked for."""
        if self._console is None:
            self._console = GuestConsole(self.host, self.name, self.domid)
        return self._console

    @property
    def devices(self) -> Devices:
        """Its disks and interfaces, to be attached and detached."""
        return Devices(self)

    def run(self, command: str, timeout_s: float = 20.0) -> Answer:
        """Run one line in the guest's shell, whatever its exit code. Raises GuestFailure when no answer comes."""
        return self.console.run(command, timeout_s)

    def succeed(self, command: str, timeout_s: float = 20.0) -> str:
        """Run one line that must end with exit code 0; what it printed, without the last newlines."""
        answer = self.run(command, timeout_s)
        if answer.exit_code != 0:
            raise self.log.failure(f"`{command}` ended with exit code {answer.exit_code}, saying {answer.text!r}")
        return answer.text.rstrip("\n")

    def wait_for(self, command: str, answer: str, timeout_s: float = 20.0) -> None:
        """Run one line again and again until it prints ``answer``. Raises GuestFailure with what it printed last."""
        last = ""

        def look() -> bool:
            nonlocal last
            last = self.run(command).text.rstrip("\n")
            return last == answer

        deadline = Deadline(timeout_s)

        def late(_: str) -> XentestsError:
            return self.log.failure(f"`{command}` had to print {answer!r} within {deadline}, and last printed {last!r}")

        until(look, what=answer, deadline=deadline, error=late, every_s=0.05)

    def xl(self, command: str, *words: Word, timeout_s: float = 60.0) -> Result:
        """``xl COMMAND GUEST WORDS...``, which must work."""
        return self.host.succeed("xl", command, self.name, *words, timeout_s=timeout_s)

    def wait_ready(self, timeout_s: float = _UP_S) -> None:
        """Wait until the guest's own userland says that it is up. Raises GuestFailure."""
        timeout_s += self.spec.memory_mib / _MIB_PER_S
        if self._boots:
            # The panic that a restart comes from is not the new boot's.
            boots = self._boots if self._rebooted else 0
            self.log.wait_for(READY, timeout_s, times=self._boots, boots=boots, alive=self._trouble)

    def wait_reboot(self, timeout_s: float = _UP_S) -> None:
        """Wait until the toolstack has started the guest again, as another domain, and it is up. Raises GuestFailure.

        A dialogue with its console ends; the next use of ``console`` opens another.
        """
        old, deadline = self.domid, Deadline(timeout_s)

        def look() -> DomainInfo | None:
            info = self.info
            return info if info is not None and info.domid != old else None

        self.domid = self._until(look, "to be started again", deadline).domid
        self._boots += 1
        self._rebooted = True
        self.close()
        self.wait_ready(deadline.left_s)
        now = self.info
        if now is None or now.domid != self.domid:
            # Ended in its boot and, as `on_reboot` says, started once more: a triple fault is a reboot to Xen.
            said = self.host.run("tail", "-n", 12, f"/var/log/xen/xl-{self.name}.log")
            raise self.log.failure(
                f"started again as domain {self.domid}, it did not stay that: `xl list` says {now}. A guest that ends "
                f"in its boot (triple fault?) is started once more. Last of xl's log:\n{clean(said.stdout)}"
            )

    def wait_gone(self, timeout_s: float = _UP_S) -> None:
        """Wait until the toolstack has cleaned up after a guest that ended itself. Raises GuestFailure."""
        self._until(lambda: all(entry.domid != self.domid for entry in self.host.xl.list()), "to be gone", timeout_s)
        self.close()

    def wait_crashed(self, timeout_s: float = _UP_S) -> None:
        """Wait until Xen has the domain marked as crashed. Raises GuestFailure."""
        self._until(lambda: (info := self.info) is not None and info.crashed, "to be marked as crashed", timeout_s)

    def _until(self, look: Callable[[], T | None], what: str, deadline: Deadline | float) -> T:
        def late(message: str) -> XentestsError:
            return self.log.failure(f"waited for it {message}; `xl list` says {self.info}")

        found = until(look, what=what, deadline=deadline, error=late, every_s=0.1)
        assert found is not None
        return found

    def ticks(self) -> list[Tick]:
        """The guest's clock as it has ticked so far."""
        return self.log.ticks()

    def wait_tick(self, timeout_s: float = 20.0) -> Tick:
        """Wait for a tick that has not been printed yet: proof that the guest runs now. Raises GuestFailure."""
        return self.log.wait_tick(timeout_s, alive=self._trouble)

    def rename(self, name: str) -> None:
        """``xl rename``: the same domain under another name; its log goes on under the old one."""
        self.xl("rename", name)
        made = self.host.guests.made
        made[name] = made.pop(self.name, self)
        self.name = name

    def save(self, path: str, *options: str, timeout_s: float = 120.0) -> None:
        """``xl save``: the guest is written into a file of dom0, and ends here unless ``options`` say otherwise."""
        self.host.succeed("xl", "save", *options, self.name, path, timeout_s=timeout_s)
        if not options:
            self.close()

    def restore(self, path: str, timeout_s: float = 120.0) -> None:
        """``xl restore``: the guest goes on where it was saved, as another domain."""
        self.close()
        self.host.succeed("xl", "restore", path, timeout_s=timeout_s)
        self.domid = _domid(self.host, self.name)

    def destroy(self) -> None:
        """``xl destroy``, and wait until Xen has let go of it. Harmless when it is gone already."""
        self.close()
        result = self.host.run("xl", "destroy", self.name, timeout_s=60)
        if result.exit_code != 0 and self.info is not None:
            raise CommandFailed(str(result))
        until(
            lambda: all(domain.domid != self.domid for domain in self.host.xl.list()),
            what=f"{self.host.name}: end of guest {self.name} (domain {self.domid})",
            deadline=30.0,
            error=ProductFailure,
            advice="Something in dom0 still holds its memory or devices: look at `xl list` and the backends",
        )

    def close(self) -> None:
        """End the dialogue with its console, if there is one; the guest runs on."""
        if self._console is not None:
            self._console.close()
            self._console = None

    def _trouble(self) -> str:
        info = self.info
        if info is None:
            return "the domain is gone"
        return f"the domain has state {info.state}, a crash," if info.crashed else ""


class Guests:
    """``host.guests``: what was made here and not destroyed yet is in ``made``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.made: dict[str, Guest] = {}

    def create(self, spec: GuestSpec | None = None, *, ready_s: float | None = _UP_S) -> Guest:
        """Create a guest, and wait until it says that it is up; ``ready_s=None`` does not wait for that.

        Raises GuestFailure when xl refuses or the guest does not come up.
        """
        spec = spec or GuestSpec()
        host = self._host
        if not spec.name or "/" in spec.name or spec.name.startswith("-"):
            raise UsageError(f"guest name {spec.name!r}: not usable as a file name")
        path = f"{_SPOOL}/{spec.name}.cfg"
        host.write_file(path, spec.config(host.arch).encode())
        guest = Guest(host, spec, GuestLog(spec.name, host.files, host.console))
        result = host.run("xl", "create", path, timeout_s=_CREATE_S + spec.memory_mib / _MIB_PER_S)
        if result.exit_code != 0:
            raise GuestFailure(f"{result}\nwhile guest {spec.name} was created from\n{spec.config(host.arch)}")
        self.made[spec.name] = guest
        guest.domid = _domid(host, spec.name)
        host.write_file(f"{_SPOOL}/{spec.name}.domid", str(guest.domid).encode())
        if ready_s is not None:
            guest.wait_ready(ready_s)
        return guest

    def attach(self, spec: GuestSpec | None = None) -> Guest:
        """A guest that runs already: made from ``spec`` before this host was frozen. Its log starts now."""
        spec = spec or GuestSpec()
        guest = Guest(self._host, spec, GuestLog(spec.name, self._host.files, self._host.console), boots=0)
        guest.domid = int(self._host.read_file(f"{_SPOOL}/{spec.name}.domid"))  # ten times quicker than asking xl
        self.made[spec.name] = guest
        return guest

    def freeze(self, spec: GuestSpec, settle: Callable[[Guest], object] = lambda guest: None) -> None:
        """Create a guest, ``settle`` it, and leave it in a state in which this host can be frozen with it.

        A guest in the CPU's guest mode cannot be frozen while it runs there, so it is paused. On arm64 that is all of
        them, and their timers run out before the freeze: a timer of a guest that is due soon after it stands first in
        Xen's queue, is never fired (docs/decisions/02-freeze-and-clone.md), and holds up all behind it.
        """
        guest = self.create(spec)
        guest.wait_tick()
        settle(guest)
        guest.close()
        if self._pauses(spec):
            self._host.succeed("xl", "pause", spec.name)
        if self._host.arch == "arm64":
            until(
                lambda: _next_timer_s(self._host) > _FAR_S,
                what=f"{self._host.name}: timers of paused guest {spec.name} to run out",
                deadline=30.0,
                error=ProductFailure,
                advice="Xen shows them with `xl debug-keys a` (virt_timer_expired)",
            )

    def thaw(self, spec: GuestSpec) -> Guest:
        """The guest of a host that was frozen after ``freeze``, running."""
        guest = self.attach(spec)
        if self._pauses(spec):
            self._host.succeed("xl", "unpause", spec.name)
        return guest

    def _pauses(self, spec: GuestSpec) -> bool:
        return spec.in_hardware or self._host.arch == "arm64"

    def destroy(self, guest: Guest) -> None:
        """Destroy a guest and forget it."""
        guest.destroy()
        self.made.pop(guest.name, None)

    def close(self) -> None:
        """End the dialogues with consoles; the guests run on."""
        for guest in self.made.values():
            guest.close()


def _next_timer_s(host: Host) -> float:
    """How soon Xen has to fire a timer of a guest on arm64 (``virt_timer_expired`` in arch/arm/vtimer.c)."""
    due = re.findall(r"ex= *(-?\d+)us .*virt_timer_expired", host.xl.debug_keys("a"))
    return min((int(us) / 1e6 for us in due), default=math.inf)


def _domid(host: Host, name: str) -> int:
    return int(host.succeed("xl", "domid", name).text)
