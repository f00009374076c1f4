"""Kernel modules of an unpacked tree: which ones are needed for a list of names, and in which order they load.

Asks the modules themselves (``.modinfo``), then ``modules.dep`` and ``modules.builtin`` as depmod and the kernel
package wrote them (modules.dep(5)). Soft dependencies are not followed: the recipe names what is wanted. Loads nothing.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from xentests.errors import LabError
from xentests.tools import run_tool


def module_name(path: str) -> str:
    """The kernel's name of a module file: no directory, no suffix, dashes as underscores, no "?" of a recipe."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_").rstrip("?")


def kernel_release(tree: Path) -> str:
    """The one kernel whose modules ``tree`` has. Raises LabError for none or several."""
    found = sorted(path.name for path in (tree / "usr/lib/modules").glob("*") if (path / "kernel").is_dir())
    if len(found) != 1:
        raise LabError(f"wanted the modules of one kernel, found {', '.join(found) or 'none'}: check the recipe")
    return found[0]


def prune(tree: Path, release: str, *, prefixes: Iterable[str], names: Iterable[str]) -> None:
    """Keep the modules below ``kernel/PREFIX``, those of ``names`` and all they need, decompressed; delete the others.

    Decompressing is done here because dom0 would do it slowly, and before depmod, which would do it twice.
    """
    directory = tree / "usr/lib/modules" / release
    files = {str(file.relative_to(directory)): file for file in sorted(directory.rglob("*.ko*")) if file.is_file()}
    paths = {module_name(path): path for path in files}
    starts = tuple(f"kernel/{prefix}" if prefix.endswith(".ko") else f"kernel/{prefix}/" for prefix in prefixes)
    waiting = [module_name(path) for path in files if path.startswith(starts)]
    waiting += [name for word in names if (name := module_name(word)) in paths]
    kept: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in kept or name not in paths:  # depmod says what is missing
            continue
        kept.add(name)
        file = files[paths[name]]
        content = decompressed(file)
        waiting += _needs(content, file.name)
        if file.suffix != ".ko":
            file.with_name(file.name.partition(".ko")[0] + ".ko").write_bytes(content)
            file.unlink()
    for name, path in paths.items():
        if name not in kept:
            files[path].unlink()


def _needs(module: bytes, what: str) -> list[str]:
    """The modules that one names in ``depends=`` of its section ``.modinfo`` (NUL-separated; Linux: moduleparam.h)."""
    try:
        section = ELFFile(io.BytesIO(module)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise LabError(f"{what}: not a kernel module: {error}; its package is damaged") from error
    for word in section.data().split(b"\0") if section else ():
        if word.startswith(b"depends="):
            return [module_name(name) for name in word[8:].decode().split(",") if name]
    return []


@dataclass(frozen=True)
class Modules:
    """The modules of one kernel below ``directory``."""

    directory: Path
    dependencies: dict[str, tuple[str, ...]]  # path below ``directory`` -> paths it needs
    paths: dict[str, str]  # name -> path
    builtin: frozenset[str]

    @classmethod
    def read(cls, tree: Path, release: str) -> Modules:
        """Run depmod over the tree and read what it found."""
        run_tool(["depmod", "-b", tree, release], package="kmod")
        directory = tree / "usr/lib/modules" / release
        dependencies = {}
        for line in (directory / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            dependencies[path] = tuple(needs.split())
        builtin = (directory / "modules.builtin").read_text().split()
        return cls(
            directory,
            dependencies,
            {module_name(path): path for path in dependencies},
            frozenset(module_name(path) for path in builtin),
        )

    def order(self, names: Iterable[str]) -> list[str]:
        """Paths of the modules for ``names`` and all they need, each after what it needs; built-in ones need none.

        A name that ends in "?" may be missing; for any other that this kernel does not know, raises LabError.
        """
        ordered: dict[str, None] = {}
        for word in names:
            name = module_name(word)
            if name in self.builtin or (name not in self.paths and word.endswith("?")):
                continue
            if name not in self.paths:
                raise LabError(f"this kernel has no module {name}: mend the image recipe")
            path = self.paths[name]
            # modules.dep lists everything needed, indirect ones too, those to load first last.
            for needed in (*reversed(self.dependencies[path]), path):
                ordered.setdefault(needed)
        return list(ordered)

    def content(self, path: str) -> bytes:
        """One module, decompressed."""
        return decompressed(self.directory / path)


def decompressed(file: Path) -> bytes:
    """The content of a module file, whatever it is compressed with."""
    data = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(data)
    if file.suffix == ".zst":
        return run_tool(["zstd", "-dc"], input_data=data, package="zstd")
    return data
