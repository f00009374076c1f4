"""A tree that Xen's ``make dist`` made: hypervisor and tools as they would be installed, laid over a Debian base."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import UsageError
from xentests.release.arch import Arch
from xentests.release.source import DIST

_XEN = re.compile(r"xen-(?P<full>(?P<short>\d+\.\d+)\S*?)(\.gz)?")
_MACHINES: dict[Arch, int] = {"amd64": 62, "arm64": 183}  # e_machine of the tools (elf.h: EM_X86_64, EM_AARCH64)
_PREFIXES = ("usr/local", "usr")  # configure's default comes first


@dataclass(frozen=True)
class DistTree:
    """What ``make dist`` put into ``directory``: below it are ``boot``, ``etc``, ``usr``.

    ``hypervisor``, ``symbols``, ``config`` and ``xl`` are paths relative to it; ``prefix`` is where its tools are.
    """

    directory: Path
    digest: str
    xen: str
    version: str
    hypervisor: str
    symbols: str
    config: str
    prefix: str

    def lay_over(self, tree: Path) -> None:
        """Put all but ``boot`` over what is in ``tree``: files replace files and links, directories are merged."""
        for folder, folders, files in os.walk(self.directory):
            where = Path(folder).relative_to(self.directory)
            if where == Path():
                folders[:] = [name for name in folders if name in ("etc", "usr", "var", "lib", "opt")]
                continue
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            for name in (*files, *links):
                target = _below(tree, where) / name
                if target.is_symlink() or target.is_file():
                    target.unlink()
                elif target.is_dir():
                    continue  # Debian's /var/run and the like, which are links in the other
                shutil.copy2(Path(folder) / name, target, follow_symlinks=False)


def _below(tree: Path, where: Path) -> Path:
    """The directory ``where`` in ``tree``, made if need be; ``lib`` is below ``usr`` there, as in all of Debian's."""
    path = tree / ("usr" / where if where.parts[0] == "lib" else where)
    path.mkdir(parents=True, exist_ok=True)
    return path


def read_tree(directory: Path, arch: Arch, *, kind: str) -> DistTree:
    """What ``make dist`` made, checked; ``directory`` is Xen's top directory or ``dist/install`` itself.

    Raises UsageError when something is missing or for another architecture; ``kind`` begins its message.
    """
    root = directory / DIST if (directory / DIST).is_dir() else directory
    name = f"{kind}:{directory}"
    if not root.is_dir():
        raise UsageError(f"{name}: no such directory; give Xen's top directory after `make dist`, or its {DIST}")
    found = [
        (path, match)
        for path in sorted((root / "boot").glob("xen-*"))
        if not path.is_symlink() and path.is_file() and (match := _XEN.fullmatch(path.name))
        and not path.name.startswith("xen-syms") and path.suffix not in (".config", ".efi", ".map")
    ]  # fmt: skip
    if len(found) != 1:
        have = ", ".join(path.name for path, _ in found) or "none"
        raise UsageError(
            f"{name}: wanted one hypervisor boot/xen-VERSION in {root}, found {have}; run `make dist` there"
        )
    path, match = found[0]
    prefix = next((prefix for prefix in _PREFIXES if (root / prefix / "sbin/xl").is_file()), "")
    if not prefix:
        raise UsageError(
            f"{name}: no {_PREFIXES[0]}/sbin/xl in {root}: `make dist` makes the tools, too; run that there"
        )
    machine = int.from_bytes((root / prefix / "sbin/xl").read_bytes()[18:20], "little")
    if machine != _MACHINES[arch]:
        raise UsageError(f"{name}: its tools are not for {arch}: {prefix}/sbin/xl is of ELF machine {machine}")
    return DistTree(
        directory=root, digest=_digest(root), xen=match["short"], version=match["full"],
        hypervisor=str(path.relative_to(root)), symbols=_first(root, "xen-syms-*"),
        config=_first(root, f"xen-{match['full']}.config"), prefix=prefix,
    )  # fmt: skip


def _first(root: Path, pattern: str) -> str:
    folders = (root / "boot", root / "usr/lib/debug", root / "usr/lib/debug/boot", root / "usr/local/lib/debug")
    for folder in folders:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.suffix != ".map":
                return str(path.relative_to(root))
    return ""


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(folder) / name
            if path.is_symlink():
                content = os.readlink(path).encode()
            elif path.is_file():
                content = path.read_bytes()
            else:
                continue
            digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
    return digest.hexdigest()
