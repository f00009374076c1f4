"""The qualification report for people: one HTML file that loads nothing and runs no script, whatever guests wrote.

Made from a Qualification alone. A content security policy allows the page's own style sheet, by its hash, and nothing
else; every text is cleaned and escaped again on its way into the page. Does not judge: see ``rules``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from xentests.errors import LabError
from xentests.report.qualification import plots
from xentests.report.qualification.cells import Column, Names, level, suites
from xentests.report.qualification.model import Finding, Job, Qualification, Row, Trend
from xentests.report.qualification.rules import DECIDED, Answer, Class, Effect
from xentests.report.verdict import Verdict
from xentests.text import clean, display

_HERE = Path(__file__).parent
_MESSAGE = 2500
"""Characters shown of a message; records keep fewer, so that this cuts only what somebody else made."""

SIGNS = {"no": "✕", "ask": "?", "warn": "!", "ok": "✓", "none": "\N{EN DASH}"}
"""What stands beside the words, by level: it says the same to who sees no colours."""

ANSWERS = {Answer.NO: "no", Answer.UNDECIDED: "ask", Answer.CONDITIONAL: "warn", Answer.YES: "ok"}

EFFECTS = {
    Effect.FORBIDS: "Forbid that it ships",
    Effect.UNDECIDED: "Leave it undecided",
    Effect.ACCEPT: "To be accepted by who ships it",
    Effect.NONE: "Good to know",
}

LETTERS = {
    Verdict.PASSED: "P",
    Verdict.FAILED: "F",
    Verdict.BROKEN: "B",
    Verdict.KNOWN: "K",
    Verdict.NOT_BUILT: "n",
    Verdict.NOT_HERE: "m",
    Verdict.BLOCKED: "x",
    Verdict.SKIPPED: "s",
}
"""A verdict in a strip of the last ones: capitals for those that were run."""

_EXITS = {0: "all passed", 1: "some failed", 2: "interrupted", 3: "pytest broke", 4: "wrong call", 5: "no tests"}


def write(qualification: Qualification, path: Path) -> None:
    """Write the page, whole or not at all. LabError when the disk refuses."""
    text = render(qualification)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        reason = f"{error.strerror}; free some space or write it elsewhere"
        raise LabError(f"cannot write the report {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def render(qualification: Qualification) -> str:
    """The page."""
    css = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return _template().render(css=Markup(css), digest=digest, **_content(qualification))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_cleaned,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=plots.moment,
        number=plots.number,
        span=span,
        href=href,
        message=lambda text: display(text, limit=_MESSAGE),
        strip=_strip,
        level=level,
    )
    environment.globals.update(SIGNS=SIGNS, LETTERS=LETTERS)
    return environment.get_template("page.html.j2")


def _cleaned(value: object) -> object:
    """Every expression of the template goes through here before it is escaped; what is no text yet becomes one."""
    return value if isinstance(value, Markup | int | float) else clean(str(value))


def span(seconds: float) -> str:
    """A duration as a person reads it: ``0.4 s``, ``41 s``, ``7 min 5 s``, ``3 h 12 min``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def href(path: str) -> str:
    """A link to ``path`` below the qualification's directory; whatever stands in it, never a scheme or a host."""
    return "./" + quote(path.lstrip("/"), errors="replace")


def _content(made: Qualification) -> dict[str, Any]:
    names = Names()
    cells = suites(made, names)
    forbidding = [number for number, row in enumerate(made.rows) if row.effect is Effect.FORBIDS]
    changed = [trend for trend in made.trends if trend.changed]
    verdicts = Counter(str(row.verdict or Class.NOT_RUN) for row in made.rows)
    return {
        "q": made,
        "level": ANSWERS[made.answer],
        "counts": verdicts.most_common(),
        "classes": _classes(made.rows),
        "decided": sum(row.verdict in DECIDED for row in made.rows),
        "columns": Column.all_of(made.rows),
        "baseline_columns": Column.all_of(made.baseline_rows),
        "suites": cells,
        "findings": _findings(made),
        "regressions": [(number, made.rows[number]) for number in forbidding],
        "flaky": [(number, row) for number, row in enumerate(made.rows) if row.rate or row.cls is Class.FLAKY],
        "changed": [_figure(trend) for trend in changed],
        "unchanged": _unchanged(made.trends),
        "tested": _tested(made),
        "jobs": _jobs(made.jobs),
        "run_seconds": sum(job.seconds for job in made.jobs),
    }


def _classes(rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """(level, class, tests), the worst first."""
    effects = list(Effect)
    worst = {row.cls: row for row in sorted(rows, key=lambda row: effects.index(row.effect))}
    counts = Counter(row.cls for row in rows)
    ordered = sorted(counts, key=lambda cls: (-effects.index(worst[cls].effect), -counts[cls], str(cls)))
    return [(level(worst[cls]), str(cls), counts[cls]) for cls in ordered]


def _findings(made: Qualification) -> list[tuple[str, str, list[tuple[Finding, list[tuple[str, int | None]]]]]]:
    """(level, heading, findings), the worst first; each finding with its tests and the numbers of their rows."""
    known: dict[str, list[int]] = {}
    for number, row in enumerate(made.rows):
        known.setdefault(row.nodeid, []).append(number)
    groups = []
    for effect in reversed(Effect):
        found = [finding for finding in made.findings if finding.effect is effect]
        if found:
            sign = {Effect.FORBIDS: "no", Effect.UNDECIDED: "ask", Effect.ACCEPT: "warn", Effect.NONE: "none"}[effect]
            tests = [[(test, _row_of(test, effect, known, made.rows)) for test in finding.tests] for finding in found]
            groups.append((sign, EFFECTS[effect], list(zip(found, tests, strict=True))))
    return groups


def _row_of(test: str, effect: Effect, known: dict[str, list[int]], rows: Sequence[Row]) -> int | None:
    """The row that a finding's ``test`` is about: a node id, and maybe an architecture behind it in words."""
    head = test
    while head and head not in known:
        head = head.rpartition(" ")[0]
    if not head:
        return None
    words = test.removeprefix(head).replace("(", " ").replace(")", " ").replace(",", " ").split()

    def fit(number: int) -> tuple[int, bool]:
        row = rows[number]
        return (row.arch in words) + (row.variant in words), row.effect is effect

    return max(known[head], key=fit)


def _figure(trend: Trend) -> dict[str, Any]:
    return {
        "trend": trend,
        "where": f"{trend.arch} {trend.variant}".strip(),
        "now": plots.number(trend.points[-1].value) if trend.points else "",
        "before": "" if (middle := plots.baseline(trend)) is None else plots.number(middle),
        "plot": plots.sparkline(trend),
    }


def _unchanged(trends: Sequence[Trend]) -> list[tuple[str, list[dict[str, Any]]]]:
    """By suite, as node ids have it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for trend in trends:
        if not trend.changed:
            parts = trend.nodeid.partition("::")[0].split("/")
            groups.setdefault(parts[1] if len(parts) > 2 else parts[0], []).append(_figure(trend))
    return sorted(groups.items())


def _tested(made: Qualification) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """(release, columns, facts by name with a value a column): the release first, then others."""
    releases = sorted({tested.release for tested in made.tested}, key=lambda name: (name != made.release, name))
    tables = []
    for release in releases:
        on = sorted((each for each in made.tested if each.release == release), key=lambda it: (it.arch, it.variant))
        names = list(dict.fromkeys(name for each in on for name in each.facts))
        facts = [("revision", [each.revision for each in on])]
        facts += [(name, [each.facts.get(name, "") for each in on]) for name in names if name != "revision"]
        tables.append((release, [f"{each.arch} {each.variant}".strip() for each in on], facts))
    return tables


def _jobs(jobs: Sequence[Job]) -> list[tuple[Job, int, str, str]]:
    """(job, its bar in percent of the longest, how it ended, its level), the longest first."""
    longest = max((job.seconds for job in jobs), default=0.0) or 1.0
    found = []
    for job in sorted(jobs, key=lambda job: -job.seconds):
        ended = "never ended" if job.exit_status is None else _EXITS.get(job.exit_status, f"exit {job.exit_status}")
        sign = "ok" if job.exit_status == 0 else "none" if job.exit_status in (1, 5) else "ask"
        found.append((job, max(1, round(100 * job.seconds / longest)), ended, sign))
    return found


@functools.lru_cache(maxsize=4096)
def _letters(history: tuple[Verdict, ...]) -> Markup:
    strip = Markup("").join(
        Markup("<b>{}</b>").format(LETTERS[verdict])
        if verdict in (Verdict.FAILED, Verdict.BROKEN)
        else LETTERS[verdict]
        for verdict in reversed(history)
    )
    runs: list[tuple[Verdict, int]] = []
    for verdict in reversed(history):
        if runs and runs[-1][0] is verdict:
            runs[-1] = verdict, runs[-1][1] + 1
        else:
            runs.append((verdict, 1))
    said = ", ".join(f"{times} {verdict}" for verdict, times in runs)
    return Markup('<span class="h" role="img" title="oldest first: {}">{}</span>').format(said, strip)


def _strip(history: Sequence[Verdict]) -> Markup:
    """The last verdicts as letters, the newest on the right as in plots; in words for who points at it or listens."""
    return _letters(tuple(history)) if history else Markup("")
