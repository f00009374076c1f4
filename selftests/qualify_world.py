"""A small project with a suite of its own, qualified by the real runner: real pytest processes, no machines."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from selftests.plugin_runs import project
from xentests.qualify import call
from xentests.qualify.plan import Qualification
from xentests.report.qualification.model import Qualification as Report

TESTS = """
    \"\"\"An area.\"\"\"
    import pathlib
    import time

    import pytest

    from xentests.errors import LabError, ProductFailure
    from xentests.pytest_plugin.harness import harness_of

    SIGNS = pathlib.Path(__file__).parent


    def test_passes(request):
        \"\"\"It works.\"\"\"
        harness = harness_of(request.config)
        harness.learn({"xen.package": "4.20-1", "xen.build-id": "abc"})
        harness.figure("downtime, s", 0.5)


    def test_fails():
        \"\"\"It fails when a sign says so.\"\"\"
        if (SIGNS / "fail").exists():
            raise ProductFailure("the sign says so")


    def test_breaks():
        \"\"\"The lab breaks.\"\"\"
        if (SIGNS / "break").exists():
            raise LabError("no room")


    def test_not_built():
        \"\"\"Not there.\"\"\"
        if (SIGNS / "slim").exists():
            pytest.skip("not built: CONFIG_X is not set")


    @pytest.mark.xfail(reason="a known defect", strict=True)
    def test_known():
        \"\"\"Known.\"\"\"
        raise ProductFailure("as ever")


    @pytest.mark.parametrize("number", range(12))
    def test_slow(number):
        \"\"\"Takes its time.\"\"\"
        (SIGNS / "ran").open("a").write(f"{number}\\n")
        time.sleep(0.15)
"""
PROFILE = """
[[job]]
suite = "area"
arches = ["amd64", "arm64"]
workers = 2
"""


@dataclass
class World:
    """One project, its profile and its history; ``said`` is what the runner has printed."""

    folder: Path
    said: io.StringIO = field(default_factory=io.StringIO)

    @property
    def history(self) -> str:
        """Where its history is."""
        return str(self.folder / "history.sqlite")

    @property
    def area(self) -> Path:
        """The suite's folder: files in it are signs to the tests."""
        return self.folder / "suites" / "area"

    @property
    def console(self) -> Console:
        """Where the runner prints."""
        return Console(file=self.said, width=200)

    def asked(self, release: str = "debian:trixie", against: str = "", **changes: object) -> call.Request:
        """A call's arguments."""
        given = {
            "release": release,
            "against": against,
            "arches": (),
            "suites": (),
            "profile": str(self.folder / "small.toml"),
            "history": self.history,
            "quarantine": None,
            "artifacts": self.folder / "artifacts",
            "mirror": "",
        }
        return call.Request(**{**given, **changes})  # type: ignore[arg-type]

    def begin(self, release: str = "debian:trixie", against: str = "", **changes: object) -> Qualification:
        """A new qualification, nothing run yet."""
        return call.begin(self.asked(release, against, **changes), self.console, root=self.folder)

    def run(self, qualification: Qualification) -> Report:
        """Run it to its end."""
        return call.run(qualification, self.history, self.console, allure=False, root=self.folder)[0]

    def qualify(self, release: str = "debian:trixie", against: str = "", **changes: object) -> Report:
        """Both."""
        return self.run(self.begin(release, against, **changes))


def world(folder: Path, tests: str = TESTS, profile: str = PROFILE) -> World:
    """A world in ``folder``."""
    project(folder, test_it=tests)
    (folder / "small.toml").write_text(textwrap.dedent(profile))
    return World(folder)
