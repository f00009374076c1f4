"""New code really runs: for dom0 and for a guest that was running all along, and neither notices more than that."""

from __future__ import annotations

import pytest

from suites.livepatch.known import known_crash
from xentests.host.guests import Guest
from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees, guest_sees
from xentests.payload.code import returns, returns_address
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import Action

pytestmark = pytest.mark.needs("livepatch")

OUTSIDE_XEN = "Xen 4.14 to 4.22 on Arm: arch_livepatch_apply() writes through a mapping of Xen's own code alone"
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
    load = payloads.arch.code().set_result(int(before)).content
    assert payloads.symbols.code(MINOR_VERSION)[start:].startswith(load)
    sysctl.patch(payloads.builder("nop").nop(MINOR_VERSION, start + len(load)).build())
    assert dom0_sees(livepatch_host, "version/minor") != before
    sysctl.action("nop", Action.REVERT)
    assert dom0_sees(livepatch_host, "version/minor") == before


def test_nop_in_the_code_of_another_payload(xen_host: Host, payloads: Payloads) -> None:
    """A payload takes a jump out of a function that an earlier payload brought, found by the name it exports.

    docs/misc/livepatch.pandoc, ".livepatch.funcs": the old function is looked up by `name`.
    """
    first = payloads.builder()
    code = first.new_code().nop().label("gate").go("shut").label("open").result_address(first.string("OPEN")).ret()
    start = first.code(code.label("shut").result_address(first.string("SHUT")).ret())
    first.patch(EXTRA_VERSION, start)
    first.export("xentests_gate", start + code.offset_of("gate"))
    size = code.offset_of("open") - code.offset_of("gate")
    base = first.build()
    sysctl = xen_host.livepatch.sysctl
    sysctl.patch(base)
    assert dom0_sees(xen_host) == "SHUT"
    with known_crash(xen_host, "Unexpected Trap: Data Abort", OUTSIDE_XEN):
        sysctl.patch(payloads.builder("nop", on=base).nop("xentests_gate", size, old_size=len(code)).build())
    assert dom0_sees(xen_host) == "OPEN"
    sysctl.action("nop", Action.REVERT)
    assert dom0_sees(xen_host) == "SHUT"


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
    code = builder.new_code().enter().argument_address(speech).call("printk")
    builder.patch(EXTRA_VERSION, code.result_address(builder.string("SAID")).leave().ret())
    sysctl.patch(builder.build())
    assert dom0_sees(livepatch_host) == "SAID"
    assert "xentests: new code speaks" in livepatch_host.xl.dmesg()


def test_new_code_brings_data_of_its_own(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A replaced function counts its calls in the payload's own initialised data.

    docs/misc/livepatch.pandoc, ".bss and .data sections": a payload can introduce new ones.
    """
    builder = payloads.builder()
    text = builder.data(b"call no 0\0")
    builder.patch(EXTRA_VERSION, builder.new_code().add32(text + len("call no "), 1).result_address(text).ret())
    sysctl.patch(builder.build())
    assert [dom0_sees(livepatch_host) for _ in range(3)] == ["call no 1", "call no 2", "call no 3"]


def test_bss_begins_as_zeros(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """.bss of a payload is zero at first, at each of three uploads.

    docs/misc/livepatch.pandoc, ".bss and .data sections".
    """
    for _ in range(3):
        builder = payloads.builder()
        zeros = builder.bss(4096)
        text = int.from_bytes(b"ABC\0", "little")
        builder.patch(EXTRA_VERSION, builder.new_code().add32(zeros, text).result_address(zeros).ret())
        sysctl.patch(builder.build())
        assert dom0_sees(livepatch_host) == "ABC"
        sysctl.action(builder.name, Action.REVERT)
        sysctl.action(builder.name, Action.UNLOAD)


def test_a_large_payload(livepatch_host: Host, payloads: Payloads) -> None:
    """A payload of almost 2 MiB, most of it code, is taken and its last function runs.

    xen/include/xen/livepatch.h, LIVEPATCH_MAX_SIZE: 2 MiB.
    """
    builder = payloads.builder()
    ballast = builder.new_code()
    ballast.raw(ballast.nop().content * (((2 << 20) - 32768) // len(ballast) - 1))
    builder.code(ballast)
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


def test_every_cpu_runs_the_new_code(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Each physical CPU has run the old code, then runs the new one, and the old one again after the revert.

    docs/misc/livepatch.pandoc, "When to patch"; on Arm each CPU's instruction cache has to be told (DDI 0487, B2.4.4,
    "Concurrent modification and execution of instructions").
    """
    old = dom0_sees(livepatch_host)
    cpus = [str(cpu) for cpu in range(livepatch_host.domain.machine.cpus)]

    def seen() -> list[str]:
        answers = []
        for cpu in cpus:
            livepatch_host.succeed("xl", "vcpu-pin", "0", "0", cpu)
            answers.append(dom0_sees(livepatch_host))
        livepatch_host.succeed("xl", "vcpu-pin", "0", "0", "all")
        return answers

    assert seen() == [old] * len(cpus)
    sysctl.patch(payloads.replace(returns="EVERYWHERE", name="everywhere"))
    assert seen() == ["EVERYWHERE"] * len(cpus)
    sysctl.action("everywhere", Action.REVERT)
    assert seen() == [old] * len(cpus)


def test_the_debug_key_tells_what_is_patched(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Xen's debug key x tells each payload's name, state, functions and build-id.

    docs/misc/livepatch.pandoc, "Workflow": querying which modules have been loaded at runtime.
    """
    file = payloads.replace(returns="KEYED", name="told-by-key")
    sysctl.patch(file)
    livepatch_host.succeed("xl", "debug-keys", "x")
    log = livepatch_host.xl.dmesg()
    patched = payloads.symbols.symbol(EXTRA_VERSION)
    assert "name=told-by-key state=APPLIED" in log
    assert f"{EXTRA_VERSION} patch {patched.address:016x}({patched.size})" in log
    assert f"build-id={file.build_id.hex()}" in log
