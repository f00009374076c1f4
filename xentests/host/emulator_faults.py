"""Recognises, in the words of a dying Linux, what no CPU does: what killed it was QEMU, not Xen.

docs/decisions/30-died-of-qemu.md has how each was understood.

*An interrupt delivered twice.* QEMU's helper_vmrun() (target/i386/tcg, svm_helper.c; 7.2 to 10.0 and later) delivers an
injected interrupt itself, and leaves ``exception_index`` set to its vector. The CPU's loop then looks for interrupts,
and for a request to leave, one after the other (accel/tcg/cpu-exec.c, cpu_handle_interrupt()): another thread's
interrupt that comes between the two looks has the loop left with that index, and cpu_handle_exception() delivers the
vector once more, whatever EFLAGS.IF says. Linux takes an interrupt in the first instructions of the handler of the same
interrupt, before it has swapped GS, and faults until its stack ends.

*A breakpoint that is not in memory.* QEMU 7.2 translates code first and enters the translation into its page's list
after (accel/tcg/tb-maint.c, tb_link_page()); later versions lock the page before. Linux patches its own code while all
its CPUs run, by way of INT3: a CPU that translates such an INT3 while another one overwrites it keeps the translation
for good.
"""

from __future__ import annotations

import re

_IF = 0x200
_ENTRY = r"asm_(?:sysvec|common)_\w+\+0x[0-9a-f]+/0x[0-9a-f]+"
# Linux's call trace, innermost first: the handler's entry, and beneath it the entry that it has interrupted.
_TWICE = re.compile(
    rf"\b(?P<outer>{_ENTRY})\r?\n[^\n]*\bRIP: 0010:(?P<inner>{_ENTRY})\r?\n(?:[^\n]*\r?\n){{0,3}}?[^\n]*"
    r"\bEFLAGS: (?P<flags>[0-9a-f]{8})\b"
)
# An INT3 that nobody expects, and the memory around RIP, which is behind it: <> marks the byte at RIP. Lines are short:
# a guest that prints endless ones would make the search endless.
_LINE = r"[^\n]{0,300}"
_BYTE = r"[0-9a-f]{2}"
_BREAKPOINT = re.compile(
    rf"\bint3: [0-9a-f]{{4}} \[#\d{{1,6}}\](?:{_LINE}\n){{1,8}}?{_LINE}?\bRIP: [0-9a-f]{{4}}:(?P<place>\S{{1,200}})"
    rf"{_LINE}\n(?:{_LINE}\n){{0,3}}?{_LINE}?\bCode: (?:{_BYTE} ){{0,80}}?(?P<before>{_BYTE}) <{_BYTE}>"
)
_INT3 = "cc"


def find(log: str) -> str:
    """What in a guest's or a host's ``log`` no CPU does, as a sentence; empty if there is nothing of the kind."""
    for found in _TWICE.finditer(log):
        if not int(found["flags"], 16) & _IF:
            return (
                f"Linux took an interrupt at {found['inner']}, in the entry of an interrupt, with EFLAGS "
                f"{found['flags']}, that is with interrupts off: QEMU delivered it twice (helper_vmrun() and "
                "exception_index). This decides nothing about Xen. It is rare; where it is not, suspect Xen's own "
                "injection (svm_inject_extint(), EXITINTINFO) after all"
            )
    for found in _BREAKPOINT.finditer(log):
        if found["before"] != _INT3:
            return (
                f"Linux was stopped by an INT3 before {found['place']}, where memory has {found['before']}: QEMU "
                "kept a translation of code that Linux had patched meanwhile (tb_link_page() of 7.2). This "
                "decides nothing about Xen. It is rare, and does not happen on a host with one CPU; there, and under "
                "a later QEMU, suspect Xen and Linux after all"
            )
    return ""
