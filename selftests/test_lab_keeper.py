"""Nothing is left running: the keeper ends a killed run's QEMUs, the sweep what even the keeper missed.

The "QEMUs" are sleeping programs under that name, found as the real ones are: by a run's token in their command line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xentests.deadline import until
from xentests.errors import LabError
from xentests.lab import keeper, run_root
from xentests.lab.admission import Admission

RUN = """
import subprocess, sys
from pathlib import Path
from xentests.lab.run_root import RunRoot
root = RunRoot()
root.scratch(Path(sys.argv[1]))
for number, name in enumerate(sys.argv[3:]):
    guest = f"{root.token}-{number}"
    subprocess.Popen([sys.argv[2], "600", "-name", f"guest={guest},x"], start_new_session=True)
    if name == "keep":
        root.keep(guest)
print(root.token, root.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run roots of these tests are their own, below a short path. pytest's own directory is made before."""
    assert tmp_path.is_dir()
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield


class Run:
    """A run in a process of its own, to be killed."""

    def __init__(self, tmp_path: Path, qemu: Path, *names: str) -> None:
        argv = [sys.executable, "-c", RUN, str(tmp_path / "cache"), str(qemu), *names]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.token, path = self.process.stdout.readline().split()
        self.path = Path(path)

    def qemus(self) -> list[int]:
        """Its living QEMUs."""
        return [pid for pid, _ in keeper.qemus(self.token)]

    def kill(self) -> None:
        """As the kernel kills: without a last word."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def gone(run: Run) -> None:
    """Wait until a run has no QEMU and no directory any more."""
    until(lambda: not run.qemus(), what="end of the QEMUs", deadline=10, error=LabError)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A real executable under QEMU's name, so that its own name stands first in its command line."""
    source = tmp_path / "q.c"
    source.write_text("#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
    program = tmp_path / "qemu-system-fake"
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True)
    return program


@pytest.fixture
def run(tmp_path: Path, compiled: Path) -> Iterator[Run]:
    """A run with two QEMUs."""
    made = Run(tmp_path, compiled, "a", "b")
    # The kernel shows a command line some time after the exec that started it.
    until(lambda: len(made.qemus()) == 2, what="both QEMUs", deadline=10, error=LabError)
    yield made
    made.kill()
    keeper.kill_qemus(made.token)


def test_kill_9_of_a_run_ends_its_qemus_and_removes_its_directories(run: Run) -> None:
    """Whatever kills the run, its keeper sees the pipe close."""
    assert len(keeper.qemus(run.token)) == 2
    run.kill()
    gone(run)
    until(lambda: not run.path.exists(), what="end of the run's directory", deadline=10, error=LabError)


def test_signals_do_not_end_the_keeper(run: Run) -> None:
    """Ctrl-C goes to the whole terminal; the keeper stays for what comes after."""
    keepers = [pid for pid, line in _processes() if b"keeper.py" in line and run.token.encode() in line]
    assert len(keepers) == 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(keepers[0], number)
    run.kill()
    gone(run)


def test_the_next_run_sweeps_what_a_killed_keeper_left(run: Run) -> None:
    """Keeper and run both killed: the sweep at the next start finds the root unlocked, and ends what it names."""
    for pid, line in _processes():
        if b"keeper.py" in line and run.token.encode() in line:
            os.kill(pid, signal.SIGKILL)
    run.kill()
    assert len(keeper.qemus(run.token)) == 2
    assert run_root.sweep() == 1
    gone(run)
    assert not run.path.exists()


def test_a_root_that_is_swept_before_it_is_locked_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run that starts at the same time may take the lock first, and sweeps what it takes for a dead run's."""
    lock = run_root._try_lock
    swept: list[Path] = []

    def late(root: Path) -> int | None:
        if not swept:
            swept.append(root)
            monkeypatch.setattr(run_root, "_try_lock", lock)
            assert run_root.sweep() == 1
        return lock(root)

    monkeypatch.setattr(run_root, "_try_lock", late)
    root, held = run_root._new_root()
    assert root not in swept
    assert root.is_dir()
    assert run_root.sweep() == 0
    os.close(held)
    assert run_root.sweep() == 1


def test_the_sweep_leaves_living_runs_alone(run: Run) -> None:
    """A run that holds its lock is somebody's."""
    assert run_root.sweep() == 0
    assert len(keeper.qemus(run.token)) == 2


def test_a_kept_host_stays_and_gc_ends_it(tmp_path: Path, compiled: Path) -> None:
    """--xen-keep: the kept one outlives its run and a sweep; the others do not; `gc --kept` ends it."""
    run = Run(tmp_path, compiled, "keep", "other")
    run.kill()
    until(lambda: len(run.qemus()) == 1, what="end of the other QEMU", deadline=10, error=LabError)
    assert run_root.sweep() == 0
    assert len(run.qemus()) == 1
    assert run_root.sweep(kept_too=True) == 1
    gone(run)


def test_a_base_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared /tmp another user could have made it first."""
    base = run_root.base_dir()
    base.chmod(0o777)
    with pytest.raises(LabError, match="not ours alone"):
        run_root.base_dir()
    base.chmod(0o700)


def test_admission_counts_what_running_hosts_may_still_take(tmp_path: Path) -> None:
    """Two hosts fit, the third does not, and the message carries the figures."""
    root = tmp_path / "base" / "xt1"
    root.mkdir(parents=True)
    admission = Admission(root, available_mib=lambda: 3000)
    admission.reserve("xt1-1", 1200)
    admission.reserve("xt1-2", 1200)
    with pytest.raises(LabError, match=r"no room for xt1-3: it needs 1200 MiB, and 216 MiB can be promised: 3000 MiB"):
        admission.reserve("xt1-3", 1200, wait_s=0.1)
    admission.release("xt1-1")
    admission.reserve("xt1-3", 1200, wait_s=0.1)


def test_a_host_that_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    """Nobody is there to make room, so nothing is waited for."""
    root = tmp_path / "base" / "xt1"
    root.mkdir(parents=True)
    with pytest.raises(LabError, match="no room for giant"):
        Admission(root, available_mib=lambda: 1000).reserve("giant", 700, wait_s=3600)


def test_reservations_of_a_dead_run_do_not_count(tmp_path: Path) -> None:
    """A killed run's promises die with its QEMUs."""
    for name in ("xt1", "xt2"):
        (tmp_path / name).mkdir()
    (tmp_path / "xt1" / "reserved-1.json").write_text('{"xt1-1": 100000}')
    assert Admission(tmp_path / "xt2", available_mib=lambda: 5000).room().hosts == 0


def _processes() -> list[tuple[int, bytes]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes()))
            except OSError:
                continue
    return found


def test_a_long_tmpdir_gives_way_to_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unix socket's path has 107 bytes; a deep TMPDIR must not make every machine fail."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert run_root.base_dir().parent == Path("/tmp")
