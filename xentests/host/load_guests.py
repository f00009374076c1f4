"""Load guests of one host: made once, idle, to be told by a measurement's script what to do (``xentests.load``)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xentests.load.bench import FOLDER
from xentests.load.guest import MEMORY_MIB, kernel
from xentests.load.program import FOREVER, Told

if TYPE_CHECKING:
    from xentests.host.host import Host

VERSION = 6
"""To be raised when load guests, or what is done around them, change: hosts are frozen with them."""
_CREATE_S = 60.0
_LONG_AGO = (1).to_bytes(8, "little")
_LOGS = "/var/log/xen/console"


def quiet_logs(host: Host) -> None:
    """What guests say on their consoles must not end on the disk, whose time is the outer host's."""
    host.succeed("mount", "-t", "tmpfs", "tmpfs", _LOGS)


def create(host: Host, names: Sequence[str], *, vcpus: int = 1, pool: str = "", cpus: str = "") -> None:
    """Make load guests of these names. On x86-64 they are PV; their first vCPU is the only one that works."""
    host.write_file(f"{FOLDER}/kernel", kernel(host.arch))
    for name in names:
        lines = {
            "name": name, "kernel": f"{FOLDER}/kernel", "memory": MEMORY_MIB[host.arch], "vcpus": vcpus,
            "on_crash": "preserve", **({"type": "pv", "tsc_mode": "native"} if host.arch == "amd64" else {}),
            **({"pool": pool} if pool else {}), **({"cpus": cpus} if cpus else {}),
        }  # fmt: skip
        text = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in lines.items())
        host.write_file(f"{FOLDER}/{name}.cfg", text.encode())
        # -e: no process of xl's waits for the guest's end.
        host.succeed("xl", "create", "-q", "-e", f"{FOLDER}/{name}.cfg", timeout_s=_CREATE_S)
        file = shlex.quote(f"{FOLDER}/{name}")
        look = (
            f"xl domid {shlex.quote(name)} > {file}.domid; xenstore-read /local/domain/$(cat {file}.domid)/console/tty"
        )
        host.succeed("sh", "-c", f"{look} > {file}.tty")


def spin(host: Host, *names: str) -> None:
    """Have load guests work without end, from now on. Only for hosts on which nothing is measured."""
    told = Told(window=FOREVER).pack(0) + _LONG_AGO
    for name in names:
        tty = host.read_file(f"{FOLDER}/{name}.tty").decode().strip()
        host.write_file(tty, told)
