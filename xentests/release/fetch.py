"""The packages of a release, kept in the store: which ones were chosen last, and their files.

A release once chosen stays chosen, without asking the network, until somebody says ``refresh``: a run is repeatable
and a warm cache needs no network. The choice is a small file below ``STORE/chosen``; the .deb files are entries of
kind ``debs``, keyed by their hashes, and may be deleted at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from xentests.errors import LabFull
from xentests.lab.store import Entry, Store, key_of
from xentests.release.archive import Download, download
from xentests.release.deb import Package
from xentests.release.spec import ReleaseSpec

Report = Callable[[str], None]
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Chosen:
    """The packages a release is made of, sorted by name; known without having their files."""

    spec: ReleaseSpec
    packages: tuple[Package, ...]

    @property
    def key(self) -> str:
        """Of the packages' contents."""
        return key_of("debs", [package.sha256 for package in self.packages])

    def version(self, name: str) -> str:
        """The version of package ``name``; "" if it is not among them."""
        return next((package.version for package in self.packages if package.name == name), "")


@dataclass(frozen=True)
class Fetched:
    """Chosen packages with their files."""

    chosen: Chosen
    entry: Entry

    def deb(self, package: Package) -> Path:
        """The file of one package."""
        return self.entry.file(f"{package.sha256}.deb")


def chosen(spec: ReleaseSpec, wanted: Sequence[str], store: Store, *, mirror: str | None) -> Chosen | None:
    """What was chosen before for the same question, or None. Opens one small file, no network."""
    return _read_choice(_choice_file(spec, wanted, store, mirror), spec)


def fetch(
    spec: ReleaseSpec,
    wanted: Sequence[str],
    store: Store,
    *,
    mirror: str | None = None,
    refresh: bool = False,
    report: Report = lambda text: None,
) -> Fetched:
    """The release's packages with their files; downloads what is missing, and with ``refresh`` asks for newer ones.

    ``wanted`` are package names; all they depend on comes along. ``mirror`` is a URI, a line of sources.list or the
    path of such a file. Raises DownloadError, LabFull, and UsageError for a mirror that is none.
    """
    file = _choice_file(spec, wanted, store, mirror)
    with _full_disk_said(store), _locked(file):
        before = chosen(spec, wanted, store, mirror=mirror)
        entry = store.find("debs", before.key, what=f"packages of {spec} {spec.arch}") if before else None
        if before and entry and not refresh:
            return Fetched(before, entry)
        with _temporary(store) as directory:
            have = _earlier_files(spec, store, directory)
            got = download(spec, wanted, directory, mirror=mirror, have=have, report=report)
            now = Chosen(spec, got.packages)
            if before and refresh:
                report(_difference(before, now))
            entry = store.get("debs", now.key, _keep(got), what=f"packages of {spec} {spec.arch}")
        content = json.dumps({"release": str(spec), "packages": [package.to_json() for package in now.packages]})
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(content, encoding="utf-8")
        partial.replace(file)
        return Fetched(now, entry)


def _choice_file(spec: ReleaseSpec, wanted: Sequence[str], store: Store, mirror: str | None) -> Path:
    overlay = [package.sha256 for package in spec.overlay.packages] if spec.overlay else []
    asked = Path(mirror).read_text() if mirror and "\n" not in mirror and Path(mirror).is_file() else mirror or ""
    key = key_of("choice", spec.kind, spec.base, spec.arch, sorted(wanted), asked, overlay)
    return store.root / "chosen" / f"{spec.base}-{spec.arch}-{key[:24]}.json"


@contextlib.contextmanager
def _temporary(store: Store) -> Iterator[Path]:
    """A directory on the store's disk, named so that the store's gc removes it should this process be killed."""
    (store.root / "debs").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.root / "debs", prefix=f".tmp-fetch-{os.getpid()}-") as name:
        yield Path(name)


def _earlier_files(spec: ReleaseSpec, store: Store, directory: Path) -> list[Path]:
    """Packages of the same suite in the store, under the names apt gives them, so that only new ones are downloaded."""
    links = directory / "have"
    links.mkdir()
    files: dict[str, Path] = {}
    for choice in sorted((store.root / "chosen").glob(f"{spec.base}-{spec.arch}-*.json")):
        before = _read_choice(choice, spec)
        entry = store.find("debs", before.key, what=f"packages of {spec.base} {spec.arch}") if before else None
        for package in before.packages if before and entry else ():
            if package.origin == "archive" and entry is not None:
                version = package.version.replace(":", "%3a")
                name = f"{package.name}_{version}_{package.arch}.deb"
                files[name] = entry.file(f"{package.sha256}.deb")
    for name, file in files.items():
        (links / name).symlink_to(file)
    return [links / name for name in files]


def _read_choice(file: Path, spec: ReleaseSpec) -> Chosen | None:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return Chosen(spec, tuple(Package.from_json(package) for package in fields["packages"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(got: Download) -> Callable[[Path], Mapping[str, object]]:
    def build(directory: Path) -> Mapping[str, object]:
        for package in got.packages:
            shutil.move(got.files[package.sha256], directory / f"{package.sha256}.deb")
        return {"packages": [package.to_json() for package in got.packages]}

    return build


def _difference(before: Chosen, now: Chosen) -> str:
    old = {package.name: package.version for package in before.packages}
    new = {package.name: package.version for package in now.packages}
    changed = [f"{name} {old.get(name, '(new)')} -> {new[name]}" for name in sorted(new) if old.get(name) != new[name]]
    return "refreshed: " + ("; ".join(changed) if changed else "no package is newer")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time fetches for one question; the others wait and then find it done."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(file.with_suffix(".lock")):
        yield


@contextlib.contextmanager
def _full_disk_said(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise LabFull(f"{store.root}: {error.strerror}: make room (`xentests gc`, df -h) and run again") from error
