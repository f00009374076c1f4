"""A content-addressed store of directories: downloaded trees, images, templates, probe results.

Every entry is made in a temporary directory and renamed into place under a lock of its own, so that a killed run leaves
nothing half-written and two runs never build the same thing twice. An entry is checked against its manifest once per
process; one that does not match is made anew, once, and this is said. What goes into an entry is the caller's business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from xentests.errors import CorruptEntry, LabError, LabFull, UsageError

MANIFEST = "manifest.json"
_USED = "used"
_VERIFIED = "verified"
_VERIFIED_FOR_S = 24 * 3600
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}")
_BLOCK = 256 << 10

Builder = Callable[[Path], Mapping[str, object] | None]


def default_cache_dir() -> Path:
    """Where entries live: ``XENTESTS_CACHE``, else the user's cache directory of the XDG base directory rules."""
    override = os.environ.get("XENTESTS_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("xentests")


def key_of(*parts: object) -> str:
    """SHA-256 (hex) over the canonical JSON of ``parts``; the key under which what was made from them is kept."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's size and of its blocks that are not all zeros, each with its position.

    A template's RAM file is mostly holes; reading only the data makes checking it some ten times cheaper. Where a file
    system keeps zeros and where a hole can change as it writes back, so zeros are left out in either case.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"size {size};".encode())
        position = 0
        for start, end in _data_extents(file.fileno(), size):
            position = max(position, start - start % _BLOCK)
            while position < end:
                block = os.pread(file.fileno(), _BLOCK, position)
                if block.strip(b"\0"):
                    digest.update(f"at {position};".encode())
                    digest.update(block)
                position += _BLOCK
    return digest.hexdigest()


def _data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
        position = end


@dataclass(frozen=True)
class Entry:
    """One finished entry: its directory and what its builder said about it."""

    kind: str
    key: str
    path: Path
    manifest: dict[str, Any] = field(repr=False)
    digest: str = ""
    """SHA-256 over the names and hashes of its files: two entries with one digest hold the same bytes."""
    created_s: float = 0.0

    def file(self, name: str) -> Path:
        """The path of one file of the entry; :class:`LabError` when the entry has no such file."""
        path = self.path / name
        if not path.is_file():
            raise LabError(f"{path}: no such file in this cache entry; delete {self.path} and run again")
        return path


@dataclass(frozen=True)
class GcReport:
    """What a collection did: entries removed and kept, and bytes on disk freed and left."""

    removed: int
    kept: int
    freed_bytes: int
    left_bytes: int


class Store:
    """The entries below ``root``, as ``root/KIND/KEY``. ``say`` receives a line for whatever a person should know."""

    def __init__(self, root: Path, *, say: Callable[[str], None] = lambda text: None) -> None:
        self.root = root
        self._say = say
        self._leases: dict[tuple[str, str], int] = {}
        self._checked: set[tuple[str, str]] = set()

    def get(self, kind: str, key: str, build: Builder, *, what: str) -> Entry:
        """The entry ``kind/key``; ``build`` fills an empty directory with its files if there is none yet.

        ``what`` names it in messages. The entry stays leased (safe from :meth:`gc`) while this process lives.
        Whatever ``build`` raises passes through, with nothing left behind; a full disk becomes :class:`LabFull`.
        """
        path = self._path(kind, key)
        self._make_dirs(path.parent)
        self._lease(kind, key)
        entry = self._usable(kind, key, what)
        if entry is not None:
            return entry
        with self.locked(kind, key, what):
            entry = self._usable(kind, key, what)
            if entry is not None:
                return entry
            if path.exists():
                # It stays until the new one takes its place: others may be reading what is sound of it.
                self._say(f"{what}: the cached copy in {path} was damaged and is made anew")
            self._build(path, build, what)
            entry = self._usable(kind, key, what)
            if entry is None:
                raise CorruptEntry(f"{what}: what was just made in {path} does not match its manifest: check the disk")
            return entry

    def find(self, kind: str, key: str, *, what: str = "entry") -> Entry | None:
        """The entry ``kind/key`` if there is a sound one, else None; builds nothing."""
        path = self._path(kind, key)
        if not path.is_dir():
            return None
        self._lease(kind, key)
        return self._usable(kind, key, what)

    def entries(self) -> list[Entry]:
        """All finished entries, unchecked, least recently used first."""
        found = []
        for manifest in self.root.glob(f"*/*/{MANIFEST}"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                data = json.loads(manifest.read_text())
                path = manifest.parent
                found.append(_entry(path.parent.name, path.name, path, data))
        return sorted(found, key=lambda entry: last_used_s(entry.path))

    def gc(self, *, max_bytes: int | None = None, max_age_s: float | None = None) -> GcReport:
        """Delete entries unused for ``max_age_s``, then the least recently used until ``max_bytes`` remain.

        Entries leased by a living process stay, whatever their age. Leftovers of killed builders go as well, and of
        ``max_age_s`` or older the outputs of builds that failed. ccache limits itself.
        """
        self._sweep_temporary()
        now = time.time()
        for output in self.root.glob("failed/*.txt"):
            with contextlib.suppress(FileNotFoundError):  # another gc was faster
                if max_age_s is not None and now - output.stat().st_mtime > max_age_s:
                    output.unlink()
        sizes = {entry.path: disk_usage(entry.path) for entry in self.entries()}
        total = sum(sizes.values())
        removed = freed = 0
        for entry in self.entries():
            old = max_age_s is not None and now - last_used_s(entry.path) > max_age_s
            if not old and (max_bytes is None or total <= max_bytes):
                continue
            if self._remove(entry):
                removed += 1
                freed += sizes[entry.path]
                total -= sizes[entry.path]
        return GcReport(removed=removed, kept=len(sizes) - removed, freed_bytes=freed, left_bytes=total)

    # -- building and checking ----------------------------------------------------------------------------------

    def _build(self, path: Path, build: Builder, what: str) -> None:
        temporary = path.parent / f".tmp-{path.name}-{os.getpid()}-{time.monotonic_ns()}"
        damaged = temporary.with_name(f"{temporary.name}-gone")
        temporary.mkdir()
        try:
            about = dict(build(temporary) or {})
            files = {
                str(file.relative_to(temporary)): {"sha256": hash_file(file), "size": file.stat().st_size}
                for file in sorted(temporary.rglob("*"))
                if file.is_file() and not file.is_symlink()
            }
            data = {"what": what, "created_s": time.time(), "files": files, "about": about}
            (temporary / MANIFEST).write_text(json.dumps(data, indent=1, sort_keys=True))
            (temporary / _USED).touch()
            if path.exists():
                path.rename(damaged)
            temporary.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(self.root, what) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(damaged, ignore_errors=True)

    def _usable(self, kind: str, key: str, what: str) -> Entry | None:
        path = self._path(kind, key)
        try:
            data = json.loads((path / MANIFEST).read_text())
            entry = _entry(kind, key, path, data)
            files: dict[str, dict[str, Any]] = data["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if (kind, key) not in self._checked:
            if not _trusted(path, files):
                if not all(_same(path / name, expected) for name, expected in files.items()):
                    return None
                with contextlib.suppress(OSError):
                    (path / _VERIFIED).write_text(json.dumps(_fingerprint(path, files)))
            self._checked.add((kind, key))
        with contextlib.suppress(OSError):
            os.utime(path / _USED)
        return entry

    # -- locks --------------------------------------------------------------------------------------------------
    # flock rather than a lock library: a lease needs the shared mode, and both end with the process by themselves.

    @contextlib.contextmanager
    def locked(self, kind: str, key: str, what: str) -> Iterator[None]:
        """Alone among all processes of this store to make ``kind/key``, which need not become an entry."""
        with self._lock_file(kind, key, "build").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"{what}: another run is making it; waiting for that")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lease(self, kind: str, key: str) -> None:
        if (kind, key) in self._leases:
            return
        fd = os.open(self._lock_file(kind, key, "lease"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_SH)
        self._leases[kind, key] = fd

    def _remove(self, entry: Entry) -> bool:
        with self._lock_file(entry.kind, entry.key, "lease").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            doomed = entry.path.parent / f".tmp-{entry.key}-gone-{os.getpid()}"
            entry.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True

    def _lock_file(self, kind: str, key: str, purpose: str) -> Path:
        directory = self.root / ".locks"
        self._make_dirs(directory)
        return directory / f"{kind}-{key}.{purpose}"

    def _sweep_temporary(self) -> None:
        """Remove what a killed builder left: temporary directories whose builder holds its lock no more."""
        for leftover in self.root.glob("*/.tmp-*"):
            pid = leftover.name.rsplit("-", 2)[-2] if leftover.name.count("-") > 2 else ""
            if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                shutil.rmtree(leftover, ignore_errors=True)

    def _path(self, kind: str, key: str) -> Path:
        for word in (kind, key):
            if not _NAME.fullmatch(word):
                raise UsageError(f"{word!r} cannot name a cache entry: use lower-case letters, digits, '.' and '-'")
        return self.root / kind / key

    def _make_dirs(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(self.root, "the cache") from error
            raise LabError(
                f"cannot make {path}: {error.strerror}; set XENTESTS_CACHE to a directory of yours"
            ) from error


def _entry(kind: str, key: str, path: Path, data: Mapping[str, Any]) -> Entry:
    digest = key_of({name: about["sha256"] for name, about in data["files"].items()})
    return Entry(kind, key, path, data["about"], digest, data["created_s"])


def last_used_s(path: Path) -> float:
    """When an entry was last handed out, in seconds since the epoch; 0 when that cannot be told."""
    with contextlib.suppress(OSError):
        return (path / _USED).stat().st_mtime
    return 0.0


def disk_usage(path: Path) -> int:
    """Bytes that the files below ``path`` really take on disk (holes not counted)."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _fingerprint(path: Path, files: Mapping[str, Any]) -> dict[str, list[int]]:
    """Size, inode and change time of each file. No program can set a change time, so a write always shows."""
    seen = {}
    for name in files:
        status = (path / name).stat()
        seen[name] = [status.st_size, status.st_ino, status.st_ctime_ns]
    return seen


def _trusted(path: Path, files: Mapping[str, Any]) -> bool:
    """Whether the files were hashed within the last day and have not changed since: spares half a second a run."""
    try:
        verified = path / _VERIFIED
        recent = 0 <= time.time() - verified.stat().st_mtime < _VERIFIED_FOR_S
        return recent and bool(json.loads(verified.read_text()) == _fingerprint(path, files))
    except (OSError, ValueError):
        return False


def _same(path: Path, expected: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == expected["size"] and hash_file(path) == expected["sha256"])
    except OSError:
        return False


def _full(root: Path, what: str) -> LabFull:
    free = 0
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(root).free >> 20
    return LabFull(
        f"{what}: the disk below {root} is full ({free} MiB free); nothing half-made was kept. "
        "Free some space, `xentests gc --max-size 5G`, or set XENTESTS_CACHE to another disk"
    )
