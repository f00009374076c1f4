"""Tests whose failures do not count for a while: ``quarantine.toml``, where each has an owner, a reason and an end.

[[test]]
id = "suites/migration/test_remus.py::test_fail_over[*]"   # `*` stands for anything
release = "debian:trixie"    # optional, as is arch
owner = "jane@example.org"
reason = "https://..."
until = 2027-01-31           # the last day on which it holds
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xentests.errors import UsageError


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry; all but ``release`` and ``arch`` must be given."""

    id: str
    owner: str
    reason: str
    until: datetime.date
    release: str = "*"
    arch: str = "*"

    def holds_for(self, nodeid: str, release: str, arch: str) -> bool:
        """Whether it is about this test there, whatever the date."""
        pairs = ((self.id, nodeid), (self.release, release), (self.arch, arch))
        return all(_matches(pattern, text) for pattern, text in pairs)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    test: list[Entry] = []


def read(path: Path | None) -> list[Entry]:
    """The entries of the file at ``path``; none without one. UsageError says what is wrong with it and where."""
    if path is None:
        return []
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File).test
    except (OSError, ValueError) as error:  # msgspec's and tomllib's are ValueErrors
        raise UsageError(f"quarantine file {path}: {error}") from error
    for number, entry in enumerate(entries, 1):
        if empty := [name for name in ("id", "owner", "reason") if not getattr(entry, name).strip()]:
            raise UsageError(f"quarantine file {path}: test {number} ({entry.id!r}) has an empty {empty[0]}")
    return entries


def find(entries: Sequence[Entry], nodeid: str, release: str, arch: str) -> Entry | None:
    """The entry for a test: of several the one that holds longest."""
    found = [entry for entry in entries if entry.holds_for(nodeid, release, arch)]
    return max(found, key=lambda entry: entry.until, default=None)


def _matches(pattern: str, text: str) -> bool:
    """Not fnmatch: brackets are part of node ids."""
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), text, re.DOTALL) is not None
