"""Freezing a booted host into a template, and loading a template's state into a waiting machine.

RAM is a file mapped shared while the template is made and privately by every clone, so QEMU's migration stream carries
device state alone (some 350 kB; capability ``x-ignore-shared``, QEMU docs/devel/migration). Disks are overlays.
"""

from __future__ import annotations

import mmap
import platform
import shlex
import shutil
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from xentests.deadline import until
from xentests.errors import LabError
from xentests.image.image import Image
from xentests.lab.machine import ICOUNT_SHIFT, Machine
from xentests.lab.store import Entry

RAM = "ram"
STATE = "state"
DISK = "disk.qcow2"
BOOT_LOG = "boot.log"
ASLEEP, AWAKE = b"asleep 9e5d7c41b2f80a36", b"awake: 9e5d7c41b2f80a36"
"""What dom0 of a deterministic arm64 machine looks at in its memory while it is frozen, and what clones find there."""
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]
# A subsection's mark, the length of its name, its name, its version (QEMU docs/devel/migration, "vmstate").
_COUNT = b"\x05\x0ctimer/icount" + (1).to_bytes(4, "big")
_BIAS_AND_COUNT = struct.Struct(">qq")


class TemplateError(LabError):
    """A template could not be frozen or its state not loaded."""


@dataclass(frozen=True)
class Template:
    """A frozen host in the store: files ``ram``, ``state``, ``disk.qcow2``, ``boot.log``, and its USB sticks."""

    entry: Entry
    image: Image
    machine: Machine

    @property
    def key(self) -> str:
        """Its key in the store: everything that went into it."""
        return self.entry.key


class Monitor(Protocol):
    """What freezing needs of a machine: its name, what it is, and its monitor."""

    name: str
    machine: Machine

    def monitor(self, command: str, **arguments: object) -> Any:
        """Run one QMP command."""


def freeze(domain: Monitor, target: Path, *, qemu_version: str) -> None:
    """Write the device state of a machine whose RAM is a shared file in ``target``; leaves the machine paused."""
    state, machine = target / STATE, domain.machine
    domain.monitor("stop")
    domain.monitor("migrate-set-capabilities", capabilities=_CAPABILITIES)
    domain.monitor("migrate", uri=_uri(state, qemu_version, write=True))
    _finish(domain, f"freezing {domain.name}")
    if machine.timing == "deterministic":
        count_from_zero(state)
    if machine.timing == "deterministic" and machine.arch == "arm64":
        awaken(target / RAM)


def count_from_zero(state: Path) -> None:
    """Have a frozen deterministic machine count its instructions from zero again, at the same time of its own.

    Its time is ``bias + (instructions << ICOUNT_SHIFT)``. Recorded, a machine begins to count at zero, and QEMU aborts
    if 2^31 instructions or more seem to pass at once. The layout is that of QEMU's system/cpu-timers.c (softmmu/ before
    9.0), ``icount_vmstate_timers``. TemplateError when it is not to be found.
    """
    data = state.read_bytes()
    at = data.find(_COUNT) + len(_COUNT)
    if data.count(_COUNT) != 1 or len(data) < at + _BIAS_AND_COUNT.size:
        raise TemplateError(f"{state}: no count of instructions as QEMU 7.2 to 10.0 save it; use one of these")
    bias, count = _BIAS_AND_COUNT.unpack_from(data, at)
    with state.open("r+b") as file:
        file.seek(at)
        file.write(_BIAS_AND_COUNT.pack(bias + (count << ICOUNT_SHIFT), 0))


def awaken(ram: Path) -> None:
    """Write ``AWAKE`` over ``ASLEEP`` in a frozen machine's memory, where a program waits for that.

    So what clones do first they do by themselves, at one instruction in all of them. TemplateError when nobody waits.
    """
    with ram.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(ASLEEP)
        if at < 0:
            raise TemplateError(
                f"{ram}: dom0 of a deterministic arm64 host was frozen asleep; call its before_freeze()"
            )
        while at >= 0:
            memory[at : at + len(AWAKE)] = AWAKE
            at = memory.find(ASLEEP, at)


def load(domain: Monitor, state: Path, *, qemu_version: str) -> None:
    """Load ``state`` into a machine that waits with ``-incoming defer``; leaves it paused, ready to run."""
    domain.monitor("migrate-set-capabilities", capabilities=_CAPABILITIES)
    domain.monitor("migrate-incoming", uri=_uri(state, qemu_version, write=False))
    _finish(domain, f"loading {state} into {domain.name}")


def _uri(path: Path, qemu_version: str, *, write: bool) -> str:
    if tuple(int(word) for word in qemu_version.split(".")[:2]) >= (8, 2):
        return f"file:{path}"
    quoted = shlex.quote(str(path))
    return f"exec:cat > {quoted}" if write else f"exec:cat {quoted}"


def _finish(domain: Monitor, doing: str) -> None:
    def finished() -> bool:
        info = domain.monitor("query-migrate") or {}
        status = info.get("status")
        if status in ("failed", "cancelled"):
            reason = info.get("error-desc", "no reason given; see the machine's QEMU log")
            raise TemplateError(
                f"{doing}: QEMU says {status}: {reason}. Delete the template: `xentests gc --max-age 0`"
            )
        return bool(status == "completed")

    until(finished, what=doing, deadline=30.0, error=TemplateError, every_s=0.002, slowest_s=0.05)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file and keep its holes; shares the blocks where the file system can."""
    from xentests.tools import run_tool  # noqa: PLC0415 - only derived templates copy

    run_tool(["cp", "--sparse=always", "--reflink=auto", source, target], limit_s=300.0, package="coreutils")


@cache
def outer_cpu() -> dict[str, str]:
    """What a template depends on of the CPU below: model, features and clock rate (a guest's TSC is the host's)."""
    facts = {"architecture": platform.machine()}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "bogomips", "CPU part") and name.strip() not in facts:
            facts[name.strip()] = value.strip()
    return facts


def remove(path: Path) -> None:
    """Remove a directory of a machine that is gone."""
    shutil.rmtree(path, ignore_errors=True)
