"""Disk images of a machine: overlays over what was built or frozen, and blank USB sticks. Made by qemu-img."""

from __future__ import annotations

from pathlib import Path

from xentests.lab.machine import USB_STICK_MIB
from xentests.tools import run_tool


def make_stick(stick: Path, backing: Path | None) -> None:
    """A blank USB stick, or an overlay of one that was frozen."""
    if backing is not None:
        make_overlay(stick, backing, "qcow2")
    else:
        size = f"{USB_STICK_MIB}M"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", stick, size], limit_s=30.0, package="qemu-utils")


def make_overlay(overlay: Path, backing: Path, backing_format: str) -> None:
    """An image that holds what differs from ``backing``, of which it begins as a copy."""
    run_tool(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, overlay],
        limit_s=30.0,
        package="qemu-utils",
    )
