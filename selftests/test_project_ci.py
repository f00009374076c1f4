"""The files in ci/: valid by the schemas of GitLab and GitHub, true to this project, closed to other people.

Not about the pipelines' results: no GitLab and no GitHub runs here. nightly.sh runs with stubs for all that it calls.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from selftests.project import ROOT
from xentests.release.spec import parse_release

CI = ROOT / "ci"
GITLAB = ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci")
SCHEMAS = {
    "gitlab-ci.yml": GITLAB,
    "gitlab-child.yml": GITLAB,
    "github-actions.yml": ("--builtin-schema", "vendor.github-workflows"),
}
SCRIPT_KEYS = ("run", "script", "before_script", "after_script")
# By exit code of `xentests qualify`.
MEANINGS = {0: "may ship", 1: "must not ship", 2: "wrong call", 3: "not decided"}


def texts() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(CI.iterdir())} | {"ci.md": (ROOT / "docs/ci.md").read_text()}


def validate(path: Path, schema: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """What check-jsonschema says of a file, with schemas that it brings along."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run([str(checker), *schema, str(path)], capture_output=True, text=True, check=False)


def mappings(node: object) -> Iterator[dict[str, Any]]:
    """Every mapping of a document, outermost first."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(child)


def load(name: str) -> list[dict[str, Any]]:
    return list(mappings(YAML(typ="safe", pure=True).load((CI / name).read_text())))


def scripts(name: str) -> list[str]:
    """What the jobs of a file run, one string a script."""
    found = [mapping[key] for mapping in load(name) for key in SCRIPT_KEYS if key in mapping]
    return ["\n".join(script) if isinstance(script, list) else str(script) for script in found]


def tox_environments() -> set[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return {name.removeprefix("testenv:") for name in parser.sections()}


def commands() -> dict[str, Any]:
    """The commands of the command line and those below them, `history import` as one name."""
    from xentests.cli import app  # noqa: PLC0415 (the command line is looked at by these tests alone)

    found: dict[str, Any] = dict(getattr(typer.main.get_command(app), "commands"))  # noqa: B009 (see its types)
    below = {
        f"{name} {sub}": one for name, group in found.items() for sub, one in getattr(group, "commands", {}).items()
    }
    return found | below


def with_shown_templates(text: str) -> str:
    """GitLab's schema takes anything below a name with a dot: templates get visible names."""
    return re.sub(
        r"^(\.|  extends: \.)(?=[a-z])", lambda found: found[0].rstrip(".") + "shown-", text, flags=re.MULTILINE
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str, tmp_path: Path) -> None:
    """Each file is valid by the schema that its system publishes."""
    (tmp_path / name).write_text(with_shown_templates((CI / name).read_text()))
    for path in (CI / name, tmp_path / name):
        done = validate(path, SCHEMAS[name])
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("gitlab-ci.yml", "    strategy: depend", "    strategie: depend"),
        ("gitlab-child.yml", "  interruptible: false", "  interruptable: false"),
        ("github-actions.yml", "    timeout-minutes: 355", "    timeout-minuets: 355"),
    ],
)
def test_wrong_key_is_refused(name: str, line: str, wrong: str, tmp_path: Path) -> None:
    """One misspelt key makes a file invalid: the test above can fail."""
    text = (CI / name).read_text()
    assert text.count(line) == 1
    (tmp_path / name).write_text(with_shown_templates(text.replace(line, wrong)))
    assert validate(tmp_path / name, SCHEMAS[name]).returncode == 1


def test_github_jobs_end() -> None:
    """Every job of GitHub's has a limit of its own."""
    done = validate(CI / "github-actions.yml", ("--builtin-schema", "custom.github-workflows-require-timeout"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_expression_in_a_script() -> None:
    """GitHub pastes expressions into a script before a shell reads it: inputs and titles would be code."""
    assert len(scripts("github-actions.yml")) > 5
    assert [script for script in scripts("github-actions.yml") if "${{" in script] == []


def test_other_peoples_variables_are_not_code() -> None:
    """What a person fills in reaches a GitLab script as nightly.sh's environment only; no script evaluates text."""
    for name in SCHEMAS:
        found = [text for text in scripts(name) if re.search(r"XEN_|\beval\b|(ba)?sh -c|CI_COMMIT_(?!BRANCH)", text)]
        assert found == [], name


def test_github_token_reads_only() -> None:
    """The workflow's token reads the repository and can do nothing else, and checkouts do not leave it behind."""
    everything = load("github-actions.yml")
    assert [mapping["permissions"] for mapping in everything if "permissions" in mapping] == [{"contents": "read"}]
    checkouts = [mapping for mapping in everything if str(mapping.get("uses", "")).startswith("actions/checkout@")]
    assert [step["with"] for step in checkouts] == [{"persist-credentials": False}] * len(checkouts) != []


def test_actions_are_pinned() -> None:
    """Every action names a major version or a commit, one for all its uses."""
    uses = {str(mapping["uses"]) for mapping in load("github-actions.yml") if "uses" in mapping}
    assert [use for use in uses if not re.fullmatch(r"actions/[a-z/-]+@(v\d+|[0-9a-f]{40})", use)] == []
    assert len({use.partition("@")[0] for use in uses}) == len(uses)


def test_red_is_red() -> None:
    """Nothing makes a failed qualification green, not even one that decided nothing."""
    for name in SCHEMAS:
        forgiving = [
            mapping for mapping in load(name) if mapping.get("allow_failure") or mapping.get("continue-on-error")
        ]
        assert forgiving == [], name
    retried = [mapping["retry"] for mapping in load("gitlab-child.yml") if "retry" in mapping]
    assert retried == [{"max": 1, "when": ["runner_system_failure"]}]


def test_evidence_of_red_jobs_is_kept() -> None:
    """Artifacts are kept and reports published whatever became of the job."""
    gitlab = [mapping for name in SCHEMAS if "gitlab" in name for mapping in load(name) if "artifacts" in mapping]
    kept = [job["artifacts"] for job in gitlab if isinstance(job["artifacts"], dict) and "reports" in job["artifacts"]]
    assert [artifacts["when"] for artifacts in kept] == ["always", "always"]
    uploads = [step for step in load("github-actions.yml") if "actions/upload-artifact@" in str(step.get("uses", ""))]
    assert [step["if"] for step in uploads] == ["always()"] * len(uploads) != []


def test_tox_environments_exist() -> None:
    """bootstrap.sh and tox are called with environments that tox.ini has."""
    named = set()
    for text in texts().values():
        named |= set(re.findall(r"(?:\./bootstrap\.sh|tox run -q -e) ([a-z]+)\b", text))
    for name in SCHEMAS:
        for mapping in load(name):
            for key in ("environment", "ENVIRONMENT"):
                named |= set(mapping[key]) if isinstance(mapping.get(key), list) else set()
    assert {"lint", "types", "selftests", "qualify"} <= named
    assert named - tox_environments() == set()


def test_commands_exist() -> None:
    """Every command named here and in docs/ci.md exists."""
    named = {name for text in texts().values() for name in re.findall(r"\bxentests (history [a-z]+|[a-z]+) ", text)}
    named -= {"xentests", "scram"}  # a database called xentests
    assert {"qualify", "gc", "history import"} <= named
    assert named - set(commands()) == set()


@pytest.mark.parametrize(("command", "name"), [("qualify", "nightly.sh"), ("gc", "nightly.sh"), ("qualify", "ci.md")])
def test_options_exist(command: str, name: str) -> None:
    """Options that are given to a command are options it has."""
    lines = [line for line in texts()[name].splitlines() if re.search(rf"xentests`? {command}\b|nightly\.sh -", line)]
    if (command, name) == ("qualify", "nightly.sh"):
        lines = [
            line for line in texts()[name].splitlines() if re.search(r"^\s*(\[.*)?(for .*)?(arguments|asked)\+?=", line)
        ]
    found = {option for line in lines for option in re.findall(r"(?<=[\s(`])--[a-z][a-z-]+", line)} - {"--help"}
    assert found
    assert command in commands()
    assert found - {option for one in commands()[command].params for option in one.opts} == set()


def test_variables_are_in_the_readme() -> None:
    """Variables of this project that are set here stand in README's table."""
    named = {name for text in texts().values() for name in re.findall(r"\bXENTESTS_[A-Z_]+\b", text)}
    assert {"XENTESTS_CACHE", "XENTESTS_HISTORY"} <= named
    readme = (ROOT / "README.md").read_text()
    assert {name for name in named if f"`{name}`" not in readme} == set()


def test_releases_exist() -> None:
    """Every release in the matrices is one that this project can fetch."""
    named = {name for text in texts().values() for name in re.findall(r"\bdebian:[a-z]+\b", text)}
    assert {"debian:trixie", "debian:bookworm"} <= named
    for name in named:
        assert str(parse_release(name, "amd64"))


def test_crontab_lines() -> None:
    """Five fields and a command a line, none with a percent sign, which cron would make a new line of."""
    lines = [line for line in (CI / "crontab.example").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"[A-Z_]+=", line)]
    assert len(jobs) >= 3
    for line in jobs:
        assert re.fullmatch(r"(?:[\d*/,-]+ +){5}(?:cd|find) \S.*", line), line
        assert "%" not in line
        shell = subprocess.run(["bash", "-n", "-c", line.split(maxsplit=5)[5]], capture_output=True, check=False)
        assert shell.returncode == 0, line


class Night:
    """nightly.sh in a checkout of stubs: bootstrap.sh, tox and xentests log their arguments and end as told."""

    def __init__(self, directory: Path) -> None:
        self.path, self.log = directory, directory / "calls"
        self.given = {"PATH": "/usr/bin:/bin", "RELEASE": "debian:trixie", "KNOWN": "0"}
        for name in ("ci", ".venv/bin", ".tox/qualify/bin"):
            (directory / name).mkdir(parents=True)
        shutil.copy(CI / "nightly.sh", directory / "ci")
        self._stub("bootstrap.sh", "exit ${PREPARED:-0}")
        self._stub(
            ".venv/bin/tox",
            'if [ -n "$ANSWER" ]; then mkdir -p "$ANSWER"; echo {} >"$ANSWER/qualification.json"; fi; exit $CODE',
        )
        self._stub(".tox/qualify/bin/xentests", "exit 1")
        # Whether the baseline is known: as told, one code a call.
        self._stub(".tox/qualify/bin/python", 'set -- $KNOWN; exit "${!calls}"')

    def _stub(self, name: str, body: str) -> None:
        log = shlex.quote(str(self.log))
        (self.path / name).write_text(
            f'#!/bin/bash\necho "{name} $*" >>{log}\ncalls=$(grep -c "^{name}" {log})\n{body}\n'
        )
        (self.path / name).chmod(0o755)

    def run(self, *arguments: str, code: int = 0, answered: bool = True, **environment: str) -> tuple[int, str]:
        """Its exit code and what it printed."""
        answer = str(self.path / "artifacts/qualify-1") if answered else ""
        given = self.given | {"CODE": str(code), "ANSWER": answer}
        argv = [str(self.path / "ci/nightly.sh"), *arguments]
        done = subprocess.run(argv, env=given | environment, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def test_night_asks_what_it_was_told(night: Night) -> None:
    """The environment becomes arguments of qualify, and more of them follow; then the cache is trimmed."""
    night.given |= {"BASELINE": "debian:bookworm", "ARCH": "amd64 arm64", "SUITES": "smoke", "MAX_CACHE": "3G"}
    code, _ = night.run("--mirror", "file")
    asked = "debian:trixie --artifacts artifacts --against debian:bookworm --profile nightly"
    asked += " --arch amd64 --arch arm64 --suite smoke --mirror file"
    assert code == 0
    assert night.calls() == [
        f"bootstrap.sh qualify -- {asked} --help",
        ".tox/qualify/bin/python - 10 debian:bookworm amd64 arm64",
        f".venv/bin/tox run -q -e qualify -- {asked}",
        ".tox/qualify/bin/xentests gc --max-size 3G",
    ]


def test_unknown_baseline_is_qualified_first(night: Night) -> None:
    """A baseline that the history has not is qualified, where no report of it is taken for the release's."""
    assert night.run(code=1, BASELINE="debian:bookworm", KNOWN="10 0")[0] == 1
    calls = [call for call in night.calls() if "tox run" in call]
    assert [call.partition(" -- ")[2] for call in calls] == [
        "debian:bookworm --artifacts artifacts/baseline --profile nightly",
        "debian:trixie --artifacts artifacts --against debian:bookworm --profile nightly",
    ]


@pytest.mark.parametrize("known", ["10 10", "1"])
def test_no_baseline_is_not_decided(night: Night, known: str) -> None:
    """A baseline that cannot be had, or a history that cannot be read, is the lab's fault."""
    assert night.run(BASELINE="debian:bookworm", KNOWN=known)[0] == 3


def test_baseline_is_looked_up_in_the_history(tmp_path: Path) -> None:
    """The lookup inside nightly.sh speaks this project's history: an empty one knows nothing."""
    found = re.search(r"<<'PYTHON'\n(.*?)^PYTHON$", (CI / "nightly.sh").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    argv = [sys.executable, "-c", found[1], "10", "debian:bookworm", "amd64"]
    environment = {"PATH": "/usr/bin:/bin", "XENTESTS_HISTORY": str(tmp_path / "history.sqlite")}
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr


@pytest.mark.parametrize("code", MEANINGS)
def test_night_ends_with_the_answer(night: Night, code: int) -> None:
    """Codes of qualify pass through, with their meaning in the last line."""
    ended, said = night.run(code=code)
    assert ended == code
    assert f"{MEANINGS[code]} (exit {code})" in said.splitlines()[-1]


@pytest.mark.parametrize("code", [0, 1, 3, 5, 124, 130, 137])
def test_no_answer_is_not_decided(night: Night, code: int) -> None:
    """No qualification.json, or one of an earlier night: neither green nor a verdict on Xen, whatever the code."""
    old = night.path / "artifacts/qualify-0/qualification.json"
    old.parent.mkdir(parents=True)
    old.touch()
    subprocess.run(["touch", "-d", "-1 hour", str(old)], check=True)
    assert night.run(code=code, answered=False)[0] == 3


@pytest.mark.parametrize("code", [4, 5, 124, 130, 137])
def test_odd_ends_are_not_decided(night: Night, code: int) -> None:
    """An answer that was written before the end went wrong is not taken for the end."""
    assert night.run(code=code)[0] == 3


@pytest.mark.parametrize(("prepared", "ended"), [("1", 3), ("100", 3), ("2", 2)])
def test_failed_preparation_is_not_decided(night: Night, prepared: str, ended: int) -> None:
    """Without network or packages nothing was asked of Xen; wrong arguments are found before anything runs."""
    assert night.run(PREPARED=prepared)[0] == ended
    assert [call for call in night.calls() if "tox" in call] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELEASE", ""),
        ("RELEASE", "--resume"),
        ("RELEASE", "debian:trixie; touch owned"),
        ("RELEASE", "debian:trixie\n--against"),
        ("BASELINE", "$(touch owned)"),
        ("ARCH", "amd64 `touch${IFS}owned`"),
        ("PROFILE", "-x"),
    ],
)
def test_hostile_text_is_refused(night: Night, variable: str, value: str) -> None:
    """What is no release, architecture or profile ends as a wrong call, with nothing called."""
    night.given[variable] = value
    assert night.run()[0] == 2
    assert night.calls() == []
    assert not list(night.path.rglob("owned"))


@pytest.mark.parametrize("code", [0, 1])
def test_log_keeps_a_green_night_quiet(night: Night, code: int) -> None:
    """With LOG_DIR only a night that is not green prints, so that cron mails it; the log has both."""
    logs = night.path / "logs"
    _, said = night.run(code=code, LOG_DIR=str(logs))
    assert bool(said) == bool(code)
    assert f"(exit {code})" in next(logs.iterdir()).read_text()


def test_summary_page(night: Night) -> None:
    """On GitHub the last line stands on the summary page, too."""
    page = night.path / "summary"
    night.run(code=3, GITHUB_STEP_SUMMARY=str(page))
    assert page.read_text().startswith("debian:trixie: not decided (exit 3): ")
