"""Deliberate damage to a payload, by name: what to pass to :meth:`PayloadBuilder.build` to get a malformed file.

Each function returns a change to the finished :class:`ElfFile`; the ELF writer then writes what it was told. Damage
below the level of ELF (truncation, random bytes) is done on :attr:`Payload.content` instead.
"""

from __future__ import annotations

from xentests.payload.builder import Damage
from xentests.payload.elf import ElfFile, Place, Relocation, Section, Symbol


def header(**fields: int) -> Damage:
    """Set members of the ELF header, e.g. ``e_machine``, ``e_shnum``, ``ei_class``, ``ei_mag0``."""
    return lambda file: file.header.update(fields)


def section(name: str, **fields: int) -> Damage:
    """Set members of a section's header, e.g. ``sh_size``; also of ``.symtab``, ``.strtab`` and ``.shstrtab``."""

    def damage(file: ElfFile) -> None:
        tables = {".symtab": file.symtab_fields, ".strtab": file.strtab_fields, ".shstrtab": file.shstrtab_fields}
        (tables[name] if name in tables else file.section(name).fields).update(fields)

    return damage


def relocations(name: str, **fields: int) -> Damage:
    """Set members of the header of the relocations of section ``name``."""
    return lambda file: file.section(name).relocation_fields.update(fields)


def symbol(name: str, **fields: int) -> Damage:
    """Set members of a named symbol, e.g. ``st_shndx``; the symbol is added when the payload has none."""

    def damage(file: ElfFile) -> None:
        if not any(known.name == name for known in file.symbols):
            file.symbols.append(Symbol(name))
        file.symbol(name).fields.update(fields)

    return damage


def drop(name: str) -> Damage:
    """Leave a section out."""
    return lambda file: _ignore(file.remove(name))


def add(name: str, content: bytes = b"", *, flags: int = 2, **fields: int) -> Damage:
    """Add a section that does not belong there, even one of that name a second time."""
    return lambda file: file.sections.append(Section(name, flags, content, align=1, fields=fields))


def empty(name: str) -> Damage:
    """Take a section's content and relocations away; the section stays."""
    return _content(name, b"")


def overwrite(name: str, offset: int, content: bytes) -> Damage:
    """Replace bytes of a section's content (relocations still apply on top)."""

    def damage(file: ElfFile) -> None:
        found = file.section(name)
        found.content = found.content[:offset] + content + found.content[offset + len(content) :]

    return damage


def resize(name: str, size: int) -> Damage:
    """Cut or zero-extend a section's content."""

    def damage(file: ElfFile) -> None:
        found = file.section(name)
        found.content = found.content[:size].ljust(size, b"\0")

    return damage


def relocate(name: str, entry: Relocation) -> Damage:
    """Add a relocation to a section."""
    return lambda file: file.section(name).relocations.append(entry)


def export(name: str, place: Place) -> Damage:
    """Name a place, also one that has no business in the symbol table."""
    return lambda file: file.symbols.append(Symbol(name, place))


def _content(name: str, content: bytes) -> Damage:
    def damage(file: ElfFile) -> None:
        found = file.section(name)
        found.content, found.relocations = content, []

    return damage


def _ignore(_value: object) -> None:
    """Let a lambda whose expression has a value be a :data:`Damage`."""
