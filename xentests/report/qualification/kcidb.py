"""A qualification as KCIDB has it, the report database of KernelCI and others: what was tested, where, and how it went.

The layout is kcidb_io's newest schema, which has the last word; this is the only module that knows it. Sends nothing.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import jsonschema
from kcidb_io import schema

from xentests.errors import LabError
from xentests.report.qualification.model import Qualification, Row, Tested
from xentests.report.run import folder_name
from xentests.report.verdict import Verdict
from xentests.text import clean

_STATUS = {
    Verdict.PASSED: "PASS",
    Verdict.FAILED: "FAIL",
    Verdict.KNOWN: "FAIL",
    Verdict.BROKEN: "ERROR",
    Verdict.BLOCKED: "SKIP",
    Verdict.NOT_BUILT: "SKIP",
    Verdict.NOT_HERE: "SKIP",
    Verdict.SKIPPED: "SKIP",
}
_NOT_RUN = "MISS"

_ARCHITECTURES = {"amd64": "x86_64"}
"""Names that KCIDB's other origins use, where Debian's differ."""

_EXCERPT = 16_000
"""Characters of a log excerpt; the schema allows 16384, and cutting says so in the text."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[^A-Za-z0-9_-]+")


def export(qualification: Qualification, *, origin: str = "xentests") -> dict[str, Any]:
    """KCIDB's JSON: a checkout, a build for each architecture and variant, a test for each row.

    ``origin`` is the name under which the database knows who sends it: lower-case letters, digits, ``_``. Ids are made
    of the qualification's, so that sending one twice changes nothing. LabError when the schema refuses the data.
    """
    tests = [_test(qualification, row, origin) for row in qualification.rows]
    data: dict[str, Any] = {
        "version": {"major": schema.LATEST.major, "minor": schema.LATEST.minor},
        "checkouts": [_checkout(qualification, origin)],
        "builds": _builds(qualification, origin),
        "tests": tests,
    }
    try:
        schema.LATEST.validate(data)
    except jsonschema.exceptions.ValidationError as error:
        raise LabError(f"KCIDB's schema refuses this qualification: {error.json_path}: {error.message}") from error
    return data


def _checkout(made: Qualification, origin: str) -> dict[str, Any]:
    revisions = list(dict.fromkeys(tested.revision for tested in _ours(made)))
    found: dict[str, Any] = {
        "id": _id(origin, made.id),
        "origin": origin,
        "tree_name": "xen",
        "comment": clean(f"{made.release}: {made.answer}"),
        "start_time": _time(made.started),
        "origin_tests_finish_time": _time(made.ended),
        "valid": True,
        "misc": {
            "release": made.release,
            "revisions": revisions,
            "baseline": made.baseline,
            "profile": made.profile,
            "answer": str(made.answer),
            "reasons": made.reasons,
        },
    }
    if len(revisions) == 1:
        commit = _COMMIT.fullmatch(revisions[0])
        found["git_commit_hash" if commit else "git_commit_name"] = clean(revisions[0])
    return found


def _ours(made: Qualification) -> list[Tested]:
    """Without the baseline, which has qualifications of its own."""
    return [tested for tested in made.tested if tested.release == made.release]


def _builds(made: Qualification, origin: str) -> list[dict[str, Any]]:
    """Of what was tested, and of what was to be: a host that never came up has tests too."""
    tested = {(each.arch, each.variant): each for each in _ours(made)}
    places = sorted({*tested, *((row.arch, row.variant) for row in made.rows)})
    builds = []
    for arch, variant in places:
        build: dict[str, Any] = {
            "id": _id(origin, made.id, arch, variant),
            "checkout_id": _id(origin, made.id),
            "origin": origin,
            "architecture": _ARCHITECTURES.get(arch, arch),
            "comment": clean(" ".join(filter(None, (made.release, arch, variant)))),
            "misc": {"arch": arch, "variant": variant},
        }
        if (found := tested.get((arch, variant))) is not None:
            build["status"] = "PASS"  # it ran
            build["misc"] |= {"revision": found.revision, "facts": found.facts}
        builds.append(build)
    return builds


def _test(made: Qualification, row: Row, origin: str) -> dict[str, Any]:
    misc = {
        "nodeid": row.nodeid,
        "verdict": str(row.verdict) if row.verdict is not None else "not run",
        "class": str(row.cls),
        "effect": str(row.effect),
        "why": row.why,
        "evidence": row.evidence,
        "run": row.run,
        "baseline": str(row.baseline) if row.baseline is not None else "",
        "rate": row.rate,
    }
    test: dict[str, Any] = {
        "id": _id(origin, made.id, row.arch, row.variant, folder_name(row.nodeid)),
        "build_id": _id(origin, made.id, row.arch, row.variant),
        "origin": origin,
        "path": path(row.nodeid),
        "status": _STATUS[row.verdict] if row.verdict is not None else _NOT_RUN,
        "misc": {name: value for name, value in misc.items() if value},
    }
    if row.title:
        test["comment"] = clean(row.title)
    if row.message:
        test["log_excerpt"] = clean(row.message, limit=_EXCERPT)
    if row.verdict is not None:
        test["duration"] = row.seconds
        if row.started:
            test["start_time"] = _time(row.started)
    return test


def path(nodeid: str) -> str:
    """Where a test stands in KCIDB's tree of tests: ``xen.livepatch.lifecycle.revert``.

    Not unique: what a path may not hold becomes ``_``; ``misc.nodeid`` has it all.
    """
    head, bracket, parameters = nodeid.removeprefix("suites/").partition("[")
    parts = head.replace(".py::", "/").replace("::", "/").removesuffix(".py").split("/")
    if bracket:
        parts.append(parameters.removesuffix("]"))
    return ".".join(["xen", *(_PART.sub("_", part.removeprefix("test_")) or "_" for part in parts)])


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _id(origin: str, *parts: str) -> str:
    return clean(":".join((origin, *parts)))
