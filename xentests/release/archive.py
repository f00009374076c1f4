"""Packages out of a Debian archive, by mmdebstrap and apt: resolved, downloaded, and checked against the signed index.

mmdebstrap is used for what it knows (the archive's addresses, its keys, updates and security), in a mode that unpacks
and runs nothing and needs no privilege. Keeps nothing: what is downloaded lies in the caller's directory.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from xentests.errors import DownloadError, LabFull, UsageError, XentestsError
from xentests.release.deb import Package, sha256_of, stanzas
from xentests.release.overlay import ORIGIN
from xentests.release.spec import SUITES, ReleaseSpec
from xentests.text import tail
from xentests.tools import ToolFailed, run_tool

FETCH_LIMIT_S = 1800.0
_APT = "apt-get --yes --quiet -oAPT::Install-Recommends=false -oAcquire::Retries=3"
_CHOSEN = "chosen"
_INST = re.compile(r"^Inst (\S+) \((\S+) [^\n]*\[(\w+)\]\)", re.MULTILINE)  # apt-get --simulate
_LACKS_FILES = re.compile(rb"Failed to fetch .*404 +Not Found")


@dataclass(frozen=True)
class Download:
    """The packages apt chose, each with its file, sorted by name."""

    packages: tuple[Package, ...]
    files: dict[str, Path]  # SHA-256 -> .deb


def download(
    spec: ReleaseSpec,
    wanted: Sequence[str],
    directory: Path,
    *,
    mirror: str | None,
    have: Sequence[Path] = (),
    report: Callable[[str], None] = lambda text: None,
) -> Download:
    """Fetch ``wanted`` and all they depend on into the empty ``directory``.

    ``mirror`` is a URI or a sources.list line as mmdebstrap takes it; None means its default. ``have`` are .deb files
    from an earlier download; apt takes those that are still current. Raises DownloadError, LabFull.
    """
    report(f"{spec} {spec.arch}: fetching packages")
    tree = directory / "tree"
    try:
        _run(spec, wanted, directory, mirror=mirror, have=have)
    except ToolFailed as error:
        if not (SUITES[spec.base].ended and _LACKS_FILES.search(error.output)):
            raise explain(error, spec, mirror) from error
        report(f"{spec.base}: the archive lacks files of its own security updates; going on without those updates")
        shutil.rmtree(tree)
        try:
            _run(spec, wanted, directory, mirror=mirror, have=have, security=False)
        except ToolFailed as again:
            raise explain(again, spec, mirror) from again
    return _verify(tree, spec)


def download_alone(
    spec: ReleaseSpec, wanted: Mapping[str, str], directory: Path, *, mirror: str | None
) -> dict[str, Path]:
    """Fetch packages by name and version into the empty ``directory``, and nothing they depend on: name -> .deb.

    Raises DownloadError, also when the archive has another version by now, and LabFull.
    """
    words = [f"{name}={version}" for name, version in wanted.items()]
    try:
        _run(spec, words, directory, mirror=mirror, have=(), alone=True)
    except ToolFailed as error:
        raise explain(error, spec, mirror) from error
    archives = directory / "tree/var/cache/apt/archives"
    files = {}
    for (name, version, arch), digests in _promised(directory / "tree/var/lib/apt/lists", set(wanted)).items():
        file = archives / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        if wanted[name] == version and file.is_file() and sha256_of(file) in digests:
            files[name] = file
    if missing := sorted(set(wanted) - set(files)):
        raise DownloadError(
            f"{spec} {spec.arch}: not what the archive's signed index promises: {', '.join(missing)}; none of it is "
            f"used. Try again, and if it stays so, choose another mirror (--xen-mirror)"
        )
    return files


def _run(
    spec: ReleaseSpec,
    wanted: Sequence[str],
    directory: Path,
    *,
    mirror: str | None,
    have: Sequence[Path],
    security: bool = True,
    alone: bool = False,
) -> None:
    """mmdebstrap makes ``directory/tree`` with apt's lists and the downloaded files in it."""
    scripts = directory / "scripts"
    shutil.rmtree(scripts, ignore_errors=True)
    repository, seed = scripts / "repository", scripts / "seed"
    for path in (repository, seed):
        path.mkdir(parents=True)
    if spec.overlay:
        spec.overlay.write_repository(repository)
    for file in have:
        _link_or_copy(file, seed / file.name)
    setup, fetch = _hooks(scripts, wanted, overlay=spec.overlay is not None, security=security, alone=alone)
    run_mmdebstrap(spec, directory, setup, fetch, mirror=mirror)


def run_mmdebstrap(spec: ReleaseSpec, directory: Path, setup: Path, fetch: Path, *, mirror: str | None) -> None:
    """Have mmdebstrap run two scripts on ``directory/tree``: before apt knows anything, and with its lists."""
    argv = [
        "mmdebstrap", "--mode=chrootless", "--variant=custom", "--format=directory", f"--architectures={spec.arch}",
        "--skip=check/chrootless,cleanup", "--aptopt=APT::Sandbox::User \"root\"",
        f"--setup-hook=sh {shlex.quote(str(setup))} \"$1\"", f"--customize-hook=sh {shlex.quote(str(fetch))} \"$1\"",
        spec.base, str(directory / "tree"), *([mirror] if mirror else []),
    ]  # fmt: skip
    run_tool(argv, limit_s=FETCH_LIMIT_S, env={"TMPDIR": str(directory)}, package="mmdebstrap")


def _hooks(scripts: Path, wanted: Sequence[str], *, overlay: bool, security: bool, alone: bool) -> tuple[Path, Path]:
    """The two shell scripts that mmdebstrap runs: before apt knows anything, and once its lists are there."""
    setup, fetch = scripts / "setup.sh", scripts / "fetch.sh"
    lines = [
        "set -e",
        'mkdir -p "$1/var/cache/apt/archives"',
        f'find {shlex.quote(str(scripts / "seed"))} -name "*.deb" -exec mv -t "$1/var/cache/apt/archives" {{}} +',
    ]
    if overlay:  # the developer's build wins whatever its version says
        source = f"deb [trusted=yes] copy:{quote(str(scripts))}/repository ./"
        pin = f"Package: *\nPin: release o={ORIGIN}\nPin-Priority: 1001"
        for text, where in ((source, "sources.list.d/xentests.list"), (pin, "preferences.d/xentests")):
            lines += [
                f'mkdir -p "$1/etc/apt/{where.partition("/")[0]}"',
                f'echo {shlex.quote(text)} > "$1/etc/apt/{where}"',
            ]
    if not security:
        lines.append("""sed -i '/ [a-z]*-security /d' "$1/etc/apt/sources.list\"""")
    setup.write_text("\n".join([*lines, ""]))
    install = f"{_APT} install {shlex.join(wanted)}"
    lines = ["set -e", 'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"']
    if alone:
        lines += ['cd "$1/var/cache/apt/archives"', f"{_APT} download {shlex.join(wanted)}"]
    else:
        lines += [
            f'{install} --simulate > "$1/{_CHOSEN}" || {{ cat "$1/{_CHOSEN}"; exit 1; }}',
            f"{install} --download-only",
        ]
    fetch.write_text("\n".join([*lines, ""]))
    return setup, fetch


def _verify(tree: Path, spec: ReleaseSpec) -> Download:
    """Hash what apt chose and compare with the index, whose own hash stands in the signed Release file."""
    chosen = {match.groups() for match in _INST.finditer((tree / _CHOSEN).read_text(encoding="utf-8"))}
    promised = _promised(tree / "var/lib/apt/lists", {name for name, _, _ in chosen})
    ours = {package.sha256 for package in spec.overlay.packages} if spec.overlay else set()
    packages, files, wrong = [], {}, []
    for name, version, arch in sorted(chosen):
        file = tree / "var/cache/apt/archives" / f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        digest = sha256_of(file) if file.is_file() else ""
        if digest in promised.get((name, version, arch), ()):
            packages.append(Package(name, version, arch, digest, "directory" if digest in ours else "archive"))
            files[digest] = file
        else:
            wrong.append(file.name)
    if wrong or not packages:
        raise DownloadError(
            f"{spec} {spec.arch}: not what the archive's signed index promises: {', '.join(wrong) or 'nothing'}; none "
            f"of it is used. Try again, and if it stays so, choose another mirror (--xen-mirror)"
        )
    return Download(tuple(packages), files)


def _promised(lists: Path, names: set[str]) -> dict[tuple[str, str, str], set[str]]:
    """(name, version, architecture) -> SHA-256 of the .deb, for the packages ``names`` in apt's verified indexes."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for index in lists.glob("*_Packages"):
        for paragraph in index.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            name = paragraph.removeprefix("\n").partition("\n")[0].removeprefix("Package: ")
            if name in names:
                fields = next(stanzas(paragraph))
                key = name, fields.get("Version", ""), fields.get("Architecture", "")
                found.setdefault(key, set()).add(fields.get("SHA256", ""))
    return found


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)


_FULL = r"No space left on device|not have enough free space|Disk quota exceeded|write error"
_NO_PACKAGE = r"Unable to locate package|has no installation candidate|Version .* was not found"
_NO_FIT = r"unmet dependencies|held broken packages"
_OF_A_BUILD = (_NO_PACKAGE, _NO_FIT)
# What apt and mmdebstrap say -> what it means, and what to do.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (_FULL, "the disk is full", "make room: `xentests gc`, df -h"),
    (
        r"NO_PUBKEY|BADSIG|EXPKEYSIG|invalid signature|not signed|signatures were invalid|couldn't be verified",
        "the archive's signature could not be verified",
        "install the current debian-archive-keyring package; do not use this mirror if the keyring is current",
    ),
    (
        r"Hash Sum mismatch|unexpected size|File has unexpected|Undetermined Error",
        "what was downloaded is not what the archive's index promises",
        "the mirror is in the middle of an update or damaged: try again later or choose another (--xen-mirror)",
    ),
    (
        _NO_PACKAGE,
        "the archive has no such package",
        "if this is a mirror of your own, let it carry the whole suite with its security updates",
    ),
    (_NO_FIT, "the packages do not fit together", "if this is a mirror of your own, it is incomplete"),
    (
        r"Temporary failure resolving|Could not resolve|Could not connect|Connection (timed out|refused|failed)"
        r"|Network is unreachable|Unable to connect|404 +Not Found|does not have a Release file|File not found"
        r"|Failed to fetch|Some index files failed",
        "the archive could not be reached or lacks a file",
        "check the network (and http_proxy), or give another mirror with --xen-mirror",
    ),
)


_NOISE = re.compile(
    r"W: running chrootless|E: (setup|command) failed|E: mmdebstrap failed|E: Unable to correct problems"
)


def explain(error: ToolFailed, spec: ReleaseSpec, mirror: str | None) -> XentestsError:
    """The error that stands for a failed mmdebstrap: what it means and what to do."""
    text = error.output.decode("utf-8", "replace")
    if mirror and (refused := re.search(r"E: (invalid mirror|unknown suite|cannot determine mirror).*", text)):
        return UsageError(f"--xen-mirror {mirror!r}: give a URI or a line of sources.list ({refused.group()[3:]})")
    where = f"{spec} {spec.arch} from {mirror or 'the default archive'}"
    said = [
        line for line in text.splitlines() if re.match(r"(E|Err|W|GPG error):|.* (Depends|Breaks|Conflicts):", line)
    ]
    said = [line for line in said if not _NOISE.match(line)]
    shown = tail("\n".join(said[-8:] or text.splitlines()[-8:]))
    for pattern, cause, advice in _CAUSES:
        if re.search(pattern, text):
            if spec.overlay and pattern in _OF_A_BUILD:
                todo = f"{spec.name} must bring what its packages need and Debian's {spec.base} lacks"
            else:
                todo = advice
            kind = LabFull if pattern == _FULL else DownloadError
            return kind(f"{where}: {cause}; {todo}. Nothing was kept.\n{shown}")
    return DownloadError(f"{where}: packages could not be fetched. Nothing was kept.\n{shown}")
