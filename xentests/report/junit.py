"""Makes pytest's JUnit XML speak of verdicts: ``<failure>`` is the product's, ``<error>`` the lab's, in any phase.

pytest calls a failure an error when it came in set-up or tear-down, whoever is to blame. The plugin leaves the verdict
of each phase as a property of the test case; this goes over the finished file and settles it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from xentests.errors import LabError
from xentests.report.verdict import FINDINGS, Verdict
from xentests.text import clean

PROPERTY = "verdict."
"""Prefix of the property that holds a phase's verdict: ``verdict.setup``, ``verdict.call``, ``verdict.teardown``."""

_PHASE = re.compile(r'failed on (setup|teardown) with "(.*)"', re.DOTALL)
_TAGS = {Verdict.FAILED: "failure", Verdict.BROKEN: "error"}


def settle(path: Path, about: Mapping[str, object]) -> None:
    """Rewrite the JUnit file at ``path`` in place, with ``about`` (release, versions) as properties of its suites.

    LabError if it cannot be read or written.
    """
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        raise LabError(f"{path}: pytest left no readable JUnit file: {error}") from error
    for suite in tree.iter("testsuite"):
        for case in suite.iter("testcase"):
            _settle_case(case)
        properties = ElementTree.Element("properties")
        for name, value in about.items():
            ElementTree.SubElement(properties, "property", name=name, value=clean(str(value), limit=1000))
        suite.insert(0, properties)
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        tree.write(temporary, encoding="utf-8", xml_declaration=True)
        os.replace(temporary, path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}") from error


def _settle_case(case: ElementTree.Element) -> None:
    verdicts = {
        item.get("name", "").removeprefix(PROPERTY): item.get("value", "")
        for item in case.iter("property")
        if item.get("name", "").startswith(PROPERTY)
    }
    for result in case:
        if result.tag in ("failure", "error"):
            found = _PHASE.fullmatch(result.get("message", ""))
            phase = found.group(1) if found else "call"
            verdict = verdicts.get(phase)
            if verdict in _TAGS:
                result.tag = _TAGS[Verdict(verdict)]
                result.set("type", verdict)
                if found:
                    result.set("message", f"{phase}: {found.group(2)}")
        elif result.tag == "skipped":
            for verdict in verdicts.values():
                if verdict in FINDINGS:
                    result.set("type", verdict)
