"""One kernel module that a release's kernel was built without: a file of its source, compiled against its headers.

Only the outer compiler and linker run: no make, and none of the kernel's own helpers, which need not run here. What
``modpost`` would add (kernel: Documentation/kbuild/modules.rst, "Module Versioning") is written here: version magic,
checksums of the symbols used, modules they come from. Without objtool, ftrace and the stack protector a module loads
all the same: what they leave in a module is optional (kernel: kernel/module/main.c, ``find_module_sections``).
Only for x86-64.
"""

from __future__ import annotations

import io
import lzma
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from xentests.errors import DownloadError, LabError, LabFull
from xentests.image.modules import module_name
from xentests.image.unpack import Tree
from xentests.lab.store import Store, key_of
from xentests.release.archive import download_alone
from xentests.release.deb import Package
from xentests.release.spec import ReleaseSpec
from xentests.tools import run_tool

_MODULE = "module.ko"
VERSION = 1
"""Of what is compiled here and how: raise it when the same source and headers give another module."""

_FLAGS = (
    "-nostdinc", "-D__KERNEL__", "-DMODULE", "-std=gnu11", "-O2", "-w", "-g0",
    # As in the kernel's Makefile and arch/x86/Makefile: what the two sides of a call must agree on.
    "-fshort-wchar", "-funsigned-char", "-fno-common", "-fno-PIE", "-fno-strict-aliasing", "-fno-strict-overflow",
    "-fno-delete-null-pointer-checks", "-fno-asynchronous-unwind-tables", "-fno-stack-protector", "-fno-jump-tables",
    "-fno-optimize-sibling-calls", "-fno-allow-store-data-races", "-fcf-protection=branch",
    "-m64", "-mno-sse", "-mno-mmx", "-mno-sse2", "-mno-3dnow", "-mno-avx", "-mno-80387", "-mno-fp-ret-in-387",
    "-mpreferred-stack-boundary=3", "-mskip-rax-setup", "-mno-red-zone", "-mcmodel=kernel",
    "-mindirect-branch=thunk-extern", "-mindirect-branch-register", "-mindirect-branch-cs-prefix",
    # Thunks of returns would have to be listed, by objtool, for the kernel to patch; unpatched ones make it warn.
    "-mfunction-return=keep",
)  # fmt: skip


@dataclass(frozen=True)
class Headers:
    """The unpacked header packages of one kernel: its own, and those common to all flavours."""

    own: Path
    common: Path

    def includes(self) -> list[str]:
        """The compiler's options for them, in the order of the kernel's Makefile (LINUXINCLUDE)."""
        own, common = self.own, self.common
        folders = [
            common / "arch/x86/include", own / "arch/x86/include/generated", common / "include", own / "include",
            common / "arch/x86/include/uapi", own / "arch/x86/include/generated/uapi", common / "include/uapi",
            own / "include/generated/uapi",
        ]  # fmt: skip
        first = ("linux/compiler-version.h", "linux/kconfig.h", "linux/compiler_types.h")
        return [
            *(f"-I{folder}" for folder in folders),
            *(word for name in first for word in ("-include", f"{common}/include/{name}")),
        ]


@dataclass(frozen=True)
class Symbol:
    """A line of ``Module.symvers``: the checksum of an exported symbol, and the module that has it, "" for vmlinux."""

    crc: int
    module: str


@dataclass(frozen=True)
class Built:
    """A module that was built, or in ``reason`` why there is none."""

    name: str
    content: bytes = b""
    reason: str = ""


def build_module(
    spec: ReleaseSpec, store: Store, kernel: Package, name: str, file: str, *, mirror: str | None
) -> Built:
    """Module ``name`` from ``file`` of the source of a kernel package; from the store when it was built before.

    A kernel whose source has no such file, whose source the archive no longer has, or which does not compile here gives
    a reason and no module: all else about the release can be tested without. Raises LabFull.
    """

    def build(directory: Path) -> Mapping[str, object]:
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".tmp-source-") as scratch:
            found = _from_source(spec, kernel, name, file, Path(scratch), mirror=mirror)
        if found is not None:
            (directory / _MODULE).write_bytes(found)
        return {"module": name, "kernel": kernel.to_json(), "file": file, "built": found is not None}

    compiler = run_tool(["gcc", "-dumpfullversion"], package="gcc").decode().strip()
    key = key_of("module", VERSION, _FLAGS, kernel.sha256, name, file, compiler)
    try:
        entry = store.get("module", key, build, what=f"module {name} for {kernel.name}")
    except LabFull:
        raise
    except DownloadError as error:
        return Built(name, reason=f"its source could not be had when this image was made: {error}".partition("\n")[0])
    except LabError as error:  # an outer compiler that this kernel's headers are too old or too new for
        return Built(name, reason=f"it did not compile when this image was made: {error}".partition("\n")[0])
    if not entry.manifest["built"]:
        return Built(name, reason=f"the source of {kernel.name} has no {file}")
    return Built(name, entry.file(_MODULE).read_bytes())


def _from_source(
    spec: ReleaseSpec, kernel: Package, name: str, file: str, scratch: Path, *, mirror: str | None
) -> bytes | None:
    release = kernel.name.removeprefix("linux-image-")
    source = f"linux-source-{'.'.join(release.split('.')[:2])}"
    own, common = f"linux-headers-{release}", f"linux-headers-{release.removesuffix(f'-{spec.arch}')}-common"
    debs = download_alone(spec, dict.fromkeys((own, common, source), kernel.version), scratch, mirror=mirror)
    text = file_of_source(debs[source], file)
    if text is None:
        return None
    tree = Tree(scratch / "headers", left_out=_not_a_header)
    tree.add_all((Package(package, kernel.version, "", ""), debs[package]) for package in (own, common))
    headers = tree.path / "usr/src"
    return compile_module(text, Headers(headers / own, headers / common), name=name)


def _not_a_header(path: str) -> bool:
    return not path.startswith("usr/src/") or ("/arch/" in path and "/arch/x86/" not in path)


def parse_symvers(text: str) -> dict[str, Symbol]:
    """The exported symbols of a kernel by name (Documentation/kbuild/modules.rst, "Symbols From the Kernel")."""
    found = {}
    for line in text.splitlines():
        crc, name, module, *_ = line.split("\t")
        found[name] = Symbol(int(crc, 16), "" if module == "vmlinux" else module_name(module))
    return found


def compile_module(source: bytes, headers: Headers, *, name: str) -> bytes:
    """Module ``name`` compiled from one C file. Raises LabError when it does not compile or lacks a symbol."""
    with tempfile.TemporaryDirectory(prefix="xentests-module-") as directory:
        folder = Path(directory)
        (folder / "source.c").write_bytes(source)
        _compile(folder, "source", headers, name)
        wanted = undefined((folder / "source.o").read_bytes())
        symbols = parse_symvers((headers.own / "Module.symvers").read_text())
        (folder / "mod.c").write_text(about(name, wanted, symbols))
        _compile(folder, "mod", headers, name)
        script = headers.own / "arch/x86/module.lds"
        run_tool(["ld", "-r", "-m", "elf_x86_64", "-z", "noexecstack", "--build-id=sha1", "-T", script,
                  "-o", "module.ko", "source.o", "mod.o"], cwd=folder, package="binutils")  # fmt: skip
        return (folder / "module.ko").read_bytes()


def _compile(folder: Path, stem: str, headers: Headers, name: str) -> None:
    base = module_name(name)
    names = [f'-DKBUILD_BASENAME="{base}"', f'-DKBUILD_MODNAME="{base}"', f"-D__KBUILD_MODNAME=kmod_{base}"]
    names.append(f'-DKBUILD_MODFILE="xentests/{name}"')
    argv = ["gcc", *_FLAGS, *headers.includes(), *names, "-c", "-o", f"{stem}.o", f"{stem}.c"]
    run_tool(argv, cwd=folder, package="gcc")


def undefined(obj: bytes) -> list[str]:
    """The symbols that an object file wants from elsewhere, sorted."""
    table = ELFFile(io.BytesIO(obj)).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)  # the compiler has just made it
    names = {entry.name for entry in table.iter_symbols() if entry["st_shndx"] == "SHN_UNDEF" and entry.name}
    return sorted(names - {"__this_module"})  # which every module brings itself


def about(name: str, wanted: Iterable[str], symbols: Mapping[str, Symbol]) -> str:
    """What the kernel asks of a module before it loads it, as C (kernel: include/linux/module.h, vermagic.h)."""
    wanted = ["module_layout", *wanted]
    missing = [symbol for symbol in wanted if symbol not in symbols]
    if missing:
        raise LabError(f"module {name}: its kernel exports no {', '.join(missing)}")
    depends = sorted({symbols[symbol].module for symbol in wanted} - {""})
    versions = "\n".join(f'    {{ {symbols[symbol].crc:#x}, "{symbol}" }},' for symbol in wanted)
    return f"""#define INCLUDE_VERMAGIC
#include <linux/module.h>
#include <linux/vermagic.h>
MODULE_INFO(vermagic, VERMAGIC_STRING);
MODULE_INFO(name, KBUILD_MODNAME);
MODULE_INFO(depends, "{",".join(depends)}");
MODULE_INFO(retpoline, "Y");
__visible struct module __this_module __section(".gnu.linkonce.this_module") = {{
    .name = KBUILD_MODNAME, .init = init_module, .exit = cleanup_module, .arch = MODULE_ARCH_INIT,
}};
static const struct modversion_info versions[] __used __section("__versions") = {{
{versions}
}};
"""


def file_of_source(deb: Path, name: str) -> bytes | None:
    """A file of the kernel's source out of Debian's package of it, a tarball within a package; None if it has none."""
    wanted = re.compile(rf"linux-source-[^/]*/{re.escape(name)}")
    argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as package:
                for member in package:
                    tarball = package.extractfile(member) if member.name.endswith(".tar.xz") else None
                    if tarball is not None:
                        return _file_of_tarball(tarball, wanted)
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise LabError(f"{deb}: its archive is damaged: {error}") from error
        finally:
            process.kill()
    return None


def _file_of_tarball(tarball: IO[bytes], wanted: re.Pattern[str]) -> bytes | None:
    with lzma.open(tarball) as plain, tarfile.open(fileobj=plain, mode="r|") as source:
        for member in source:
            found = source.extractfile(member) if wanted.fullmatch(member.name) else None
            if found is not None:
                return found.read()
    return None
