"""PV guests of up to 1 TiB: the memory is theirs in truth, above 512 GiB too, and all agree on how much it is."""

from __future__ import annotations

import logging
import re

import pytest

from fixtures.giants import LINE_FRAME, LINE_GIB, Giant, sizes
from suites.memory.use import ends_mib, sizes_of, use_all
from xentests.host import frames

pytestmark = pytest.mark.needs("amd64", "pv")

LOG = logging.getLogger(__name__)
ALL = sizes(64, 513, 600, 1024)
LAST = 1024
"""Frames that are looked at where no program gets any."""
SAVED = "/tmp/saved"
SAVE_MIB = 64
_P2M = re.compile(rb"p2m virtual area at .*, size is ([0-9a-f]+)\r?$", re.MULTILINE)


@ALL
def test_memory_is_used(giant_pv: Giant) -> None:
    """Programs in the guest use pages by physical frame: on both sides of 512 GiB, in the middle, at the top.

    The last frames are the kernel's own, which it has taken first of all. A guest that its kernel has capped at 512 GiB
    has no frames above it.
    """
    guest, layout = giant_pv.guest, giant_pv.layout
    use_all(guest, layout.windows)
    for first in [(layout.size_mib << 8) - LAST] + ([LINE_FRAME] if giant_pv.size.guest_gib == LINE_GIB + 1 else []):
        taken = frames.taken_at_boot(guest, first, LAST)
        LOG.info("%d of the %d frames from %#x on are the kernel's", taken, LAST, first)
        assert taken > LAST // 2, f"only {taken} of {LAST} frames from {first:#x} on are in use by the guest's kernel"


@ALL
def test_everybody_agrees_on_the_size(giant_pv: Giant) -> None:
    """Xen, xl, xenstore, the guest's balloon and the guest's own map of its memory have what was asked for.

    docs/man/xl.cfg.5, "memory" and "maxmem"; docs/misc/xenstore-paths.pandoc, memory/target and memory/static-max.
    """
    seen, size = sizes_of(giant_pv.guest), giant_pv.guest.spec.memory_mib
    limit = giant_pv.guest.spec.maxmem_mib
    wanted = {"xen": size, "listed": size, "target": size, "balloon": size, "static_max": limit}
    assert {name: getattr(seen, f"{name}_mib") for name in wanted} == wanted
    assert ends_mib(giant_pv.guest) == limit
    # The toolstack raises Xen's own limit with the target, which it is a MiB above (LIBXL_MAXMEM_CONSTANT).
    assert size <= seen.limit_mib <= limit + 4, f"Xen's own limit for the guest: {seen}"


@ALL
def test_list_of_frames_is_long_enough(giant_pv: Giant) -> None:
    """The guest's list of frames, 8 bytes each, has all frames that it can come to have, and few more.

    Linux keeps room for 512 GiB at least (CONFIG_XEN_MEMORY_HOTPLUG_LIMIT) and rounds up to 2 MiB.
    """
    found = _P2M.search(giant_pv.guest.log.raw())
    assert found, "the guest's kernel did not say how long its list of frames is (arch/x86/xen/p2m.c)"
    frames = int(found[1], 16) // 8
    wanted = max(giant_pv.guest.spec.maxmem_mib, LINE_GIB << 10) << 8
    assert wanted <= frames < wanted + (2 << 20) // 8


@sizes(513)
def test_limits_hold(giant_pv: Giant) -> None:
    """A target beyond maxmem is refused, and so is a limit below the target; neither changes anything.

    docs/man/xl.1, "mem-set" and "mem-max".
    """
    guest = giant_pv.guest
    before = sizes_of(guest)
    for command, mib in (("mem-set", guest.spec.maxmem_mib + 1), ("mem-max", guest.spec.memory_mib - 1)):
        result = guest.host.run("xl", command, guest.name, f"{mib}m", timeout_s=60)
        assert result.exit_code != 0, f"xl {command} of {mib} MiB was not refused: {result}"
    assert sizes_of(guest) == before


@pytest.mark.needs("save-restore")
@sizes(513)
def test_save_without_room(giant_pv: Giant) -> None:
    """A save of more than 512 GiB to a place with little room ends with an error, and the guest goes on unharmed.

    docs/man/xl.1, "save". It walks all the guest's frames; whether it is refused at once or when the room is used up is
    the release's choice (Linux's Documentation/admin-guide/kernel-parameters.txt, xen_512gb_limit: tools "must be
    enabled to handle larger domains").
    """
    guest, host = giant_pv.guest, giant_pv.guest.host
    before = sizes_of(guest)
    host.succeed("mkdir", "-p", SAVED)
    host.succeed("mount", "-t", "tmpfs", "-o", f"size={SAVE_MIB}m", "saved", SAVED)
    result = host.run("xl", "save", guest.name, f"{SAVED}/guest", timeout_s=300)
    assert result.exit_code != 0, f"{guest.spec.memory_mib} MiB went into {SAVE_MIB} MiB: {result}"
    host.succeed("umount", SAVED)
    guest.wait_tick()
    assert sizes_of(guest) == before
    use_all(guest, giant_pv.layout.windows)
