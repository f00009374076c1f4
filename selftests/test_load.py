"""Load guests without a host: their kernels as files, what they print, and the script that tells them what to do."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable

import pytest

from xentests.errors import LabError, ProductFailure, UsageError
from xentests.load.assembler import X86, Arm64, Assembler
from xentests.load.bench import Section, outcomes, script, trace_files
from xentests.load.guest import MEMORY, heard, kernel
from xentests.load.program import DATA_PAGE, HEAD, Told


def words(*numbers: int, table: tuple[int, ...] = ()) -> str:
    """What a guest prints: numbers of 64 bits, then a table of 32."""
    parts = [part for number in numbers for part in (number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF)]
    return "".join(f"{word:08x}\n" for word in (*parts, *table))


def a_run(tag: int, *table: int, begun: int = 5) -> str:
    """One run of a guest."""
    values = {"tag": tag, "words": len(table), "chunks": 7, "begun_ns": begun, "skew_ns": -3}
    return words(*(values.get(name, 0) for name in HEAD), table=table)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_kernel(arch: str) -> None:
    """A kernel is a file of a few kB that a domain builder recognises, and its code stays off the page of its data.

    Of an Image nobody clears the memory behind the file, so it has its data and what becomes the shared page.
    """
    content = kernel(arch)
    if arch == "amd64":
        assert len(content) <= DATA_PAGE << 12
        assert content[:4] == b"\x7fELF"
        assert b"xen-3.0\0" in content
    else:
        assert content[56:60] == b"ARM\x64"
        assert struct.unpack_from("<Q", content, 16)[0] == len(content) == MEMORY
        assert not any(content[DATA_PAGE << 12 :])


@pytest.mark.parametrize(("made", "bits"), [(X86, 8), (Arm64, 32)])
def test_labels(made: Callable[[], Assembler], bits: int) -> None:
    """Jumps go where their labels are, before and behind; one to nowhere is an error of whoever wrote it."""
    code = made().label("start").jump("end").branch("start", "a", "<", "b").label("end")
    assert len(code.content) * 8 % bits == 0
    with pytest.raises(UsageError, match="never placed"):
        _ = made().jump("nowhere").content


def test_x86_encodings() -> None:
    """What GNU as makes of the same instructions."""
    code = X86().load("b", "end", 8).store("at", 24, "end").store("base", 3, "c", size=1).shift("count", -28)
    assert code.content.hex() == "498b8c24080000004d89a01800000044888d0300000048c1eb1c"


def test_arm64_encodings() -> None:
    """What GNU as makes of the same instructions."""
    code = Arm64().load("b", "end", 8).store("at", 24, "end").store("base", 3, "c", size=1).shift("count", -28)
    assert struct.unpack("<4I", code.content) == (0xF9400709, 0xF9000F38, 0x39000E6A, 0xD35CFE94)


def test_what_a_guest_prints() -> None:
    """Runs by their tags, with their tables; one that was cut off is no run."""
    found = heard("noise\n" + a_run(1, 10, 11) + a_run(2, 12) + a_run(3, 13)[:-10])
    assert {tag: run.table for tag, run in found.items()} == {1: (10, 11), 2: (12,)}
    assert found[1].skew_ns == -3


SECTIONS = (
    Section("first", {"g0": Told(), "g1": Told()}, 1, before=["echo before"], after=["echo after"], trace=True),
    Section("idle", {}, 1),
)


def test_script_is_a_shell_script() -> None:
    """The script is one that a POSIX shell takes, and it prints the parts that ``outcomes`` looks for."""
    text = script(SECTIONS)
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    assert trace_files(SECTIONS).keys() == {"first"}
    assert text.count("tell g") == 2


def test_moment_is_appended_to_what_is_told() -> None:
    """A guest is sent 64 bytes, the last eight of which are the moment."""
    functions = script(()).split("for file")[0]
    line = "cat() { echo /dev/stdout; }; moment 81985529216486895; tell g0 '" + r"\001" * 56 + "'"
    sent = subprocess.run(["sh", "-c", functions + line], capture_output=True, check=True).stdout
    assert sent == b"\x01" * 56 + struct.pack("<Q", 81985529216486895)


def printed(*, begun: int = 5) -> str:
    """What the script of SECTIONS prints."""
    return (
        "@@ before 0\nbefore\n@@ moment 0 5\n@@ after 0\nafter\n@@ before 1\n@@ moment 1 9\n@@ after 1\n"
        f"@@ console g0 1\n{a_run(0, 4, begun=begun)}\n@@ console g1 2\n\n"
    )


def test_outcomes() -> None:
    """Each section has what it printed and what its guests said; a guest that said nothing is the product's failure."""
    first = outcomes(SECTIONS, printed(), {})["first"]
    assert (first.before, first.after) == ("before\n", "after\n")
    assert first.guest("g0").table == (4,)
    assert first.domains == {0: "dom0", 1: "g0", 2: "g1"}
    with pytest.raises(ProductFailure, match=r"g1 never came to the end of its 1 s of 'first'.*Heard of: g0"):
        first.guest("g1")


def test_script_that_did_not_end() -> None:
    """A measurement that was cut off, or whose guests were told too late, says nothing of Xen."""
    with pytest.raises(LabError, match="did not come to its end"):
        outcomes(SECTIONS, printed().split("@@ console")[0], {})
    with pytest.raises(LabError, match="told too late"):
        outcomes(SECTIONS, printed(begun=5_000_000_000), {})
