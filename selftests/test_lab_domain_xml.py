"""Machine -> domain XML: golden files, so that a change of what QEMU is told is seen in review.

``XENTESTS_WRITE_GOLDEN=1 pytest selftests/test_lab_domain_xml.py`` writes them anew.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from xentests.errors import UsageError
from xentests.lab.domain_xml import BootFiles, DomainFiles, domain_xml
from xentests.lab.machine import Machine

GOLDEN = Path(__file__).parent / "golden"
BOOT = BootFiles(Path("/image/xen"), Path("/image/kernel"), Path("/image/initrd"))
COLD = DomainFiles(disk=Path("/run/disk.qcow2"), console_log=Path("/logs/console.log"), sockets=Path("/run/s"))
CLONE = DomainFiles(
    disk=COLD.disk,
    console_log=COLD.console_log,
    sockets=COLD.sockets,
    memory=Path("/template/ram"),
    incoming=True,
)

CASES = {
    "amd64-cold": (Machine("amd64"), COLD, "tcg"),
    "amd64-clone": (Machine("amd64"), CLONE, "tcg"),
    "amd64-deterministic": (Machine("amd64", timing="deterministic"), CLONE, "tcg"),
    "amd64-kvm": (Machine("amd64", cpus=4, memory_mib=2048, xen_args=("sched=rtds",)), COLD, "kvm"),
    "amd64-vendor": (Machine("amd64", cpu_model="Nehalem,vendor=AuthenticAMD,+svm,+npt"), COLD, "tcg"),
    "amd64-usb": (Machine("amd64", usb_sticks=2), CLONE, "tcg"),
    "amd64-link": (Machine("amd64", link=True), CLONE, "tcg"),
    "amd64-pci": (Machine("amd64", pci_nics=2, iommu="intel"), CLONE, "tcg"),
    "amd64-giant": (Machine("amd64", memory_mib=1040 << 10, resident_mib=20_000), COLD, "tcg"),
    "amd64-max": (Machine("amd64", cpu_model="max,-la57"), COLD, "tcg"),
    "amd64-numa": (Machine("amd64", cpus=4, numa_nodes=2), COLD, "tcg"),
    "arm64-cold": (Machine("arm64"), COLD, "tcg"),
    "arm64-clone-gicv2": (Machine("arm64", gic_version=2), CLONE, "tcg"),
    "arm64-link": (Machine("arm64", link=True), CLONE, "tcg"),
}


@pytest.mark.parametrize("name", CASES)
def test_domain_xml_is_the_golden_file(name: str) -> None:
    """What libvirt is told of each kind of machine has not changed unseen."""
    machine, files, accelerator = CASES[name]
    made = domain_xml(name="host", machine=machine, boot=BOOT, files=files, accelerator=accelerator)
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("XENTESTS_WRITE_GOLDEN"):
        golden.write_text(made)
    assert made == golden.read_text()


@pytest.mark.parametrize(
    ("machine", "qemu", "without"),
    [
        (Machine("amd64"), "7.2.22", True),
        (Machine("amd64", cpu_model="Nehalem,vendor=AuthenticAMD,+svm,+npt"), "7.2.22", True),
        (Machine("amd64", cpu_model="max,-la57"), "7.2.22", True),
        (Machine("amd64"), "8.0.0", False),
        (Machine("amd64"), "10.0.13", False),
        (Machine("amd64", iommu="intel"), "7.2.22", False),  # Xen switches it off on such a CPU
        (Machine("arm64"), "7.2.22", False),
    ],
)
def test_what_an_old_qemu_executes_wrongly_is_left_out(machine: Machine, qemu: str, without: bool) -> None:
    """CMPXCHG16B leaves flags that no CPU has, before QEMU 8.0: the CPU model does not offer it there."""
    made = domain_xml(name="host", machine=machine, boot=BOOT, files=COLD, qemu=qemu)
    assert ('<feature policy="disable" name="cx16"/>' in made.replace(" />", "/>")) is without
    assert ("AuthenticAMD,+svm,+npt,-cx16" in made) is (without and "vendor" in machine.cpu_model)


@pytest.mark.parametrize(
    ("files", "cpus", "recorded"),
    [(CLONE, 1, True), (COLD, 1, False), (CLONE, 2, False), (dataclasses.replace(CLONE, memory_shared=True), 1, False)],
    ids=["clone", "booted", "two-cpus", "to-be-frozen"],
)
def test_what_repeats_is_recorded(files: DomainFiles, cpus: int, recorded: bool) -> None:
    """QEMU's main loop and its CPU take turns when it records, which it refuses with several CPUs and to freeze."""
    machine = Machine("amd64", timing="deterministic", cpus=cpus)
    made = domain_xml(name="host", machine=machine, boot=BOOT, files=files)
    assert (",rr=record,rrfile=/dev/null" in made) is recorded
    assert "shift=3,sleep=off" in made


def test_a_comma_in_a_path_is_doubled_for_qemu() -> None:
    """QEMU splits its options at commas; one in a path must not end it."""
    boot = BootFiles(Path("/a,b/xen"), Path("/a,b/kernel"), Path("/a,b/initrd"))
    made = domain_xml(name="host", machine=Machine("amd64"), boot=boot, files=COLD)
    assert "/a,,b/kernel console=hvc0" in made
    assert ",/a,,b/initrd<" in made


def test_a_blank_in_a_boot_modules_path_is_refused() -> None:
    """QEMU's -initrd cannot carry one: better said now than by a Xen without dom0."""
    boot = BootFiles(Path("/a b/xen"), Path("/a b/kernel"), Path("/a b/initrd"))
    with pytest.raises(UsageError, match="blanks"):
        domain_xml(name="host", machine=Machine("amd64"), boot=boot, files=COLD)


def test_a_socket_path_too_long_for_the_kernel_is_refused() -> None:
    """sockaddr_un has room for 107 bytes and a zero."""
    files = DomainFiles(disk=Path("/d"), console_log=Path("/c"), sockets=Path("/" + "x" * 100))
    with pytest.raises(UsageError, match="107 bytes"):
        domain_xml(name="host", machine=Machine("amd64"), boot=BOOT, files=files)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("cpu_model", "qemu64;rm -rf", "MODEL"),
        ("cpus", 65, "1 to 64"),
        ("memory_mib", 512, "no room for Xen"),
        ("usb_sticks", 5, "4 ports"),
        ("pci_nics", 5, "4 is the most"),
        ("iommu", "other", "intel, or none"),
        ("timing", "sloppy", "fast or deterministic"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(field: str, value: object, message: str) -> None:
    """Bad values are the caller's error and say what is allowed."""
    with pytest.raises(UsageError, match=message):
        Machine("amd64").with_(**{field: value})
