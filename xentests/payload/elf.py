"""A relocatable ELF file for a 64-bit little-endian machine, written directly: every byte of it is decided here.

Not an ELF library: it writes what a live patch needs and reads nothing. Any field of any header can be overridden
after layout (``header``, ``Section.fields``, ``Symbol.fields``), which is how deliberately broken payloads are made.
Layouts: System V gABI chapter 4; numbers of relocations: the x86-64 psABI and AAELF64 ("ELF for the Arm 64-bit
Architecture"). ``readelf -a`` shows all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from xentests.errors import UsageError

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 7, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_ABS, SHN_COMMON = 0, 0xFFF1, 0xFFF2
R_X86_64_NONE, R_X86_64_64, R_X86_64_PC32, R_X86_64_32 = 0, 1, 2, 10
R_AARCH64_ABS64, R_AARCH64_ABS32, R_AARCH64_ABS16 = 257, 258, 259
R_AARCH64_PREL64, R_AARCH64_PREL32, R_AARCH64_PREL16 = 260, 261, 262
R_AARCH64_MOVW_UABS_G0, R_AARCH64_MOVW_UABS_G0_NC, R_AARCH64_MOVW_UABS_G1, R_AARCH64_MOVW_UABS_G1_NC = range(263, 267)
R_AARCH64_MOVW_UABS_G2, R_AARCH64_MOVW_UABS_G2_NC, R_AARCH64_MOVW_UABS_G3 = range(267, 270)
R_AARCH64_ADR_PREL_LO21, R_AARCH64_ADR_PREL_PG_HI21, R_AARCH64_ADD_ABS_LO12_NC = 274, 275, 277
R_AARCH64_TSTBR14, R_AARCH64_CONDBR19, R_AARCH64_JUMP26, R_AARCH64_CALL26 = 279, 280, 282, 283
R_AARCH64_LDST32_ABS_LO12_NC, R_AARCH64_LDST64_ABS_LO12_NC, R_AARCH64_P32_ABS32 = 285, 286, 1
STB_LOCAL, STB_GLOBAL = 0, 1
EM_386, EM_ARM, EM_X86_64, EM_AARCH64, ET_REL, EV_CURRENT = 3, 40, 62, 183, 1, 1

_LITTLE = {1: "B", 2: "H", 4: "I", 8: "Q"}
_IDENT = 16
_EHDR = (
    ("e_type", 2), ("e_machine", 2), ("e_version", 4), ("e_entry", 8), ("e_phoff", 8), ("e_shoff", 8), ("e_flags", 4),
    ("e_ehsize", 2), ("e_phentsize", 2), ("e_phnum", 2), ("e_shentsize", 2), ("e_shnum", 2), ("e_shstrndx", 2),
)  # fmt: skip
_IDENT_FIELDS = {"ei_class": 4, "ei_data": 5, "ei_version": 6, "ei_osabi": 7, "ei_abiversion": 8}
_SHDR = (
    ("sh_name", 4), ("sh_type", 4), ("sh_flags", 8), ("sh_addr", 8), ("sh_offset", 8), ("sh_size", 8), ("sh_link", 4),
    ("sh_info", 4), ("sh_addralign", 8), ("sh_entsize", 8),
)  # fmt: skip
_SYM = (("st_name", 4), ("st_info", 1), ("st_other", 1), ("st_shndx", 2), ("st_value", 8), ("st_size", 8))
EHDR_SIZE, SHDR_SIZE, SYM_SIZE, RELA_SIZE = 64, 64, 24, 24


@dataclass(frozen=True)
class Place:
    """A place in a section of the file being written: ``offset`` bytes from the start of ``section``."""

    section: str
    offset: int = 0

    def __add__(self, distance: int) -> Place:
        return Place(self.section, self.offset + distance)


@dataclass
class Relocation:
    """One Elf64_Rela entry: at ``offset``, of type ``kind``, against a place in this file or a named symbol."""

    offset: int
    target: Place | str
    kind: int
    addend: int = 0
    symbol_index: int | None = None
    """An index into the symbol table instead of that of ``target``."""


@dataclass
class Section:
    """One section. ``fields`` overrides members of its Elf64_Shdr by name, after everything has been laid out."""

    name: str
    flags: int = SHF_ALLOC
    content: bytes = b""
    type: int = SHT_PROGBITS
    align: int = 8
    entry_size: int = 0
    zero_size: int = 0
    """The size of a section without content in the file (SHT_NOBITS)."""
    relocations: list[Relocation] = field(default_factory=list)
    relocation_fields: dict[str, int] = field(default_factory=dict)
    """Overrides for the Elf64_Shdr of this section's relocations."""
    fields: dict[str, int] = field(default_factory=dict)


@dataclass
class Symbol:
    """One named symbol: at ``place``, or absolute, or (neither) undefined. ``fields`` overrides Elf64_Sym members."""

    name: str
    place: Place | None = None
    absolute: int | None = None
    size: int = 0
    fields: dict[str, int] = field(default_factory=dict)


@dataclass
class ElfFile:
    """Sections and symbols in order; :meth:`to_bytes` lays them out. The same object always gives the same bytes."""

    machine: int
    """EM_X86_64 or EM_AARCH64."""
    sections: list[Section] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    header: dict[str, int] = field(default_factory=dict)
    """Overrides for Elf64_Ehdr by member name, and for ``ei_class`` ... ``ei_abiversion``, ``ei_mag0``."""
    strtab_fields: dict[str, int] = field(default_factory=dict)
    symtab_fields: dict[str, int] = field(default_factory=dict)
    shstrtab_fields: dict[str, int] = field(default_factory=dict)

    def section(self, name: str) -> Section:
        """The section of that name. Raises :class:`UsageError` when there is none."""
        for section in self.sections:
            if section.name == name:
                return section
        raise UsageError(f"the payload has no section {name}; it has {', '.join(s.name for s in self.sections)}")

    def symbol(self, name: str) -> Symbol:
        """The named symbol. Raises :class:`UsageError` when there is none."""
        for symbol in self.symbols:
            if symbol.name == name:
                return symbol
        raise UsageError(f"the payload has no symbol {name!r}")

    def remove(self, name: str) -> Section:
        """Take a section out of the file, with the relocations that were to be applied to it, and return it."""
        section = self.section(name)
        self.sections.remove(section)
        return section

    def to_bytes(self) -> bytes:
        """The file: ELF header, section contents, section headers."""
        return _Writer(self).write()


class _Strings:
    """A string table: one NUL first (gABI "String Table"), each string once."""

    def __init__(self) -> None:
        self.content = bytearray(b"\0")
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.content)
            self.content += text.encode() + b"\0"
        return self._known[text]


class _Writer:
    """One run of :meth:`ElfFile.to_bytes`."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._names = _Strings()
        self._headers: list[dict[str, int]] = [dict.fromkeys((name for name, _ in _SHDR), 0)]
        self._image = bytearray(EHDR_SIZE)
        self._index = {section.name: number for number, section in enumerate(elf.sections, start=1)}
        self._anchors: dict[str, int] = {}
        self._named: dict[str, int] = {}

    def write(self) -> bytes:
        elf = self._elf
        strings = _Strings()
        table = self._symbol_table(strings)
        relocated = [section for section in elf.sections if section.relocations]
        symtab = len(elf.sections) + len(relocated) + 1
        for section in elf.sections:
            self._add(section)
        for section in relocated:
            content = b"".join(self._relocation(entry) for entry in section.relocations)
            rela = Section(f".rela{section.name}", 0, content, SHT_RELA, entry_size=RELA_SIZE)
            rela.fields = section.relocation_fields
            self._add(rela, link=symtab, info=self._index[section.name])
        self._add(
            Section(".symtab", 0, table, SHT_SYMTAB, entry_size=SYM_SIZE, fields=elf.symtab_fields),
            link=symtab + 1,
            info=1 + len(self._anchors),
        )
        self._add(Section(".strtab", 0, bytes(strings.content), SHT_STRTAB, 1, fields=elf.strtab_fields))
        self._names.add(".shstrtab")
        self._add(Section(".shstrtab", 0, bytes(self._names.content), SHT_STRTAB, 1, fields=elf.shstrtab_fields))
        self._pad(8)
        headers_at = len(self._image)
        for header in self._headers:
            self._image += _pack(_SHDR, header)
        self._image[:EHDR_SIZE] = self._file_header(headers_at)
        return bytes(self._image)

    def _symbol_table(self, strings: _Strings) -> bytes:
        """Nameless section symbols first, to which places are relative, then the named ones."""
        table = bytearray(_pack(_SYM, {}))
        for section in self._elf.sections:
            if section.flags & SHF_ALLOC:
                self._anchors[section.name] = 1 + len(self._anchors)
                table += _pack(_SYM, {"st_info": STB_LOCAL << 4 | 3, "st_shndx": self._index[section.name]})
        for symbol in self._elf.symbols:
            self._named[symbol.name] = len(table) // SYM_SIZE
            members = {"st_name": strings.add(symbol.name), "st_info": STB_GLOBAL << 4, "st_size": symbol.size}
            if symbol.place is not None:
                members |= {"st_shndx": self._index[symbol.place.section], "st_value": symbol.place.offset}
            elif symbol.absolute is not None:
                members |= {"st_shndx": SHN_ABS, "st_value": symbol.absolute}
            table += _pack(_SYM, members | symbol.fields)
        return bytes(table)

    def _relocation(self, entry: Relocation) -> bytes:
        if isinstance(entry.target, Place):
            if entry.target.section not in self._anchors:
                raise UsageError(f"a relocation against {entry.target.section}, which is not in the payload's memory")
            number, addend = self._anchors[entry.target.section], entry.addend + entry.target.offset
        else:
            number, addend = self._named[entry.target], entry.addend
        if entry.symbol_index is not None:
            number = entry.symbol_index
        return struct.pack("<QQq", entry.offset, number << 32 | entry.kind, addend)

    def _add(self, section: Section, *, link: int = 0, info: int = 0) -> None:
        self._pad(max(section.align, 1))
        in_file = section.type != SHT_NOBITS
        header = {
            "sh_name": self._names.add(section.name),
            "sh_type": section.type,
            "sh_flags": section.flags,
            "sh_offset": len(self._image),
            "sh_size": len(section.content) if in_file else section.zero_size,
            "sh_link": link,
            "sh_info": info,
            "sh_addralign": section.align,
            "sh_entsize": section.entry_size,
        }
        if in_file:
            self._image += section.content
        self._headers.append(header | section.fields)

    def _pad(self, align: int) -> None:
        self._image += bytes(-len(self._image) % align)

    def _file_header(self, headers_at: int) -> bytes:
        members = {
            "e_type": ET_REL, "e_machine": self._elf.machine, "e_version": EV_CURRENT, "e_shoff": headers_at,
            "e_ehsize": EHDR_SIZE, "e_shentsize": SHDR_SIZE, "e_shnum": len(self._headers),
            "e_shstrndx": len(self._headers) - 1,
        }  # fmt: skip
        ident = bytearray(b"\x7fELF\x02\x01\x01" + bytes(9))
        overrides = dict(self._elf.header)
        for name, at in {**_IDENT_FIELDS, "ei_mag0": 0}.items():
            if name in overrides:
                ident[at] = overrides.pop(name)
        return bytes(ident) + _pack(_EHDR, members | overrides)


def _pack(layout: tuple[tuple[str, int], ...], members: Mapping[str, int]) -> bytes:
    """Little-endian members in order; those not named are zero. An unknown name is a mistake of the caller."""
    unknown = set(members) - {name for name, _ in layout}
    if unknown:
        raise UsageError(f"no such ELF header member: {', '.join(sorted(unknown))}")
    return b"".join(struct.pack("<" + _LITTLE[size], members.get(name, 0)) for name, size in layout)
