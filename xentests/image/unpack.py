"""Packages laid out as a merged-/usr tree with a dpkg database, without dpkg, root or any script of a package.

Owners are not kept: on the disk everything belongs to root. Set-uid bits are dropped with them. A package can be a
developer's own, signed by nobody: nothing is written outside the tree, through links or otherwise.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO

from xentests.errors import LabError
from xentests.release.deb import Package, control_files
from xentests.text import tail

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_MAX_LINKS = 40  # as many as Linux follows in one path
_INFO_FILES = ("md5sums", "conffiles", "symbols", "shlibs", "triggers")


class Tree:
    """A root file system being made in ``path``; ``left_out`` says whether a path (no leading slash) stays out."""

    def __init__(self, path: Path, *, left_out: Callable[[str], bool]) -> None:
        self.path = path
        self._left_out = left_out
        for name in _MERGED:
            (path / "usr" / name).mkdir(parents=True)
            (path / name).symlink_to(f"usr/{name}")
        self._info = path / "var/lib/dpkg/info"
        self._info.mkdir(parents=True)

    def add_all(self, packages: Iterable[tuple[Package, Path]]) -> None:
        """Unpack packages and enter them as installed. Raises LabError when one is damaged or hostile."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the time goes into decompressing, by dpkg-deb
            tasks = [pool.submit(self._add, package, deb) for package, deb in packages]
            try:
                status = [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        (self.path / "var/lib/dpkg/status").write_text("\n".join(status), encoding="utf-8")
        for name in ("available", "diversions", "statoverride"):
            (self.path / "var/lib/dpkg" / name).touch()

    def _add(self, package: Package, deb: Path) -> str:
        """One package's files and dpkg records; returns its paragraph of the status file."""
        control = control_files(deb)
        argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                names = self._unpack(process.stdout)
            except tarfile.TarError as error:
                process.kill()
                raise LabError(f"{package.name} {package.version}: its archive is damaged: {error}") from error
            except BaseException:
                process.kill()
                raise
            process.stdout.read()
            said = process.stderr.read()
        if process.returncode:
            raise LabError(f"{package.name} {package.version}: does not unpack: {tail(said)}")
        return self._enter(package, control, names)

    def _unpack(self, stream: IO[bytes]) -> list[str]:
        names = ["/."]
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = _plain(member.name)
                if not name:
                    continue
                names.append(f"/{name}")
                if not self._left_out(name):
                    self._member(archive, member, name)
        return names

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        target = self._inside(name)
        if member.isdir():
            if not target.is_symlink():
                target.mkdir(parents=True, exist_ok=True)
                target.chmod(member.mode & 0o1777 | 0o700)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            if target.is_dir() and not target.is_symlink():
                return  # a link where the tree has a directory, as base-files' /bin is
            target.unlink()
        if member.issym():
            target.symlink_to(member.linkname)
        elif member.islnk():
            os.link(self._inside(_plain(member.linkname)), target)
        elif member.isfile():
            source = archive.extractfile(member)
            assert source is not None
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            target.chmod(member.mode & 0o777 | 0o400)
        else:
            return  # devices and pipes: devtmpfs makes what there must be
        if not member.islnk():
            os.utime(target, (member.mtime, member.mtime), follow_symlinks=False)

    def _inside(self, name: str) -> Path:
        """Where ``name`` is in the tree, the links of its directories followed as if the tree were the root.

        So no link leads out of it. The last part is not followed: it is what gets replaced.
        """
        *above, last = merged(name).split("/")
        found: list[str] = []
        todo = above[::-1]
        links = 0
        while todo:
            part = todo.pop()
            path = self.path.joinpath(*found, part)
            if part == "..":
                found = found[:-1]
            elif path.is_symlink():
                links += 1
                if links > _MAX_LINKS:
                    raise LabError(f"a package wants to write {name} through a loop of links")
                target = os.readlink(path)
                found = [] if target.startswith("/") else found
                todo += [word for word in reversed(target.split("/")) if word not in ("", ".")]
            else:
                found.append(part)
        return self.path.joinpath(*found, last)

    def _enter(self, package: Package, control: dict[str, bytes], names: Iterable[str]) -> str:
        text = control["control"].decode("utf-8", "replace").strip()
        lines = text.split("\n")
        lines.insert(1, "Status: install ok installed")
        same = re.search(r"^Multi-Arch:\s*same", text, re.MULTILINE)
        stem = f"{package.name}:{package.arch}" if same else package.name
        (self._info / f"{stem}.list").write_text("\n".join([*names, ""]), encoding="utf-8")
        for file in _INFO_FILES:
            if file in control:
                (self._info / f"{stem}.{file}").write_bytes(control[file])
        return "\n".join([*lines, ""])


def merged(name: str) -> str:
    """A path with Debian's pre-merge top directories moved below usr/."""
    first, slash, rest = name.partition("/")
    return f"usr/{first}/{rest}" if slash and first in _MERGED else name


def patterns(globs: Sequence[str]) -> Callable[[str], bool]:
    """A predicate: does any shell pattern match the merged path? ``*`` crosses slashes."""
    if not globs:
        return lambda name: False
    match = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
    return lambda name: match(merged(name)) is not None or match(name) is not None


def one_member(deb: Path, wanted: Callable[[str], bool]) -> tuple[str, bytes] | None:
    """The first regular file of a package whose path ``wanted`` accepts, with its content; None if there is none."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    source = archive.extractfile(member) if member.isfile() and wanted(_plain(member.name)) else None
                    if source is not None:
                        return _plain(member.name), source.read()
        except tarfile.TarError as error:
            raise LabError(f"{deb}: its archive is damaged: {error}") from error
        finally:
            process.kill()
    return None


def _plain(name: str) -> str:
    parts = PurePosixPath(name.lstrip("/")).parts
    if ".." in parts:
        raise LabError(f"a package wants to write {name} outside its tree")
    return "/".join(part for part in parts if part != ".")
