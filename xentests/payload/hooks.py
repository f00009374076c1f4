"""Machine code for hooks, and the tracer payload by which their order is seen from outside.

The tracer replaces ``xen_extra_version`` by a function that returns a buffer of its own, and exports that buffer's
name. Hooks of later payloads append a letter each; dom0 and guests read them as the "extra version" of Xen. So what
ran, how often and in which order is visible by one short command, with no log involved.
"""

from __future__ import annotations

import re

from xentests.errors import UsageError
from xentests.payload.builder import FUNC_SIZE, Payload, PayloadBuilder
from xentests.payload.symbols import HypervisorSymbols
from xentests.payload.x86 import Code, returns_address

TRACE_SIZE = 15
"""How many letters are visible: ``xen_extraversion_t`` has 16 bytes with its NUL (xen/include/public/version.h)."""
TRACE = "xentests_trace"
TRACE_AT = "xentests_trace_at"

# struct payload, xen/include/xen/livepatch_payload.h; the first members are the same in 4.14 to 4.20.
_PAYLOAD_RC = 4
_PAYLOAD_FUNCS = 104
_PAYLOAD_FSTATE = 112
_FSTATE_SIZE = 40
_FSTATE_APPLIED = 4
_FUNC_APPLIED = 64


def tracer(symbols: HypervisorSymbols, name: str = "tracer") -> Payload:
    """The tracer payload; apply it first and build the traced ones on top of it."""
    builder = PayloadBuilder(name, symbols)
    buffer = builder.data(bytes(32))
    builder.export(TRACE, buffer)
    builder.export(TRACE_AT, builder.bss(4))
    builder.patch("xen_extra_version", returns_address(buffer))
    return builder.build()


def mark(letter: str, code: Code | None = None) -> Code:
    """Code that appends one letter to the trace, clobbering eax and rdx; it falls through."""
    if len(letter) != 1 or not letter.isascii():
        raise UsageError(f"a mark is one ASCII letter, not {letter!r}")
    code = code or Code()
    code.load_eax(TRACE_AT).raw(b"\x83\xe0\x0f")  # and $15, %eax
    code.lea("rdx", TRACE).raw(b"\xc6\x04\x02" + letter.encode())  # movb $letter, (%rdx,%rax)
    return code.increment32(TRACE_AT)


def marking(letter: str, *, returns: int = 0) -> Code:
    """A hook that appends its letter and returns ``returns`` (ignored for hooks of type void)."""
    return mark(letter).mov_eax(returns).ret()


def marking_outcome(*, good: str, bad: str) -> Code:
    """A post-hook that appends ``good`` when the payload's ``rc`` is 0, else ``bad``."""
    code = Code().load("rax", "rdi", _PAYLOAD_RC, wide=False).raw(b"\x85\xc0").jump("bad", when="ne")
    mark(good, code).ret().label("bad")
    return mark(bad, code).ret()


def apply_action(symbols: HypervisorSymbols, letter: str, *, functions: int = 1) -> Code:
    """An apply hook that appends its letter and then does what Xen would have done for the first ``functions``."""
    code = mark(letter, Code().push("rbx").copy(to="rbx", source="rdi")).call("arch_livepatch_quiesce")
    for index in range(functions):
        code.load("rdi", "rbx", _PAYLOAD_FUNCS).add("rdi", index * FUNC_SIZE)
        if keeps_state_apart(symbols):
            code.load("rsi", "rbx", _PAYLOAD_FSTATE).add("rsi", index * _FSTATE_SIZE)
        code.call("arch_livepatch_apply")
        set_applied(code, symbols, index, applied=True)
    return code.call("arch_livepatch_revive").mov_eax(0).pop("rbx").ret()


def set_applied(code: Code, symbols: HypervisorSymbols, index: int, *, applied: bool) -> Code:
    """Append code that notes function ``index`` of the payload in %rbx as applied or not; clobbers rax and rdx."""
    if keeps_state_apart(symbols):
        code.load("rdx", "rbx", _PAYLOAD_FSTATE)
        return code.mov_eax(int(applied)).store("rdx", index * _FSTATE_SIZE + _FSTATE_APPLIED, "rax", wide=False)
    code.load("rdx", "rbx", _PAYLOAD_FUNCS).mov_eax(int(applied))
    return code.raw(b"\x88\x82" + (index * FUNC_SIZE + _FUNC_APPLIED).to_bytes(4, "little"))  # mov %al, disp32(%rdx)


def revert_action(letter: str) -> Code:
    """A revert hook that appends its letter and then does what Xen would have done."""
    return mark(letter).jump_to("revert_payload")


def keeps_state_apart(symbols: HypervisorSymbols) -> bool:
    """Whether Xen keeps a function's state outside ``.livepatch.funcs`` (upstream from 4.18.1 and 4.17.3 on).

    Read from the hypervisor's code: where the state lies in ``struct livepatch_func``, applying a function clears
    ``patch_offset``, its byte 65, by ``movb $0, 65(%register)``.
    """
    return re.search(rb"\xc6[\x40-\x47]\x41\x00", symbols.code("arch_livepatch_apply")) is None
