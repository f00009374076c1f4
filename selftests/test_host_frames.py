"""The program that uses memory by frame, run on this machine; and what is told to it and read from it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from xentests.host.frames_program import WINDOWS, Window, answer, program, request

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="not on this machine: the program is for x86-64")

ANY = 1 << 40


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, executable."""
    path = tmp_path_factory.mktemp("frames") / "frames"
    path.write_bytes(program())
    path.chmod(0o755)
    return path


def _run(path: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([path], input=data, capture_output=True, timeout=60, check=False)


def test_frames_of_a_window(frames: Path) -> None:
    """It goes on until every window has its pages or the limit is reached, and says where they were."""
    if os.geteuid() != 0:
        assert _run(frames, request([Window(0, ANY, 10)], 100)).returncode == 5
        return
    done = _run(frames, request([Window(0, ANY, 10)], 100))
    pages, wrong, (found,) = answer(done.stdout, 1)
    assert (pages, wrong, found.pages, found.wrong) == (10, 0, 10, 0)
    assert 0 < found.lowest <= found.highest < ANY
    pages, wrong, (one, other) = answer(_run(frames, request([Window(0, ANY, 1), Window(ANY, ANY, 1)], 100)).stdout, 2)
    assert (pages, wrong, one.pages, other.pages, other.lowest) == (100, 0, 100, 0, 0)


def test_cut_off_request_is_an_error(frames: Path) -> None:
    """It has an exit code of its own."""
    assert _run(frames, request([], 1)[:-1]).returncode == 1


def test_cut_off_answer_is_an_error() -> None:
    """What came is not taken for figures."""
    with pytest.raises(ValueError, match="10 bytes instead of"):
        answer(bytes(10), 1)


def test_request_has_one_size() -> None:
    """However many windows there are."""
    windows = [Window(number, number, 1) for number in range(WINDOWS)]
    assert len(request(windows, 1)) == len(request([], 1))
