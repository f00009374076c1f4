"""The part of the command line about releases as a whole: ``xentests qualify | compare | flakes | history``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from xentests.errors import LabError
from xentests.release.spec import DEFAULT_RELEASE

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

History = Annotated[
    str, typer.Option("--history", help="File or database URL of the history; default: $XENTESTS_HISTORY.")
]
Artifacts = Annotated[Path, typer.Option("--artifacts", help="Where runs and qualifications are.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

history_app = typer.Typer(help="What is kept of all runs, and judged by.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    for command in (qualify, compare, flakes):
        app.command()(command)
    app.add_typer(history_app, name="history")


def qualify(  # noqa: PLR0913, PLR0917 - the command line
    release: Annotated[str, typer.Argument(help="The release to qualify, as everywhere.")] = DEFAULT_RELEASE,
    against: Annotated[str, typer.Option(help="The baseline: a release, or a qualification, of the history.")] = "",
    arch: Annotated[list[str] | None, typer.Option("--arch", help="Only this one; may be given twice.")] = None,
    suite: Annotated[list[str] | None, typer.Option("--suite", help="Only this one; may be given again.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, nightly, release, or a file: FILE.toml.")] = "nightly",
    history: History = "",
    quarantine: Annotated[Path | None, typer.Option(help="File of tests whose failures do not count.")] = None,
    artifacts: Artifacts = Path("artifacts"),
    mirror: Annotated[str, typer.Option(help="Archive to fetch from; mmdebstrap's default otherwise.")] = "",
    resume: Annotated[
        str, typer.Option(metavar="NAME", help="Go on with this one (a name, or latest) where it was interrupted.")
    ] = "",
    allure: Annotated[bool, typer.Option(help="Also make Allure's report.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a profile's suites on a release and say whether it may ship: exit code 0 yes, 1 no, 3 not decided."""
    from xentests.qualify import call, plan  # noqa: PLC0415 - keeps the other commands quick
    from xentests.report.history.database import default_url  # noqa: PLC0415
    from xentests.report.qualification.rules import Answer  # noqa: PLC0415

    if resume:
        qualification = plan.find(artifacts, resume)
        # A password is not written down: such a history is to be named again.
        if not history and "***" not in qualification.plan.history:
            history = qualification.plan.history
    else:
        asked = call.Request(
            release,
            against,
            tuple(arch or ()),
            tuple(suite or ()),
            profile,
            history or default_url(),
            quarantine,
            artifacts,
            mirror,
        )
        qualification = call.begin(asked, err)
    try:
        found, files = call.run(qualification, history or default_url(), err, allure=allure)
    except LabError as error:
        # 1 says that Xen is wrong.
        err.print(f"[bold red]not decided: {type(error).__name__}:[/] {escape(str(error))}")
        raise typer.Exit(Answer.UNDECIDED.exit_code) from None
    except KeyboardInterrupt:
        err.print(f"\ninterrupted; go on with: xentests qualify --resume {qualification.plan.id}", markup=False)
        raise typer.Exit(130) from None
    if as_json:
        out.print(files.data.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    else:
        call.show(found, files.page, out)
    raise typer.Exit(found.answer.exit_code)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A release, a qualification, or a run of the history.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    history: History = "",
    as_json: AsJson = False,
) -> None:
    """Say what differs between two runs, qualifications or releases: verdicts of tests, and figures."""
    from xentests.report.history import database  # noqa: PLC0415
    from xentests.report.qualification import compare as compare_  # noqa: PLC0415

    with database.opened(history or database.default_url()) as engine:
        found = compare_.compare(engine, first, second)
    if as_json:
        out.print(compare_.as_json(found), markup=False, soft_wrap=True)
    else:
        compare_.show(found, out)


def flakes(
    release: Annotated[str, typer.Argument(help="Only of this release; default: of all.")] = "",
    history: History = "",
    as_json: AsJson = False,
) -> None:
    """List the tests that both passed and failed on one revision of a release, with rates and intervals."""
    from xentests.report.history import database  # noqa: PLC0415
    from xentests.report.qualification import flakes as flakes_  # noqa: PLC0415

    with database.opened(history or database.default_url()) as engine:
        found = flakes_.flakes(engine, release)
    if as_json:
        out.print(flakes_.as_json(found), markup=False, soft_wrap=True)
    else:
        flakes_.show(found, out)


@history_app.command(name="import")
def import_(
    directory: Annotated[Path, typer.Argument(help="Runs, or an artifacts directory.")] = Path("artifacts"),
    history: History = "",
) -> None:
    """Put runs of before into the history; those that are in it already are replaced."""
    from xentests.report.history import archive, database  # noqa: PLC0415

    taken = tests = 0
    with database.opened(history or database.default_url()) as engine:
        for run, count, problem in archive.import_runs(engine, directory):
            if problem:
                err.print(f"left out: {problem}", markup=False, soft_wrap=True)
            else:
                taken, tests = taken + 1, tests + count
                err.print(f"{run.id}: {count} tests", markup=False)
    out.print(f"{taken} runs, {tests} tests", markup=False)


@history_app.command()
def show(history: History = "") -> None:
    """Say where the history is and which releases it knows."""
    from xentests.report.history import archive, database  # noqa: PLC0415

    where = history or database.default_url()
    with database.opened(where) as engine:
        found = archive.releases(engine)
    out.print(f"history: {database.shown(where)}", markup=False, soft_wrap=True)
    for name in found or ("nothing yet; `xentests qualify` or `xentests history import` fills it",):
        out.print(f"  {name}", markup=False)
