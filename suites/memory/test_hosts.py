"""Hosts with much memory, or with memory in several places: Xen finds all of it and takes no more than it says."""

from __future__ import annotations

import logging
import re

import pytest

from fixtures.giants import Giant, sizes
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts

pytestmark = pytest.mark.needs("amd64")

LOG = logging.getLogger(__name__)
PAGE_INFO_BYTES, M2P_BYTES = 32, 8
"""What Xen keeps of each page: struct page_info (arch/x86/include/asm/mm.h) and an entry of the machine-to-physical
table (the memory layout in xen/include/asm-x86/config.h: 128 GiB and 256 GiB for 16 TiB and 128)."""
_OTHER_BYTES = 2
"""Page tables of both and of the direct map (8 bytes for 2 MiB, or for 4 KiB at worst in parts), the compat M2P."""
_XEN_MIB = 64
"""Xen itself, its heap, and what the machine's firmware has; of a machine of any size."""
_NODE = re.compile(r"^ *(\d+): +(\d+) +(\d+) +(\d[\d,]*)$", re.MULTILINE)
_CPU = re.compile(r"^ *(\d+): +(\d+) +(\d+) +(\d+)$", re.MULTILINE)


@pytest.mark.needs("pv")
@sizes(64, 513, 600, 1024)
def test_all_memory_is_found(giant_pv: Giant) -> None:
    """`xl info` has all memory of the machine but what lies below 1 MiB, and what is not free is accounted for.

    That is dom0, and 40 bytes a page for Xen's tables of frames with a little more for the tables of these.
    """
    info, machine = giant_pv.before, giant_pv.size.host_gib << 10
    assert machine - 2 <= info.total_memory <= machine, info
    dom0_mib = 768 + giant_pv.size.guest_gib * 2 + 1
    cost_mib = info.total_memory - info.free_memory - dom0_mib
    pages = machine << 8
    low, high = (pages * size >> 20 for size in (PAGE_INFO_BYTES, PAGE_INFO_BYTES + M2P_BYTES + _OTHER_BYTES))
    LOG.info("Xen keeps %d MiB for %d pages, %.1f bytes each", cost_mib, pages, (cost_mib << 20) / pages)
    assert low <= cost_mib <= high + _XEN_MIB, (
        f"{cost_mib} MiB for {pages} pages: {low} to {high} were expected: {info}"
    )


@pytest.mark.needs("pv")
@sizes(64, 513, 600, 1024)
def test_a_guest_costs_its_memory(giant_pv: Giant) -> None:
    """With the guest there, as much less is free as it has, and a little for what Xen needs with it."""
    taken = giant_pv.before.free_memory - giant_pv.guest.host.xl.info().free_memory
    size = giant_pv.guest.spec.memory_mib
    assert size <= taken <= size + 64, f"{taken} MiB are not free any more since a guest of {size} MiB was made"


@pytest.mark.parametrize("nodes", [2, 4])
def test_numa_nodes(hosts: Hosts, machine: Machine, nodes: int) -> None:
    """`xl info -n` shows as many nodes as there are, with the memory, the CPUs and the distances of each.

    docs/man/xl.1, "info"; the machine's ACPI tables say what belongs where.
    """
    numa = machine.with_(cpus=4, memory_mib=2048, numa_nodes=nodes)
    host = hosts.pristine(machine=numa, again=False)
    text = host.succeed("xl", "info", "-n").text
    topology, _, rest = text.partition("numa_info")
    found = [(int(node), int(size), int(free), distances) for node, size, free, distances in _NODE.findall(rest)]
    assert [node for node, *_ in found] == list(range(nodes)), text
    share = numa.memory_mib // nodes
    for node, size, free, distances in found:
        # All of it is below the hole at 4 GiB; the firmware has a little of the last.
        assert abs(size - share) <= 2, f"node {node} has {size} MiB instead of {share}: {text}"
        assert 0 <= free <= size, text
        assert [int(word) for word in distances.split(",")] == [10 if other == node else 20 for other in range(nodes)]
    cpus = {int(cpu): int(node) for cpu, _, _, node in _CPU.findall(topology.partition("cpu_topology")[2])}
    assert cpus == {cpu: cpu * nodes // numa.cpus for cpu in range(numa.cpus)}, text
    info = host.xl.info()
    assert numa.memory_mib - 2 <= info.total_memory <= numa.memory_mib
    assert int(info.raw["nr_nodes"]) == nodes
