"""Writable data of payloads: when a reverted payload may be applied again, and that data is each payload's own."""

from __future__ import annotations

import pytest

from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.host.livepatch_sysctl import LivepatchSysctl, Outcome
from xentests.host.xen_version import dom0_sees
from xentests.payload import elf
from xentests.payload.builder import BSS, DATA, Hook, PayloadBuilder
from xentests.payload.code import returns, returns_address
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads
from xentests.payload.sysctl import Action, Status

pytestmark = pytest.mark.needs("livepatch")

COUNTER = b"call no "
"""What a counting payload says before the number of the call, which then is 4-aligned."""
WRITABLE = elf.SHF_ALLOC | elf.SHF_WRITE


def counting(payloads: Payloads) -> PayloadBuilder:
    """A payload that counts, in its own data, how often the extra version was asked for."""
    builder = payloads.builder()
    text = builder.data(COUNTER + b"0\0")
    counted = builder.new_code().add32(text + len(COUNTER), 1)
    return builder.patch(EXTRA_VERSION, counted.result_address(text).ret())


def apply_revert_apply(sysctl: LivepatchSysctl, builder: PayloadBuilder) -> Outcome:
    """Apply and revert a payload, which must work, and try to apply it again."""
    assert sysctl.patch(builder.build()).failure == ""
    assert sysctl.action(builder.name, Action.REVERT).failure == ""
    return sysctl.action(builder.name, Action.APPLY)


REFUSED = Status("", "CHECKED", "EINVAL")
"""What becomes of a payload with data that is applied again: an error of the action, not of the hypercall."""


def test_code_alone_can_be_applied_again(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload of functions alone is applied, reverted and applied again, several times.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): the exception to the rule.
    """
    livepatch_host.livepatch.upload(payloads.replace(returns="AGAIN", name="again"))
    for _ in range(3):
        assert sysctl.action("again", Action.APPLY).failure == ""
        assert dom0_sees(livepatch_host) == "AGAIN"
        assert sysctl.action("again", Action.REVERT).failure == ""


def test_with_data_it_cannot(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload with .data is refused with EINVAL once it was reverted: its data may no longer be pristine.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): "we disallow re-applying an payload after it
    has been reverted".
    """
    payload = livepatch_host.livepatch.upload(counting(payloads).build())
    assert sysctl.action(payload.name, Action.APPLY).failure == ""
    assert sysctl.action(payload.name, Action.REVERT).failure == ""
    with pytest.raises(LivepatchError) as refused:
        payload.apply()
    assert refused.value.errno == "EINVAL"
    assert sysctl.get(payload.name) == REFUSED
    livepatch_host.console.wait_for("payload has .data. Please unload", 5)


def test_with_bss_it_cannot(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload with .bss is refused with EINVAL once it was reverted.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done).
    """
    builder = payloads.builder().replace(MINOR_VERSION, returns_value=1)
    builder.bss(8)
    assert apply_revert_apply(sysctl, builder).status == REFUSED


@pytest.mark.parametrize("section", [DATA, BSS])
def test_empty_data_does_not_count(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, section: str
) -> None:
    """A .data or .bss of zero length does not keep a payload from being applied again.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): "the .data or .bss sections are of zero
    length".
    """
    builder = payloads.builder().replace(MINOR_VERSION, returns_value=35)
    builder.section(section, flags=WRITABLE, kind=elf.SHT_NOBITS if section == BSS else elf.SHT_PROGBITS)
    assert apply_revert_apply(sysctl, builder).failure == ""
    assert dom0_sees(livepatch_host, "version/minor") == "35"


def test_hooks_in_read_only_sections_do_not_count(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Hooks alone, in read-only sections, do not keep a payload from being applied again.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): it is writable data that matters.
    """
    builder = payloads.builder().replace(MINOR_VERSION, returns_value=36).hook(Hook.LOAD, returns(0))
    assert apply_revert_apply(sysctl, builder).failure == ""
    assert dom0_sees(livepatch_host, "version/minor") == "36"


def test_hooks_in_writable_sections_count_as_data(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Hook sections that are writable make a payload one with data.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): only `.livepatch.funcs` is excepted.
    """
    builder = payloads.builder().replace(MINOR_VERSION, returns_value=37).hook(Hook.LOAD, returns(0))
    builder.hooks_writable = True
    assert apply_revert_apply(sysctl, builder).status == REFUSED


def test_after_a_new_upload_the_data_is_pristine(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """Unloaded and uploaded again, a payload with data is applied again, and its data is as in the file.

    docs/misc/livepatch.pandoc, ".bss and .data sections" (Not Yet Done): "MUST unload the payload and upload it again".
    """
    file = counting(payloads).build()
    for _ in range(2):
        sysctl.patch(file)
        assert [dom0_sees(livepatch_host) for _ in range(2)] == ["call no 1", "call no 2"]
        sysctl.action(file.name, Action.REVERT)
        sysctl.action(file.name, Action.UNLOAD)


def test_data_is_kept_while_others_come_and_go(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A payload's data lives on while another payload is applied on top of it and reverted.

    docs/misc/livepatch.pandoc, ".bss and .data sections".
    """
    lower = counting(payloads).build()
    sysctl.patch(lower)
    assert dom0_sees(livepatch_host) == "call no 1"
    sysctl.patch(payloads.replace(returns="UPPER", on=lower, name="upper"))
    assert dom0_sees(livepatch_host) == "UPPER"
    sysctl.action("upper", Action.REVERT)
    assert dom0_sees(livepatch_host) == "call no 2"


def test_two_payloads_have_data_of_their_own(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """The same code in two payloads counts in two places.

    docs/misc/livepatch.pandoc, ".bss and .data sections".
    """
    first, second = counting(payloads).build(), counting(payloads).build()
    sysctl.patch(first)
    assert dom0_sees(livepatch_host) == "call no 1"
    sysctl.action(first.name, Action.REVERT)
    sysctl.patch(second)
    assert dom0_sees(livepatch_host) == "call no 1"


def test_data_of_a_loaded_payload_is_open_to_others(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A payload refers by name to data of one that is loaded, even if that is not applied.

    docs/misc/livepatch.pandoc, "Design of payload format": symbols are resolved when a payload is uploaded.
    """
    store = payloads.builder("store").hook(Hook.LOAD, returns(0))
    store.export("xentests_shared", store.data(b"SHARED\0"))
    livepatch_host.livepatch.upload(store.build())
    reader = payloads.builder("reader").patch(EXTRA_VERSION, returns_address("xentests_shared"))
    sysctl.patch(reader.build())
    assert dom0_sees(livepatch_host) == "SHARED"


def test_read_only_data_of_a_payload(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A pointer table in read-only data, filled in by relocations, leads to the payload's strings.

    docs/misc/livepatch.pandoc, ".rodata sections": "Patching in the new function will end up also patching in the new
    .rodata section".
    """
    builder = payloads.builder()
    table = builder.section(".rodata.table")
    for index, text in enumerate(("zero", "one", "two")):
        builder.put(table, bytes(8))
        table.relocations.append(elf.Relocation(8 * index, builder.string(text), builder.arch.absolute64))
    code = builder.new_code().load_pointer(elf.Place(table.name, 16)).ret()
    sysctl.patch(builder.patch(EXTRA_VERSION, code).build())
    assert dom0_sees(livepatch_host) == "two"
