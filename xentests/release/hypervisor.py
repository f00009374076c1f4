"""Builds a hypervisor from source, out of the tree that it comes from: configured by a Kconfig fragment, cross-compiled
where need be, kept in the store by the content of source, configuration and compiler.

A copy of the source is built and thrown away; ccache keeps what was compiled, so that another fragment compiles only
what it changes. Date, user and host that Xen would put into itself are left out: the same input gives the same bytes.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from xentests.errors import BuildFailed, LabError, LabFull, UsageError
from xentests.lab.store import Entry, Store, key_of
from xentests.release import kconfig
from xentests.release.arch import Arch
from xentests.release.fragment import parse
from xentests.release.source import Source, copy_tree, files_of, version_of
from xentests.release.source_package import chosen_source, fetch_source, unpack_source
from xentests.release.spec import ReleaseSpec
from xentests.text import clean
from xentests.tools import find_tool, follow_tool, run_tool

Report = Callable[[str], None]
XEN, SYMBOLS, CONFIG = "xen", "xen-syms", "xen.config"
"""The files of an entry: the hypervisor as it is booted, with its symbols, and its whole configuration."""

BUILDER = 1  # raise it when the same source, configuration and compiler give another hypervisor
_BUILD_LIMIT_S = 1800.0
_SAY_EVERY_S = 5.0
_CCACHE_SIZE = "2G"
_XEN_ARCH: dict[Arch, str] = {"amd64": "x86_64", "arm64": "arm64"}
_SRCARCH: dict[Arch, str] = {"amd64": "x86", "arm64": "arm"}
_CROSS: dict[Arch, str] = {"amd64": "x86_64-linux-gnu-", "arm64": "aarch64-linux-gnu-"}
_NATIVE: dict[str, Arch] = {"x86_64": "amd64", "aarch64": "arm64"}
_UNIT = re.compile(r"\s+(CC|AS)\s|\S*gcc .* -c ")
# The first line that says what is wrong; make's own "***" comes after that and only repeats it.
_ERROR = re.compile(r".*(\berror:|undefined reference|No such file or directory|command not found|: not found)")
_MAKE_ERROR = re.compile(r"make(\[\d+\])?: \*\*\* ")
_FULL = re.compile(r"No space left on device|Disk quota exceeded")


def build_hypervisor(
    spec: ReleaseSpec,
    store: Store,
    *,
    mirror: str | None = None,
    refresh: bool = False,
    report: Report = lambda text: None,
) -> Entry:
    """The hypervisor of a release with a source; from the store when the same was built before.

    Its manifest has ``version``, ``source``, ``compiler``, ``fragment``. Raises UsageError when Kconfig does not take
    the fragment, BuildFailed when the source does not compile; DownloadError, LabFull, LabError.
    """
    source = spec.source
    assert source is not None
    package = None
    if source.directory is None:
        package = fetch_source(spec, store, mirror=mirror, refresh=refresh, report=report)
    compiler = _compiler(spec.arch)
    key = _key(spec, source, package, compiler)
    build = functools.partial(_Build(spec, store, package, compiler, report).into, key)
    return store.get("hypervisor", key, build, what=f"hypervisor of {spec} {spec.arch}")


def find_hypervisor(spec: ReleaseSpec, store: Store, *, mirror: str | None = None) -> Entry | None:
    """The hypervisor of a release with a source if it was built before, else None; builds and fetches nothing."""
    assert spec.source is not None
    package = chosen_source(spec, store, mirror=mirror) if spec.source.directory is None else None
    if spec.source.directory is None and package is None:
        return None
    key = _key(spec, spec.source, package, _compiler(spec.arch))
    return store.find("hypervisor", key, what=f"hypervisor of {spec} {spec.arch}")


def _key(spec: ReleaseSpec, source: Source, package: Entry | None, compiler: str) -> str:
    of_source = _key_of_source(source, package.key if package else "")
    return key_of("hypervisor", BUILDER, of_source, spec.arch, compiler)


def _key_of_source(source: Source, package: str) -> str:
    """Of all that the hypervisor is made from; ``package`` is the key of Debian's source package, if it is that."""
    asked = sorted(parse(source.fragment).items())
    return key_of("source", source.digest or package, source.start, asked)


def _cross(arch: Arch) -> str:
    return "" if _NATIVE.get(platform.machine()) == arch else _CROSS[arch]


def _compiler(arch: Arch) -> str:
    gcc = f"{_cross(arch)}gcc"
    package = "gcc" if gcc == "gcc" else f"gcc-{_CROSS[arch].rstrip('-').replace('_', '-')}"
    return run_tool([gcc, "--version"], package=package).decode().partition("\n")[0]


class _Build:
    """One build: what it is made from, and how make is called."""

    def __init__(self, spec: ReleaseSpec, store: Store, package: Entry | None, compiler: str, report: Report) -> None:
        assert spec.source is not None
        self._spec, self._source, self._store, self._package = spec, spec.source, store, package
        self._compiler, self._report = compiler, report
        self._name = f"{spec} {spec.arch}"

    def into(self, key: str, directory: Path) -> Mapping[str, object]:
        """Fill ``directory`` with the files of the entry ``key``."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".tmp-build-{os.getpid()}-") as scratch:
            tree = Path(scratch) / "xen"
            self._lay_out(tree)
            _, version = version_of(tree)
            self._configure(tree)
            self._report(f"{self._name}: compiling Xen {version}")
            self._make(tree, "build", key)
            for built, name in (("xen", XEN), ("xen-syms", SYMBOLS), (".config", CONFIG)):
                if not (tree / "xen" / built).is_file():
                    raise LabError(f"{self._name}: the build made no xen/{built}: this Xen is not known here")
                shutil.move(tree / "xen" / built, directory / name)
        seconds = time.monotonic() - started
        self._report(f"{self._name}: built in {seconds:.0f} s")
        package = self._package.manifest if self._package else {}
        return {
            "version": version,
            "source": str(self._source.directory or f"debian:{self._spec.base}"),
            "package": package.get("version", ""),
            "patched": package.get("patched", False),
            "compiler": self._compiler,
            "fragment": self._source.fragment,
            "seconds": round(seconds, 1),
        }

    def _lay_out(self, tree: Path) -> None:
        if self._package is not None:
            unpack_source(self._package, tree)
            return
        directory = self._source.directory
        assert directory is not None
        copy_tree(directory, files_of(directory), tree)

    # -- Kconfig ------------------------------------------------------------------------------------------------------

    def _configure(self, tree: Path) -> None:
        asked = parse(self._source.fragment)
        fragment = tree.parent / "fragment"
        fragment.write_text(self._source.fragment + "\n")
        config = tree / "xen/.config"
        if self._source.start == "allnoconfig":
            self._make(tree, "allnoconfig", "", {"KCONFIG_ALLCONFIG": str(fragment)})
        else:
            # The fragment comes in before defaults are worked out: EXPERT, say, raises other defaults.
            name = _XEN_ARCH[self._spec.arch]
            defaults = tree / f"xen/arch/{_SRCARCH[self._spec.arch]}/configs/{name}_defconfig"
            config.write_text(defaults.read_text() + fragment.read_text())
            self._make(tree, "olddefconfig", "")
        became = parse(config.read_text())
        if all(became.get(name, "n") == value for name, value in asked.items()):
            return
        lost = kconfig.dropped(asked, became, kconfig.Explain(tree / "xen", config, self._environment(tree)))
        raise UsageError(
            f"{self._spec}: Kconfig does not take {len(lost)} of the {len(asked)} options asked for:\n"
            + "\n".join(f"  {option}" for option in lost)
        )

    def _environment(self, tree: Path) -> dict[str, str]:
        """What Xen's Makefile exports, for Kconfig's macros (xen/Makefile, xen/tools/kconfig/Makefile.kconfig)."""
        short, version = version_of(tree)
        major, minor = short.split(".")
        cross = _cross(self._spec.arch)
        tools = {name.upper(): f"{cross}{name}" for name in ("ld", "nm", "objcopy", "objdump")}
        return {
            **tools, "CC": f"{cross}gcc", "HOSTCC": "gcc", "SRCARCH": _SRCARCH[self._spec.arch],
            "ARCH": _XEN_ARCH[self._spec.arch], "XEN_VERSION": major, "XEN_SUBVERSION": minor,
            "XEN_FULLVERSION": version, "XEN_EXTRAVERSION": version.removeprefix(short),
            "BASEDIR": str(tree / "xen"), "XEN_ROOT": str(tree), "CLANG_FLAGS": "",
        }  # fmt: skip

    # -- make ---------------------------------------------------------------------------------------------------------

    def _make(self, tree: Path, target: str, key: str, environment: Mapping[str, str] | None = None) -> None:
        lines: list[str] = []
        units, said = 0, time.monotonic()
        started = said

        def line(text: str) -> None:
            nonlocal units, said
            lines.append(text)
            units += bool(_UNIT.match(text))
            if time.monotonic() - said > _SAY_EVERY_S and units:
                said = time.monotonic()
                self._report(f"{self._name}: {units} files compiled in {said - started:.0f} s")

        code = follow_tool(
            self._argv(tree, target), on_line=line, limit_s=_BUILD_LIMIT_S, package="make",
            env={**self._constant(), **(environment or {})},
        )  # fmt: skip
        if code:
            raise self._failed(lines, target, key)

    def _argv(self, tree: Path, target: str) -> list[str]:
        cross = _cross(self._spec.arch)
        ccache = "ccache " if find_tool("ccache") else ""
        return [
            "make", "-C", str(tree / "xen"), target, f"-j{len(os.sched_getaffinity(0))}",
            f"XEN_TARGET_ARCH={_XEN_ARCH[self._spec.arch]}", *([f"CROSS_COMPILE={cross}"] if cross else []),
            f"CC={ccache}{cross}gcc", f"HOSTCC={ccache}gcc",
            "XEN_HAS_CHECKPOLICY=n",
        ]  # fmt: skip

    def _constant(self) -> dict[str, str]:
        return {
            "CCACHE_DIR": str(self._store.root / "ccache"), "CCACHE_MAXSIZE": _CCACHE_SIZE, "CCACHE_NOHASHDIR": "1",
            "CCACHE_BASEDIR": str(self._store.root), "MAKEFLAGS": "", "SOURCE_DATE_EPOCH": "0",
            "XEN_WHOAMI": "xentests", "XEN_DOMAIN": "localdomain", "XEN_BUILD_DATE": "Thu Jan  1 00:00:00 UTC 1970",
            "XEN_BUILD_TIME": "00:00:00", "XEN_BUILD_HOST": "localhost",
        }  # fmt: skip

    def _failed(self, lines: list[str], target: str, key: str) -> Exception:
        text = "\n".join(lines)
        if _FULL.search(text):
            return LabFull(f"{self._name}: the disk below {self._store.root} is full; make room: `xentests gc`, df -h")
        folder = self._store.root / "failed"
        folder.mkdir(exist_ok=True)
        log = folder / f"{key[:16] or 'configure'}.txt"
        log.write_text(text + "\n")
        return BuildFailed(
            f"{self._name}: does not build (make {target}, with {self._compiler}); the first error:\n"
            f"{clean(first_error(lines), limit=2000)}\nThe whole output: {log}"
        )


def first_error(lines: list[str]) -> str:
    """The first error of a build with what the compiler says of it: some lines of a wall."""
    for pattern in (_ERROR, _MAKE_ERROR):
        for number, line in enumerate(lines):
            if pattern.match(line) and not line.lstrip().startswith("#"):
                end = number + 1
                while end < len(lines) and end - number < 8 and (lines[end][:1] in " \t" or "note:" in lines[end]):
                    if _UNIT.match(lines[end]):
                        break
                    end += 1
                before = lines[number - 1 : number] if number and "In function" in lines[number - 1] else []
                return "\n".join([*before, *lines[number:end]])
    return "\n".join(lines[-8:])
