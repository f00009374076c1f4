"""What a qualification report says, as data: ``qualification.json`` is this, and the HTML page is made from this alone.

docs/qualification.schema.json is its JSON schema. Times are seconds since the epoch, durations seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from xentests.errors import LabError, UsageError
from xentests.report.qualification.rules import Answer, Class, Effect
from xentests.report.verdict import Verdict

SCHEMA = 1
"""The version of this layout; another one is refused."""


class Row(msgspec.Struct, frozen=True):
    """One test on one architecture (and variant of the machine): what it said, what that means, and why.

    ``verdict`` is None for a test that was to be run and was not. ``run`` and ``evidence`` are paths below the
    qualification's directory, empty where there is none; ``history`` the last verdicts on this release, newest first.
    ``rate``: how often it failed on this revision, in words, where it is flaky.
    """

    nodeid: str
    suite: str
    feature: str
    title: str
    arch: str
    variant: str
    verdict: Verdict | None
    cls: Class
    effect: Effect
    why: str
    seconds: float = 0.0
    message: str = ""
    run: str = ""
    evidence: str = ""
    baseline: Verdict | None = None
    baseline_run: str = ""
    history: list[Verdict] = []
    rate: str = ""
    started: float = 0.0


class Point(msgspec.Struct, frozen=True):
    """One value of a figure: when, which run, and which revision of the release."""

    at: float
    run: str
    revision: str
    value: float


class Trend(msgspec.Struct, frozen=True):
    """A figure of a test over the last runs of the release, oldest first, and beside the baseline.

    ``says`` is the statistical comparison in words, empty without a baseline; ``changed`` whether it found a change.
    """

    nodeid: str
    arch: str
    variant: str
    name: str
    points: list[Point]
    before: list[float]
    says: str
    changed: bool


class Tested(msgspec.Struct, frozen=True):
    """What was tested on one architecture: ``facts`` read from the running system, by name, and ``revision``."""

    release: str
    arch: str
    variant: str
    revision: str
    facts: dict[str, str]


class Job(msgspec.Struct, frozen=True):
    """One pytest call: where the time went. ``exit_status`` is the last attempt's, None if it never ended."""

    name: str
    suite: str
    arch: str
    variant: str
    seconds: float
    attempts: int
    tests: int
    exit_status: int | None
    problem: str = ""


class NotTested(msgspec.Struct, frozen=True):
    """Something that nobody should think was tested: ``what``, and ``why`` not."""

    what: str
    why: str


class Finding(msgspec.Struct, frozen=True):
    """A sentence for a release manager, the effect it has, and how many tests stand behind it."""

    text: str
    effect: Effect
    tests: list[str]


class Qualification(msgspec.Struct, frozen=True):
    """The whole report. ``baseline`` is empty when there was none; ``baseline_rows`` are its newest verdicts."""

    schema: int
    id: str
    release: str
    baseline: str
    profile: str
    started: float
    ended: float
    answer: Answer
    reasons: list[str]
    rows: list[Row]
    trends: list[Trend]
    tested: list[Tested]
    jobs: list[Job]
    findings: list[Finding]
    not_tested: list[NotTested]
    baseline_rows: list[BaselineRow]


class BaselineRow(msgspec.Struct, frozen=True):
    """The newest verdict of a test on the baseline."""

    nodeid: str
    suite: str
    feature: str
    arch: str
    variant: str
    verdict: Verdict


def write(qualification: Qualification, path: Path) -> None:
    """Write ``qualification.json``, whole or not at all. LabError when the disk refuses."""
    from xentests.report.run import write_json  # noqa: PLC0415

    write_json(path, msgspec.to_builtins(qualification))


def read(path: Path) -> Qualification:
    """Read one back. UsageError when it is none, or of another version of the layout; LabError if unreadable."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror}") from error
    try:
        raw = json.loads(data)
        version = raw.get("schema") if isinstance(raw, dict) else None
        if version != SCHEMA:
            raise UsageError(
                f"{path}: its layout is version {version!r}, this xentests reads {SCHEMA}: use the xentests that made "
                "it, or qualify again"
            )
        return msgspec.convert(raw, Qualification)
    except ValueError as error:
        raise UsageError(f"{path}: not a qualification.json: {error}") from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of ``qualification.json``."""
    return msgspec.json.schema(Qualification)
