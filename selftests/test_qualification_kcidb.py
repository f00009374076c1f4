"""What KCIDB gets of a qualification, held to KCIDB's own schema."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from kcidb_io import schema

from selftests.plugin_world import HOSTILE
from selftests.qualifications import RELEASE, large, qualification, row, telling
from xentests.errors import LabError
from xentests.report.qualification import model
from xentests.report.qualification.kcidb import export, path
from xentests.report.qualification.rules import Class, Effect
from xentests.report.verdict import Verdict


def test_a_whole_qualification_is_valid() -> None:
    """As JSON too, whatever guests wrote; nothing refers to what is not there, and no id is given twice."""
    made = telling()
    data = json.loads(json.dumps(export(made)))
    assert schema.LATEST.is_valid_exactly(data)
    ids = {kind: [each["id"] for each in data[kind]] for kind in ("checkouts", "builds", "tests")}
    assert all(len(set(found)) == len(found) for found in ids.values())
    assert all(each.startswith("xentests:") for found in ids.values() for each in found)
    assert {build["checkout_id"] for build in data["builds"]} == set(ids["checkouts"])
    assert {test["build_id"] for test in data["tests"]} <= set(ids["builds"])
    assert len(data["tests"]) == len(made.rows)


def test_ids_are_the_same_each_time() -> None:
    """Sent twice, it is one; another qualification's are others."""
    first, again = export(telling()), export(telling())
    assert first == again
    other = export(qualification(telling().rows, id="20260201-000000-ffffff"))
    assert not {test["id"] for test in first["tests"]} & {test["id"] for test in other["tests"]}


def test_the_checkout_says_the_answer() -> None:
    """And what was tested, when."""
    (checkout,) = export(telling())["checkouts"]
    assert checkout["comment"] == "debian:trixie: must not ship"
    assert checkout["git_commit_name"] == "4.20.0+68-g35cb38b222-1"
    assert checkout["misc"]["baseline"] == "debian:bookworm"
    assert datetime.datetime.fromisoformat(checkout["start_time"]).timestamp() == telling().started
    assert datetime.datetime.fromisoformat(checkout["start_time"]).utcoffset() is not None


def test_a_commit_is_told_from_a_version() -> None:
    """Forty hexadecimal digits are a commit; of several revisions none stands for all."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    made = qualification(tested=[model.Tested(RELEASE, "amd64", "", commit, {})])
    assert export(made)["checkouts"][0]["git_commit_hash"] == commit
    made = qualification(
        tested=[model.Tested(RELEASE, arch, "", revision, {}) for arch, revision in [("a", "1"), ("b", "2")]]
    )
    (checkout,) = export(made)["checkouts"]
    assert not {"git_commit_hash", "git_commit_name"} & set(checkout)
    assert checkout["misc"]["revisions"] == ["1", "2"]


def test_a_build_for_each_architecture_and_variant() -> None:
    """With what is known of it; one that never came up has no status; the baseline has none here."""
    builds = export(telling())["builds"]
    assert [(each["architecture"], each["misc"]["variant"]) for each in builds] == [
        ("x86_64", ""),
        ("x86_64", "uefi"),
        ("arm64", ""),
    ]
    assert builds[0]["misc"]["facts"]["outer QEMU"] == "7.2.17"
    assert ["status" in each for each in builds] == [True, False, True]


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict.PASSED, "PASS"),
        (Verdict.FAILED, "FAIL"),
        (Verdict.KNOWN, "FAIL"),
        (Verdict.BROKEN, "ERROR"),
        (Verdict.NOT_BUILT, "SKIP"),
        (Verdict.NOT_HERE, "SKIP"),
        (Verdict.SKIPPED, "SKIP"),
        (Verdict.BLOCKED, "SKIP"),
        (None, "MISS"),
    ],
)
def test_verdicts_in_their_words(verdict: Verdict | None, status: str) -> None:
    """The lab's fault is never the code's, nor the other way round."""
    (test,) = export(qualification([row(verdict=verdict)]))["tests"]
    assert test["status"] == status
    assert test["misc"]["verdict"] == (verdict or "not run")


def test_every_verdict_has_a_status() -> None:
    """A new one would need one."""
    export(qualification([row(f"suites/smoke/test_{at}.py::test_x", verdict=each) for at, each in enumerate(Verdict)]))


def test_a_test_in_full() -> None:
    """Its message, how long it took, when it began, and what it means for the release."""
    made = row(
        "suites/livepatch/test_lifecycle.py::test_revert[pv]", verdict=Verdict.FAILED, cls=Class.REGRESSION,
        effect=Effect.FORBIDS, why="fails", message=HOSTILE + "\0", seconds=3.5, started=1769900000.5,
    )  # fmt: skip
    (test,) = export(qualification([made]))["tests"]
    assert test["path"] == "xen.livepatch.lifecycle.revert.pv"
    assert (test["duration"], test["start_time"]) == (3.5, "2026-01-31T22:53:20.500000+00:00")
    assert test["misc"]["class"] == "regression"
    assert test["misc"]["effect"] == "forbids"
    assert test["misc"]["why"] == "fails"
    assert "\x1b" not in test["log_excerpt"]
    assert "red" in test["log_excerpt"]


def test_no_time_is_made_up() -> None:
    """A test that was not run took none, and did not begin."""
    (test,) = export(qualification([row()]))["tests"]
    assert "start_time" not in test
    (test,) = export(qualification([row(verdict=None)]))["tests"]
    assert "duration" not in test


def test_a_long_message_fits() -> None:
    """The schema has a limit."""
    (test,) = export(qualification([row(message="x" * 100_000)]))["tests"]
    assert "characters cut" in test["log_excerpt"]


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("suites/smoke/test_boot.py::test_up", "xen.smoke.boot.up"),
        ("suites/smoke/test_boot.py::TestHost::test_up[4.17-pv]", "xen.smoke.boot.TestHost.up.4_17-pv"),
        ("suites/a/test_b.py::test_c[x::y/z.py]", "xen.a.b.c.x_y_z_py"),
        ("suites/a/test_b.py::test_[]", "xen.a.b._._"),
        ("é", "xen._"),
    ],
)
def test_paths_are_legal(nodeid: str, expected: str) -> None:
    """And close to the node id."""
    assert path(nodeid) == expected
    export(qualification([row(nodeid, suite="s", feature="f")] if "/" in nodeid else [row()]))


def test_what_the_schema_refuses_is_not_handed_out() -> None:
    """It says where and what."""
    with pytest.raises(LabError, match=r"KCIDB's schema refuses this qualification: \$\.checkouts\[0\]\..*'Not One:"):
        export(telling(), origin="Not One")


def test_ten_thousand_executions() -> None:
    """As many tests as rows, and still valid."""
    data: dict[str, Any] = export(large())
    assert len({test["id"] for test in data["tests"]}) == 1500
