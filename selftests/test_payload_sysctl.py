"""Livepatch sub-operations as bytes, as xen/include/public/sysctl.h lays them out; answers read from where they are."""

from __future__ import annotations

import errno
import struct

import pytest

from xentests.payload.runner import Reply, Script
from xentests.payload.runner_code import BASE
from xentests.payload.sysctl import (
    Action,
    LivepatchScript,
    Status,
    error_name,
    error_of,
    left,
    listing_of,
    probe_versions,
    status_of,
)


class Played:
    """A script's buffer as if the program had run: results and memory are set by hand."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.buffer = bytearray(script.encode())

    def write(self, address: int, content: bytes) -> None:
        self.buffer[address - BASE : address - BASE + len(content)] = content

    def result(self, step: int, value: int) -> None:
        self.write(self._script.result_at(step), struct.pack("<q", value))

    @property
    def reply(self) -> Reply:
        return Reply(bytes(self.buffer), self._script)


def test_an_upload_is_laid_out_as_xen_reads_it() -> None:
    script = LivepatchScript(0x15, arch="amd64")
    call = script.upload(script.name(b"p\0"), b"ELF...")
    reply = Played(script).reply
    assert struct.unpack("<4I", reply.read(call.body - 16, 16)) == (27, 0x15, 0, 0)
    name, name_size, *pad, size, source = struct.unpack("<QH3HQQ", reply.read(call.body, 32))
    assert (reply.read(name, 2), name_size, pad) == (b"p\0", 2, [0, 0, 0])
    assert (size, reply.read(source, 6)) == (6, b"ELF...")


def test_an_action_is_laid_out_as_xen_reads_it() -> None:
    script = LivepatchScript(0x13, arch="amd64")
    call = script.action(script.name(b"p\0", pad=9), Action.REPLACE, time_limit_ns=7, flags=1, pad=2)
    reply = Played(script).reply
    assert struct.unpack("<4I", reply.read(call.body - 16, 16)) == (27, 0x13, 3, 0)
    assert struct.unpack("<H", reply.read(call.body + 14, 2)) == (9,)
    assert struct.unpack("<4I", reply.read(call.body + 16, 16)) == (4, 7, 1, 2)


@pytest.mark.parametrize(
    ("result", "state", "rc", "status"),
    [
        (0, 1, 0, Status("", "CHECKED", "")),
        (0, 2, -errno.EAGAIN, Status("", "APPLIED", "EAGAIN")),
        (0, 9, -errno.EOPNOTSUPP, Status("", "9", "EOPNOTSUPP")),
        (-errno.ENOENT, 1, 0, Status("ENOENT", "", "")),
    ],
    ids=["checked", "in-progress", "unknown-state", "absent"],
)
def test_a_status_is_read(result: int, state: int, rc: int, status: Status) -> None:
    script = LivepatchScript(0x15, arch="amd64")
    get = script.get(script.name(b"p\0"))
    played = Played(script)
    played.result(get.step, result)
    played.write(get.body + 16, struct.pack("<Ii", state, rc))
    assert status_of(played.reply, get) == status


def test_a_listing_is_read() -> None:
    script = LivepatchScript(0x15, arch="amd64")
    call = script.listing(number=5, index=0, pad=0)
    played = Played(script)
    played.result(call.step, 2)
    played.write(call.body, struct.pack("<3I", 77, 0, 1))
    played.write(call.names_at, b"one\0two\0three\0")
    played.write(call.states_at, struct.pack("<IiIi", 1, 0, 2, 0))
    listing = listing_of(played.reply, call)
    assert (listing.result, listing.version, listing.left) == (2, 77, 1)
    assert listing.states == {"one": "CHECKED", "two": "APPLIED"}
    assert listing.error == ""


def test_a_refused_listing_names_nobody() -> None:
    script = LivepatchScript(0x15, arch="amd64")
    call = script.listing(number=2000, index=0, pad=0)
    played = Played(script)
    played.result(call.step, -errno.E2BIG)
    assert (listing_of(played.reply, call).error, listing_of(played.reply, call).states) == ("E2BIG", {})


def test_the_count_of_payloads_is_what_a_listing_left() -> None:
    script = LivepatchScript(0x15, arch="amd64")
    call = script.count()
    played = Played(script)
    played.write(call.body + 8, struct.pack("<I", 3))
    assert (left(played.reply, call), error_of(played.reply, call)) == (3, "")


def test_every_interface_version_is_tried() -> None:
    script, steps = probe_versions(range(0x10, 0x13))
    assert sorted(steps) == [0x10, 0x11, 0x12]
    assert len(set(steps.values())) == 3
    assert script.encode()


@pytest.mark.parametrize(
    ("result", "name"), [(0, ""), (5, ""), (-2, "ENOENT"), (-95, "EOPNOTSUPP"), (-11, "EAGAIN"), (-4000, "4000")]
)
def test_errors_have_the_names_that_xen_gives_them(result: int, name: str) -> None:
    assert error_name(result) == name
