"""The source of a hypervisor (a directory of Xen's tree, or Debian's source package) and how it is to be configured.

Read, checked and keyed by contents; fetches and builds nothing. Of a tree only what the hypervisor is built from
counts, so that a change elsewhere builds nothing anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xentests.errors import UsageError
from xentests.release.fragment import read_fragment
from xentests.tools import ToolFailed, run_tool

Start = Literal["defconfig", "allnoconfig"]
STARTS: tuple[Start, ...] = ("defconfig", "allnoconfig")
DIST = "dist/install"
"""Where ``make dist`` puts what it made, below a tree."""

# What `make -C xen` reads; tools/flask has the policy that CONFIG_XSM_FLASK_POLICY compiles in.
_PARTS = ("xen", "config", "tools/flask")
_FILES = ("Config.mk",)
# What a build within the tree leaves: not source, and in the way of a build elsewhere.
_BUILT = re.compile(r".*\.(o|d|d2|a|i|cmd|gz|efi|map)|.*/\.(config(\.old)?|banner|xen[^/]*)|.*~")
_BUILT_FOLDERS = ("xen/include/config", "xen/include/generated")
_VERSION = re.compile(r"^(?:export )?XEN_(VERSION|SUBVERSION|EXTRAVERSION)\s*[?:]?=\s*(\S*)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A hypervisor's source and its configuration.

    ``directory`` is None for the source package of the Debian suite that the release stands on. ``digest`` is of what
    is in the directory. ``start`` is the make target that the ``fragment`` (lines of a ``.config``, those of the files
    ``kconfig`` one after the other) is laid over; of an option given twice the last line counts.
    """

    directory: Path | None = None
    digest: str = ""
    kconfig: tuple[Path, ...] = ()
    fragment: str = ""
    start: Start = "defconfig"

    @property
    def words(self) -> str:
        """The options as they stand in a release's name, each after a comma."""
        kconfig = "".join(f",kconfig={path}" for path in self.kconfig)
        return kconfig + (f",config={self.start}" if self.start != "defconfig" else "")


def version_of(directory: Path) -> tuple[str, str]:
    """The version of the Xen in a tree: such as ``("4.17", "4.17.5")``. UsageError when it is no tree of Xen's."""
    try:
        text = (directory / "xen/Makefile").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"source:{directory}: no tree of Xen's: there is no xen/Makefile; give the top directory of a git tree or "
            f"of an unpacked tarball"
        ) from error
    found = {name: value for name, value in _VERSION.findall(text)}
    if not {"VERSION", "SUBVERSION"} <= found.keys():
        raise UsageError(f"source:{directory}: its xen/Makefile says no XEN_VERSION: this is no tree of Xen's")
    short = f"{found['VERSION']}.{found['SUBVERSION']}"
    return short, short + found.get("EXTRAVERSION", "").partition("$")[0]


def files_of(directory: Path) -> list[str]:
    """Paths, relative to a tree, of the files that its hypervisor is built from, sorted.

    Of a git tree: tracked ones and new ones that are not ignored, as they are now. Of others: all but built ones.
    """
    if (directory / ".git").exists():
        words = ["--cached", "--others", "--exclude-standard", "--"]
        argv: list[str | Path] = ["git", "-C", directory, "ls-files", "-z", *words]
        try:
            listed = run_tool([*argv, *_PARTS, *_FILES], package="git").decode("utf-8", "surrogateescape").split("\0")
        except ToolFailed as error:
            raise UsageError(f"source:{directory}: git does not list its files: {error}") from error
        return sorted({name for name in listed if name and os.path.lexists(directory / name)})
    return sorted(_walk(directory))


def _walk(directory: Path) -> Iterator[str]:
    yield from (name for name in _FILES if (directory / name).is_file())
    for part in _PARTS:
        for folder, folders, files in os.walk(directory / part):
            where = os.path.relpath(folder, directory)
            folders[:] = [name for name in folders if f"{where}/{name}" not in _BUILT_FOLDERS]
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            yield from (path for name in (*files, *links) if not _BUILT.fullmatch(path := f"{where}/{name}"))


def digest_of(directory: Path, files: list[str]) -> str:
    """SHA-256 (hex) over names and contents; a link counts by where it leads."""
    digest = hashlib.sha256()
    for name in files:
        path = directory / name
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(
            f"{name}\0{len(content)}\0{path.lstat().st_mode & 0o170100:o}\0".encode("utf-8", "surrogateescape")
        )
        digest.update(content)
    return digest.hexdigest()


def copy_tree(directory: Path, files: list[str], target: Path) -> None:
    """Lay copies of a tree's ``files`` below the empty directory ``target``."""
    for name in files:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(directory / name, copy, follow_symlinks=False)


def read_source(name: str, options: Mapping[str, str], fragments: Sequence[str]) -> Source:
    """``DIR`` or ``debian:SUITE`` with its options and Kconfig fragments, read: files hashed, fragments taken in.

    UsageError for a directory that is no tree of Xen's, a fragment that cannot be read, a start that there is not.
    """
    start = options.get("config", "defconfig")
    if start not in STARTS:
        raise UsageError(f"config={start}: the fragment is laid over one of {', '.join(STARTS)}")
    read = [read_fragment(text) for text in fragments]
    kconfig, fragment = tuple(path for path, _ in read), "\n".join(text for _, text in read)
    if name.startswith("debian:"):
        return Source(None, "", kconfig, fragment, start)
    directory = Path(name).expanduser().absolute()
    version_of(directory)
    return Source(directory, digest_of(directory, files_of(directory)), kconfig, fragment, start)
