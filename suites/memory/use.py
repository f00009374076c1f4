"""What tests of giant guests do and look at: pages by frame, and the size of a guest as everybody has it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from xentests.host import frames
from xentests.host.frames_program import Window
from xentests.host.guests import Guest
from xentests.host.xl import parse_list

LOG = logging.getLogger(__name__)
_BALLOON = "/sys/devices/system/xen_memory/xen_memory0"
BALLOON_S = 90.0
_USABLE = re.compile(rb"(?:Xen|BIOS-e820): \[mem 0x[0-9a-f]+-0x([0-9a-f]+)\] usable")


@dataclass(frozen=True)
class Sizes:
    """A guest's memory in MiB as each has it: Xen, its limit there, xl, xenstore, the guest's balloon."""

    xen_mib: int
    limit_mib: int
    listed_mib: int
    target_mib: int
    static_max_mib: int
    balloon_mib: int


def sizes_of(guest: Guest) -> Sizes:
    """What they are now."""
    host, path = guest.host, f"/local/domain/{guest.domid}/memory"
    listed = parse_list(host.succeed("xl", "list", guest.name).text)[0]
    pages, limit = _pages(guest)
    return Sizes(
        xen_mib=pages >> 8,
        limit_mib=limit >> 8,
        listed_mib=listed.memory_mib,
        target_mib=int(host.xenstore.read(f"{path}/target")) >> 10,
        static_max_mib=int(host.xenstore.read(f"{path}/static-max")) >> 10,
        balloon_mib=int(guest.succeed(f"cat {_BALLOON}/info/current_kb")) >> 10,
    )


def _pages(guest: Guest) -> tuple[int, int]:
    """Pages that Xen has given it, and how many it may have: the debug key q (xen/common/keyhandler.c)."""
    said = guest.host.xl.debug_keys("q")
    mine = said.partition(f"General information for domain {guest.domid}:")[2]
    found = re.search(r"nr_pages=(\d+).* max_pages=(\d+)", mine)
    assert found, f"Xen says nothing of domain {guest.domid} on the debug key q: {said}"
    return int(found[1]), int(found[2])


def ends_mib(guest: Guest) -> int:
    """Where the memory ends that the guest's kernel was given, by its own map of it at boot."""
    found = _USABLE.findall(guest.log.raw())
    if not found:
        raise guest.log.failure("its kernel printed no map of its memory")
    return (int(found[-1], 16) + 1) >> 20


def use_all(guest: Guest, windows: Mapping[str, Window]) -> dict[str, Window]:
    """Use pages of each window; none may be empty and none may have lost what was written. Logs the figures."""
    used = frames.use(guest, list(windows.values()))
    found = dict(zip(windows, used.windows, strict=True))
    for name, part in found.items():
        LOG.info("%s: %d pages of the frames from %#x to %#x, %d wrong", name, *_figures(part))
    missing = [name for name, part in found.items() if part.pages < part.wanted]
    assert not missing, (
        f"guest {guest.name} has too few frames {' and '.join(missing)} for a guest of {guest.spec.memory_mib} MiB "
        f"(Linux caps itself at 512 GiB without xen_512gb_limit=0): {found}; its memory ends at {ends_mib(guest)} MiB"
    )
    assert used.wrong == 0, f"guest {guest.name}: {used.wrong} of {used.pages} pages lost what was written: {found}"
    return found


def _figures(part: Window) -> tuple[int, int, int, int]:
    return part.pages, part.lowest, part.highest, part.wrong


def balloon(guest: Guest, mib: int) -> None:
    """Set the guest's target, and wait until its balloon is there."""
    guest.succeed(f"echo 1 > {_BALLOON}/max_schedule_delay")
    guest.xl("mem-set", f"{mib}m")
    off = f"off=$(($(cat {_BALLOON}/info/current_kb) - {mib << 10})); [ ${{off#-}} -le 1024 ] && echo reached"
    guest.wait_for(off, "reached", BALLOON_S)
