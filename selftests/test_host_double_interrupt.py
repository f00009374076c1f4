"""A guest that died of an interrupt delivered twice is told from one that died of anything else."""

from __future__ import annotations

import pytest

from selftests.plugin_runs import project, run
from xentests.host.double_interrupt import find

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
    ],
)
def test_others_are_not(log: str) -> None:
    assert find(log) == ""


TESTS = '''
    from xentests.errors import ProductFailure


    def test_guest_dies(fake_host):
        """A guest lives."""
        fake_host.domain.programs["find"] = fake_host.domain._program(b"""%s""")
        raise ProductFailure("the guest did not come up")
'''


@pytest.mark.parametrize(("log", "verdict"), [(DIED, "error"), (DIED.replace("00000016", "00000216"), "failure")])
def test_the_verdict_is_the_labs(tmp_path_factory: pytest.TempPathFactory, log: str, verdict: str) -> None:
    """Broken and not failed, with the reason in the report; any other death stays a failure."""
    folder = tmp_path_factory.mktemp("it")
    finished = run(project(folder, test_it=TESTS % log.replace("\n", "\n        ").replace("%", "%%")))
    ((tag, _, _),) = finished.junit()["test_guest_dies"]
    assert tag == verdict
    assert ("QEMU delivered it twice" in finished.output) is (verdict == "error")
    (records,) = (finished.run / "records").glob("*.jsonl")
    assert ("QEMU delivered it twice" in records.read_text()) is (verdict == "error")
