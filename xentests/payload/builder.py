"""Live patch payloads, described in Python and written as ELF files.

What a payload consists of is laid down in Xen's docs/misc/livepatch.pandoc, "Design of payload format"; the layout of
``struct livepatch_func`` is that of payload version 2 (xen/include/public/sysctl.h). Nothing here talks to a host.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from xentests.errors import UsageError
from xentests.payload import elf
from xentests.payload.architecture import of_machine
from xentests.payload.code import Body, Code, returns, returns_address
from xentests.payload.elf import ElfFile, Place, Relocation, Section, Symbol
from xentests.payload.symbols import HypervisorSymbols

FUNCS = ".livepatch.funcs"
DEPENDS = ".livepatch.depends"
XEN_DEPENDS = ".livepatch.xen_depends"
BUILD_ID = ".note.gnu.build-id"
METADATA = ".modinfo"
TEXT, RODATA, DATA, BSS = ".text", ".rodata", ".data", ".bss"

FUNC_SIZE = 104
"""Size of ``struct livepatch_func`` on 64-bit hypervisors, bytes."""
PAYLOAD_VERSION = 2
OPAQUE_SIZE = 31
"""At most so many bytes can be replaced by NOPs at one place, and stated as an expectation."""
_BUILD_ID_SIZE = 20

Damage = Callable[[ElfFile], None]
"""A change made to the finished ELF file before it is written: see :mod:`xentests.payload.damage`."""


class Hook(Enum):
    """The hooks of "Hooks" in livepatch.pandoc, by section name."""

    LOAD = ".livepatch.hooks.load"
    UNLOAD = ".livepatch.hooks.unload"
    PRE_APPLY = ".livepatch.hooks.preapply"
    APPLY = ".livepatch.hooks.apply"
    POST_APPLY = ".livepatch.hooks.postapply"
    PRE_REVERT = ".livepatch.hooks.prerevert"
    REVERT = ".livepatch.hooks.revert"
    POST_REVERT = ".livepatch.hooks.postrevert"


@dataclass(frozen=True)
class Expectation:
    """What the first bytes of the old function have to be ("livepatch_expectation_t" in livepatch.pandoc)."""

    content: bytes
    enabled: bool = True
    length: int | None = None
    """Length stated in the payload; that of ``content`` unless told."""
    reserved: int = 0

    def pack(self) -> bytes:
        """32 bytes: a bit field (enabled 1, length 5, reserved 2), then the data."""
        length = len(self.content) if self.length is None else self.length
        return bytes([int(self.enabled) | length << 1 | self.reserved << 6]) + self.content.ljust(OPAQUE_SIZE, b"\0")


@dataclass(frozen=True)
class Function:
    """One entry of ``.livepatch.funcs``. ``new`` None means NOP; ``old_address`` 0 means: Xen looks ``name`` up."""

    name: str
    new: Place | None
    new_size: int
    old_size: int
    old_address: int = 0
    version: int = PAYLOAD_VERSION
    expect: Expectation | None = None
    has_name: bool = True

    def pack(self) -> bytes:
        """The 104 bytes, with zeros where relocations put addresses."""
        expectation = self.expect.pack() if self.expect else bytes(32)
        head = struct.pack("<QQQIIB", 0, 0, self.old_address, self.new_size, self.old_size, self.version)
        return head + bytes(OPAQUE_SIZE) + bytes(8) + expectation


@dataclass(frozen=True)
class Payload:
    """A finished payload: the name it is uploaded under, the file, and its own build-id."""

    name: str
    content: bytes
    build_id: bytes

    def renamed(self, name: str) -> Payload:
        """The same file under another name."""
        return replace(self, name=name)

    def with_content(self, content: bytes) -> Payload:
        """Other bytes under the same name: for damage that no ELF writer would write."""
        return replace(self, content=content)


@dataclass
class _Parts:
    """What has been asked for so far."""

    functions: list[Function] = field(default_factory=list)
    hooks: dict[Hook, list[Place]] = field(default_factory=dict)
    exports: list[Symbol] = field(default_factory=list)
    metadata: bytes = b""


class PayloadBuilder:
    """Collects the parts of one payload; :meth:`build` writes it. All sizes in bytes."""

    def __init__(self, name: str, symbols: HypervisorSymbols) -> None:
        self.name = name
        self.symbols = symbols
        self.arch = of_machine(symbols.machine)
        """How the hypervisor's architecture does things; the payload's machine."""
        self.depends: bytes = symbols.build_id
        """Build-id of what must have been applied last: the hypervisor's for the first payload of a stack."""
        self.xen_depends: bytes = symbols.build_id
        self.hooks_writable = False
        """Whether hook sections are writable; if so Xen holds that the payload has data (see "safe to re-apply")."""
        self._parts = _Parts()
        self._sections: dict[str, Section] = {}

    def section(
        self, name: str, *, flags: int = elf.SHF_ALLOC, align: int = 8, kind: int = elf.SHT_PROGBITS
    ) -> Section:
        """The section of that name, made when it is asked for first."""
        if name not in self._sections:
            self._sections[name] = Section(name, flags, align=align, type=kind)
        return self._sections[name]

    def put(self, section: Section, content: bytes) -> Place:
        """Append bytes to a section, aligned as the section is; where they begin."""
        section.content += bytes(-len(section.content) % section.align)
        place = Place(section.name, len(section.content))
        section.content += content
        return place

    def string(self, text: str) -> Place:
        """A NUL-terminated string among the read-only data."""
        return self.put(self.section(RODATA), text.encode() + b"\0")

    def data(self, content: bytes) -> Place:
        """Writable, initialised data."""
        return self.put(self.section(DATA, flags=elf.SHF_ALLOC | elf.SHF_WRITE), content)

    def bss(self, size: int) -> Place:
        """Writable data that Xen zeroes when the payload is uploaded."""
        section = self.section(BSS, flags=elf.SHF_ALLOC | elf.SHF_WRITE, kind=elf.SHT_NOBITS)
        place = Place(BSS, section.zero_size)
        section.zero_size += (size + 7) // 8 * 8
        return place

    def new_code(self) -> Code:
        """Code without anything in it, of this payload's architecture."""
        return self.arch.code()

    def code(self, code: Code | Body, *, section: str = TEXT) -> Place:
        """Executable code; its fixups become relocations."""
        code = self._made(code)
        text = self.section(section, flags=elf.SHF_ALLOC | elf.SHF_EXECINSTR, align=16)
        place = self.put(text, code.content)
        for fixup in code.fixups:
            text.relocations.append(Relocation(place.offset + fixup.offset, fixup.target, fixup.kind, fixup.addend))
        return place

    def export(self, name: str, place: Place) -> None:
        """Give a place a name by which later payloads find it. Xen hides names of what replaces a function."""
        self._parts.exports.append(Symbol(name, place))

    def patch(
        self,
        function: str,
        code: Code | Body | Place,
        *,
        new_size: int | None = None,
        old_size: int | None = None,
        old_address: int = 0,
        version: int = PAYLOAD_VERSION,
        expect: Expectation | None = None,
    ) -> PayloadBuilder:
        """Replace a function by code; sizes are the true ones, and Xen looks the address up, unless told."""
        made = code if isinstance(code, Place) else self._made(code)
        place = made if isinstance(made, Place) else self.code(made)
        length = (0 if isinstance(made, Place) else len(made)) if new_size is None else new_size
        self._parts.functions.append(
            Function(
                name=function,
                new=place,
                new_size=length,
                old_size=self.symbols.size(function) if old_size is None else old_size,
                old_address=old_address,
                version=version,
                expect=expect,
            )
        )
        return self

    def replace(self, function: str, *, returns_value: int | str, expect: Expectation | None = None) -> PayloadBuilder:
        """Replace a function by one that returns a number, or the address of a string."""
        if isinstance(returns_value, str):
            return self.patch(function, returns_address(self.string(returns_value)), expect=expect)
        return self.patch(function, returns(returns_value), expect=expect)

    def nop(
        self, function: str, size: int, *, old_size: int | None = None, old_address: int = 0, named: bool = True
    ) -> PayloadBuilder:
        """Replace the first ``size`` bytes of a function by NOPs (an ENDBR64 at its start counts, but stays)."""
        length = self.symbols.size(function) if old_size is None else old_size
        self._parts.functions.append(
            Function(name=function, new=None, new_size=size, old_size=length, old_address=old_address, has_name=named)
        )
        return self

    def hook(self, kind: Hook, code: Code | Body | Place) -> PayloadBuilder:
        """Add a hook function; load and unload hooks may be several."""
        place = code if isinstance(code, Place) else self.code(code)
        self._parts.hooks.setdefault(kind, []).append(place)
        return self

    def metadata(self, values: Mapping[str, str] | bytes) -> PayloadBuilder:
        """``key=value`` strings, each NUL-terminated, for the list of payloads; or raw bytes."""
        if isinstance(values, bytes):
            self._parts.metadata = values
        else:
            self._parts.metadata = b"".join(f"{key}={value}".encode() + b"\0" for key, value in values.items())
        return self

    def on_top_of(self, payload: Payload) -> PayloadBuilder:
        """State that ``payload`` must be the one applied last."""
        self.depends = payload.build_id
        return self

    def build(self, *damages: Damage) -> Payload:
        """Write the file. The same calls always give the same bytes; the build-id is a hash of name and content."""
        file = self._file(bytes(_BUILD_ID_SIZE))
        build_id = hashlib.sha1(self.name.encode() + b"\0" + file.to_bytes(), usedforsecurity=False).digest()
        file = self._file(build_id)
        for damage in damages:
            damage(file)
        return Payload(self.name, file.to_bytes(), build_id)

    def _made(self, code: Code | Body) -> Code:
        return code if isinstance(code, Code) else code(self.new_code())

    def _file(self, build_id: bytes) -> ElfFile:
        sections = [replace(s, relocations=list(s.relocations), fields=dict(s.fields)) for s in self._sections.values()]
        file = ElfFile(self.arch.machine, sections, [replace(symbol) for symbol in self._parts.exports])
        if self._parts.functions:
            file.sections.append(self._function_section(file))
        for kind, places in self._parts.hooks.items():
            flags = elf.SHF_ALLOC | (elf.SHF_WRITE if self.hooks_writable else 0)
            file.sections.append(self._pointers(kind.value, places, flags=flags))
        if self._parts.metadata:
            file.sections.append(Section(METADATA, content=self._parts.metadata, align=1))
        file.sections += [
            note_section(DEPENDS, self.depends),
            note_section(XEN_DEPENDS, self.xen_depends),
            note_section(BUILD_ID, build_id),
        ]
        self._add_imports(file)
        return file

    def _add_imports(self, file: ElfFile) -> None:
        """Undefined symbols for what Xen resolves by name, absolute ones for its static functions."""
        named = {symbol.name for symbol in file.symbols}
        for section in file.sections:
            for entry in section.relocations:
                if isinstance(entry.target, Place) or entry.target in named:
                    continue
                named.add(entry.target)
                static = entry.target in self.symbols and not self.symbols.symbol(entry.target).is_global
                address = self.symbols.address(entry.target) if static else None
                file.symbols.append(Symbol(entry.target, absolute=address))

    def _function_section(self, file: ElfFile) -> Section:
        """``.livepatch.funcs``: writable, since Xen keeps addresses (and in 4.14 its state) in it."""
        section = Section(FUNCS, elf.SHF_ALLOC | elf.SHF_WRITE)
        names = Section(".rodata.names", align=1)
        for function in self._parts.functions:
            base = len(section.content)
            section.content += function.pack()
            if function.has_name:
                section.relocations.append(self._pointer(base, Place(names.name, len(names.content))))
                names.content += function.name.encode() + b"\0"
            if function.new is not None:
                section.relocations.append(self._pointer(base + 8, function.new))
        if names.content:
            file.sections.append(names)
        return section

    def _pointers(self, name: str, places: Sequence[Place], *, flags: int) -> Section:
        section = Section(name, flags, bytes(8 * len(places)))
        section.relocations = [self._pointer(8 * index, place) for index, place in enumerate(places)]
        return section

    def _pointer(self, offset: int, target: Place) -> Relocation:
        return Relocation(offset, target, self.arch.absolute64)


def note_section(name: str, build_id: bytes) -> Section:
    """An ELF note of type NT_GNU_BUILD_ID, as GNU ld writes it."""
    content = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    return Section(name, content=content, type=elf.SHT_NOTE, align=4)


def checked_name(name: str) -> str:
    """``name``, if Xen takes it: 1 to 127 characters. Raises :class:`UsageError`."""
    if not 1 <= len(name.encode()) <= 127:
        raise UsageError(f"a payload's name has 1 to 127 bytes (XEN_LIVEPATCH_NAME_SIZE with its NUL), not {len(name)}")
    return name
