"""The store: made once, never half-made, checked, rebuilt when damaged, collected by size and age."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from xentests.errors import CorruptEntry, LabFull, UsageError
from xentests.lab.store import MANIFEST, Store, hash_file, key_of


def write(path: Path) -> Mapping[str, object]:
    """A builder of one small entry."""
    (path / "data").write_bytes(b"x" * 5000)
    return {"about": 1}


def refuse(path: Path) -> None:
    """A builder that must not be asked."""
    raise AssertionError(f"built again in {path}")


def test_an_entry_is_built_once_and_found_by_another_store(tmp_path: Path) -> None:
    """The second asking builds nothing, in this process or the next."""
    first = Store(tmp_path).get("image", "k1", write, what="image")
    again = Store(tmp_path).get("image", "k1", refuse, what="image")
    assert again.file("data").read_bytes() == b"x" * 5000
    assert again.manifest == {"about": 1}
    assert again.digest == first.digest


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), KeyboardInterrupt(), ValueError("no")])
def test_a_builder_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    """What it raised passes through, and the next asking builds from the start."""

    def fail(path: Path) -> None:
        (path / "half").write_text("half")
        raise error

    store = Store(tmp_path)
    with pytest.raises(type(error)):
        store.get("image", "k1", fail, what="image")
    assert list((tmp_path / "image").iterdir()) == []
    assert store.get("image", "k1", write, what="image").file("data").exists()


def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    """ENOSPC in a builder becomes LabFull, which names the disk and the ways out."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(LabFull, match=r"is full .*`xentests gc .* XENTESTS_CACHE"):
        Store(tmp_path).get("image", "k1", full, what="image of x")
    assert list((tmp_path / "image").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of 1 MiB: LabFull, nothing half-made, and what was there before still sound."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        store = Store(tmp_path)
        store.get("image", "small", write, what="small")

        def big(path: Path) -> None:
            (path / "data").write_bytes(b"y" * (4 << 20))

        with pytest.raises(LabFull, match="is full"):
            store.get("image", "big", big, what="big")
        assert not (tmp_path / "image" / "big").exists()
        assert Store(tmp_path).find("image", "small") is not None
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def damage_byte(entry: Path) -> None:
    """Flip one bit in the middle of the file."""
    data = bytearray((entry / "data").read_bytes())
    data[2500] ^= 1
    (entry / "data").write_bytes(data)


def damage_length(entry: Path) -> None:
    """Cut the file."""
    os.truncate(entry / "data", 100)


def damage_missing(entry: Path) -> None:
    """Remove the file."""
    (entry / "data").unlink()


def damage_manifest(entry: Path) -> None:
    """Leave half a manifest."""
    (entry / MANIFEST).write_text((entry / MANIFEST).read_text()[:20])


@pytest.mark.parametrize("damage", [damage_byte, damage_length, damage_missing, damage_manifest])
def test_a_damaged_entry_is_made_anew_once_and_this_is_said(tmp_path: Path, damage: object) -> None:
    """A flipped byte, a cut or missing file, a broken manifest: noticed by the next process, rebuilt, said."""
    assert callable(damage)
    damage(Store(tmp_path).get("image", "k1", write, what="image").path)
    said: list[str] = []
    entry = Store(tmp_path, say=said.append).get("image", "k1", write, what="image of x")
    assert entry.file("data").read_bytes() == b"x" * 5000
    assert len(said) == 1
    assert "damaged" in said[0]
    assert "image of x" in said[0]


def test_damage_is_seen_although_the_modification_time_was_put_back(tmp_path: Path) -> None:
    """Trust in yesterday's check hangs on the change time, which no program can set."""
    entry = Store(tmp_path).get("image", "k1", write, what="image")
    assert Store(tmp_path).find("image", "k1") is not None
    before = (entry.path / "data").stat()
    damage_byte(entry.path)
    os.utime(entry.path / "data", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Store(tmp_path).find("image", "k1") is None


def test_an_entry_that_is_damaged_as_soon_as_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses what was written is not rebuilt upon for ever."""
    calls = iter(range(1000))
    monkeypatch.setattr("xentests.lab.store.hash_file", lambda path: str(next(calls)))
    with pytest.raises(CorruptEntry, match="check the disk"):
        Store(tmp_path).get("image", "k1", write, what="image")


def _build_in_process(root: str, log: str) -> None:
    def build(path: Path) -> Mapping[str, object]:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return write(path)

    Store(Path(root)).get("image", "k1", build, what="image")


def test_two_runs_at_once_build_one_entry(tmp_path: Path) -> None:
    """Four processes ask for one key at the same moment: one builds, all get it."""
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_build_in_process, args=(str(tmp_path / "s"), str(log))) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert [run.exitcode for run in runs] == [0] * 4
    assert len(log.read_text().split()) == 1


def test_gc_by_age_and_by_size_spares_what_is_in_use(tmp_path: Path) -> None:
    """The least recently used go first; what a living process holds stays whatever its age."""
    code = (
        "import sys; from pathlib import Path; from xentests.lab.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for key in sys.argv[2:]:\n"
        "    store.get('image', key, lambda p: (p / 'data').write_bytes(b'z' * 100000) and None, what=key)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "old", "mid", "new"], check=True)
    for age, key in enumerate(["new", "mid", "old"]):
        os.utime(tmp_path / "image" / key / "used", (1e9 - age, 1e9 - age))
    store = Store(tmp_path)
    size = sum(f.stat().st_blocks * 512 for f in (tmp_path / "image" / "new").iterdir())
    assert store.gc(max_bytes=2 * size).removed == 1
    assert [entry.key for entry in store.entries()] == ["mid", "new"]
    held = store.find("image", "mid")
    assert held is not None
    done = Store(tmp_path).gc(max_age_s=-1.0)
    assert (done.removed, done.kept) == (1, 1)
    assert held.file("data").exists()


def test_gc_removes_old_outputs_of_failed_builds(tmp_path: Path) -> None:
    """By age as entries; what is younger stays for whoever reads it."""
    old, new = (tmp_path / "failed" / name for name in ("old.txt", "new.txt"))
    old.parent.mkdir()
    for output in (old, new):
        output.write_text("error: ...")
    os.utime(old, (0, 0))
    Store(tmp_path).gc(max_bytes=0)
    assert old.exists()
    Store(tmp_path).gc(max_age_s=60.0)
    assert (old.exists(), new.exists()) == (False, True)


def test_gc_removes_what_a_killed_builder_left(tmp_path: Path) -> None:
    """A temporary directory whose builder is gone is nobody's; one of a living builder is left alone."""
    gone = tmp_path / "image" / ".tmp-k1-999999999-1"
    alive = tmp_path / "image" / f".tmp-k2-{os.getpid()}-1"
    for directory in (gone, alive):
        directory.mkdir(parents=True)
    Store(tmp_path).gc()
    assert not gone.exists()
    assert alive.exists()


@pytest.mark.parametrize("key", ["", "../x", "A", "a/b", "x" * 200])
def test_a_key_that_is_no_name_is_refused(tmp_path: Path, key: str) -> None:
    """A key becomes a directory; nothing else may."""
    with pytest.raises(UsageError, match="cannot name a cache entry"):
        Store(tmp_path).get("image", key, write, what="image")


def test_a_hash_knows_position_and_size_but_not_holes(tmp_path: Path) -> None:
    """Zeros written and zeros left out hash alike; a byte moved, or the file longer, does not."""
    hole, zeros, moved, longer = (tmp_path / name for name in ("hole", "zeros", "moved", "longer"))
    with hole.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.truncate(2 << 20)
    zeros.write_bytes(bytes(1 << 20) + b"data" + bytes((1 << 20) - 4))
    moved.write_bytes(bytes((1 << 20) + 1) + b"data" + bytes((1 << 20) - 5))
    longer.write_bytes(bytes(1 << 20) + b"data" + bytes(1 << 20))
    assert hash_file(hole) == hash_file(zeros)
    assert len({hash_file(path) for path in (hole, moved, longer)}) == 3


def test_a_key_depends_on_every_part(tmp_path: Path) -> None:
    """Two different lists of parts never share a key."""
    assert len({key_of("a", "b"), key_of("ab"), key_of("b", "a"), key_of(["a"], "b"), json.dumps("a")}) == 5
