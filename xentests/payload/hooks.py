"""Machine code for hooks, and the tracer payload by which their order is seen from outside.

The tracer replaces ``xen_extra_version`` by a function that returns a buffer of its own, and exports that buffer's
name. Hooks of later payloads append a letter each; dom0 and guests read them as the "extra version" of Xen. So what
ran, how often and in which order is visible by one short command, with no log involved.
"""

from __future__ import annotations

from xentests.errors import UsageError
from xentests.payload.architecture import of_machine
from xentests.payload.builder import FUNC_SIZE, Payload, PayloadBuilder
from xentests.payload.code import Body, Code, returns_address
from xentests.payload.symbols import HypervisorSymbols

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


def mark(letter: str, code: Code) -> Code:
    """Append to ``code`` what appends one letter to the trace; it falls through, and the result is lost."""
    if len(letter) != 1 or not letter.isascii():
        raise UsageError(f"a mark is one ASCII letter, not {letter!r}")
    return code.put_letter(TRACE, TRACE_AT, ord(letter))


def marking(letter: str, *, returns: int = 0) -> Body:
    """A hook that appends its letter and returns ``returns`` (ignored for hooks of type void)."""
    return lambda code: mark(letter, code).set_result(returns).ret()


def marking_outcome(*, good: str, bad: str) -> Body:
    """A post-hook that appends ``good`` when the payload's ``rc`` is 0, else ``bad``."""

    def body(code: Code) -> Code:
        code.load_member(_PAYLOAD_RC).go_unless(0, "bad")
        mark(good, code).ret().label("bad")
        return mark(bad, code).ret()

    return body


def apply_action(symbols: HypervisorSymbols, letter: str, *, functions: int = 1) -> Body:
    """An apply hook that appends its letter and then does what Xen would have done for the first ``functions``."""

    def body(code: Code) -> Code:
        mark(letter, code.enter().keep_argument()).call("arch_livepatch_quiesce")
        for index in range(functions):
            code.argument_from(0, _PAYLOAD_FUNCS, index * FUNC_SIZE)
            if keeps_state_apart(symbols):
                code.argument_from(1, _PAYLOAD_FSTATE, index * _FSTATE_SIZE)
            code.call("arch_livepatch_apply")
            if keeps_state_apart(symbols):
                code.set_behind(_PAYLOAD_FSTATE, index * _FSTATE_SIZE + _FSTATE_APPLIED, 1, size=4)
            else:
                code.set_behind(_PAYLOAD_FUNCS, index * FUNC_SIZE + _FUNC_APPLIED, 1, size=1)
        return code.call("arch_livepatch_revive").set_result(0).leave().ret()

    return body


def revert_action(letter: str) -> Body:
    """A revert hook that appends its letter and then does what Xen would have done."""
    return lambda code: mark(letter, code).jump_to("revert_payload")


def keeps_state_apart(symbols: HypervisorSymbols) -> bool:
    """Whether Xen keeps a function's state outside ``.livepatch.funcs`` (upstream from 4.18.1 and 4.17.3 on).

    Read from the hypervisor's code, by its architecture.
    """
    return of_machine(symbols.machine).keeps_state_apart(symbols.code("arch_livepatch_apply"))
