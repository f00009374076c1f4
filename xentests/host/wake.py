"""What a clone needs once it runs: the time of today, randomness of its own, and on arm64 CPUs that are awake.

A clone's clock stands where its template was frozen, and its random generator is the template's: two clones would
choose the same UUIDs and MAC addresses. A small program does it all; it is put into dom0 when a host has booted, so
that templates hold it. A deterministic machine is left alone: its clones must be the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from xentests.deadline import PACE
from xentests.errors import ProductFailure
from xentests.host.wake_program import SEED_BYTES, failed_calls, program, request

if TYPE_CHECKING:
    from xentests.host.host import Host

_NO_SUCH_PROGRAM = 127
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
    elif result.exit_code != 0:
        failed = ", ".join(failed_calls(result.exit_code)) if result.exit_code > 0 else "it died"
        raise ProductFailure(f"{host.name}: waking dom0 failed ({failed}): {result}")


def _program(host: Host) -> bytes:
    # QEMU restores the timer of arm64's EL2 without arming it: a CPU on which Xen was idle when it was frozen sleeps on
    # until something interrupts it, as moving dom0 there does. The first CPU is roused by the lab.
    return program(host.arch, visit=host.domain.machine.cpus if host.arch == "arm64" else 0)


def _path(made: bytes) -> str:
    return f"/run/xentests/wake-{hashlib.sha256(made).hexdigest()[:12]}"
