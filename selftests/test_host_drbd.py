"""What /proc/drbd says, as data."""

from __future__ import annotations

import pytest

from xentests.host.drbd import Status, parse_status

HEAD = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: 637677C4EAFCF5D1D5446B0 \n"
COUNTS = "    ns:512 nr:0 dw:512 dr:652 al:9 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:{}\n"
SYNC = "\t[=====>..............] sync'ed: 33.3% (8576/12800)K\n\tfinish: 0:00:08 speed: 1,056 (1,056) K/sec\n"

CASES = {
    "nothing": (HEAD, Status("Unconfigured")),
    "down": (HEAD + " 0: cs:Unconfigured\n", Status("Unconfigured")),
    "connected": (
        HEAD + " 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n" + COUNTS.format(0),
        Status("Connected", "Primary", "Secondary", "UpToDate", "UpToDate"),
    ),
    "alone": (
        HEAD + " 0: cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown C r-----\n" + COUNTS.format(12800),
        Status("WFConnection", "Primary", "Unknown", "UpToDate", "DUnknown", 12800),
    ),
    "resync": (
        HEAD + " 0: cs:SyncSource ro:Secondary/Secondary ds:UpToDate/Inconsistent C r-----\n" + COUNTS.format(8) + SYNC,
        Status("SyncSource", "Secondary", "Secondary", "UpToDate", "Inconsistent", 8),
    ),
    "other-device": (
        HEAD + "10: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n" + COUNTS.format(0),
        Status("Unconfigured"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_status_is_read(name: str) -> None:
    """Each state that a resource goes through; that of another device is not taken for it."""
    text, status = CASES[name]
    assert parse_status(text) == status


def test_in_step_is_both() -> None:
    """Connected is not enough, nor are two up-to-date disks that have lost each other."""
    assert [name for name, (_, status) in CASES.items() if status.in_step] == ["connected"]
