"""CPU policies: read from what xen-cpuid really printed, compared as Xen compares them, levelled; and the programs."""

from __future__ import annotations

import signal
import struct
import subprocess
from pathlib import Path

import pytest

from xentests.host.cpu_policy import CpuPolicy, Feature, levelled, parse_policies, words
from xentests.host.cpuid_program import cpuid_program, fsgsbase_program, typed

PRINTED = """\
Xen reports there are maximum 120 leaves and 2 MSRs
Raw policy: 19 leaves, 2 MSRs
 CPUID:
  leaf     subleaf  -> eax      ebx      ecx      edx
  00000000:ffffffff -> 00000005:68747541:444d4163:69746e65
 MSRs:
  index    -> value
  000000ce -> 0000000080000000
HVM Max policy: 53 leaves, 2 MSRs
 CPUID:
  leaf     subleaf  -> eax      ebx      ecx      edx
  00000000:ffffffff -> 0000000d:68747541:444d4163:69746e65
  00000001:ffffffff -> 00100f23:00000800:80a02001:178bfbfd
  00000007:00000000 -> 00000002:00000000:00000000:00000000
  80000000:ffffffff -> 80000021:68747541:444d4163:69746e65
  80000001:ffffffff -> 00100f23:00000000:00000067:20100800
 MSRs:
  index    -> value
"""
POPCNT = Feature(1, 0, "ecx", 23)
SSE4A = Feature(0x80000001, 0, "ecx", 6)


def policy(*, limits: tuple[int, int, int] = (0xD, 1, 0x80000008), ecx: int = 0, extended_ecx: int = 0) -> CpuPolicy:
    """One with few features."""
    basic, of_7, extended = limits
    leaves = {
        (0, 0): (basic, 0, 0, 0),
        (1, 0): (0, 0, ecx, 0),
        (7, 0): (of_7, 0, 0, 0),
        (0x80000000, 0): (extended, 0, 0, 0),
        (0x80000001, 0): (0, 0, extended_ecx, 0),
    }
    return CpuPolicy("made", leaves)


def test_printed_policies_are_read() -> None:
    """Each with its leaves, limits and features; a leaf that was not printed has none."""
    found = parse_policies(PRINTED)
    assert list(found) == ["Raw", "HVM Max"]
    most = found["HVM Max"]
    assert most.limits == (0xD, 2, 0x80000021)
    assert {POPCNT, SSE4A} < most.features
    assert most.value(0x80000008, 0, "ebx") == 0
    assert found["Raw"].limits == (5, 0, 0)


def test_bits_that_are_no_features() -> None:
    """The state of a CPU, and what AMD's leaf repeats of leaf 1, count for nothing."""
    assert policy(ecx=1 << 27).features == frozenset()
    mirrored = CpuPolicy("made", {(0x80000001, 0): (0, 0, 0, 0x183F3FF)})
    assert mirrored.features == frozenset()


@pytest.mark.parametrize(
    ("limits", "leaf"),
    [
        ((0xD, 1, 0x80000008), ""),
        ((0xE, 1, 0x80000008), "leaf 00000000"),
        ((0xD, 2, 0x80000008), "leaf 00000007"),
        ((0xD, 1, 0x80000009), "leaf 80000000"),
    ],
    ids=["equal", "basic", "seven", "extended"],
)
def test_limits_are_compared_as_xen_does(limits: tuple[int, int, int], leaf: str) -> None:
    """A policy may go as far as the host's, in each of three ranges."""
    assert policy(limits=limits).exceeds(policy()) == leaf


def test_features_are_named() -> None:
    """In a fixed order, by name where there is one."""
    assert words(frozenset({SSE4A, POPCNT, Feature(1, 0, "ecx", 2)})) == "0x1.0:ecx[2] popcnt sse4a"
    assert words(frozenset()) == "(none)"


def test_levelled_is_the_intersection() -> None:
    """Bits that one side lacks are cleared, others left alone, limits set to the lower; leaves of one's own only."""
    mine = policy(ecx=1 << 23 | 1 << 0, extended_ecx=1 << 6, limits=(0xD, 0, 0x80000008))
    rows = dict(line.split(":", 1) for line in levelled(mine, policy(ecx=1, limits=(5, 0, 0x80000008))))
    assert rows["0x0"] == f"eax={5:032b}"
    bits = dict(part.split("=") for part in rows["0x1"].split(","))["ecx"]
    assert [31 - at for at, bit in enumerate(bits) if bit == "x"] == [27, 0]
    assert "x" not in dict(part.split("=") for part in rows["0x80000001"].split(","))["ecx"]
    assert "0x7,0" in rows
    assert "0x7,1" not in rows
    assert "0x80000021" not in rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a program can be made by the very lines that a guest's shell gets."""
    return tmp_path / "program"


def made(lines: list[str], path: Path) -> Path:
    """The program that these lines make."""
    subprocess.run(["sh", "-e"], input="\n".join(lines), text=True, check=True)
    return path


def test_cpuid_is_executed(run: Path) -> None:
    """The program answers for each leaf in its turn; this machine's vendor is spelt in the first."""
    output = subprocess.run(
        [made(typed(cpuid_program([(0, 0), (0x80000000, 0)]), str(run)), run)], capture_output=True, check=True
    ).stdout
    basic, extended = struct.unpack("<4I", output[:16]), struct.unpack("<4I", output[16:])
    vendor = struct.pack("<3I", basic[1], basic[3], basic[2]).decode()
    assert vendor in Path("/proc/cpuinfo").read_text()
    assert extended[0] >= 0x80000008


def test_fsgsbase_is_used(run: Path) -> None:
    """The program ends with 0 where Linux says that there is FSGSBASE, and by SIGILL where there is none."""
    ended = subprocess.run([made(typed(fsgsbase_program(), str(run)), run)], check=False).returncode
    assert ended == (0 if " fsgsbase " in Path("/proc/cpuinfo").read_text() else -signal.SIGILL)
