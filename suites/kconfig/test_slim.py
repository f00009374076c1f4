"""Every configuration boots and runs guests; what was left out is gone from its code, its hypercalls and its tools."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fixtures.releases import Figure
from suites.kconfig.chart import chart
from suites.kconfig.conftest import Built, surface_of_image
from suites.kconfig.matrix import ARGUMENTS, FULL, MATRIX, Config
from xentests.host.guest_spec import GuestSpec
from xentests.host.host import Host
from xentests.host.hypercalls import answers
from xentests.image.surface import Surface
from xentests.lab.machine import Machine
from xentests.pytest_plugin.harness import Harness
from xentests.release.fragment import parse

Slim = Callable[[Config], Host]


def test_boots_and_runs_guests(slim: Slim, config: Config) -> None:
    """A hypervisor of this configuration boots dom0 and runs a guest of each kind that it is to run."""
    host = slim(config)
    for kind in config.kinds:
        guest = host.guests.create(GuestSpec(name=f"guest-{kind or 'arm'}", kind=kind))
        guest.wait_tick()
        guest.destroy()


def test_what_was_removed_is_gone(slim: Slim, built: Built, full: Surface, removed: Config) -> None:
    """Options are off in its .config, their code is not in it, hypercalls answer ENOSYS, and tools say so."""
    image = built(removed)
    assert image.xen_config is not None
    options = parse(image.xen_config.read_text())
    assert [name for name in removed.options if options.get(name, "n") != "n"] == []

    have = surface_of_image(image)
    for pattern in removed.symbols:
        was = {name for name in full.symbols if re.fullmatch(pattern, name)}
        assert was, f"the full build has nothing that matches {pattern!r} either: this pattern shows nothing"
        assert was & have.symbols == set(), f"code of {removed.name} is still there"

    host = slim(removed)
    answered = answers(host, *((number, *ARGUMENTS[number]) for number in removed.hypercalls))
    assert dict(zip(removed.hypercalls, answered, strict=True)) == dict.fromkeys(removed.hypercalls, "ENOSYS")
    for tool in removed.tools:
        result = host.run(*tool.argv)
        said = (result.stdout + result.stderr).decode("utf-8", "replace")
        assert result.exit_code != 0, f"{' '.join(tool.argv)} works although {removed.name}: {said}"
        if tool.unclear and tool.unclear in said:
            pytest.xfail(f"{' '.join(tool.argv)} says {said.strip()!r}, not that this Xen was built without")
        assert re.search(tool.says, said), f"{' '.join(tool.argv)} does not say what is missing, but: {said}"


def test_full_build_answers(slim: Slim, machine: Machine) -> None:
    """What others lack answers in the full one, and tools that fail there work: no accident of the asking."""
    configs = MATRIX[machine.arch]
    full = next(config for config in configs if config.name == FULL)
    asked = sorted({number for config in configs for number in config.hypercalls})
    host = slim(full)
    answered = dict(zip(asked, answers(host, *((number, *ARGUMENTS[number]) for number in asked)), strict=True))
    assert [number for number, said in answered.items() if said == "ENOSYS"] == [], answered
    tools = {tool for config in configs for tool in config.tools if tool.works_in_full}
    for tool in sorted(tools, key=lambda tool: tool.argv):
        host.succeed(*tool.argv)


def test_attack_surface(built: Built, machine: Machine, figure: Figure, xen_harness: Harness) -> None:
    """What has less has less code, hypercalls and symbols than the full build; all are shown beside each other."""
    configs = MATRIX[machine.arch]
    surfaces = {config.name: surface_of_image(built(config)) for config in configs}
    xen_harness.exhibit("attack surface", lambda: chart(surfaces, FULL), always=True)
    for name, surface in surfaces.items():
        figure(f"{name}: text, KiB", surface.text >> 10)
        figure(f"{name}: data, KiB", surface.data >> 10)
        figure(f"{name}: bss, KiB", surface.bss >> 10)
        figure(f"{name}: hypercalls", len(surface.hypercalls))
        figure(f"{name}: symbols", len(surface.symbols))
    full = surfaces[FULL]
    for config in configs:
        if config.options:
            surface = surfaces[config.name]
            assert surface.text + surface.data < full.text + full.data, (
                f"{config.name} is no smaller than the full build"
            )
            assert surface.hypercalls <= full.hypercalls
            assert len(surface.symbols) < len(full.symbols)
