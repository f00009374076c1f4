"""Runs pytest on a small project in a process of its own, and reads what the run left. For plugin selftests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from selftests.project import ROOT

LIMIT_S = 120.0
_INI = """\
[pytest]
strict = true
addopts = -p no:pytest11.testinfra -p no:cacheprovider -ra --tb=short
junit_family = xunit2
junit_logging = all
junit_log_passing_tests = false
"""


@dataclass(frozen=True)
class Finished:
    """A pytest run that has ended: what it printed (stdout and stderr together) and where its files are."""

    code: int
    output: str
    folder: Path

    @property
    def run(self) -> Path:
        """The run's directory; there must be one only."""
        (path,) = (path for path in (self.folder / "artifacts").iterdir() if not path.is_symlink())
        return path

    def allure(self) -> dict[str, dict[str, Any]]:
        """Allure's results by the name of the test function (with parameters)."""
        results = [json.loads(path.read_text()) for path in (self.run / "allure-results").glob("*-result.json")]
        return {_name(result): result for result in results}

    def attachment(self, test: str, name: str) -> str:
        """The text of one attachment of a test, by the end of its name."""
        attachments = self.allure()[test].get("attachments", [])
        (source,) = (str(one["source"]) for one in attachments if one["name"].endswith(name))
        return (self.run / "allure-results" / source).read_bytes().decode("utf-8")

    def junit(self) -> dict[str, list[tuple[str, str, str]]]:
        """Results in the JUnit file by test: (tag, type, message) of each."""
        found: dict[str, list[tuple[str, str, str]]] = {}
        for case in ElementTree.parse(self.run / "junit.xml").iter("testcase"):
            found.setdefault(case.get("name", ""), []).extend(
                (part.tag, part.get("type", ""), part.get("message", ""))
                for part in case
                if part.tag in ("failure", "error", "skipped")
            )
        return found

    def evidence(self, test: str, phase: str = "call", host: str = "xen0") -> Path:
        """The folder of evidence of one host; ``phase`` may be ``*`` where chance decides which phase saw the fault."""
        (folder,) = self.run.glob(f"*{test}/{phase}/{host}")
        return folder


def _name(result: Mapping[str, Any]) -> str:
    values = [item["value"].strip("'") for item in result["parameters"] if item["name"] not in ("release", "arch")]
    function: str = result["fullName"].rpartition("#")[2]
    return f"{function}[{'-'.join(values)}]" if values else function


def project(folder: Path, **modules: str) -> Path:
    """Write a project whose tests may ask for ``fake_host``; ``modules`` are files of ``suites/area``, by name."""
    area = folder / "suites" / "area"
    area.mkdir(parents=True)
    (folder / "conftest.py").write_text('pytest_plugins = ["selftests.plugin_world"]\n')
    (folder / "pytest.ini").write_text(_INI)
    for name, text in modules.items():
        (area / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Environment for a pytest of its own: an empty cache, and no colours or options from outside."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_", "XENTESTS_"))}
    return {**outer, "PYTHONPATH": str(ROOT), "XENTESTS_CACHE": str(folder / "cache"), "COLUMNS": "200", "CI": ""}


def command(*args: str) -> list[str]:
    """A pytest command line with the plugin switched on."""
    return [sys.executable, "-m", "pytest", "--xen-artifacts", "artifacts", *args]


def run(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> Finished:
    """Run pytest in ``folder`` to its end."""
    done = subprocess.run(
        command(*args),
        cwd=folder,
        env={**environment(folder), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT_S,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode("utf-8"), folder)
