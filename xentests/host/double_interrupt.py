"""Recognises a guest that died of QEMU: of an interrupt that Xen injected once and QEMU delivered twice.

QEMU's helper_vmrun() (target/i386/tcg, svm_helper.c; 7.2 to 10.0 and later) delivers an injected interrupt itself, and
leaves ``exception_index`` set to its vector. The CPU's loop then looks for interrupts, and for a request to leave, one
after the other (accel/tcg/cpu-exec.c, cpu_handle_interrupt()): another thread's interrupt that comes between the two
looks has the loop left with that index, and cpu_handle_exception() delivers the vector once more, whatever EFLAGS.IF
says. Linux takes an interrupt in the first instructions of the handler of the same interrupt, before it has swapped GS,
and faults until its stack ends. docs/decisions/30-died-of-qemu.md.
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

ADVICE = (
    "This decides nothing about Xen. It is rare; where it is not, suspect Xen's own injection (svm_inject_extint(), "
    "EXITINTINFO) after all"
)


def find(log: str) -> str:
    """What in a guest's ``log`` no CPU does, as a sentence; empty if there is nothing of the kind."""
    for found in _TWICE.finditer(log):
        if not int(found["flags"], 16) & _IF:
            return (
                f"the guest took an interrupt at {found['inner']}, in the entry of an interrupt, with EFLAGS "
                f"{found['flags']}, that is with interrupts off: QEMU delivered it twice (helper_vmrun() and "
                f"exception_index). {ADVICE}"
            )
    return ""
