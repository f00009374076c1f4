"""JUnit XML of a whole qualification: a test suite for each suite and architecture, each case with its class."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from xentests.errors import LabError
from xentests.report.qualification.model import Qualification, Row
from xentests.report.qualification.rules import Class
from xentests.report.verdict import Verdict

_TAGS = {Verdict.PASSED: "", Verdict.FAILED: "failure", Verdict.BROKEN: "error", None: "error"}


def write(qualification: Qualification, path: Path) -> None:
    """Write the file, whole or not at all. LabError when the disk refuses."""
    root = ElementTree.Element("testsuites", name=f"{qualification.release} {qualification.profile}")
    rows = sorted(qualification.rows, key=lambda row: (row.suite, row.arch, row.variant))
    for (suite, arch, variant), of in groupby(rows, key=lambda row: (row.suite, row.arch, row.variant)):
        name = " ".join(filter(None, (suite, arch, variant)))
        element = ElementTree.SubElement(root, "testsuite", name=name)
        cases = [_case(element, row) for row in of]
        element.set("tests", str(len(cases)))
        element.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            element.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
        os.replace(temporary, path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}") from error


def _case(suite: ElementTree.Element, row: Row) -> ElementTree.Element:
    module, _, name = row.nodeid.partition("::")
    where = ".".join(filter(None, (module.removesuffix(".py").replace("/", "."), row.arch, row.variant)))
    case = ElementTree.SubElement(suite, "testcase", classname=where, name=name, time=f"{row.seconds:.3f}")
    properties = ElementTree.SubElement(case, "properties")
    for key, value in (("class", row.cls), ("effect", row.effect), ("why", row.why)):
        ElementTree.SubElement(properties, "property", name=key, value=str(value))
    # A failure that is no news does not make a pipeline red: the report has it as a finding.
    tag = _TAGS.get(row.verdict, "skipped")
    if tag == "failure" and row.cls in (Class.QUARANTINED, Class.LIKE, Class.NEVER, Class.FLAKY):
        tag = "skipped"
    if tag:
        result = ElementTree.SubElement(case, tag, message=f"{row.cls}: {row.why}", type=str(row.verdict or row.cls))
        result.text = row.message
    return case
