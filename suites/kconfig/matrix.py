"""The configurations: what each is made of, and how it shows that something is gone.

A hypercall that Xen was built without answers ENOSYS (xen/include/hypercall-defs.c has no line for it then); a part of
one answers as the stub in Xen's headers does. A symbol pattern must match something in the full build and nothing here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xentests.host.guest_spec import Kind
from xentests.release.arch import Arch

CONFIGS = Path(__file__).parent / "configs"
# Numbers of hypercalls (xen/include/public/xen.h).
HVM, KEXEC, ARGO, DM, HYPFS = 34, 37, 39, 41, 42
ARGUMENTS = {HVM: (1, 0), KEXEC: (0, 0), ARGO: (1,), DM: (0, 0, 0), HYPFS: (0,)}
"""What each is asked with, so that a Xen that has it finds something else to say than ENOSYS: a sub-operation that
there is (get_param, get_range, register_ring, get_version), without memory to answer into. XSM's is not
asked: a full build says ENOSYS, too, while FLASK is off at boot."""


@dataclass(frozen=True)
class Tool:
    """A tool of dom0 that must say what is missing: ``says`` (a regular expression) in its output, and fail.

    ``unclear`` is what a tool is known to say that leaves its user guessing: an expected failure. It ``works_in_full``,
    but for one whose feature is off at boot.
    """

    argv: tuple[str, ...]
    says: str
    unclear: str = ""
    works_in_full: bool = True


@dataclass(frozen=True)
class Config:
    """One configuration: fragments laid over ``start``, one after the other.

    ``hypercalls`` answer ENOSYS in dom0; ``symbols`` are patterns of which none is left; ``kinds`` the guests it runs.
    """

    name: str
    fragments: tuple[str, ...]
    start: str = "defconfig"
    options: tuple[str, ...] = ()
    hypercalls: tuple[int, ...] = ()
    symbols: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    kinds: tuple[Kind, ...] = ("pv", "pvh")
    xen_args: tuple[str, ...] = ()
    iommu: bool = False

    def release(self, source: str) -> str:
        """The name of the release that is ``source`` so configured."""
        kconfig = "".join(f",kconfig={CONFIGS / f'{name}.config'}" for name in self.fragments)
        return f"{source}{kconfig}{f',config={self.start}' if self.start != 'defconfig' else ''}"


_NO_CREDIT = Tool(
    ("sh", "-c", """xl cpupool-cpu-remove Pool-0 1 && xl cpupool-create 'name="p"' 'sched="credit"' 'cpus=["1"]'"""),
    "Could not create|error",
)
_NO_SUCH = "Function not implemented|[Oo]peration not supported"


def _without(name: str, *options: str, arch: Arch = "amd64", **more: object) -> Config:
    return Config(f"no-{name}", (f"full-{arch}", f"no-{name}"), options=options, **more)  # type: ignore[arg-type]


def _common(arch: Arch) -> list[Config]:
    """What both architectures can do without."""
    kinds: tuple[Kind, ...] = ("pv", "pvh") if arch == "amd64" else ("",)
    without = functools.partial(_without, arch=arch, kinds=kinds)
    return [
        Config("default", (), kinds=kinds),
        Config("full", (f"full-{arch}",), kinds=kinds),
        Config("debug", (f"full-{arch}", "debug"), kinds=kinds),
        Config("one-scheduler", (f"full-{arch}", "one-scheduler"), kinds=kinds,
               options=("SCHED_CREDIT", "SCHED_RTDS", "SCHED_ARINC653", "SCHED_NULL"),
               symbols=(r"csched_\w+", r"rt_(?!range)\w+|sched_rtds_def", r"a653sched_\w+",
                        r"null_(?!read|write|ops|handler)\w+|sched_null_def"),
               tools=(_NO_CREDIT,)),
        without("livepatch", "LIVEPATCH", symbols=(r"livepatch_\w+",),
                tools=(Tool(("xen-livepatch", "list"), _NO_SUCH),)),
        without("hypfs", "HYPFS", hypercalls=(HYPFS,), symbols=(r"hypfs_\w+",),
                tools=(Tool(("xenhypfs", "ls", "/"), _NO_SUCH, unclear="Could not open libxenhypfs"),)),
        without("tracebuffer", "TRACEBUFFER", symbols=(r"tb_\w+|trace_will_trace_event",),
                tools=(Tool(("xentrace", "-T", "1", "/tmp/trace"), _NO_SUCH),)),
        without("argo", "ARGO", hypercalls=(ARGO,), symbols=(r"do_argo_op|argo_\w+",)),
        without("xsm", "XSM", symbols=(r"flask_\w+", r"avc_\w+", r"silo_\w+"),
                tools=(Tool(("xl", "getenforce"), f"{_NO_SUCH}|[Dd]isabled", works_in_full=False),)),
    ]  # fmt: skip


_ONLY_PV = Tool(("sh", "-c", "xl info virt_caps | grep -w hvm || ! xl info virt_caps"), r"^pv\b")
_AMD64 = [
    *_common("amd64"),
    Config("minimal", ("minimal-amd64",), start="allnoconfig", kinds=("pv",),
           options=("HVM", "LIVEPATCH", "HYPFS", "KEXEC", "TRACEBUFFER", "ARGO", "XSM"),
           hypercalls=(HVM, KEXEC, ARGO, DM, HYPFS)),
    _without("hvm", "HVM", "IOREQ_SERVER", hypercalls=(HVM, DM), kinds=("pv",), tools=(_ONLY_PV,),
             symbols=(r"hvm_\w+", r"(svm|vmx)_(?!vpmu)\w+", r"nsvm_\w+")),
    _without("pv", "PV", symbols=(r"pv_\w+_gdt|do_set_trap_table", r"do_mmu_update"), kinds=("pvh",),
             xen_args=("dom0=pvh",), iommu=True),
    _without("kexec", "KEXEC", hypercalls=(KEXEC,), symbols=(r"do_kexec_op|kexec_\w+",)),
    _without("shadow", "SHADOW_PAGING", symbols=(r"sh_\w+_guest_\d",)),
]  # fmt: skip
_ARM64 = [
    *_common("arm64"),
    Config("minimal", ("minimal-arm64",), start="allnoconfig", kinds=("",),
           options=("HYPFS", "TRACEBUFFER", "ARGO", "XSM"), hypercalls=(ARGO, HYPFS)),
    _without("ioreq", "IOREQ_SERVER", arch="arm64", kinds=("",), hypercalls=(DM,), symbols=(r"ioreq_\w+",)),
]  # fmt: skip
MATRIX: dict[Arch, Sequence[Config]] = {"amd64": _AMD64, "arm64": _ARM64}
FULL = "full"
