"""What a clone needs once it runs: the time of today, randomness of its own, and on arm64 CPUs that are awake.

A clone's clock stands where its template was frozen, and its random generator is the template's: two clones would
choose the same UUIDs and MAC addresses. A small program does it all; it is put into dom0 when a host has booted, so
that templates hold it. A deterministic machine is left alone: its clones must be the same. So on arm64 it is frozen
while dom0 does by itself, again and again, what rouses a clone (docs/decisions/02-freeze-and-clone.md).
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from xentests.deadline import PACE
from xentests.errors import ProductFailure
from xentests.host.command import Result
from xentests.host.wake_program import HERE, SEED_BYTES, failed_calls, program, rearming, request

if TYPE_CHECKING:
    from xentests.host.host import Host

_NO_SUCH_PROGRAM = 127
_LISTENS = "xentests: may be frozen"
REARM = "/run/xentests/rearm"
AWAKE = "/run/xentests/awake"
"""A script that keeps dom0 awake until the lab writes over a word in its memory, which it does in every template; its
argument is printed on the console once it does."""
ASLEEP = ("asleep", "9e5d7c41b2f80a36")
_GIVES_UP_S = 30
# The word is nowhere but in that file: it is put together when it is needed. A host that nobody freezes was booted to
# measure at once. (In place, so that no page of memory has the word any more.)
_AWAKE = f"""\
echo "{ASLEEP[0]}" "{ASLEEP[1]}" > {AWAKE}.word
echo "$1" > /dev/hvc0
read -r began _ < /proc/uptime
until read -r word _ < {AWAKE}.word && [ "$word" != {ASLEEP[0]} ]; do
    {REARM}
    read -r now _ < /proc/uptime
    [ $((${{now%.*}} - ${{began%.*}})) -lt {_GIVES_UP_S} ] || echo over 1<> {AWAKE}.word
done
{REARM}
"""
_USUAL_S = 0.25
"""What waking is taken to need on a usual day, beside another worker. Reckoned, not measured: alone it took 0.3 to
0.4 s, on either architecture, on a day when pairs of hosts and migrations took three times what they had on others. It
is the same work for every clone, and so the measure of the machine's pace."""


def install(host: Host) -> None:
    """Put the program into dom0's memory, and run it once, so that nothing of it has to come from the disk later."""
    if host.domain.machine.timing != "deterministic":
        made = _program(host)
        host.write_file(_path(made), made, mode=0o755)
        _run(host)
    elif host.arch == "arm64":
        host.write_file(REARM, rearming(host.arch), mode=0o755)
        host.write_file(AWAKE, _AWAKE.encode())
        _succeeded(host, host.run(REARM))


def before_freeze(host: Host) -> None:
    """To be called last before a host is frozen: has dom0 of a deterministic arm64 one keep awake until a clone runs.

    On one that is armed for a measurement, its script does that.
    """
    if host.domain.machine.timing == "deterministic" and host.arch == "arm64" and host.takes_commands:
        host.launch("sh", AWAKE, _LISTENS)
        host.console.wait_for(_LISTENS, timeout_s=20.0)


def wake(host: Host) -> None:
    """Set a clone's clock and reseed its random generator; nothing on a deterministic machine.

    Also measures the machine's pace by it.
    """
    if host.domain.machine.timing == "deterministic":
        return
    started = time.monotonic()
    _run(host)
    PACE.note(time.monotonic() - started, usual_s=_USUAL_S)


def _run(host: Host) -> None:
    path = _path(_program(host))
    result = host.run(path, input_data=request(time.time(), os.urandom(SEED_BYTES)))
    if result.exit_code == _NO_SUCH_PROGRAM:  # a template from before this program was what it is now
        install(host)
    else:
        _succeeded(host, result)


def _succeeded(host: Host, result: Result) -> None:
    if result.exit_code != 0:
        failed = ", ".join(failed_calls(result.exit_code)) if result.exit_code > 0 else "it died"
        raise ProductFailure(f"{host.name}: waking dom0 failed ({failed}): {result}")


def _program(host: Host) -> bytes:
    # QEMU restores the timer of arm64's EL2 without arming it: a CPU on which Xen was idle when it was frozen sleeps on
    # until something interrupts it, as moving dom0 there does. The first CPU is roused by the lab. Xen sets the timer
    # again when one comes that is earlier than all others.
    machine = host.domain.machine
    visit: list[int] = []
    if host.arch == "arm64":
        # null has no place for dom0 where a guest has its own, and would not let it run again.
        visit = [HERE] if "sched=null" in machine.xen_args else list(range(machine.cpus))
    return program(host.arch, visit=visit)


def _path(made: bytes) -> str:
    return f"/run/xentests/wake-{hashlib.sha256(made).hexdigest()[:12]}"
