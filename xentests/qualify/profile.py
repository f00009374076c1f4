"""Profiles: which suites a qualification runs, how, and with what; data files in ``profiles/``, or one of the user's.

about = "what a night has time for"
[[job]]
suite = "lifecycle"           # a folder of suites/
arches = ["amd64", "arm64"]   # default: both
keywords = "not uefi"         # pytest -k; markers is -m
workers = 2                   # processes, hence cores
dist = "loadgroup"            # how pytest-xdist shares the tests out
memory_gib = 5                # what its hosts take at most
limit_s = 1800                # ended after this long
releases = ["source:*"]       # only for these; default: all
qemu = "debian:trixie"        # variants of the machine: another QEMU,
fresh_boot = true             # hosts that are booted and not cloned
[[left_out]]
what = "tests marked long"
why = "they take half a minute and more each"
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from xentests.errors import UsageError
from xentests.release.arch import ARCHES
from xentests.release.spec import SYSTEM_QEMU, parse_qemu, parse_release

BUILT_IN = Path(__file__).parent / "profiles"
_DISTS = ("load", "loadfile", "loadgroup", "loadscope", "worksteal")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[job]]``: a suite on some architectures."""

    suite: str
    arches: list[str] = msgspec.field(default_factory=lambda: list(ARCHES))
    keywords: str = ""
    markers: str = ""
    workers: int = 2
    dist: str = "load"
    memory_gib: float = 5.0
    limit_s: float = 3600.0
    releases: list[str] = msgspec.field(default_factory=lambda: ["*"])
    qemu: str = SYSTEM_QEMU
    fresh_boot: bool = False

    @property
    def variant(self) -> str:
        """How its machine differs from the usual one, as part of a name; empty when it does not."""
        words = [f"qemu-{self.qemu.partition(':')[2]}"] if self.qemu != SYSTEM_QEMU else []
        return "-".join([*words, *(["fresh"] if self.fresh_boot else [])])


NOT_ASKED = "not asked for (--suite, --arch)"


class LeftOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the profile leaves out on purpose."""

    what: str
    why: str


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as its file has it."""

    job: list[Part]
    about: str = ""
    left_out: list[LeftOut] = []


@dataclass(frozen=True)
class Job:
    """One pytest call: ``part`` of a profile on one architecture."""

    name: str
    part: Part
    release: str
    arch: str

    def argv(self, artifacts: Path) -> list[str]:
        """pytest's arguments, with runs to be made in ``artifacts``."""
        part = self.part
        words = [f"suites/{part.suite}", "-n", str(part.workers), "--dist", part.dist]
        words += ["-k", part.keywords] if part.keywords else []
        words += ["-m", part.markers] if part.markers else []
        words += ["--xen-release", self.release, "--xen-arch", self.arch, "--xen-qemu", part.qemu]
        return [*words, *(["--xen-fresh-boot"] if part.fresh_boot else []), "--xen-artifacts", str(artifacts)]


def names() -> list[str]:
    """The profiles that come with xentests."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def read(name: str, suites: Path) -> Profile:
    """The profile ``name`` or of the file ``name``; its suites are folders of ``suites``. UsageError: what is wrong."""
    path = Path(name) if name.endswith(".toml") else BUILT_IN / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"profile {name}: there are {', '.join(names())}; or give a file, FILE.toml")
    try:
        profile = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Profile)
    except (OSError, ValueError) as error:  # msgspec's and tomllib's are ValueErrors
        raise UsageError(f"profile {path}: {error}") from error
    for part in profile.job:
        if problem := _problem(part, suites):
            raise UsageError(f"profile {path}: job {part.suite!r}: {problem}")
    return profile


def _problem(part: Part, suites: Path) -> str:
    known = suite_names(suites)
    if part.suite not in known:
        return f"no such suite; there are {', '.join(known)}"
    if unknown := set(part.arches) - set(ARCHES):
        return f"unknown architecture {min(unknown)}; there are {', '.join(ARCHES)}"
    if part.dist not in _DISTS:
        return f"dist {part.dist!r}: one of {', '.join(_DISTS)}"
    if part.workers < 1 or part.limit_s <= 0 or part.memory_gib <= 0:
        return "workers, limit_s and memory_gib are more than 0"
    parse_qemu(part.qemu)
    return ""


def suite_names(suites: Path) -> list[str]:
    """The folders of ``suites`` that hold tests."""
    return sorted(path.name for path in suites.iterdir() if any(path.glob("test_*.py")))


def jobs(
    profile: Profile, release: str, *, arches: Sequence[str], suites: Sequence[str]
) -> tuple[list[Job], list[LeftOut]]:
    """The jobs for ``release``, in the profile's order, and what of the profile does not apply.

    ``arches`` and ``suites`` choose; empty for all. UsageError when nothing is left, or the release has no such name.
    """
    if unknown := set(suites) - {part.suite for part in profile.job}:
        there = ", ".join(dict.fromkeys(part.suite for part in profile.job))
        raise UsageError(f"--suite {min(unknown)}: not in this profile, which has {there}")
    made: list[Job] = []
    left: list[LeftOut] = list(profile.left_out)
    only = parse_release(release).arch if ",arch=" in release else ""
    for part in profile.job:
        for arch in part.arches:
            name = "-".join(filter(None, (part.suite, arch, part.variant)))
            if (suites and part.suite not in suites) or (arches and arch not in arches):
                left.append(LeftOut(name, NOT_ASKED))
            elif only and arch != only:
                left.append(LeftOut(name, f"{release} is for {only}"))
            elif not any(fnmatch.fnmatchcase(release, pattern) for pattern in part.releases):
                left.append(LeftOut(name, f"runs on releases called {' or '.join(part.releases)} only"))
            else:
                parse_release(release, arch)
                made.append(Job(_unique(name, made), part, release, arch))
    if not made:
        raise UsageError(f"nothing to run: no job of this profile is for {release} with --arch and --suite as given")
    return made, left


def _unique(name: str, made: Sequence[Job]) -> str:
    taken = {job.name for job in made}
    return next(each for number in range(1, 100) if (each := name if number == 1 else f"{name}-{number}") not in taken)
