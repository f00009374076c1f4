"""The release boots: it is the packaged one, it found its machine, and nothing in the boot log is unexplained."""

from __future__ import annotations

import pytest

from suites.smoke.boot_log import dom0_warnings, known_warnings, unexplained, xen_messages, xen_warnings
from xentests.host.facts import kconfig
from xentests.host.host import Host
from xentests.image.image import Image
from xentests.lab.machine import Machine
from xentests.payload.symbols import read_symbols


def test_xen_is_the_packaged_version(booted_xen: Host, image: Image) -> None:
    """`xl info` and the package name the same major and minor version of Xen."""
    info = booted_xen.xl.info()
    assert image.xen_package_version.startswith(f"{info.xen_major}.{info.xen_minor}.")
    assert info.xen_version == f"{info.xen_major}.{info.xen_minor}{info.xen_extra}"


def test_xen_banner_names_the_package(booted_xen: Host, image: Image) -> None:
    """The banner, which Debian's build stamps with it, has the exact version of the package."""
    if image.release.kind != "debian":
        pytest.skip("only Debian's own builds put the package's version into the banner")
    banner = xen_messages(booted_xen)[0]
    assert f"Xen version {booted_xen.xl.info().xen_version} (Debian {image.xen_package_version})" in banner


def test_running_hypervisor_is_the_packaged_one(booted_xen: Host, image: Image) -> None:
    """The build-id of the running hypervisor is that of the symbols in the package."""
    if image.symbols is None:
        pytest.skip("not built: the release has no xen-syms for this hypervisor")
    assert booted_xen.xl.info().build_id == read_symbols(image.symbols).build_id.hex()


@pytest.mark.needs("hypfs")
def test_running_configuration_is_the_packaged_one(booted_xen: Host, image: Image) -> None:
    """The configuration that the running hypervisor shows in hypfs is the one in its package."""
    if image.xen_config is None:
        pytest.skip("not built: the package has no .config of the hypervisor")
    running = booted_xen.succeed("xenhypfs", "cat", "/buildinfo/config").stdout
    assert kconfig(running) == kconfig(image.xen_config.read_bytes())


def test_xen_obeys_its_command_line(booted_xen: Host, machine: Machine) -> None:
    """Xen was booted with what it was given, and says so."""
    assert booted_xen.xl.info().xen_commandline == machine.xen_command_line


def test_xen_found_its_machine(booted_xen: Host, machine: Machine) -> None:
    """All CPUs are online and all memory is known, less what firmware and tables take."""
    info = booted_xen.xl.info()
    assert info.nr_cpus == machine.cpus
    assert machine.memory_mib - 16 <= info.total_memory <= machine.memory_mib
    assert info.free_memory > 0.8 * (machine.memory_mib - machine.dom0_memory_mib)


def test_dom0_kernel_is_the_packaged_one(booted_xen: Host, image: Image) -> None:
    """dom0 runs the kernel of the release."""
    assert booted_xen.xl.info().kernel == image.kernel_version


def test_xen_boots_without_warnings(booted_xen: Host) -> None:
    """Xen's boot log has no word of trouble beyond the list of explained ones (known_warnings.toml)."""
    assert unexplained("xen", xen_warnings(booted_xen)) == []


def test_dom0_boots_without_warnings(booted_xen: Host) -> None:
    """dom0's kernel printed no warning or worse beyond the list of explained ones (known_warnings.toml)."""
    assert unexplained("dom0", dom0_warnings(booted_xen)) == []


def test_every_known_warning_has_its_reason() -> None:
    """The list of explained warnings explains each of them, once."""
    known = known_warnings()
    assert all(entry.log in ("xen", "dom0") and len(entry.reason) > 20 for entry in known)
    assert len({(entry.log, entry.pattern.pattern) for entry in known}) == len(known)


def test_xen_answers_on_its_serial_line(booted_xen: Host) -> None:
    """Debug keys reach Xen on the serial line as they do from dom0."""
    assert booted_xen.console.xen_keys("h")
    assert "pressed -> showing installed handlers" in booted_xen.xl.debug_keys("h")


def test_host_reboots(xen_host: Host) -> None:
    """Rebooting dom0 brings Xen and dom0 back, once, with the same build and no guest."""
    before = xen_host.xl.info()
    xen_host.reboot()
    after = xen_host.xl.info()
    assert (after.xen_version, after.build_id, after.kernel) == (before.xen_version, before.build_id, before.kernel)
    assert [domain.name for domain in xen_host.xl.list()] == ["Domain-0"]
