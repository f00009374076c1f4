"""The directory that libvirt's embedded driver works in, before libvirt sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xentests.lab import libvirt_driver


def test_embedded_driver_runs_qemu_as_whoever_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user cannot give the driver's directories to root: it would refuse to start."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getegid", lambda: 5678)
    root = libvirt_driver._prepare_root(tmp_path / "root", tmp_path / "cache")
    lines = (root / "etc/qemu.conf").read_text().splitlines()
    assert 'user = "+1234"' in lines
    assert 'group = "+5678"' in lines


def test_last_words_of_a_qemu(tmp_path: Path) -> None:
    """What a QEMU ended with is told, if it said anything; libvirt's lines and QEMU's warnings are not that."""
    log = tmp_path / "x.log"
    assert libvirt_driver._last_words(None) == libvirt_driver._last_words(log) == ""
    log.write_text(
        "2026-11-26 16:17:21.495+0000: Domain id=20 is tainted: custom-ga-command\n"
        "2026-11-26T16:17:21.500Z qemu-system-x86_64: warning: TCG has no x\n"
    )
    assert libvirt_driver._last_words(log) == ""
    said = "ERROR:accel/tcg/tcg-accel-ops.c:95:tcg_handle_interrupt: assertion failed: (bql_locked())"
    log.write_text(f"**\n{said}\nBail out! {said}\n2026-11-26 16:17:43.509+0000: shutting down, reason=crashed\n")
    assert libvirt_driver._last_words(log) == f"Bail out! {said}"
