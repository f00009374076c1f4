"""A measurement that repeats to the digit: armed before the freeze, run by each clone alone, read once it is over.

On a deterministic machine what runs inside depends on the instructions alone, except for the moment at which something
comes in from outside. So nothing comes in: the script waits inside the template and the guest agent is silent, so that
libvirt has nobody to greet; the clone runs the script by itself, says on the console that it is done, and only then is
it asked anything. Disk reads and writes end when the outer disk has done them, so the script is run once before, into
the page cache, and what is written stays there (oxenstored logs every access).
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from xentests.errors import UsageError
from xentests.host.wake import AWAKE

if TYPE_CHECKING:
    from xentests.host.host import Host

ARMED = "xentests: armed"
DONE = "xentests: measured"
DIRECTORY = "/run/xentests-measure"
_STAY_OFF_THE_DISK = "mount -o remount,noatime,commit=30000 / && echo 0 > /proc/sys/vm/dirty_writeback_centisecs"
_WAITER = f"""\
# Started through the agent, whose answer must be out before it is stopped. busybox's own commands: none is on the disk.
sleep 1
touch /run/xentests-quiet
killall qemu-ga
sleep 1
# It looks ten times a second whether it may come back, which is a tenth of a CPU.
until pkill -STOP -f lib/xentests/agent; do sleep 1; done
sync
sleep 40
sync
%ARMED%
sh {DIRECTORY}/script > {DIRECTORY}/result 2>&1
rm /run/xentests-quiet
pkill -CONT -f lib/xentests/agent
echo "{DONE}" > /dev/hvc0
"""


def arm(host: Host, script: str) -> None:
    """Have every clone of what is frozen next run ``script`` (POSIX sh) in dom0, some of its seconds after the freeze.

    To be called last in the ``prepare`` of a derived template: afterwards the host takes no commands until its clone
    has measured.
    """
    _require_deterministic(host)
    host.write_file(f"{DIRECTORY}/script", textwrap.dedent(script).encode())
    armed = f'sh {AWAKE} "{ARMED}"' if host.arch == "arm64" else f'echo "{ARMED}" > /dev/hvc0\nsleep 5'
    host.write_file(f"{DIRECTORY}/wait", _WAITER.replace("%ARMED%", armed).encode())
    host.succeed("sh", "-c", _STAY_OFF_THE_DISK)
    host.succeed("sh", f"{DIRECTORY}/script", timeout_s=120.0)
    waiter: dict[str, object] = {"path": "/bin/busybox", "arg": ["sh", f"{DIRECTORY}/wait"]}
    host.domain.agent("guest-exec", waiter, timeout_s=10.0)
    host.takes_commands = False
    host.console.wait_for(ARMED, timeout_s=60.0)


def result(host: Host, *, timeout_s: float = 60.0) -> str:
    """What the script printed in this clone: waits for its word on the console, then asks once."""
    _require_deterministic(host)
    host.console.wait_for(DONE, timeout_s=timeout_s)
    return host.read_file(f"{DIRECTORY}/result").decode()


def _require_deterministic(host: Host) -> None:
    if host.domain.machine.timing != "deterministic":
        raise UsageError(
            f"{host.name} is no deterministic machine, so what it measures would not repeat: "
            f'use Machine(..., timing="deterministic")'
        )
