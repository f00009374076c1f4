"""dom0 is healthy: the toolstack's daemons run, the drivers that guests need are there, and Xen is seen from inside."""

from __future__ import annotations

import pytest

from xentests.host.host import Host
from xentests.lab.machine import Machine
from xentests.pytest_plugin.supply import Hosts


@pytest.mark.parametrize("daemon", ["xenstored", "xenconsoled"])
def test_daemon_runs(booted_xen: Host, daemon: str) -> None:
    """xenstored (whichever of the two implementations) and xenconsoled run, one of each."""
    running = [
        process.comm
        for process in booted_xen.inspect.process.filter()
        if process.comm.endswith(daemon) and "<defunct>" not in process.args
    ]
    assert len(running) == 1


@pytest.mark.parametrize("node", ["evtchn", "gntdev", "gntalloc", "privcmd", "xenbus", "hypercall"])
def test_device_node_exists(booted_xen: Host, node: str) -> None:
    """The device nodes through which the toolstack reaches Xen are there."""
    assert booted_xen.inspect.file(f"/dev/xen/{node}").mode & 0o600 == 0o600
    booted_xen.succeed("test", "-c", f"/dev/xen/{node}")


@pytest.mark.parametrize("driver", ["vbd", "vif"])
def test_backend_driver_is_ready(booted_xen: Host, driver: str) -> None:
    """The back ends for disks and networks of guests are registered."""
    assert booted_xen.inspect.file(f"/sys/bus/xen-backend/drivers/{driver}").is_directory


def test_xenfs_is_mounted(booted_xen: Host) -> None:
    """xenfs is mounted, and says that this is the control domain."""
    mount = booted_xen.inspect.mount_point("/proc/xen")
    assert mount.exists
    assert mount.filesystem == "xenfs"
    assert booted_xen.read_file("/proc/xen/capabilities").split() == [b"control_d"]


def test_dom0_knows_its_hypervisor(booted_xen: Host) -> None:
    """/sys/hypervisor and `xl info` agree about who is below."""
    info = booted_xen.xl.info()
    inside = {
        name: booted_xen.read_file(f"/sys/hypervisor/{name}").decode().strip()
        for name in ("type", "version/major", "version/minor", "version/extra")
    }
    assert inside == {
        "type": "xen",
        "version/major": str(info.xen_major),
        "version/minor": str(info.xen_minor),
        "version/extra": info.xen_extra,
    }


def test_dom0_has_what_it_was_given(booted_xen: Host, machine: Machine) -> None:
    """dom0 is the only domain, with the vCPUs and the memory of Xen's command line."""
    (dom0,) = booted_xen.xl.list()
    assert (dom0.name, dom0.domid, dom0.memory_mib) == ("Domain-0", 0, machine.dom0_memory_mib)
    assert dom0.vcpus == machine.dom0_vcpus
    assert int(booted_xen.succeed("nproc").text) == machine.dom0_vcpus


def test_dom0_with_all_cpus(hosts: Hosts, machine: Machine) -> None:
    """Without a limit dom0 has as many vCPUs as there are CPUs, each of which runs programs."""
    host = hosts.pristine(machine=machine.with_(dom0_vcpus=0))
    (dom0,) = host.xl.list()
    assert dom0.vcpus == machine.cpus
    for cpu in range(machine.cpus):
        mask = host.succeed("taskset", "--cpu-list", cpu, "cat", "/proc/self/status").text
        assert f"Cpus_allowed_list:\t{cpu}\n" in mask


def test_dom0_kernel_is_not_tainted(booted_xen: Host) -> None:
    """No oops, no warning, no foreign module has marked dom0's kernel."""
    assert booted_xen.read_file("/proc/sys/kernel/tainted").strip() == b"0"


def test_xenstore_names_dom0(booted_xen: Host) -> None:
    """xenstore answers, and knows dom0."""
    assert booted_xen.xenstore.read("/local/domain/0/name") == "Domain-0"
    assert booted_xen.xenstore.read("/local/domain/0/domid") == "0"


def test_xenstore_keeps_any_text(xen_host: Host) -> None:
    """What is written to xenstore is read back: quotes, line ends, backslashes, other alphabets, nothing at all."""
    texts = ['a "b" \\ c', "tab\tline\nend", "Größe 雪", "", "x" * 2000]
    for number, text in enumerate(texts):
        xen_host.xenstore.write(f"/tool/smoke/{number}", text)
    assert xen_host.xenstore.ls("/tool/smoke") == {f"/tool/smoke/{number}": text for number, text in enumerate(texts)}
    assert [xen_host.xenstore.read(f"/tool/smoke/{number}") for number in range(len(texts))] == texts
    xen_host.xenstore.rm("/tool/smoke")
    assert not xen_host.xenstore.exists("/tool/smoke")


def test_time_passes_on_every_cpu(xen_host: Host, machine: Machine) -> None:
    """A sleep of dom0 ends on whichever CPU it is pinned to, so timers and interrupts reach all of them."""
    for cpu in range(machine.cpus):
        xen_host.succeed("xl", "vcpu-pin", "0", "0", cpu)
        xen_host.succeed("sleep", "0.2", timeout_s=10)
