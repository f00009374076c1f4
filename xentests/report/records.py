"""What became of each test of a run, a line of JSON a test, written as the test ends: all that a killed run leaves.

``RUN/records/WORKER.jsonl`` is appended to by one process, each line in one write. ``RUN/selected.json`` says which
tests the run was to run. Reports of a release, its history and a resumed qualification are made from these two.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from xentests.errors import LabError
from xentests.report.figures import PREFIX
from xentests.report.junit import PROPERTY
from xentests.report.run import Run, write_json
from xentests.report.verdict import Verdict, worst

MESSAGE_LIMIT = 2000
"""Characters kept of why a test ended as it did; the whole is in JUnit and Allure."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One test that has ended. ``started`` is seconds since the epoch.

    ``message`` says why it did not pass, ``title`` what its docstring says; ``evidence`` is a folder of the run,
    relative to it. ``figures`` are what it measured, by name and unit.
    """

    nodeid: str
    verdict: Verdict
    started: float
    seconds: float
    title: str = ""
    message: str = ""
    evidence: str = ""
    figures: dict[str, float] = msgspec.field(default_factory=dict)


def plain_nodeid(nodeid: str) -> str:
    """``nodeid`` without the ``@GROUP`` that pytest-xdist appends under ``--dist loadgroup``."""
    head, at, group = nodeid.rpartition("@")
    return head if at and "::" in head and "]" not in group and "::" not in group else nodeid


def append(run: Run, worker: str, record: Record) -> None:
    """Write the record of a test that has just ended. LabError when the disk refuses."""
    path = run.path / "records" / f"{worker}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, msgspec.json.encode(record) + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}; free some space or use --xen-artifacts") from error


def read(run: Run) -> list[Record]:
    """The records of ``run`` in the order in which their tests began, one a test, the last one standing.

    A run that was made before there were records is read from its JUnit file; a line that a killed process has not
    finished is left out.
    """
    found: dict[str, Record] = {}
    files = sorted((run.path / "records").glob("*.jsonl"))
    for path in files:
        with contextlib.suppress(OSError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError):
                    record = msgspec.json.decode(line, type=Record)
                    found[record.nodeid] = record
    if not files:
        found = {record.nodeid: record for record in _from_junit(run)}
    return sorted(found.values(), key=lambda record: (record.started, record.nodeid))


def write_selected(run: Run, nodeids: Iterable[str]) -> None:
    """Say which tests ``run`` is to run."""
    write_json(run.path / "selected.json", sorted({plain_nodeid(nodeid) for nodeid in nodeids}))


def selected(run: Run) -> list[str]:
    """Which tests ``run`` was to run; empty until they have been collected."""
    try:
        return msgspec.json.decode((run.path / "selected.json").read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError):
        return []


def read_nodeids(path: Path) -> frozenset[str]:
    """Node ids, one a line, of the file at ``path``. OSError if it cannot be read."""
    return frozenset(line for line in path.read_text(encoding="utf-8").splitlines() if line)


def _from_junit(run: Run) -> list[Record]:
    """What can be had of a run of before: node ids of functions and classes in modules, as pytest's xunit2 has them."""
    try:
        tree = ElementTree.parse(run.junit)
    except (OSError, ElementTree.ParseError):
        return []
    records = []
    for suite in tree.iter("testsuite"):
        try:
            started = datetime.fromisoformat(suite.get("timestamp", "")).timestamp()
        except ValueError:
            started = 0.0
        for case in suite.iter("testcase"):
            module, classes = _module_of(case.get("classname", ""))
            nodeid = plain_nodeid("::".join((f"{module}.py", *classes, case.get("name", ""))))
            properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
            verdict, message = _junit_verdict(case, properties)
            seconds = float(case.get("time", "0") or 0)
            evidence = next((value for name, value in properties.items() if name.startswith("evidence.")), "")
            records.append(
                Record(
                    nodeid,
                    verdict,
                    started,
                    seconds,
                    message=message[:MESSAGE_LIMIT],
                    evidence=Path(evidence).name if evidence else "",
                    figures=_figures(properties),
                )
            )
            started += seconds
    return records


def _module_of(classname: str) -> tuple[str, list[str]]:
    parts = classname.split(".")
    last = next((at for at, part in enumerate(parts) if part.startswith("test_")), len(parts) - 1)
    return "/".join(parts[: last + 1]), parts[last + 1 :]


def _junit_verdict(case: ElementTree.Element, properties: dict[str, str]) -> tuple[Verdict, str]:
    known = {str(verdict) for verdict in Verdict}
    phases = [Verdict(value) for name, value in properties.items() if name.startswith(PROPERTY) and value in known]
    tags = {"failure": Verdict.FAILED, "error": Verdict.BROKEN, "skipped": Verdict.SKIPPED}
    message = ""
    for child in case:
        if child.tag in tags:
            expected = child.tag == "skipped" and "xfail" in child.get("type", "")
            phases.append(Verdict.KNOWN if expected else tags[child.tag])
            message = message or child.get("message", "")
    return worst(phases), message


def _figures(properties: dict[str, str]) -> dict[str, float]:
    found = {}
    for name, value in properties.items():
        if name.startswith(PREFIX):
            with contextlib.suppress(ValueError):
                found[name.removeprefix(PREFIX)] = float(value)
    return found
