"""What is changed in a frozen deterministic machine: its count of instructions, and what dom0 waits for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from xentests.lab.template import ASLEEP, AWAKE, TemplateError, awaken, count_from_zero

NAME = b"\x05\x0ctimer/icount\x00\x00\x00\x01"
BEFORE, AFTER = b"QEVM, a section, ", b", another section"


def test_count_begins_anew_at_the_same_time(tmp_path: Path) -> None:
    """2,487,701,625 instructions of 8 ns are added to the bias; nothing else of the state is touched."""
    state = tmp_path / "state"
    state.write_bytes(BEFORE + NAME + struct.pack(">qq", 32_918_434_576, 2_487_701_625) + AFTER)
    count_from_zero(state)
    wanted = struct.pack(">qq", 32_918_434_576 + 8 * 2_487_701_625, 0)
    assert state.read_bytes() == BEFORE + NAME + wanted + AFTER
    count_from_zero(state)
    assert state.read_bytes() == BEFORE + NAME + wanted + AFTER


@pytest.mark.parametrize(
    "data",
    [b"", BEFORE, BEFORE + NAME, NAME + bytes(15), (NAME + bytes(16)) * 2, NAME[:-1] + b"\x02" + bytes(16)],
    ids=["empty", "none", "ends", "cut-off", "two", "another-version"],
)
def test_a_state_without_one_is_refused(tmp_path: Path, data: bytes) -> None:
    """A state of a QEMU that saves it in another way is left as it is."""
    state = tmp_path / "state"
    state.write_bytes(data)
    with pytest.raises(TemplateError, match="no count of instructions"):
        count_from_zero(state)
    assert state.read_bytes() == data


def test_dom0_finds_that_it_is_awake(tmp_path: Path) -> None:
    """The word is written over wherever it is in memory, and the memory keeps its size and all else."""
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(5000) + ASLEEP + b"\n" + bytes(9000) + ASLEEP + bytes(100))
    awaken(ram)
    assert ram.read_bytes() == bytes(5000) + AWAKE + b"\n" + bytes(9000) + AWAKE + bytes(100)


def test_a_host_that_was_frozen_asleep_is_refused(tmp_path: Path) -> None:
    """Its clones would never wake."""
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(5000) + ASLEEP[:-1])
    with pytest.raises(TemplateError, match="frozen asleep"):
        awaken(ram)
