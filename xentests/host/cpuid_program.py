"""Programs that execute an instruction inside a guest: static x86-64 ELF files, made here, typed on its console.

What a guest's kernel says in /proc/cpuinfo was read at its boot; what CPUID answers now is what a migration may have
changed. Sources: elf(5), Linux' table of system calls, AMD64 Architecture Programmer's Manual, volume 3 (appendix E,
CPUID; RDFSBASE).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_BASE = 0x400000
_HEADERS = 64 + 56
_EXIT = b"\x31\xff\xb8\x3c\0\0\0\x0f\x05"  # exit(0)
_CHUNK = 96  # bytes a line: four characters each, well below what a terminal takes in a line


def cpuid_program(leaves: Sequence[tuple[int, int]]) -> bytes:
    """Asks for these (leaf, subleaf); writes four 32-bit registers (eax, ebx, ecx, edx) for each to stdout."""
    size = 16 * len(leaves)
    code = b"\x48\x81\xec" + struct.pack("<I", size) + b"\x48\x89\xe7"  # sub $size, %rsp; mov %rsp, %rdi
    for leaf, subleaf in leaves:
        code += b"\xb8" + struct.pack("<I", leaf) + b"\xb9" + struct.pack("<I", subleaf) + b"\x0f\xa2"  # cpuid
        code += b"\x89\x07\x89\x5f\x04\x89\x4f\x08\x89\x57\x0c"  # mov %eax, (%rdi); %ebx, 4(%rdi); ...
        code += b"\x48\x83\xc7\x10"  # add $16, %rdi
    code += b"\xbf\1\0\0\0\x48\x89\xe6\xba" + struct.pack("<I", size)  # write(1, %rsp, size)
    return _elf(code + b"\xb8\1\0\0\0\x0f\x05" + _EXIT)


def fsgsbase_program() -> bytes:
    """Executes RDFSBASE, and ends with 0; where CR4.FSGSBASE is not set, it dies of SIGILL."""
    return _elf(b"\xf3\x48\x0f\xae\xc0" + _EXIT)


def _elf(code: bytes) -> bytes:
    whole = _HEADERS + len(code)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, whole, whole, 0x1000)
    return head + code


def typed(program: bytes, path: str) -> list[str]:
    """Lines for a guest's shell that make ``path`` this program."""
    lines = [f": > {path}"]
    for start in range(0, len(program), _CHUNK):
        octal = "".join(f"\\{byte:03o}" for byte in program[start : start + _CHUNK])
        lines.append(f"printf '{octal}' >> {path}")
    return [*lines, f"chmod +x {path}"]
