"""The hypercall runner: run for real on this machine, with harmless devices in place of Xen's."""

from __future__ import annotations

import errno
import platform
import subprocess
from pathlib import Path

import pytest

from xentests.errors import LabError, UsageError
from xentests.payload.runner import Reply, Script, program
from xentests.payload.runner_code import BUFFER_SIZE

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs an x86-64 program")


def run(tmp_path: Path, script: Script, *, privcmd: str = "/dev/null", memory: str = "/dev/zero") -> Reply:
    path = tmp_path / "runner"
    path.write_bytes(program("amd64", privcmd=privcmd, memory=memory))
    path.chmod(0o755)
    done = subprocess.run([path], input=script.encode(), capture_output=True, check=False, timeout=10)
    assert done.returncode == 0
    return Reply(done.stdout, script)


def test_a_hypercall_step_keeps_the_result(tmp_path: Path) -> None:
    script = Script()
    step = script.hypercall(35, 1, 2)
    assert run(tmp_path, script).result(step) == -errno.ENOTTY  # what /dev/null says to any ioctl


def test_data_comes_back_at_its_address(tmp_path: Path) -> None:
    script = Script()
    first, second = script.data(b"abc"), script.data(b"defgh")
    reply = run(tmp_path, script)
    assert (reply.read(first, 3), reply.read(second, 5)) == (b"abc", b"defgh")
    assert second % 8 == 0


@pytest.mark.parametrize(("value", "reached"), [(7, True), (-7, False)])
def test_a_jump_is_taken_when_the_value_is_there(tmp_path: Path, value: int, reached: bool) -> None:
    script = Script()
    at = script.data((value & 0xFFFFFFFF).to_bytes(4, "little"))
    script.jump_if_equal(at, 7, 2)
    script.end()
    step = script.hypercall(35)
    assert bool(run(tmp_path, script).result(step)) is reached


def test_negative_values_compare_as_32_bits(tmp_path: Path) -> None:
    script = Script()
    at = script.data((-errno.EAGAIN & 0xFFFFFFFF).to_bytes(4, "little") + b"\xff")
    script.jump_if_equal(at, -errno.EAGAIN, 2)
    script.end()
    step = script.hypercall(35)
    assert run(tmp_path, script).result(step) == -errno.ENOTTY


def test_a_countdown_ends(tmp_path: Path) -> None:
    script = Script()
    step = script.hypercall(35)
    count = script.count_down(200, step)
    assert run(tmp_path, script).left(count) == 0


@pytest.mark.parametrize(
    ("devices", "code"),
    [({"privcmd": "/dev/nowhere"}, 2), ({"memory": "/dev/nowhere"}, 3), ({"memory": "/dev/null"}, 4)],
    ids=["privcmd", "memory", "mmap"],
)
def test_a_missing_device_is_told_by_the_exit_code(tmp_path: Path, devices: dict[str, str], code: int) -> None:
    path = tmp_path / "runner"
    path.write_bytes(program("amd64", **{"privcmd": "/dev/null", "memory": "/dev/zero", **devices}))
    path.chmod(0o755)
    assert subprocess.run([path], input=b"", capture_output=True, check=False, timeout=10).returncode == code


def test_too_much_data_is_refused_before_it_is_sent() -> None:
    with pytest.raises(UsageError, match="bytes of data"):
        Script().data(bytes(BUFFER_SIZE))


def test_too_many_steps_are_refused_before_they_are_sent() -> None:
    script = Script()
    for _ in range(61):
        script.hypercall(0)
    with pytest.raises(UsageError, match="61 steps; it was made with room for 60"):
        script.encode()


def test_a_short_answer_is_the_labs_fault() -> None:
    with pytest.raises(LabError, match="answered 3 bytes"):
        Reply(b"abc", Script())
