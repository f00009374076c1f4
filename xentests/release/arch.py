"""The architectures a Xen under test can have, by Debian's names. Nothing here knows what the outer machine is."""

from __future__ import annotations

from typing import Literal, TypeGuard

Arch = Literal["amd64", "arm64"]

ARCHES: tuple[Arch, ...] = ("amd64", "arm64")


def is_arch(text: str) -> TypeGuard[Arch]:
    """True for an architecture this project can boot."""
    return text in ARCHES
