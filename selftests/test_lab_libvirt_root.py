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
