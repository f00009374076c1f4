"""Hypervisors from source, on a tiny tree: names, what counts, fragments that Kconfig drops, builds that fail."""

from __future__ import annotations

import gc
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selftests.project import ROOT
from xentests.errors import BuildFailed, UsageError
from xentests.image.surface import surface_of
from xentests.lab.store import Store
from xentests.release import source_package
from xentests.release.fragment import parse
from xentests.release.hypervisor import CONFIG, XEN, build_hypervisor, first_error
from xentests.release.kconfig import Explain, dropped
from xentests.release.source import files_of, version_of
from xentests.release.spec import ReleaseSpec, parse_release

MAKEFILE = """\
export XEN_VERSION = 4
export XEN_SUBVERSION = 17
export XEN_EXTRAVERSION ?= .9$(XEN_VENDORVERSION)
CC ?= gcc
olddefconfig:
	@grep -v SECRET .config > .config.new || true
	@grep -q DEPTH .config.new || sed -i /WATER/d .config.new
	@mv .config.new .config
allnoconfig:
	@cp $(KCONFIG_ALLCONFIG) .config
build:
	@echo "  CC      common/code.o"
	@$(CC) -g -c -o common/code.o common/code.c
	@cp common/code.o xen && cp common/code.o xen-syms
"""
Release = Callable[[str], ReleaseSpec]
KCONFIG = """\
mainmenu "tiny"
config DEPTH
	bool "Depth"
config WATER
	bool "Water"
	depends on DEPTH && !FIRE
config FIRE
	bool
config SECRET
	bool "Secret" if DEPTH
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that builds as Xen's does, in a moment."""
    top = tmp_path / "xen-tree"
    for name, text in {
        "xen/Makefile": MAKEFILE,
        "xen/Kconfig": KCONFIG,
        "xen/arch/x86/configs/x86_64_defconfig": "",
        "xen/common/code.c": "int do_domctl(void) { return 1; }\nint counter[100];\n",
        "Config.mk": "",
        "tools/huge": "not read",
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def fragment(tmp_path: Path, text: str, name: str = "fragment") -> Path:
    """A Kconfig fragment."""
    path = tmp_path / f"{name}.config"
    path.write_text(text)
    return path


@pytest.fixture
def release(tree: Path, tmp_path: Path) -> Release:
    """The tree with a Kconfig fragment."""
    return lambda text: parse_release(f"source:{tree},kconfig={fragment(tmp_path, text)}")


def test_name_is_read_back(tree: Path, tmp_path: Path) -> None:
    """All that a name says is in its spec, and the spec's text says it again."""
    one, other = fragment(tmp_path, "CONFIG_DEPTH=y\n"), fragment(tmp_path, "CONFIG_DEPTH=n\n", "other")
    text = f"source:{tree},kconfig={one},kconfig={other},config=allnoconfig"
    spec = parse_release(f"{text},arch=arm64")
    assert (spec.arch, spec.base, spec.xen, str(spec)) == ("arm64", "bookworm", "4.17", text)
    assert spec.source is not None
    assert parse(spec.source.fragment) == {"DEPTH": "n"}
    assert parse_release(text, "arm64") == spec
    assert parse_release("source:debian:bullseye").base == "bullseye"
    assert version_of(tree) == ("4.17", "4.17.9")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source:/nowhere", "no tree of Xen's"),
        ("source:debian:sid", "source:debian:bookworm"),
        ("source:debian:bookworm,kconfig=/nowhere", "no Kconfig fragment"),
        ("source:debian:bookworm,config=randconfig", "defconfig, allnoconfig"),
        ("source:debian:bookworm,speed=fast", "'speed' is no option"),
        ("source:debian:bookworm,kconfig=", "'kconfig' is no option"),
        ("source:debian:bookworm,arch=mips", "unknown architecture"),
        ("source:debian:bookworm,base=trixie", "choose one of"),
        ("tree:/nowhere", "no such directory"),
        ("source:", "unknown release"),
    ],
)
def test_bad_names_are_refused(text: str, says: str) -> None:
    """A name that cannot be meant is the caller's error, and says what there is."""
    with pytest.raises(UsageError, match=says):
        parse_release(text)


def test_two_architectures_are_refused() -> None:
    """The name and the option must not contradict each other."""
    with pytest.raises(UsageError, match="give one of the two"):
        parse_release("source:debian:bookworm,arch=arm64", "amd64")


def test_xen_without_tools_is_refused(tree: Path) -> None:
    """Tools fit their own hypervisor only: a Xen that no suite has needs tools of its own."""
    makefile = tree / "xen/Makefile"
    makefile.write_text(makefile.read_text().replace("= 17", "= 99"))
    with pytest.raises(UsageError, match=r"Xen 4\.99.*make dist"):
        parse_release(f"source:{tree}")


def test_fragment_that_is_none_is_refused(release: Release) -> None:
    """A fragment with a line that means nothing to Kconfig is not built."""
    with pytest.raises(UsageError, match=r"line 2, 'WATER=y'"):
        release("# fine\nWATER=y\n")


def test_only_what_the_hypervisor_is_made_of_counts(tree: Path) -> None:
    """A change to tools or of built files builds nothing anew; a change of the hypervisor's code does."""
    before = parse_release(f"source:{tree}")
    (tree / "tools/huge").write_text("changed")
    for built in ("xen/common/code.o", "xen/.config", "xen/include/generated/autoconf.h"):
        (tree / built).parent.mkdir(parents=True, exist_ok=True)
        (tree / built).write_text("built")
    assert parse_release(f"source:{tree}") == before
    (tree / "xen/common/code.c").write_text("int other;\n")
    assert parse_release(f"source:{tree}") != before


def test_of_a_git_tree_what_is_there_now_counts(tree: Path) -> None:
    """Changes that were not committed count, ignored files and deleted ones do not."""
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", tree, *words], check=True)
    (tree / ".gitignore").write_text("*.o\n")
    (tree / "xen/common/new.c").write_text("")
    (tree / "xen/common/new.o").write_text("")
    (tree / "xen/Kconfig").unlink()
    assert [name for name in files_of(tree) if "new" in name or "Kconfig" in name] == ["xen/common/new.c"]


def test_build_once(tree: Path, store: Store, release: Release) -> None:
    """A hypervisor is built once for the same source and configuration, whatever lines the fragment has between."""
    said: list[str] = []
    spec = release("CONFIG_DEPTH=y\n")
    entry = build_hypervisor(spec, store, report=said.append)
    assert "built in" in said[-1]
    assert parse(entry.file(CONFIG).read_text()) == {"DEPTH": "y"}
    assert entry.manifest["version"] == "4.17.9"
    surface = surface_of(entry.file(XEN))
    assert (surface.hypercalls, surface.bss) == (frozenset({"domctl"}), 400)
    said.clear()
    again = release("# again\n\nCONFIG_DEPTH=y\n")
    assert build_hypervisor(again, store, report=said.append).key == entry.key
    assert said == []
    assert list((store.root / "hypervisor").glob(".tmp*")) == []
    assert not (tree / "xen/xen").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            "CONFIG_WATER=y\n",
            r"CONFIG_WATER=y was not taken \(it is n\): it depends on DEPTH, which is not so",
            id="depends",
        ),
        pytest.param("CONFIG_WATRE=y\nCONFIG_SECRET=y\n", r"2 of the 2 options", id="two"),
        pytest.param("CONFIG_SECRET=y\n", r"it can be set only with DEPTH", id="prompt"),
    ],
)
def test_dropped_option_is_named(tree: Path, store: Store, release: Release, text: str, says: str) -> None:
    """What Kconfig silently leaves out is an error that names the option, and what it wants."""
    makefile = tree / "xen/Makefile"
    makefile.write_text(makefile.read_text().replace("SECRET", "-e SECRET -e WATRE"))
    with pytest.raises(UsageError, match=says):
        build_hypervisor(release(text), store)


def test_unknown_option_has_near_ones_named(tree: Path, store: Store, release: Release) -> None:
    """An option that there is not was probably another one."""
    makefile = tree / "xen/Makefile"
    makefile.write_text(makefile.read_text().replace("SECRET", "WATRE"))
    with pytest.raises(UsageError, match="no such option; did you mean WATER"):
        build_hypervisor(release("CONFIG_WATRE=y\n"), store)


def test_failed_build_says_its_first_error(tree: Path, store: Store) -> None:
    """Of a build that fails the first error is shown, and where all of it is; nothing is kept."""
    (tree / "xen/common/code.c").write_text("int broken(void)\n{\n    return missing;\n}\nint more = absent;\n")
    with pytest.raises(BuildFailed, match=r"code\.c:3:12: error: .missing. undeclared") as caught:
        build_hypervisor(parse_release(f"source:{tree}"), store)
    text = str(caught.value)
    assert "absent" not in text
    log = Path(text.rpartition("The whole output: ")[2])
    assert "absent" in log.read_text()
    assert [path.name for path in (store.root / "hypervisor").iterdir()] == []


def test_first_error_of_a_linker() -> None:
    """Where nothing has a line number, make's own word is better than none."""
    wall = ["  CC      a.o", "  LD      xen", "ld: a.o: in function `f':", "a.c:1: undefined reference to `g'",
            "make[1]: *** [Makefile:1: xen] Error 1"]  # fmt: skip
    assert first_error(wall) == "a.c:1: undefined reference to `g'"
    assert first_error(["make: *** No rule to make target 'x'.  Stop."]).startswith("make: ***")


@pytest.mark.parametrize("path", sorted((ROOT / "suites/kconfig/configs").glob("*.config")), ids=lambda path: path.stem)
def test_fragments_of_the_project_read(path: Path) -> None:
    """Every fragment is one, and says y or n of each option once."""
    values = parse(path.read_text())
    assert values
    assert set(values.values()) <= {"y", "n"}
    assert len(values) == sum(line.startswith("CONFIG_") for line in path.read_text().splitlines())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kconfiglib leaves the file open
def test_kconfig_files_that_cannot_be_explained(tmp_path: Path) -> None:
    """Where only Xen's own Kconfig can read them the loss is told all the same, and that its reason is not known."""
    (tmp_path / "Kconfig").write_text("config A\n\tbool\n\tdepends on (\n")
    (tmp_path / ".config").write_text("")
    (lost,) = dropped({"A": "y"}, {}, Explain(tmp_path, tmp_path / ".config", {}))
    assert str(lost).startswith("CONFIG_A=y was not taken (it is n): why is not known, since kconfiglib cannot read")
    assert "Kconfig:3" in str(lost)
    gc.collect()


def test_two_runs_fetch_a_source_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and takes what that one fetched."""
    waiting, fetched = threading.Event(), []

    def download(spec: ReleaseSpec, directory: Path, *, mirror: str | None) -> source_package._Version:
        fetched.append(spec)
        assert waiting.wait(60)
        folder = directory / "tree" / source_package._FETCHED
        folder.mkdir(parents=True)
        (folder / "xen_4.17.orig.tar.xz").write_bytes(b"source")
        return source_package._Version(
            "4.17-1", {"xen_4.17.orig.tar.xz": "digest"}, frozenset(["xen_4.17.orig.tar.xz"])
        )

    monkeypatch.setattr(source_package, "_download", download)
    store = Store(tmp_path, say=lambda text: waiting.set() if "another run" in text else None)
    spec = parse_release("source:debian:bookworm")
    with ThreadPoolExecutor() as pool:
        entries = list(pool.map(lambda _: source_package.fetch_source(spec, store), range(2)))
    assert len(fetched) == 1
    assert entries[0].path == entries[1].path
    assert entries[0].file("xen_4.17.orig.tar.xz").read_bytes() == b"source"
