"""What happens to hosts, and what reports say of it: crashes, killed QEMUs, silent dom0s, kept hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from selftests.plugin_runs import LIMIT_S, Finished
from selftests.project import ROOT


def _run(folder: Path, *arguments: str) -> Finished:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    done = subprocess.run(
        [*argv, "--xen-artifacts", str(folder / "artifacts")],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=5 * LIMIT_S,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode("utf-8"), folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run over all faults."""
    return _run(tmp_path_factory.mktemp("faults"), "selftests/vm/faults.py")


VERDICTS = {
    "test_dom0_panics_unseen": "failed",
    "test_qemu_is_killed": "broken",
    "test_giant_outgrows_its_budget": "broken",
    "test_the_next_test_has_its_host": "passed",
    "test_dom0_falls_silent": "failed",
    "test_looks_at_a_shared_host": "failed",
    "test_gets_another_shared_host": "passed",
    "test_needs_what_is_not_built": "skipped",
    "test_needs_what_the_machine_has_not": "skipped",
}


@pytest.mark.parametrize("test", VERDICTS)
def test_each_fault_has_its_verdict(finished: Finished, test: str) -> None:
    """The product's fault, the lab's, or nobody's."""
    assert finished.allure()[test]["status"] == VERDICTS[test], finished.output


def test_a_panic_is_shown_with_its_words(finished: Finished) -> None:
    """In the message and in the console that was kept.

    A panicking kernel may answer one more ping from its other CPU: the crash is then seen at the tear-down.
    """
    message = finished.allure()["test_dom0_panics_unseen"]["statusDetails"]["message"]
    assert "HypervisorCrash" in message
    assert "Kernel panic - not syncing: sysrq triggered crash" in message
    console = (finished.evidence("test_dom0_panics_unseen", phase="*") / "console.log").read_bytes()
    assert b"sysrq triggered crash" in console


def test_a_killed_qemu_decides_nothing(finished: Finished) -> None:
    """Whatever the test stumbled over, the cause is named."""
    assert "DomainGone" in finished.allure()["test_qemu_is_killed"]["statusDetails"]["message"]


def test_a_giant_beyond_its_budget_is_the_labs(finished: Finished) -> None:
    """Whatever the test waited for, what the machine had and was to have is named."""
    message = finished.allure()["test_giant_outgrows_its_budget"]["statusDetails"]["message"]
    assert "OverBudget" in message
    assert "of the 232 MiB reserved for it" in message


def test_a_silent_dom0_is_seen_from_xen(finished: Finished) -> None:
    """Xen's debug keys say what dom0 does; what dom0 was not asked for says why."""
    folder = finished.evidence("test_dom0_falls_silent")
    console = (folder / "console.log").read_text(errors="replace")
    assert "'q' pressed" in console
    assert "General information for domain 0" in console
    assert "dom0's agent does not answer" in (folder / "MISSING.txt").read_text()


def test_a_healthy_host_gives_everything(finished: Finished) -> None:
    """Nothing is missing of a host that answers."""
    folder = finished.evidence("test_looks_at_a_shared_host", host="shared")
    assert not (folder / "MISSING.txt").exists()
    for name, words in {
        "xl-dmesg.txt": "Xen version",
        "dom0-dmesg.txt": "Linux version",
        "xl-info.txt": "build_id",
        "xenstore.txt": "/local/domain/0",
        "domain.xml": "<domain type=",
        "processes.txt": "xenstored",
        "var-log-xen.txt": "==> /var/log/xen/",
    }.items():
        assert words in (folder / name).read_text(errors="replace"), name


def test_what_is_missing_says_whose_doing_it_is(finished: Finished) -> None:
    """The release's, or the machine's."""
    junit = finished.junit()
    assert junit["test_needs_what_is_not_built"][0][1:] == ("not built", "not built: CONFIG_SCHED_RTDS is not set")
    assert junit["test_needs_what_the_machine_has_not"][0][1] == "not on this machine"


def test_the_run_says_what_was_tested(finished: Finished) -> None:
    """Versions in the terminal, in the manifest with every package, and in Allure's environment."""
    section = finished.output.partition("= tested =")[2].partition("\n==")[0]
    for word in ("Xen 4.20", "build-id", "dom0 kernel 6.12", "QEMU", "libvirt", "accelerator", "host CPU"):
        assert word in section
    facts = json.loads((finished.run / "run.json").read_text())["facts"]
    assert len(facts["xen.build-id"]) == 40
    assert {"name", "version", "sha256"} <= set(facts["image"]["packages"][0])
    assert "xen.build-id=" in (finished.run / "allure-results" / "environment.properties").read_text()


def test_a_failed_host_is_kept(tmp_path: Path) -> None:
    """--xen-keep leaves the host of a failed test running, says how to enter it, and ends those that passed."""
    wanted = ["test_looks_at_a_shared_host", "test_gets_another_shared_host"]
    done = _run(tmp_path, "--xen-keep", *(f"selftests/vm/faults.py::{test}" for test in wanted))
    section = done.output.partition("= kept hosts =")[2].partition("\n==")[0]
    name = section.partition("(")[2].partition(")")[0]
    assert f"xentests shell --kept {name}" in section, done.output
    assert section.count("still running") == 1
    token = name.partition("-")[0]
    kept = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(f"guest={token}-" in word for word in process.info["cmdline"] or [])
    ]
    try:
        assert [f"guest={name}," in " ".join(process.cmdline()) for process in kept] == [True]
    finally:
        for process in kept:
            process.kill()
