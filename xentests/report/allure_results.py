"""The only module that knows Allure's Python side: what its results say of a test, and the files beside them.

allure-pytest writes the results; this adds what it cannot know (areas, titles, verdicts, evidence) and cleans every
text on its way to the disk. Environment, categories and executor are files of their own, written once, by
the controller. The HTML report made from all this is ``html``'s business.
"""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import allure
import allure_commons
from allure_commons.logger import AllureFileLogger
from allure_commons.model2 import Label, Parameter, StatusDetails, TestResult
from allure_commons.types import AttachmentType
from allure_commons.utils import md5, represent

from xentests.report.evidence import Evidence
from xentests.report.run import Run, write_json
from xentests.report.verdict import FINDINGS, Verdict
from xentests.text import clean, display

ATTACHMENT_LIMIT = 200_000
"""Characters of one attached file, its first and last half; the whole is in the evidence folder."""

_TEXT_LIMIT = 50_000
_VERDICT = "verdict"


@dataclass(frozen=True)
class Subject:
    """A test as Allure shows it. Areas come from folder and module, the texts from its docstring."""

    epic: str
    feature: str
    story: str
    title: str
    description: str


def subject_of(nodeid: str, docstring: str | None) -> Subject:
    """What to call the test ``nodeid``: ``suites/livepatch/test_revert.py::test_it[x]`` is Livepatch / Revert / It."""
    path, _, rest = nodeid.partition("::")
    folders = [part for part in Path(path).parent.parts if part != "suites"]
    name, bracket, parameters = rest.partition("[")
    function = name.rsplit("::", 1)[-1]
    text = clean(docstring or "").strip()
    first = text.split("\n\n")[0].replace("\n", " ").strip()
    title = (first or _words(function)).rstrip(".")
    if bracket:
        title += f" [{parameters.removesuffix(']')}]"
    return Subject(
        epic=" / ".join(_words(folder) for folder in folders) or "Tests",
        feature=_words(Path(path).stem),
        story=_words(function),
        title=title,
        description=text,
    )


def _words(name: str) -> str:
    words = re.sub(r"^(test_|Test)", "", name).replace("_", " ").strip() or name or "tests"
    return words[0].upper() + words[1:]


def describe(subject: Subject, labels: Mapping[str, str]) -> None:
    """Describe the test under way.

    ``labels`` (release, arch) become parameters too: a test on two releases has two histories.
    """
    allure.dynamic.epic(subject.epic)
    allure.dynamic.feature(subject.feature)
    allure.dynamic.story(subject.story)
    for name, value in labels.items():
        allure.dynamic.label(name, value)
        allure.dynamic.parameter(name, value)


def conclude(subject: Subject, verdict: Verdict, figures: Mapping[str, str]) -> None:
    """Say how the test under way ended. Titles only now: allure-pytest sets its own after every set-up.

    ``figures`` differ from run to run, and are no part of what makes it the same test.
    """
    for name, value in figures.items():
        allure.dynamic.parameter(name, value, excluded=True)
    allure.dynamic.title(subject.title)
    allure.dynamic.description(subject.description)
    allure.dynamic.label(_VERDICT, verdict)
    if verdict in FINDINGS:
        allure.dynamic.tag(verdict)


def attach(evidence: Evidence, phase: str) -> None:
    """Attach what was collected of a host to the test under way, as text."""
    for path in evidence.files:
        with contextlib.suppress(OSError):
            name = f"{evidence.host} {phase}: {path.name}"
            allure.attach(evidence.text(path, limit=ATTACHMENT_LIMIT), name=name, attachment_type=AttachmentType.TEXT)


def attach_picture(name: str, svg: str) -> None:
    """Attach a picture that the harness has drawn itself to the test under way."""
    allure.attach(svg, name=name, attachment_type=AttachmentType.SVG)


class Cleaner:
    """Cleans each result just before it is written, and gives it the status its verdict asks for."""

    @allure_commons.hookimpl(tryfirst=True)
    def report_result(self, result: Any) -> None:
        """One test's result."""
        _clean_strings(result)
        verdicts = [label.value for label in result.labels if label.name == _VERDICT]
        if verdicts:
            verdict = Verdict(verdicts[-1])
            result.status = verdict.allure_status
            if verdict in FINDINGS and result.statusDetails is not None:
                # "CLASS: not built: CONFIG_X is not set": the class is no news to a reader.
                result.statusDetails.message = result.statusDetails.message.partition(": ")[2]

    @allure_commons.hookimpl(tryfirst=True)
    def report_container(self, container: Any) -> None:
        """What a fixture did."""
        _clean_strings(container)


def start_cleaning() -> Cleaner:
    """Put a Cleaner before whatever writes results in this process."""
    cleaner = Cleaner()
    allure_commons.plugin_manager.register(cleaner)
    return cleaner


def stop_cleaning(cleaner: Cleaner) -> None:
    """Take it away again."""
    allure_commons.plugin_manager.unregister(cleaner)


def _clean_strings(thing: Any) -> None:
    for name, value in vars(thing).items():
        if isinstance(value, str):
            setattr(thing, name, display(value, limit=_TEXT_LIMIT))
        elif isinstance(value, list):
            value[:] = [clean(part) if isinstance(part, str) else part for part in value]
            for part in value:
                if hasattr(part, "__dict__"):
                    _clean_strings(part)
        elif hasattr(value, "__dict__"):
            _clean_strings(value)


def write_lost_test(run: Run, nodeid: str, message: str, labels: Mapping[str, str]) -> None:
    """Write the result of a test whose process died over it and could write none: broken."""
    subject = subject_of(nodeid, None)
    path, *classes, function = nodeid.split("::")
    name, bracket, parameters = function.partition("[")
    # Named and hashed as allure-pytest does, so that the result joins the history of its test.
    full_name = f"{'.'.join([path.removesuffix('.py').replace('/', '.'), *classes])}#{name}"
    values = {**labels, **({"parameters": parameters.removesuffix("]")} if bracket else {})}
    now = int(time.time() * 1000)
    result = TestResult(
        uuid=str(uuid.uuid4()),
        name=subject.title,
        fullName=full_name,
        testCaseId=md5(full_name),
        historyId=md5(full_name, *(represent(value) for _, value in sorted(values.items()))),
        parameters=[Parameter(name=name, value=represent(value)) for name, value in values.items()],
        status=Verdict.BROKEN.allure_status,
        statusDetails=StatusDetails(message=message),
        start=now,
        stop=now,
    )
    areas = {"epic": subject.epic, "feature": subject.feature, "story": subject.story, _VERDICT: str(Verdict.BROKEN)}
    result.labels.extend(Label(name=name, value=value) for name, value in {**areas, **labels}.items())
    _clean_strings(result)
    AllureFileLogger(run.allure_results).report_result(result)


_VERDICT_GROUPS = {
    "Not built": Verdict.NOT_BUILT,
    "Not on this machine": Verdict.NOT_HERE,
    "Blocked by an earlier failure": Verdict.BLOCKED,
}
_ERROR_GROUPS = (
    ("Hypervisor or dom0 crash", "failed", "HypervisorCrash"),
    ("Host hangs", "failed", "HostHang|Dom0Hang|HypervisorHang"),
    ("Product failures", "failed", ""),
    ("Lab: a machine died or found no room", "broken", "DomainGone|LabFull|OverBudget|AgentUnresponsive"),
    ("Lab: other", "broken", "LabError|DownloadError|CorruptEntry|ToolFailed"),
    ("Test or harness is wrong", "broken", ""),
)


def categories() -> list[dict[str, Any]]:
    """Groups of results, the first that matches counts: names, statuses and regular expressions over messages.

    The expressions hold for Java (Allure 2 matches whole messages) and JavaScript (Allure 3 searches in them, and knows
    no ``(?s)``). Anchored: searching a long message from every position would take seconds.
    """
    groups: list[dict[str, Any]] = []
    for name, status, words in _ERROR_GROUPS:
        groups.append({"name": name, "matchedStatuses": [status]})
        if words:
            groups[-1]["messageRegex"] = rf"^[\w.]*\b({words})\b[\s\S]*"
    for name, verdict in _VERDICT_GROUPS.items():
        groups.append({"name": name, "matchedStatuses": ["skipped"], "messageRegex": rf"^{verdict}: [\s\S]*"})
    return groups


def write_run_files(run: Run, environment: Mapping[str, object], *, name: str) -> None:
    """Write ``environment.properties``, ``categories.json`` and ``executor.json`` beside the results."""
    directory = run.allure_results
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"{_property(key)}={_property(str(value), value=True)}" for key, value in environment.items()]
    (directory / "environment.properties").write_text("\n".join(lines) + "\n", encoding="ascii")
    write_json(directory / "categories.json", categories())
    write_json(
        directory / "executor.json", {"name": "xentests", "type": "pytest", "buildName": run.id, "reportName": name}
    )


def _property(text: str, *, value: bool = False) -> str:
    """A key or a value of java.util.Properties' file format, in ASCII."""
    plain = " ".join(clean(text, limit=1000).split())
    escaped = json.dumps(plain)[1:-1].replace('\\"', '"')
    return escaped if value else re.sub(r"[ :=#!]", "_", escaped)
