"""A guest that died of what only QEMU does is told from one that died of anything else."""

from __future__ import annotations

import time

import pytest

from selftests.plugin_runs import project, run
from xentests.host.emulator_faults import find

# As a guest of Xen 4.20 under QEMU 7.2 said it: frames of the first interrupt, beneath those of the second.
DIED = """\
[   53.771796] BUG: ENTRY_TRAMPOLINE stack guard page was hit at 00000000d6eab495
[   53.848934] RIP: 0010:irqentry_enter+0xd/0x50
[   53.848954] RSP: 0000:fffffe0000002f08 EFLAGS: 00000046
[   53.853581]  sysvec_xen_hvm_callback+0xe/0x90
[   53.853601]  asm_sysvec_xen_hvm_callback+0x1a/0x20
[   53.853618] RIP: 0010:asm_sysvec_xen_hvm_callback+0x4/0x20
[   53.853642] Code: e9 f1 05 00 00 90 f3 0f 1e fa 0f 1f 00 fc 6a ff e8 71 04 00 00
[   53.853655] RSP: 0000:fffffe0000002fd8 EFLAGS: 00000016
[   53.853725] RIP: 0033:0x5830ea
"""

# As a PV guest of Xen 4.20 with two vCPUs said it, on a host with two.
PATCHED = """\
[    5.497438] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI
[    5.497936] CPU: 1 UID: 0 PID: 0 Comm: swapper/1 Not tainted 6.12.118+deb13-amd64 #1  Debian 6.12.118-1
[    5.498215] RIP: e030:sched_clock_cpu+0x9/0x1d0
[    5.498783] Code: 00 e9 b8 fe ff ff 66 66 2e 0f f3 0f 1e fa 41 54 55 53 66 <90> e8 b1 ef f0 ff 48 03
[    5.498866] RSP: e02b:ffffc900400f8fd8 EFLAGS: 00000002
[    5.503144]  xen_pv_evtchn_do_upcall+0x89/0xa0
"""


def test_a_breakpoint_that_is_not_in_memory_is_recognised() -> None:
    """Linux patched its code with INT3 and had done; a stale translation of it is QEMU's."""
    said = find(f"tick 34\n{PATCHED}")
    assert "INT3 before sched_clock_cpu+0x9/0x1d0, where memory has 66" in said
    assert find(PATCHED.replace("\n", "\r\n")) == said


def test_it_is_recognised() -> None:
    said = find(f"tick 34\n{DIED}")
    assert "at asm_sysvec_xen_hvm_callback+0x4/0x20, in the entry of an interrupt, with EFLAGS 00000016" in said
    assert "QEMU delivered it twice" in said
    assert find(DIED.replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "log",
    [
        "",
        DIED.replace("EFLAGS: 00000016", "EFLAGS: 00000216"),  # interrupts were on
        DIED.replace("RIP: 0010:asm_sysvec_xen_hvm_callback+0x4", "RIP: 0010:default_idle+0x4"),
        DIED.replace("RIP: 0010:asm_sysvec_xen_hvm_callback+0x4/0x20", "RIP: 0033:0x5830ea"),
        DIED.replace("asm_sysvec_xen_hvm_callback+0x1a/0x20", "asm_exc_page_fault+0x1a/0x20"),  # no interrupt
        PATCHED.replace("53 66 <90>", "53 cc <90>"),  # it is there: somebody's own
        PATCHED.replace("int3: 0000", "invalid opcode: 0000"),
        PATCHED.partition("Code:")[0],
    ],
)
def test_others_are_not(log: str) -> None:
    assert find(log) == ""


@pytest.mark.parametrize("said", ["int3: 0000 [#1] ", "int3: 0000 [#1]\n", "int3: 0000 [#1]\nRIP: e030:x\n", "66 " * 9])
def test_a_hostile_log_takes_no_time(said: str) -> None:
    """A guest that prints what begins like it, millions of bytes of it, on one line or on many."""
    log = said * ((2 << 20) // len(said))
    started = time.monotonic()
    assert find(log + "Code: " + log) == ""
    assert time.monotonic() - started < 30


TESTS = '''
    from xentests.errors import ProductFailure


    def test_guest_dies(fake_host):
        """A guest lives."""
        fake_host.domain.programs["find"] = fake_host.domain._program(b"""%s""")
        raise ProductFailure("the guest did not come up")
'''


@pytest.mark.parametrize(
    ("log", "verdict", "reason"),
    [
        (DIED, "error", "QEMU delivered it twice"),
        (DIED.replace("00000016", "00000216"), "failure", "QEMU delivered it twice"),
        (PATCHED, "error", "QEMU kept a translation"),
    ],
)
def test_the_verdict_is_the_labs(tmp_path_factory: pytest.TempPathFactory, log: str, verdict: str, reason: str) -> None:
    """Broken and not failed, with the reason in the report; any other death stays a failure."""
    folder = tmp_path_factory.mktemp("it")
    finished = run(project(folder, test_it=TESTS % log.replace("\n", "\n        ").replace("%", "%%")))
    ((tag, _, _),) = finished.junit()["test_guest_dies"]
    assert tag == verdict
    assert (reason in finished.output) is (verdict == "error")
    (records,) = (finished.run / "records").glob("*.jsonl")
    assert (reason in records.read_text()) is (verdict == "error")
