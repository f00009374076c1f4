"""A directory tree as an ext4 disk image that root owns, made by mke2fs without mounting or being root."""

from __future__ import annotations

import os
from pathlib import Path

from xentests.errors import LabError, LabFull
from xentests.tools import ToolFailed, run_tool

LABEL = "dom0root"
_INODES = 32768
# Said in full, or the outer distribution's mke2fs.conf would decide. No checksums: dom0 pays for them at every read.
_FEATURES = "has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,dir_nlink,extra_isize"
# What mke2fs says when the disk below it is full, and when the file system it fills is.
_FULL = (b"No space left on device", b"Disk quota exceeded")
_TOO_SMALL = (b"Could not allocate", b"too big for")


def make_disk(tree: Path, disk: Path, *, size_mib: int) -> None:
    """Write ``tree`` into the new sparse file ``disk``. Raises LabFull, and LabError when the tree does not fit.

    The inode tables are written here, or dom0 would do so in the background of every first minute; the journal is
    small, since clones write little.
    """
    with disk.open("wb") as file:
        file.truncate(size_mib << 20)
    argv: list[str | Path] = [
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", "-N", str(_INODES), "-J", "size=8",
        "-b", "4096", "-I", "256", "-O", f"none,{_FEATURES}",
        "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard", "-d", tree, disk,
    ]  # fmt: skip
    if os.geteuid() != 0:
        argv[:0] = ["fakeroot", "--"]
    try:
        run_tool(argv, limit_s=300, package="e2fsprogs fakeroot")
    except ToolFailed as error:
        if any(said in error.output for said in _FULL):
            raise LabFull(f"{disk.parent}: no room for a root disk; make room: `xentests gc`, df -h") from error
        if any(said in error.output for said in _TOO_SMALL):
            raise LabError(
                f"the packages do not fit a root disk of {size_mib} MiB: raise size_mib in the recipe"
            ) from error
        raise
