"""What a run says of itself: the header above the tests, the sections below them, and the files made at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from xentests.errors import XentestsError
from xentests.pytest_plugin.harness import Harness, command_line
from xentests.report import allure_results, junit
from xentests.report.verdict import FINDINGS, Verdict
from xentests.text import clean

_FACTS = {
    "xen.version": "Xen",
    "xen.build-id": "build-id",
    "xen.package": "package",
    "dom0.kernel": "dom0 kernel",
    "qemu": "QEMU",
    "libvirt": "libvirt",
    "accelerator": "accelerator",
    "host.cpu": "host CPU",
}
"""Keys of facts that are shown, in this order, by their names in the terminal."""

KEPT = "kept"


def header(harness: Harness) -> list[str]:
    """Lines above the tests: what is asked for, and what the image is already known to hold."""
    settings = harness.settings
    ways = [settings.lab_uri, f"QEMU: {settings.qemu}"]
    ways += ["every host booted anew"] if settings.fresh_boot else []
    ways += ["failed hosts are kept"] if settings.keep else []
    lines = [f"xen release: {settings.release} {settings.arch}", f"xen lab: {', '.join(ways)}"]
    return [*lines, f"xen image: {_image(harness)}", f"xen artifacts: {harness.run.path}"]


def _image(harness: Harness) -> str:
    """What the manifest of the image says, if there is one; a host that runs says more, below the tests."""
    from xentests.image.build import find_image  # noqa: PLC0415 - the lower layers, only where a run begins

    settings = harness.settings
    try:
        image = find_image(settings.release, harness.session.store, mirror=settings.mirror)
    except XentestsError as error:
        return f"cannot be told: {clean(str(error), limit=200)}"
    if image is None:
        return "not built yet; the first test that asks for a host builds it"
    facts = {"xen.package": image.xen_package_version, "dom0.kernel": image.kernel_version, "host.cpu": _cpu()}
    return describe(facts)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def describe(facts: Mapping[str, Any]) -> str:
    """What is known, on one line; empty when nothing is."""
    return ", ".join(f"{name} {facts[key]}" for key, name in _FACTS.items() if facts.get(key))


def write_sections(reporter: pytest.TerminalReporter, harness: Harness) -> None:
    """Sections below the tests: what was tested on what, what was not built, what was kept, where everything is."""
    facts = harness.run.facts()
    tested = describe(facts)
    if tested:
        reporter.section("tested")
        reporter.line(tested)
    for verdict in sorted(FINDINGS):
        reports = reporter.stats.get(str(verdict), [])
        if reports:
            reporter.section(str(verdict))
            for reason, tests in _by_reason(reports).items():
                reporter.line(f"{reason} ({len(tests)} test{'s' if len(tests) > 1 else ''})")
                for nodeid in tests:
                    reporter.line(f"    {nodeid}")
    if facts.get(KEPT):
        reporter.section("kept hosts")
        for line in facts[KEPT]:
            reporter.line(line)
    reporter.section("xentests")
    reporter.line(f"artifacts: {harness.run.path}")
    reporter.line(f"HTML report: xentests report {harness.run.id}")


def _by_reason(reports: Iterable[pytest.TestReport]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        grouped.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    return grouped


def asked(harness: Harness, config: pytest.Config) -> dict[str, Any]:
    """What the run was asked for, for its manifest."""
    settings = harness.settings
    return {
        **harness.labels,
        "lab": settings.lab_uri,
        "qemu": settings.qemu,
        "fresh_boot": settings.fresh_boot,
        "command": command_line(config),
    }


def finish(harness: Harness, config: pytest.Config, *, exit_status: int, allure: bool) -> None:
    """Write what is known only at the end: manifest, environment and categories, and verdicts into JUnit."""
    run, facts = harness.run, harness.run.facts()
    run.write_manifest({**asked(harness, config), "exit_status": exit_status, "verdicts": _counts(config)})
    environment = {**harness.labels, **{key: facts[key] for key in _FACTS if facts.get(key)}, "run": run.id}
    if allure:
        allure_results.write_run_files(run, environment, name=f"{harness.settings.release} {harness.settings.arch}")
    if run.junit.is_file():
        junit.settle(run.junit, environment)


def _counts(config: pytest.Config) -> dict[str, int]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    names = {"error": str(Verdict.BROKEN)}
    return {names.get(name, name): len(reports) for name, reports in reporter.stats.items() if name} if reporter else {}
