"""Initial RAM disks: a cpio archive in the "newc" format.

Linux describes it in Documentation/driver-api/early-userspace/buffer-format.rst.
Everything belongs to root and has no time, so that the same content gives the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class Cpio:
    """Add members, then take :meth:`data`. Parent directories come by themselves."""

    _members: dict[str, tuple[int, bytes, tuple[int, int]]] = field(default_factory=dict)

    def directory(self, path: str) -> None:
        """An empty directory, and those above it."""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            self._members.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def data(self) -> bytes:
        """The whole archive."""
        out = bytearray()
        for number, (path, (mode, content, device)) in enumerate(self._members.items(), start=1):
            _append(out, number, path, mode, content, device)
        _append(out, 0, "TRAILER!!!", 0, b"", (0, 0))
        out.extend(bytes(-len(out) % 512))
        return bytes(out)

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        parent, slash, _ = path.rpartition("/")
        if slash:
            self.directory(parent)
        self._members[path] = (mode, content, device)


def _append(out: bytearray, number: int, path: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
    out.extend(b"070701" + b"".join(b"%08x" % value for value in fields) + name)
    out.extend(bytes(-len(out) % 4))
    out.extend(content)
    out.extend(bytes(-len(out) % 4))
