"""The directory of one run, ``artifacts/RUN``: its name, what lies where in it, and the facts that are known of it.

Several runs, and the workers of one run, write side by side: a run's name is its own, a worker writes files of its own,
and ``artifacts/latest`` is replaced atomically. Nothing here knows pytest, Allure or a host.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xentests.errors import LabError, UsageError

LATEST = "latest"
_LONGEST = 120
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
SCHEMA = 1
"""The version of ``run.json`` and of the records; one that has none is of the time before versions, and the same."""

UNCOLLECTED = "uncollected"
"""The fact that lists files whose tests could not be collected, each with the error."""

RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
"""How runs are called."""


@dataclass(frozen=True)
class Run:
    """One run's directory. The properties are paths, which need not exist yet."""

    path: Path

    @property
    def id(self) -> str:
        """Its name: UTC start time and a random part, ``20260131-235959-1a2b3c``; sorts by time."""
        return self.path.name

    @property
    def allure_results(self) -> Path:
        """Allure's raw results."""
        return self.path / "allure-results"

    @property
    def junit(self) -> Path:
        """The JUnit XML file."""
        return self.path / "junit.xml"

    @property
    def report(self) -> Path:
        """The HTML report, once ``xentests report`` has made it."""
        return self.path / "report"

    @property
    def manifest(self) -> Path:
        """What was run on what: see :meth:`write_manifest`."""
        return self.path / "run.json"

    def hold(self) -> None:
        """Say, to the end of this process, that it works on this run: see :meth:`wait_until_left`."""
        with contextlib.suppress(OSError):  # a full disk: nobody waits, then
            descriptor = os.open(self.path / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def wait_until_left(self) -> None:
        """Wait until no process works on this run: workers outlive a pytest that was killed by as long as a test."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path / "alive", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            finally:
                os.close(descriptor)

    def folder(self, nodeid: str) -> Path:
        """The folder of one test's logs and evidence; made by whoever first writes into it."""
        return self.path / folder_name(nodeid)

    def add_facts(self, worker: str, facts: Mapping[str, Any]) -> None:
        """Add what ``worker`` (``main`` without xdist) has learnt; a key replaces what it said before.

        A value is any JSON; :meth:`facts` says how those of several workers are put together.
        """
        path = self.path / "facts" / f"{worker}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_read_json(path), **facts})

    def facts(self) -> dict[str, Any]:
        """What is known from all workers: lists are joined, of other values the first worker's stands."""
        known: dict[str, Any] = {}
        for path in sorted((self.path / "facts").glob("*.json")):
            for key, value in _read_json(path).items():
                if isinstance(value, list):
                    known[key] = [*known.get(key, []), *value]
                else:
                    known.setdefault(key, value)
        return known

    @property
    def about(self) -> dict[str, Any]:
        """What :meth:`write_manifest` wrote; empty for a run that was killed before."""
        return _read_json(self.manifest)

    def write_manifest(self, about: Mapping[str, Any]) -> None:
        """Write ``run.json``: ``about`` (what was asked for and how it ended) and the facts."""
        write_json(self.manifest, {"schema": SCHEMA, "run": self.id, **about, "facts": self.facts()})

    @property
    def began(self) -> dict[str, Any]:
        """What :meth:`begin` wrote: all that is known of a run that was killed."""
        return _read_json(self.path / "asked.json")

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write down what the run was asked for, before its first test."""
        write_json(self.path / "asked.json", {"schema": SCHEMA, "run": self.id, **asked})


def new_run(root: Path) -> Run:
    """Make a new run's directory below ``root``. UsageError when that cannot be done."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    while True:
        path = root / f"{stamp}-{secrets.token_hex(3)}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not root.is_dir():
                raise UsageError(f"--xen-artifacts {root}: this is not a directory") from None
            continue
        except OSError as error:
            raise UsageError(
                f"--xen-artifacts {root}: cannot make a run's directory there: {error.strerror}"
            ) from error
        return Run(path)


def point_latest(run: Run) -> None:
    """Point ``latest`` beside ``run`` at it, in one step.

    A real file or directory of that name is somebody's: it stays.
    """
    link = run.path.with_name(LATEST)
    if link.exists() and not link.is_symlink():
        return
    temporary = run.path.with_name(f".{LATEST}-{run.id}")
    with contextlib.suppress(OSError):
        temporary.symlink_to(run.id)
        os.replace(temporary, link)


def find_run(root: Path, name: str = LATEST) -> Run:
    """The run called ``name`` below ``root`` (a name or its beginning, ``latest``) or at the path ``name``.

    Raises UsageError that lists the newest runs there are.
    """
    direct = Path(name)
    if direct.is_dir() and (direct / "allure-results").is_dir():
        return Run(direct.resolve())
    if name == LATEST and (root / LATEST).is_dir():
        return Run((root / LATEST).resolve())
    runs = sorted((path for path in root.glob("*") if RUN_NAME.fullmatch(path.name)), reverse=True)
    found = [path for path in runs if name != LATEST and path.name.startswith(name)]
    if len(found) == 1:
        return Run(found[0].resolve())
    there_are = ", ".join(path.name for path in found or runs[:5]) or "none yet; a test run makes one"
    problem = "is not the name of one run" if len(found) > 1 else "no such run"
    raise UsageError(f"{name!r}: {problem} below {root}. There are: {there_are}")


def folder_name(nodeid: str) -> str:
    """A short, unique and harmless folder name for a pytest node id.

    ``suites/smoke/test_boot.py::test_up[pv]`` becomes ``suites.smoke.test_boot.test_up-pv``. Whatever else had to be
    changed or cut is made up for by eight digits of the id's hash.
    """
    path, _, rest = nodeid.partition("::")
    plain = ".".join(part for part in (path.removesuffix(".py"), rest) if part).replace("::", ".").replace("/", ".")
    if plain.endswith("]"):
        plain = "-".join(plain[:-1].split("[", 1))
    name = _UNSAFE.sub("_", plain).lstrip(".-")
    if name and name == plain and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(nodeid.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: _LONGEST - 9].rstrip('.-_') or 'test'}-{digest}"


def file_name(text: str) -> str:
    """``text`` with whatever is not harmless in a file's name replaced."""
    return _UNSAFE.sub("_", text).strip(".-_") or "unnamed"


def write_json(path: Path, data: object) -> None:
    """Write ``data`` as JSON, whole or not at all. LabError when the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}; free some space or use --xen-artifacts") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
