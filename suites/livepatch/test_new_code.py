"""New code really runs: for dom0 and for a guest that was running all along, and neither notices more than that."""

from __future__ import annotations

import pytest

from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees, guest_sees
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import Action
from xentests.payload.x86 import NOP, Code, returns, returns_address

pytestmark = pytest.mark.needs("livepatch")

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def test_the_symbols_are_those_of_the_running_hypervisor(livepatch_host: Host, payloads: Payloads) -> None:
    """The build-id of the package's xen-syms is the one that the running hypervisor tells.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": a payload is built for one build-id.
    """
    assert livepatch_host.xl.info().build_id == payloads.symbols.build_id.hex()


def test_dom0_sees_the_new_code(livepatch_host: Host, payloads: Payloads) -> None:
    """dom0, which was not rebooted, sees a replaced function through xl and through its own kernel.

    docs/misc/livepatch.pandoc, "Example of different trampoline patching".
    """
    boot_id = livepatch_host.read_file(BOOT_ID)
    livepatch_host.livepatch.upload(payloads.replace(returns="FOR DOM0")).apply()
    assert livepatch_host.xl.info().xen_extra == "FOR DOM0"
    assert dom0_sees(livepatch_host) == "FOR DOM0"
    assert livepatch_host.read_file(BOOT_ID) == boot_id


def test_a_running_guest_sees_the_new_code(livepatch_host: Host, livepatch_guest: Guest, payloads: Payloads) -> None:
    """A guest that has been running all along sees a function replaced and restored, and runs on without a reboot.

    docs/misc/livepatch.pandoc, "Rationale": patching the running hypervisor.
    """
    old = guest_sees(livepatch_guest)
    boot_id = livepatch_guest.console.run(f"cat {BOOT_ID}").text
    started = livepatch_guest.wait_tick()
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="FOR GUESTS"))
    payload.apply()
    assert guest_sees(livepatch_guest) == "FOR GUESTS"
    payload.revert()
    assert guest_sees(livepatch_guest) == old
    assert livepatch_guest.wait_tick().uptime_s > started.uptime_s
    assert livepatch_guest.console.run(f"cat {BOOT_ID}").text == boot_id


def test_a_number_is_returned(
    livepatch_host: Host, sysctl: LivepatchSysctl, livepatch_guest: Guest, payloads: Payloads
) -> None:
    """A function that returns a number is replaced for dom0 and guest alike."""
    sysctl.patch(payloads.replace(MINOR_VERSION, returns=77))
    assert dom0_sees(livepatch_host, "version/minor") == "77"
    assert guest_sees(livepatch_guest, "version/minor") == "77"


def test_several_functions_change_at_once(livepatch_host: Host, payloads: Payloads) -> None:
    """One payload replaces four functions, and restores all four.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": an array of functions to be patched.
    """
    before = livepatch_host.xl.info()
    values: dict[str, int | str] = {
        EXTRA_VERSION: ".four",
        MINOR_VERSION: 99,
        "xen_changeset": "four functions",
        "xen_compiler": "none",
    }
    payload = livepatch_host.livepatch.upload(payloads.replace_all(values))
    payload.apply()
    now = livepatch_host.xl.info()
    assert (now.xen_extra, now.raw["xen_minor"]) == (".four", "99")
    assert (now.raw["xen_changeset"], now.raw["cc_compiler"]) == ("four functions", "none")
    payload.revert()
    after = livepatch_host.xl.info()
    for name in ("xen_extra", "xen_minor", "xen_changeset", "cc_compiler"):
        assert after.raw[name] == before.raw[name]


def test_nop_takes_an_instruction_of_xen_out(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """With no new function, bytes of the old one become NOPs: xen_minor_version no longer loads its number.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": `new_addr` zero; `new_size` bytes are replaced.
    """
    before = dom0_sees(livepatch_host, "version/minor")
    start = payloads.first_instruction(MINOR_VERSION)
    assert payloads.symbols.code(MINOR_VERSION)[start] == 0xB8  # mov $imm32, %eax
    sysctl.patch(payloads.builder("nop").nop(MINOR_VERSION, start + 5).build())
    assert dom0_sees(livepatch_host, "version/minor") != before
    sysctl.action("nop", Action.REVERT)
    assert dom0_sees(livepatch_host, "version/minor") == before


def test_nop_in_the_code_of_another_payload(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload takes a jump out of a function that an earlier payload brought, found by the name it exports.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": the old function is looked up by `name`.
    """
    first = payloads.builder()
    jump_over = b"\xeb\x08"
    code = Code(NOP + jump_over).lea("rax", first.string("OPEN")).ret().lea("rax", first.string("SHUT")).ret()
    start = first.code(code)
    first.patch(EXTRA_VERSION, start)
    first.export("xentests_gate", start + len(NOP))
    base = first.build()
    sysctl.patch(base)
    assert dom0_sees(livepatch_host) == "SHUT"
    sysctl.patch(payloads.builder("nop", on=base).nop("xentests_gate", len(jump_over), old_size=len(code)).build())
    assert dom0_sees(livepatch_host) == "OPEN"
    sysctl.action("nop", Action.REVERT)
    assert dom0_sees(livepatch_host) == "SHUT"


def test_the_address_of_the_old_function_may_be_given(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """With `old_addr` filled in, no symbol is looked up: the name may be anything.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": `name` is "only used if `old_addr` is zero".
    """
    builder = payloads.builder()
    builder.patch(
        "not_a_symbol_of_xen",
        returns_address(builder.string("BY ADDRESS")),
        old_address=payloads.symbols.address(EXTRA_VERSION),
        old_size=payloads.symbols.size(EXTRA_VERSION),
    )
    sysctl.patch(builder.build())
    assert dom0_sees(livepatch_host) == "BY ADDRESS"


def test_new_code_calls_functions_of_xen(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """New code reaches functions of the hypervisor by name: here printk, heard in `xl dmesg`.

    docs/misc/livepatch.pandoc, "Design of payload format": relocations; undefined symbols are looked up in Xen.
    """
    builder = payloads.builder()
    speech = builder.string("<0>xentests: new code speaks\n")
    speak = Code().lea("rdi", speech).raw(b"\x31\xc0").call("printk")  # xor %eax, %eax: no vector arguments
    builder.patch(EXTRA_VERSION, Code().push("rbx").append(speak).lea("rax", builder.string("SAID")).pop("rbx").ret())
    sysctl.patch(builder.build())
    assert dom0_sees(livepatch_host) == "SAID"
    assert "xentests: new code speaks" in livepatch_host.xl.dmesg()


def test_new_code_brings_data_of_its_own(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A replaced function counts its calls in the payload's own initialised data.

    docs/misc/livepatch.pandoc, ".bss and .data sections": a payload can introduce new ones.
    """
    builder = payloads.builder()
    text = builder.data(b"call 0\0")
    count = Code().raw(b"\xff\x05").fix(text + len("call "), -4)  # incl
    builder.patch(EXTRA_VERSION, count.lea("rax", text).ret())
    sysctl.patch(builder.build())
    assert [dom0_sees(livepatch_host) for _ in range(3)] == ["call 1", "call 2", "call 3"]


def test_bss_begins_as_zeros(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """.bss of a payload is zero at first, at each of three uploads.

    docs/misc/livepatch.pandoc, ".bss and .data sections".
    """
    for _ in range(3):
        builder = payloads.builder()
        zeros = builder.bss(4096)
        builder.patch(
            EXTRA_VERSION, Code().raw(b"\x81\x05").fix(zeros, -8).raw(b"ABC\0").lea("rax", zeros).ret()
        )  # addl
        sysctl.patch(builder.build())
        assert dom0_sees(livepatch_host) == "ABC"
        sysctl.action(builder.name, Action.REVERT)
        sysctl.action(builder.name, Action.UNLOAD)


def test_a_large_payload(livepatch_host: Host, payloads: Payloads) -> None:
    """A payload of almost 2 MiB, most of it code, is taken and its last function runs.

    xen/include/xen/livepatch.h, LIVEPATCH_MAX_SIZE: 2 MiB.
    """
    builder = payloads.builder()
    builder.code(Code(b"\xcc" * ((2 << 20) - 8192)))
    builder.patch(MINOR_VERSION, returns(42))
    livepatch_host.livepatch.upload(builder.build()).apply()
    assert dom0_sees(livepatch_host, "version/minor") == "42"


def test_the_old_code_is_restored_to_the_byte(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """After apply and revert the old function's first bytes are the original ones: Xen itself compares them.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": a revert copies the undo buffer to `old_addr`.
    """
    sysctl.patch(payloads.replace(returns="FIRST", name="first"))
    sysctl.action("first", Action.REVERT)
    expectation = payloads.expectation(EXTRA_VERSION)
    assert sysctl.patch(payloads.replace(returns="SECOND", expect=expectation)).failure == ""
    assert dom0_sees(livepatch_host) == "SECOND"


def test_the_debug_key_tells_what_is_patched(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Xen's debug key x tells each payload's name, state, functions and build-id.

    docs/misc/livepatch.pandoc, "Workflow": querying which modules have been loaded at runtime.
    """
    file = payloads.replace(returns="KEYED", name="told-by-key")
    sysctl.patch(file)
    livepatch_host.succeed("xl", "debug-keys", "x")
    log = livepatch_host.xl.dmesg()
    assert "name=told-by-key state=APPLIED" in log
    assert f"{EXTRA_VERSION} patch {payloads.symbols.address(EXTRA_VERSION):016x}({12})" in log
    assert f"build-id={file.build_id.hex()}" in log
