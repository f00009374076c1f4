"""Debian's source package of Xen: chosen, fetched, and checked against the signed index; unpacked for a build.

An archive may announce sources that it no longer holds. Then an older version is taken, or the upstream tarball alone
if that is there (without Debian's patches), and the manifest says so.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import DownloadError, LabError
from xentests.lab.store import Entry, Store, key_of
from xentests.release.archive import explain, run_mmdebstrap
from xentests.release.deb import sha256_of, stanzas
from xentests.release.spec import ReleaseSpec
from xentests.tools import ToolFailed, run_tool

Report = Callable[[str], None]
_FETCHED = "sources"

_SETUP = """\
set -e
sed -n 's/^deb /deb-src /p' "$1/etc/apt/sources.list" > "$1/etc/apt/sources.list.d/sources.list"
"""
# The newest version first, until one is there whole; what came of others stays, to be looked through.
_FETCH = f"""\
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir "$1/{_FETCHED}"
cd "$1/{_FETCHED}"
versions=$(apt-cache showsrc --only-source xen | sed -n 's/^Version: //p' | sort -rVu)
[ -n "$versions" ] || {{ echo 'E: Unable to locate package xen (source)' >&2; exit 1; }}
for version in $versions; do
    apt-get -q -oAcquire::Retries=2 source --only-source --download-only "xen=$version" && exit 0
done
exit 0
"""


@dataclass(frozen=True)
class _Version:
    """One version in the index: file name -> SHA-256, and the files that came whole."""

    version: str
    promised: Mapping[str, str]
    have: frozenset[str]

    @property
    def orig(self) -> str:
        """The upstream tarball that came, or ""."""
        return next((name for name in sorted(self.have) if ".orig.tar." in name), "")

    @property
    def whole(self) -> bool:
        return self.have == self.promised.keys()


def fetch_source(
    spec: ReleaseSpec,
    store: Store,
    *,
    mirror: str | None = None,
    refresh: bool = False,
    report: Report = lambda text: None,
) -> Entry:
    """The source package of the suite's Xen, as files; once chosen it stays, until ``refresh``.

    Its manifest has ``version`` and ``patched`` (with Debian's patches). Raises DownloadError that lists which versions
    were announced and not there; LabFull.
    """
    if not refresh and (entry := chosen_source(spec, store, mirror=mirror)) is not None:
        return entry
    key = key_of("fetch", spec.base, mirror or "")
    with store.locked("source", key, what=f"source of Xen in {spec.base}"):
        # Whoever held the lock has just fetched it.
        if not refresh and (entry := chosen_source(spec, store, mirror=mirror)) is not None:
            return entry
        return _fetched(spec, store, mirror, report)


def _fetched(spec: ReleaseSpec, store: Store, mirror: str | None, report: Report) -> Entry:
    (store.root / "source").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.root / "source", prefix=f".tmp-fetch-{os.getpid()}-") as name:
        directory = Path(name)
        report(f"{spec}: fetching the source package of Xen")
        best = _download(spec, directory, mirror=mirror)
        if not best.whole:
            report(f"{spec}: the archive has no whole source of Xen; taking the upstream tarball {best.orig} alone")
        names = sorted(best.have) if best.whole else [best.orig]
        build = functools.partial(_keep, directory / "tree" / _FETCHED, names, best)
        key = key_of("source package", sorted(best.promised[name] for name in names))
        entry = store.get("source", key, build, what=f"source of Xen in {spec.base}")
    choice = _choice_file(spec, store, mirror)
    choice.parent.mkdir(parents=True, exist_ok=True)
    partial = choice.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"key": entry.key, "version": best.version}), encoding="utf-8")
    partial.replace(choice)
    return entry


def chosen_source(spec: ReleaseSpec, store: Store, *, mirror: str | None = None) -> Entry | None:
    """The source package that was chosen before, if it is still there; no network."""
    try:
        key = str(json.loads(_choice_file(spec, store, mirror).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return None
    return store.find("source", key, what=f"source of Xen in {spec.base}")


def _choice_file(spec: ReleaseSpec, store: Store, mirror: str | None) -> Path:
    key = key_of("source", spec.base, mirror or "")
    return store.root / "chosen" / f"source-{spec.base}-{key[:24]}.json"


def unpack_source(entry: Entry, target: Path) -> None:
    """Make ``target``, which must not exist, the top directory of Xen's tree."""
    dsc = next(iter(entry.path.glob("*.dsc")), None)
    if dsc is not None:
        argv: list[str | Path] = ["dpkg-source", "--no-check", "--extract", dsc, target]
        run_tool(argv, package="dpkg-dev")
        return
    target.mkdir()
    tarball = next(entry.path.glob("*.orig.tar.*"))
    run_tool(["tar", "--extract", "--file", tarball, "--directory", target, "--strip-components=1"], package="tar")
    if not (target / "xen/Makefile").is_file():
        raise LabError(f"{tarball.name}: no tree of Xen's: it has no xen/Makefile")


def _download(spec: ReleaseSpec, directory: Path, *, mirror: str | None) -> _Version:
    scripts = directory / "scripts"
    scripts.mkdir()
    (scripts / "setup.sh").write_text(_SETUP)
    (scripts / "fetch.sh").write_text(_FETCH)
    try:
        run_mmdebstrap(spec, directory, scripts / "setup.sh", scripts / "fetch.sh", mirror=mirror)
    except ToolFailed as error:
        raise explain(error, spec, mirror) from error
    fetched = directory / "tree" / _FETCHED
    versions = _versions(directory / "tree/var/lib/apt/lists", fetched)
    for usable in (lambda version: version.whole, lambda version: bool(version.orig)):
        if found := next(filter(usable, versions), None):
            return found
    announced = ", ".join(version.version for version in versions) or "none"
    raise DownloadError(
        f"{spec}: the archive announces the source of Xen {announced}, and holds the files of none of them (404); take "
        f"another mirror (--xen-mirror), or give a tree of your own: source:DIR"
    )


def _versions(lists: Path, fetched: Path) -> list[_Version]:
    """The versions that apt's verified indexes have, those apt tried first at the front: newest first."""
    found: dict[str, _Version] = {}
    for index in lists.glob("*_Sources"):
        for paragraph in index.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if not paragraph.removeprefix("\n").startswith("Package: xen\n"):
                continue
            fields = next(stanzas(paragraph))
            lines = [line.split() for line in fields["Checksums-Sha256"].split("\n") if line.strip()]
            promised = {name: digest for digest, _, name in lines}
            have = frozenset(
                name for name, digest in promised.items()
                if (fetched / name).is_file() and sha256_of(fetched / name) == digest
            )  # fmt: skip
            found[fields["Version"]] = _Version(fields["Version"], promised, have)
    return sorted(found.values(), key=functools.cmp_to_key(_newest_first))


def _newest_first(one: _Version, other: _Version) -> int:
    if one.version == other.version:
        return 0
    try:
        run_tool(["dpkg", "--compare-versions", one.version, "gt", other.version], package="dpkg")
    except ToolFailed:
        return 1
    return -1


def _keep(fetched: Path, names: list[str], version: _Version, target: Path) -> Mapping[str, object]:
    for name in names:
        shutil.move(fetched / name, target / name)
    return {"version": version.version, "patched": version.whole}
