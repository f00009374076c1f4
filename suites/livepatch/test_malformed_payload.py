"""Proper ELF files that are not proper payloads: refused with their errno, nothing left behind, Xen lives on."""

from __future__ import annotations

import struct

import pytest

from suites.livepatch.refused import Case, Make, damaged, sound, try_upload
from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.payload import damage
from xentests.payload.builder import BUILD_ID, DEPENDS, FUNC_SIZE, FUNCS, XEN_DEPENDS, Hook, Payload
from xentests.payload.code import returns
from xentests.payload.factory import EXTRA_VERSION, MINOR_VERSION, Payloads

pytestmark = pytest.mark.needs("livepatch")

INVALID, UNSUPPORTED = ("EINVAL",), ("EOPNOTSUPP",)
# Since 4.18 what is wrong in a note that is not xen_depends is told by an errno of its own.
NOTE = ("EINVAL", "ENODATA")
NOTES = {"depends": DEPENDS, "xen-depends": XEN_DEPENDS, "build-id": BUILD_ID}
SINGLE = [kind for kind in Hook if kind not in (Hook.LOAD, Hook.UNLOAD)]

UNHEARD_OF = bytes.fromhex("0123456789abcdef0123456789abcdef01234567")


def _note(**words: int) -> bytes:
    """The start of a GNU build-id note, with members changed."""
    members = {"name_size": 4, "size": 20, "type": 3} | words
    return struct.pack("<3I", *members.values()) + b"GNU\0"


def _noted(damage_of: str, content: bytes) -> Make:
    return damaged(damage.overwrite(damage_of, 0, content))


BROKEN_NOTES = {
    f"{short}-{how}": case
    for short, name in NOTES.items()
    for how, case in {
        "missing": Case(damaged(damage.drop(name)), INVALID, f".*{name} is missing"),
        "empty": Case(damaged(damage.empty(name)), INVALID, f".*{name}"),
        "too-short": Case(damaged(damage.resize(name, 8)), INVALID),
        "cut-off": Case(damaged(damage.resize(name, 30)), INVALID),
        "of-another-type": Case(_noted(name, _note(type=1)), NOTE),
        "of-another-owner": Case(_noted(name, struct.pack("<3I", 4, 20, 3) + b"Xen\0"), NOTE),
        "without-owner": Case(_noted(name, _note(name_size=0)), INVALID),
        "without-id": Case(_noted(name, _note(size=0)), INVALID),
        "longer-than-itself": Case(_noted(name, _note(size=4096)), INVALID),
        "that-overflows": Case(_noted(name, _note(size=0xFFFFFFF0, name_size=0x20)), INVALID),
    }.items()
}


def _builder(case: str) -> Make:
    """Payloads that the builder can be asked for, although Xen must refuse them."""

    def make(payloads: Payloads) -> Payload:
        builder = payloads.builder("bad")
        size = payloads.symbols.size(MINOR_VERSION)
        if case == "other-hypervisor":
            builder.xen_depends = UNHEARD_OF
            builder.replace(MINOR_VERSION, returns_value=1)
        elif case == "unknown-function":
            builder.patch("no_such_function_in_xen", returns(1), old_size=16)
        elif case == "too-small":
            needed = payloads.first_instruction(MINOR_VERSION) + payloads.arch.branch_size
            builder.patch(MINOR_VERSION, returns(1), old_size=needed - 1)
        elif case == "nop-too-long":
            builder.nop(MINOR_VERSION, 32, old_size=64)
        elif case == "nop-beyond":
            builder.nop(MINOR_VERSION, size + 4)
        elif case == "nothing":
            builder.string("nothing to do")
        return builder.build()

    return make


def _func_member(offset: int, content: bytes, errnos: tuple[str, ...], reason: str) -> Case:
    return Case(damaged(damage.overwrite(FUNCS, offset, content)), errnos, reason)


FUNCTIONS = {
    "none-at-all": Case(_builder("nothing"), INVALID, "Nothing to patch"),
    "empty": Case(damaged(damage.empty(FUNCS)), INVALID, f"{FUNCS} is empty"),
    "half-an-entry": Case(damaged(damage.resize(FUNCS, FUNC_SIZE + FUNC_SIZE // 2)), INVALID, "Wrong size 156 of"),
    "one-byte-too-many": Case(damaged(damage.resize(FUNCS, FUNC_SIZE + 1)), INVALID, "Wrong size 105 of"),
    "version-0": _func_member(32, b"\0", UNSUPPORTED, r"Wrong version \(0\)"),
    "version-1": _func_member(32, b"\1", UNSUPPORTED, r"Wrong version \(1\)"),
    "version-3": _func_member(32, b"\3", UNSUPPORTED, r"Wrong version \(3\)"),
    "old-size-0": _func_member(28, bytes(4), INVALID, "Address or size fields are zero"),
    "too-small-for-a-jump": Case(_builder("too-small"), INVALID),
    "unknown-function": Case(_builder("unknown-function"), ("ENOENT",), "Could not resolve old address of no_such_fun"),
    "nop-of-more-than-31-bytes": Case(_builder("nop-too-long"), UNSUPPORTED),
    "nop-of-more-than-the-function": Case(
        _builder("nop-beyond"),
        INVALID,
        taken={"arm64": "Xen 4.14 to 4.22 on Arm: arch_livepatch_verify_func() does not look at old_size"},
    ),
}

OTHER = {
    "wrong-hypervisor": Case(_builder("other-hypervisor"), INVALID, ".*(build-id mismatch|build-id failed)"),
    "metadata-without-end": Case(
        lambda payloads: sound(payloads).metadata(b"key=value").build(), INVALID, "Incorrect metadata format detected"
    ),
    "bug-frame-size": Case(damaged(damage.add(".bug_frames.1", bytes(12))), INVALID, r"Wrong size 12 of .bug_frames.1"),
    "alternatives-size": Case(damaged(damage.add(".altinstructions", bytes(15))), INVALID, r"Wrong size 15 of .altins"),
}


@pytest.mark.parametrize("case", BROKEN_NOTES)
def test_build_id_notes(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """A payload needs three proper build-id notes: its own, the hypervisor's, and its predecessor's.

    docs/misc/livepatch.pandoc, "Design of payload format": each "MUST have one"; ".livepatch.xen_depends,
    .livepatch.depends and .note.gnu.build-id": the format of an ELF note, GNU, NT_GNU_BUILD_ID.
    """
    try_upload(livepatch_host, payloads, BROKEN_NOTES[case])


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_that_cannot_be_patched(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """`.livepatch.funcs` is an array of whole entries of version 2, each with a known function of a size that will do.

    docs/misc/livepatch.pandoc, ".livepatch.funcs" and "Trampoline (e9 opcode), x86": a jump takes five bytes, four on
    Arm.
    """
    try_upload(livepatch_host, payloads, FUNCTIONS[case])


@pytest.mark.parametrize("case", OTHER)
def test_other_sections(livepatch_host: Host, payloads: Payloads, case: str) -> None:
    """The wrong hypervisor's build-id, metadata without an end, and tables of the wrong size are refused.

    docs/misc/livepatch.pandoc, "Live patch interdependencies", "XEN_SYSCTL_LIVEPATCH_LIST" (metadata) and "Design of
    payload format" (architecture-specific sections).
    """
    try_upload(livepatch_host, payloads, OTHER[case])


@pytest.mark.parametrize("kind", Hook, ids=lambda kind: kind.name.lower().replace("_", "-"))
def test_an_empty_hook_section(livepatch_host: Host, payloads: Payloads, kind: Hook) -> None:
    """A hook section without a pointer in it is refused with EINVAL.

    docs/misc/livepatch.pandoc, "Hooks": each entry is eight bytes.
    """
    case = Case(damaged(damage.add(kind.value)), INVALID, f"{kind.value} is empty")
    try_upload(livepatch_host, payloads, case)


@pytest.mark.parametrize("kind", Hook, ids=lambda kind: kind.name.lower().replace("_", "-"))
def test_one_and_a_half_hooks(livepatch_host: Host, payloads: Payloads, kind: Hook) -> None:
    """A hook section whose size is no multiple of eight is refused with EINVAL.

    docs/misc/livepatch.pandoc, "Hooks": each entry is eight bytes.
    """
    case = Case(damaged(damage.add(kind.value, bytes(12))), INVALID, f"Wrong size 12 of {kind.value}")
    try_upload(livepatch_host, payloads, case)


@pytest.mark.parametrize("kind", SINGLE, ids=lambda kind: kind.name.lower().replace("_", "-"))
def test_two_hooks_where_one_is_allowed(livepatch_host: Host, payloads: Payloads, kind: Hook) -> None:
    """Two pre-, post- or action hooks of one kind are refused with EINVAL.

    docs/misc/livepatch.pandoc, "Hooks": "a pointer to a single hook function pointer".
    """

    def make(payloads: Payloads) -> Payload:
        return sound(payloads).hook(kind, returns(0)).hook(kind, returns(0)).build()

    try_upload(livepatch_host, payloads, Case(make, INVALID))


def test_a_payload_that_is_refused_leaves_no_names(livepatch_host: Host, payloads: Payloads) -> None:
    """What a refused payload exported is not there for others, and its name and build-id are free.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD".
    """
    builder = payloads.builder("bad").replace(EXTRA_VERSION, returns_value="SECOND TRY")
    builder.export("xentests_left_over", builder.string("left"))
    try_upload(livepatch_host, payloads, Case(lambda _: builder.build(damage.resize(FUNCS, 3)), INVALID))
    livepatch_host.livepatch.upload(builder.build()).apply()


def test_a_symbol_exported_twice(livepatch_host: Host, payloads: Payloads) -> None:
    """A name that a loaded payload exports cannot be exported by another one: EEXIST.

    docs/misc/livepatch.pandoc, "Design of payload format": symbols are looked up by name.
    """
    first = payloads.builder().hook(Hook.LOAD, returns(0))
    first.export("xentests_twice", first.data(b"1\0"))
    livepatch_host.livepatch.upload(first.build())
    second = payloads.builder("bad").hook(Hook.LOAD, returns(0))
    second.export("xentests_twice", second.data(b"2\0"))
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.upload(second.build())
    assert refused.value.errno == "EEXIST"
    livepatch_host.console.wait_for("bad: duplicate new symbol: xentests_twice", 5)
