"""What the plugin keeps for one pytest process: settings, the run's directory, hosts in custody, what was learnt."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xentests.errors import UsageError
from xentests.pytest_plugin.custody import Custody
from xentests.pytest_plugin.settings import Settings
from xentests.report import figures
from xentests.report.run import Run
from xentests.text import clean

if TYPE_CHECKING:
    from xentests.session import Session

KEY = pytest.StashKey["Harness"]()


@dataclass(frozen=True)
class Exhibit:
    """A picture that belongs to a test: drawn if it fails, or ``always``."""

    name: str
    draw: Callable[[], str]
    always: bool


MAIN = "main"


class Harness:
    """``worker`` is ``main``, or the name of an xdist worker (``gw0``). ``current`` is the test under way."""

    def __init__(self, settings: Settings, run: Run, worker: str) -> None:
        self.settings = settings
        self.run = run
        self.worker = worker
        self.custody = Custody()
        self.current: pytest.Item | None = None
        self.coming: pytest.Item | None = None
        self.exhibits: list[Exhibit] = []
        self._at_end = contextlib.ExitStack()
        self._session: Session | None = None

    @property
    def labels(self) -> dict[str, str]:
        """What tells the results of this run from those on another release: release and architecture."""
        return {"release": str(self.settings.release), "arch": self.settings.arch}

    @property
    def session(self) -> Session:
        """Store, image and lab, made when first asked for, ended with the run, after the last report of a test."""
        if self._session is None:
            from xentests.session import Options, Session  # noqa: PLC0415 - libvirt, only where a host is asked for

            self._session = Session(
                Options(
                    run_dir=self.run.path / "lab" / self.worker,
                    release=str(self.settings.release),
                    arch=self.settings.arch,
                    lab_uri=self.settings.lab_uri,
                    qemu=self.settings.qemu,
                    mirror=self.settings.mirror,
                    fresh_boot=self.settings.fresh_boot,
                ),
                say=self.say,
            )
            self._at_end.callback(self._session.close)
        return self._session

    def evidence_folder(self, phase: str) -> Path:
        """Where evidence of the test under way is put."""
        return self.run.folder(self.current.nodeid if self.current else "session") / phase

    def learn(self, facts: Mapping[str, Any]) -> None:
        """Keep facts about the run for its manifest and reports."""
        self.run.add_facts(self.worker, facts)

    def figure(self, name: str, value: float) -> None:
        """A figure of the test under way, for its reports: measured, and not what it passes or fails by."""
        if self.current is not None:
            self.current.user_properties.append((f"{figures.PREFIX}{name}", value))

    def exhibit(self, name: str, draw: Callable[[], str], *, always: bool = False) -> None:
        """A picture (SVG) of what the test under way looked at; ``draw`` is called when it is wanted."""
        self.exhibits = [each for each in self.exhibits if each.name != name or (always and not each.always)]
        if all(each.name != name for each in self.exhibits):
            self.exhibits.append(Exhibit(name, draw, always))

    def say(self, text: str) -> None:
        """A line of progress: into the run's log, and to ``progress`` if anybody listens."""
        line = clean(text, limit=1000)
        with contextlib.suppress(OSError), (self.run.path / f"progress-{self.worker}.log").open("a") as file:
            file.write(f"{line}\n")
        self.progress(line)

    def progress(self, line: str) -> None:
        """Replaced by whoever has a terminal."""

    def close(self) -> None:
        """End, or keep, every host, and then the lab. Idempotent; what is left when interrupted falls to the keeper."""
        try:
            self.custody.end_all()
        finally:
            self._at_end.close()


def harness_of(config: pytest.Config) -> Harness:
    """The harness of this process. UsageError when the plugin has not been asked for anything."""
    harness = config.stash.get(KEY, None)
    if harness is None:
        raise UsageError(
            "a test asks for a host, but xentests is not switched on: give --xen-release, or set the ini key "
            "xen_artifacts in this project's pytest configuration"
        )
    return harness


def command_line(config: pytest.Config) -> str:
    """How pytest was called, for the manifest."""
    return clean(shlex.join(["pytest", *config.invocation_params.args]), limit=2000)
