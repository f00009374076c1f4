"""Hosts of each configuration of the matrix, built from the source of the release under test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from suites.kconfig.matrix import FULL, MATRIX, Config
from xentests.errors import UsageError
from xentests.host.host import Host
from xentests.image.image import Image
from xentests.image.surface import Surface, surface_of
from xentests.lab.machine import Machine
from xentests.pytest_plugin.harness import Harness, harness_of
from xentests.pytest_plugin.supply import Hosts, Supply
from xentests.release.spec import ReleaseSpec

Built = Callable[[Config], Image]


def source_of(spec: ReleaseSpec) -> str:
    """The release that hypervisors are built from: the one under test, or its distribution's source package."""
    if spec.kind == "source":
        return f"source:{spec.name}"
    if spec.kind == "debian":
        return f"source:{spec}"
    raise UsageError(f"suites/kconfig builds hypervisors, and {spec} has no source: give source:DIR or debian:SUITE")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test once for every configuration of the architecture; ``removed``: those that something is gone from."""
    configs = MATRIX[harness_of(metafunc.config).settings.release.arch]
    if "removed" in metafunc.fixturenames:
        gone = [config for config in configs if config.hypercalls or config.symbols or config.tools]
        metafunc.parametrize("removed", gone, ids=lambda config: config.name)
    elif "config" in metafunc.fixturenames:
        metafunc.parametrize("config", configs, ids=lambda config: config.name)


@pytest.fixture
def built(supply: Supply, xen_harness: Harness) -> Built:
    """The image of a configuration, built if need be."""
    source = source_of(xen_harness.settings.release)
    return lambda config: supply.of_release(config.release(source)).session.image


@pytest.fixture
def full(built: Built, machine: Machine) -> Surface:
    """What the full build has."""
    return surface_of_image(built(next(config for config in MATRIX[machine.arch] if config.name == FULL)))


def surface_of_image(image: Image) -> Surface:
    """What the image's hypervisor has; it was built here, so its symbols are there."""
    assert image.symbols is not None
    return surface_of(image.symbols)


@pytest.fixture
def slim(hosts: Hosts, machine: Machine, xen_harness: Harness) -> Callable[[Config], Host]:
    """A pristine host of a configuration. Boots it: a hypervisor that does not is a finding."""
    source = source_of(xen_harness.settings.release)

    def make(config: Config) -> Host:
        cut = machine.with_(xen_args=config.xen_args, iommu="intel" if config.iommu else "")
        return hosts.pristine(machine=cut, release=config.release(source))

    return make
