"""Fetching packages: verified, kept, repeatable without the network, never half-kept. From archives on this disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from selftests.fake_archive import FakeArchive, make_deb
from xentests.deadline import until
from xentests.errors import DownloadError, LabError, LabFull, UsageError
from xentests.lab.store import Store
from xentests.release import archive as archive_module
from xentests.release import fetch as fetch_module
from xentests.release.deb import sha256_of
from xentests.release.fetch import chosen, fetch
from xentests.release.spec import ReleaseSpec, parse_release
from xentests.tools import ToolFailed, run_tool

pytestmark = pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg, to sign an archive of its own")
HYPERVISOR = "xen-hypervisor-4.20-amd64"
TRIXIE = parse_release("debian:trixie", "amd64")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[FakeArchive]:
    """A signed archive with a hypervisor, a tool that depends on a library, and something nobody asks for."""
    made = FakeArchive(tmp_path / "archive", tmp_path / "keys")
    made.add(HYPERVISOR, files={"boot/xen-4.20-amd64.gz": b"xen"})
    made.add("tool", depends="library (>= 1)")
    made.add("library")
    made.add("unwanted")
    made.publish()
    yield made
    subprocess.run(["gpgconf", "--homedir", tmp_path / "keys", "--kill", "all"], check=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    return Store(tmp_path / "cache with spaces")


def nothing_kept(store: Store) -> bool:
    """No packages, no temporary directory, no choice."""
    left = [path for path in store.root.glob("*/*") if path.suffix != ".lock" and path.parent.name != ".locks"]
    return not left


def test_packages_come_with_what_they_depend_on_and_their_hashes(archive: FakeArchive, store: Store) -> None:
    """The manifest's SHA-256 are those of the files, and only what is needed is fetched."""
    fetched = fetch(TRIXIE, [HYPERVISOR, "tool"], store, mirror=archive.mirror)
    assert [package.name for package in fetched.chosen.packages] == ["library", "tool", HYPERVISOR]
    for package in fetched.chosen.packages:
        assert sha256_of(fetched.deb(package)) == package.sha256
        assert package.origin == "archive"
    assert fetched.entry.manifest["packages"] == [package.to_json() for package in fetched.chosen.packages]


def test_a_package_can_come_alone(archive: FakeArchive, tmp_path: Path) -> None:
    """By name and version, verified, without what it depends on; a version that is not there any more is an error."""
    files = archive_module.download_alone(TRIXIE, {"tool": "1.0"}, tmp_path / "one", mirror=archive.mirror)
    assert list(files) == ["tool"]
    assert [file.name for file in files["tool"].parent.glob("*.deb")] == ["tool_1.0_amd64.deb"]
    with pytest.raises(DownloadError, match="tool"):
        archive_module.download_alone(TRIXIE, {"tool": "0.9"}, tmp_path / "two", mirror=archive.mirror)


def test_a_warm_cache_needs_no_archive(archive: FakeArchive, store: Store) -> None:
    """The second time nothing is asked of the archive, which may be gone."""
    first = fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    shutil.rmtree(archive.root)
    again = fetch(TRIXIE, ["tool"], Store(store.root), mirror=archive.mirror)
    assert again.chosen == first.chosen
    assert chosen(TRIXIE, ["tool"], store, mirror=archive.mirror) == first.chosen
    assert chosen(TRIXIE, ["tool"], store, mirror="another") is None


def test_newer_packages_come_when_asked_for_only(archive: FakeArchive, store: Store) -> None:
    """A release stays what it was until it is refreshed, and the change is said."""
    said: list[str] = []
    first = fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    archive.add("library", "1.1")
    archive.publish()
    assert fetch(TRIXIE, ["tool"], store, mirror=archive.mirror).chosen == first.chosen
    newer = fetch(TRIXIE, ["tool"], store, mirror=archive.mirror, refresh=True, report=said.append)
    assert newer.chosen.version("library") == "1.1"
    assert newer.chosen.key != first.chosen.key
    assert len(newer.chosen.packages) == len(first.chosen.packages)
    assert "refreshed: library 1.0 -> 1.1" in said


def test_a_refresh_downloads_only_what_changed(archive: FakeArchive, store: Store) -> None:
    """What is in the store is taken from there: the archive has lost that file, and it does not matter."""
    fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    archive.add("library", "1.1")
    archive.publish()
    (archive.root / "pool/tool_1.0_amd64.deb").unlink()
    assert fetch(TRIXIE, ["tool"], store, mirror=archive.mirror, refresh=True).chosen.version("library") == "1.1"


def test_a_damaged_package_in_the_cache_is_fetched_again(archive: FakeArchive, store: Store) -> None:
    """A cached file that is not what it was is noticed and replaced."""
    fetched = fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    file = fetched.deb(fetched.chosen.packages[0])
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    again = fetch(TRIXIE, ["tool"], Store(store.root), mirror=archive.mirror)
    assert again.chosen == fetched.chosen
    assert sha256_of(file) == fetched.chosen.packages[0].sha256


def test_a_missing_package_is_named(archive: FakeArchive, store: Store) -> None:
    """One the archive does not have."""
    with pytest.raises(DownloadError, match=r"no such package.*\n.*no-such-tool"):
        fetch(TRIXIE, ["no-such-tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_missing_dependency_is_named(archive: FakeArchive, store: Store) -> None:
    """A package whose dependency the archive lacks."""
    archive.add("lonely", depends="absent-library")
    archive.publish()
    with pytest.raises(DownloadError, match=r"do not fit together(.|\n)*absent-library"):
        fetch(TRIXIE, ["lonely"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_signature_by_another_key_is_refused(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """The archive is whole, but signed by somebody else."""
    stranger = FakeArchive(tmp_path / "stranger", tmp_path / "keys2")
    shutil.copy(stranger.keyring, archive.keyring)
    with pytest.raises(DownloadError, match=r"signature could not be verified.*keyring"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_an_unsigned_archive_is_refused(archive: FakeArchive, store: Store) -> None:
    """A Release file without a signature."""
    (archive.root / "dists/trixie/InRelease").unlink()
    with pytest.raises(DownloadError, match="signature could not be verified"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_an_index_that_was_not_signed_is_refused(archive: FakeArchive, store: Store) -> None:
    """Somebody changed the index after it was signed."""
    index = archive.root / "dists/trixie/main/binary-amd64/Packages"
    index.write_bytes(index.read_bytes().replace(b"Version: 1.0", b"Version: 6.6"))
    with pytest.raises(DownloadError, match="not what the archive's index promises"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


@pytest.mark.parametrize("keep", [0, 100, -1], ids=["empty", "half", "one-byte-short"])
def test_a_half_downloaded_package_is_refused(archive: FakeArchive, store: Store, keep: int) -> None:
    """A file that ends early is not used, wherever it ends."""
    deb = archive.root / "pool/library_1.0_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:keep])
    with pytest.raises(DownloadError, match=r"(?s)not what the archive's index promises.*library"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_changed_package_is_refused(archive: FakeArchive, store: Store) -> None:
    """Same size, other bytes."""
    deb = archive.root / "pool/library_1.0_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"?")
    with pytest.raises(DownloadError, match=r"(?s)not what the archive's index promises"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:9/debian", "file:///no/such/archive", "http://archive.invalid/debian"]
)
def test_an_archive_that_is_not_there(store: Store, where: str) -> None:
    """No server, no directory, no such name: what to check is said."""
    with pytest.raises(DownloadError, match=r"could not be reached.*--xen-mirror"):
        fetch(TRIXIE, ["tool"], store, mirror=where)
    assert nothing_kept(store)


def test_a_mirror_can_be_a_file_of_sources(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """For an archive with updates and security beside it; the file's contents count, not its name."""
    sources = tmp_path / "sources.list"
    sources.write_text(f"# ours\n{archive.mirror}\n")
    first = fetch(TRIXIE, ["tool"], store, mirror=str(sources))
    assert [package.name for package in first.chosen.packages] == ["library", "tool"]
    assert chosen(TRIXIE, ["tool"], store, mirror=str(sources)) == first.chosen
    sources.write_text("# nothing\n")
    assert chosen(TRIXIE, ["tool"], store, mirror=str(sources)) is None


def test_a_mirror_that_is_none(store: Store) -> None:
    """A word that is neither a URI nor a line of sources.list."""
    with pytest.raises(UsageError, match="--xen-mirror 'nonsense': give a URI"):
        fetch(TRIXIE, ["tool"], store, mirror="nonsense")
    assert nothing_kept(store)


def test_what_apt_accepts_is_compared_with_the_index_once_more(
    archive: FakeArchive, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that changes between apt's check and ours, as on a failing disk."""

    def spoil(argv: list[str], *, limit_s: float, env: dict[str, str], package: str) -> bytes:
        result = run_tool(argv, limit_s=limit_s, env=env, package=package)
        tree = Path(next(word for word in argv if word.endswith("/tree")))
        deb = next((tree / "var/cache/apt/archives").glob("library_*.deb"))
        deb.write_bytes(deb.read_bytes()[:-1] + b"?")
        return result

    monkeypatch.setattr(archive_module, "run_tool", spoil)
    with pytest.raises(DownloadError, match=r"library_1\.0_amd64\.deb"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_full_disk_seen_by_apt(archive: FakeArchive, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt's words for it become an error about the disk, not about the archive."""

    def full(*args: object, **options: object) -> bytes:
        raise ToolFailed("x", output=b"E: Write error - write (28: No space left on device)\n", exit_code=100)

    monkeypatch.setattr(archive_module, "run_tool", full)
    with pytest.raises(LabFull, match=r"the disk is full.*make room"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_full_disk_seen_by_us(archive: FakeArchive, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside apt as well."""

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch_module, "download", full)
    with pytest.raises(LabFull, match=r"No space left on device.*make room"):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_an_interrupted_fetch_leaves_nothing(
    archive: FakeArchive, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while packages are on their way."""

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive_module, "run_tool", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    assert nothing_kept(store)


def test_a_killed_fetch_harms_nobody(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """kill -9 while packages are on their way: the next run is not hindered, and gc removes what was left."""
    started = tmp_path / "started"
    child = os.fork()
    if child == 0:

        def hang(*args: object, **options: object) -> None:
            started.touch()
            signal.pause()

        vars(archive_module)["run_tool"] = hang
        fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
        os._exit(1)
    until(started.exists, what="the child's fetch", deadline=30, error=LabError)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(store.root.glob("debs/.tmp*"))
    assert len(fetch(TRIXIE, ["tool"], store, mirror=archive.mirror).chosen.packages) == 2
    store.gc()
    assert not list(store.root.glob("debs/.tmp*"))


def _fetch_in_child(root: Path, mirror: str, directory: Path) -> None:
    said: list[str] = []
    fetch(TRIXIE, ["tool"], Store(root), mirror=mirror, report=said.append)
    (directory / str(os.getpid())).write_text("\n".join(said))


def test_two_runs_fetch_once(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """The second waits for the first and finds it done."""
    out = tmp_path / "out"
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fetch_in_child, args=(store.root, archive.mirror, out)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert sorted(bool(file.read_text()) for file in out.iterdir()) == [False, True]


def overlay(directory: Path, archive: FakeArchive, *, marker: bytes, version: str = "0.9-own") -> ReleaseSpec:
    """A developer's hypervisor, older by its number than the archive's."""
    directory.mkdir(exist_ok=True)
    fields = {"Package": HYPERVISOR, "Version": version}
    make_deb(directory / "mine.deb", fields=fields, files={"boot/xen-4.20-amd64.gz": marker})
    return parse_release(f"debs:{directory}", "amd64")


def test_a_directory_of_packages_wins_over_the_archive(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """The developer's package is taken whatever its version says; the rest comes from the archive."""
    spec = overlay(tmp_path / "my debs", archive, marker=b"mine")
    fetched = fetch(spec, [HYPERVISOR, "tool"], store, mirror=archive.mirror)
    origins = {package.name: (package.version, package.origin) for package in fetched.chosen.packages}
    assert origins == {
        HYPERVISOR: ("0.9-own", "directory"),
        "tool": ("1.0", "archive"),
        "library": ("1.0", "archive"),
    }


def test_a_directory_is_known_by_its_contents(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """A rebuilt package of the same name and version is another release."""
    first = fetch(overlay(tmp_path / "d", archive, marker=b"one"), [HYPERVISOR], store, mirror=archive.mirror)
    again = fetch(overlay(tmp_path / "d", archive, marker=b"one"), [HYPERVISOR], store, mirror=archive.mirror)
    other = fetch(overlay(tmp_path / "d", archive, marker=b"two"), [HYPERVISOR], store, mirror=archive.mirror)
    assert again.chosen.key == first.chosen.key
    assert other.chosen.key != first.chosen.key
    assert sha256_of(other.deb(other.chosen.packages[0])) == sha256_of(tmp_path / "d/mine.deb")


def test_a_directory_that_lacks_a_package_says_which(archive: FakeArchive, store: Store, tmp_path: Path) -> None:
    """A newer Xen than the suite's needs its own tools beside its hypervisor."""
    spec = overlay(tmp_path / "d", archive, marker=b"one")
    with pytest.raises(DownloadError, match=r"must bring what its packages need(.|\n)*xen-utils-4\.20"):
        fetch(spec, [HYPERVISOR, "xen-utils-4.20"], store, mirror=archive.mirror)


def test_a_damaged_choice_is_made_anew(archive: FakeArchive, store: Store) -> None:
    """The small file that remembers what was chosen is cut short."""
    fetched = fetch(TRIXIE, ["tool"], store, mirror=archive.mirror)
    file = next((store.root / "chosen").glob("*.json"))
    file.write_text(file.read_text()[:50])
    assert fetch(TRIXIE, ["tool"], store, mirror=archive.mirror).chosen == fetched.chosen
    json.loads(file.read_text())


def test_an_ended_suite_whose_archive_lacks_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for a suite past its end, and said aloud: the security updates that are gone are left out."""
    runs: list[bool] = []
    said: list[str] = []

    def run(*args: object, security: bool = True, **options: object) -> None:
        runs.append(security)
        (store.root.glob("debs/.tmp*").__next__() / "tree").mkdir(exist_ok=True)
        raise ToolFailed("x", output=b"E: Failed to fetch x.deb  404  Not Found\n", exit_code=100)

    monkeypatch.setattr(archive_module, "_run", run)
    with pytest.raises(DownloadError, match="lacks a file"):
        fetch(parse_release("debian:bullseye", "amd64"), ["tool"], store, report=said.append)
    assert runs == [True, False]
    assert any("going on without those updates" in line for line in said)
    runs.clear()
    with pytest.raises(DownloadError, match="lacks a file"):
        fetch(TRIXIE, ["tool"], store)
    assert runs == [True]
