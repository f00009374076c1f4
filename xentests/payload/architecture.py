"""What differs between the architectures a payload can be for, as one object each: chosen once, by the hypervisor.

How code is written is the assemblers' business (``x86``, ``arm64``); this is what Xen's live patching makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xentests.errors import UsageError
from xentests.payload import arm64, elf, x86
from xentests.payload.code import Code
from xentests.release.arch import Arch


@dataclass(frozen=True)
class Architecture:
    """One architecture. ``machine`` is ELF's ``e_machine``; relocation types are ELF's numbers."""

    name: Arch
    machine: int
    code: Callable[[], Code]
    """Empty code."""
    absolute64: int
    """Relocation of 8 bytes: the address of something."""
    relative32: int
    """Relocation of 4 bytes: the distance to something from there."""
    unsupported: int
    """A relocation that the ABI has, and Xen does not know (ELF32's, or one of 32 bits that is zero-extended)."""
    landing: bytes
    """What a function may begin with that Xen leaves in place and patches behind."""
    branch: Callable[[int, int], bytes]
    """The trampoline: the bytes with which code at one address goes on at another."""
    branch_size: int
    """A function that is to be replaced has at least so many bytes, besides ``landing``."""
    keeps_state_apart: Callable[[bytes], bool]
    """Given the code of ``arch_livepatch_apply``: whether a function's state is kept outside ``.livepatch.funcs``."""


AMD64 = Architecture(
    name="amd64",
    machine=elf.EM_X86_64,
    code=x86.Code,
    absolute64=elf.R_X86_64_64,
    relative32=elf.R_X86_64_PC32,
    unsupported=elf.R_X86_64_32,
    landing=x86.ENDBR64,
    branch=x86.branch,
    branch_size=5,
    keeps_state_apart=x86.keeps_state_apart,
)

ARM64 = Architecture(
    name="arm64",
    machine=elf.EM_AARCH64,
    code=arm64.Code,
    absolute64=elf.R_AARCH64_ABS64,
    relative32=elf.R_AARCH64_PREL32,
    unsupported=elf.R_AARCH64_P32_ABS32,
    landing=b"",
    branch=arm64.branch,
    branch_size=arm64.INSTRUCTION,
    keeps_state_apart=arm64.keeps_state_apart,
)


def of_machine(machine: int) -> Architecture:
    """The architecture of that ``e_machine``. Raises :class:`UsageError` for one that this project has not."""
    for known in (AMD64, ARM64):
        if known.machine == machine:
            return known
    raise UsageError(
        f"no payload can be made for ELF's machine {machine}; only for {elf.EM_X86_64} and {elf.EM_AARCH64}"
    )
