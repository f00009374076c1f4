"""How much of a hypervisor there is to attack: sizes, symbols and hypercalls, read from its xen-syms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from xentests.errors import LabError

# The hypercalls there are (xen/include/public/xen.h, __HYPERVISOR_*; arch-x86/xen.h), by the names of their handlers
# (xen/include/hypercall-defs.c): do_NAME, and do_arm_NAME for some on Arm.
_HYPERCALLS = frozenset({
    "set_trap_table", "mmu_update", "set_gdt", "stack_switch", "set_callbacks", "fpu_taskswitch", "sched_op_compat",
    "platform_op", "set_debugreg", "get_debugreg", "update_descriptor", "memory_op", "multicall", "update_va_mapping",
    "set_timer_op", "event_channel_op_compat", "xen_version", "console_io", "physdev_op_compat", "grant_table_op",
    "vm_assist", "update_va_mapping_otherdomain", "iret", "vcpu_op", "set_segment_base", "mmuext_op", "xsm_op",
    "nmi_op", "sched_op", "callback_op", "xenoprof_op", "event_channel_op", "physdev_op", "hvm_op", "sysctl", "domctl",
    "kexec_op", "tmem_op", "argo_op", "xenpmu_op", "dm_op", "hypfs_op", "mca", "paging_domctl_cont",
})  # fmt: skip
_HANDLER = re.compile(r"do_(?:arm_)?(\w+)")


@dataclass(frozen=True)
class Surface:
    """Sizes in bytes: code and constants, data, and data that begins as zeros; functions and variables by name."""

    text: int
    data: int
    bss: int
    symbols: frozenset[str]

    @property
    def hypercalls(self) -> frozenset[str]:
        """The hypercalls that it has code for, by name."""
        found = {match[1] for name in self.symbols if (match := _HANDLER.fullmatch(name))}
        return frozenset(found & _HYPERCALLS)


def surface_of(symbols: Path) -> Surface:
    """What the xen-syms at ``symbols`` has. Raises LabError for what is none."""
    sizes = {"text": 0, "data": 0, "bss": 0}
    names: set[str] = set()
    try:
        with symbols.open("rb") as file:
            elf = ELFFile(file)
            for section in elf.iter_sections():
                flags = section["sh_flags"]
                if flags & SH_FLAGS.SHF_ALLOC:
                    # Xen is linked with -N, which calls its code writable, too.
                    constant = flags & SH_FLAGS.SHF_EXECINSTR or not flags & SH_FLAGS.SHF_WRITE
                    kind = "bss" if section["sh_type"] == "SHT_NOBITS" else "text" if constant else "data"
                    sizes[kind] += section["sh_size"]
                if isinstance(section, SymbolTableSection):
                    names |= {
                        symbol.name for symbol in section.iter_symbols()
                        if symbol["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
                    }  # fmt: skip
    except (OSError, ELFError) as error:
        raise LabError(f"{symbols}: no xen-syms to read: {error}") from error
    return Surface(**sizes, symbols=frozenset(names))
