"""``xentests bisect``: which commit of a tree of Xen made a test fail. Thin: checks, calls, prints."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from xentests.errors import UsageError
from xentests.release.arch import ARCHES

if TYPE_CHECKING:
    from xentests.bisect.step import Question
    from xentests.bisect.verdict import Verdict

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Those of search, bisect and step, which --help need not import.
_CONFIDENCE, _RUNS, _ENDS, _LIMIT_S = 0.99, 100, 2, 600.0


def bisect(  # noqa: PLR0913, PLR0917 - an option each
    good: Annotated[str, typer.Option("--good", help="A commit on which the test passes.")],
    bad: Annotated[str, typer.Option("--bad", help="A later commit on which it fails.")],
    test: Annotated[str, typer.Option("--test", help="The test's id, such as suites/smoke/test_boot.py::test_up.")],
    tree: Annotated[Path, typer.Option("--tree", help="A git tree of Xen's; it stays as it is.")],
    arch: Annotated[str, typer.Option("--arch", help=f"One of {', '.join(ARCHES)}; default: amd64.")] = "",
    kconfig: Annotated[list[Path] | None, typer.Option("--kconfig", help="Kconfig fragment; several times.")] = None,
    base: Annotated[str, typer.Option("--base", help="Debian suite of the tools; default: by version.")] = "",
    path: Annotated[
        list[str] | None,
        typer.Option("--path", help="Search commits that change this; default: what a hypervisor is built from."),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the state and all runs are kept; default: below artifacts.")
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="How sure to be, 0.5 to 0.99999.")] = _CONFIDENCE,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Give up after this many.")] = _RUNS,
    ends: Annotated[int, typer.Option("--ends", min=1, help="Run each end so often before the search.")] = _ENDS,
    limit_s: Annotated[float, typer.Option("--limit", min=1.0, help="Seconds for building and testing.")] = _LIMIT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    more: Annotated[list[str] | None, typer.Argument(help="After --: further arguments for pytest.")] = None,
) -> None:
    """Find the commit that made a test fail, and say how sure that is. The same command goes on after an interruption.

    Exit code 0: found. 1: undecided. 2: wrong call, also where an end is not as it was said to be.
    """
    from xentests.bisect.step import Question  # noqa: PLC0415 - keeps the other commands quick

    question = Question(test, arch, tuple(kconfig or ()), base, tuple(more or ()))
    verdict = search(
        good,
        bad,
        question,
        tree=tree,
        paths=path,
        directory=directory,
        limits=(confidence, runs, ends),
        limit_s=limit_s,
    )
    if as_json:
        out.print(json.dumps(verdict.as_json(), indent=1), markup=False, soft_wrap=True)
    else:
        for line in verdict.lines():
            out.print(line, markup=False, soft_wrap=True)
    if verdict.culprit is None:
        raise typer.Exit(1)


def search(
    good: str,
    bad: str,
    question: Question,
    *,
    tree: Path,
    paths: list[str] | None = None,
    directory: Path | None = None,
    limits: tuple[float, int, int] = (_CONFIDENCE, _RUNS, _ENDS),
    limit_s: float = _LIMIT_S,
) -> Verdict:
    """What the command does, up to the verdict. ``limits`` are confidence, runs, and runs of each end before."""
    from xentests.bisect.bisect import Bisect, Limits  # noqa: PLC0415
    from xentests.bisect.notes import Notes  # noqa: PLC0415
    from xentests.bisect.step import PytestRunner  # noqa: PLC0415
    from xentests.bisect.tree import BUILT_FROM, Tree  # noqa: PLC0415

    source = Tree(tree)
    first, last = source.resolve(good), source.resolve(bad)
    commits = source.between(first, last, paths=paths or BUILT_FROM)
    asked = {
        "tree": str(source.directory),
        "good": first.sha,
        "bad": last.sha,
        "paths": list(paths or BUILT_FROM),
        "test": question.argv(Path("TREE")),
        "kconfig": [_digest(fragment) for fragment in question.kconfig],
    }
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:10]
    where = (directory or Path("artifacts") / f"bisect-{first.short}-{last.short}-{key}").expanduser().absolute()
    with _alone(where):
        notes = Notes(where, asked)
        _say(f"{len(commits)} commits from {first.short} to {last.short}; everything is in {where}")
        with source.worktree(where / f"xentests-bisect-{key}", at=last) as worktree:
            runner = PytestRunner(worktree, question, where / "runs", limit_s=limit_s)
            verdict = Bisect(first, commits, runner, notes, limits=Limits(*limits), say=_say).run()
    shown = verdict.suspects[-1]
    return dataclasses.replace(
        verdict, again=question.again(source.directory, shown), labels={**asked, "directory": str(where)}
    )


def _say(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"--kconfig {path}: {error.strerror}") from error


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Refuse a second search in the same directory at the same time."""
    from filelock import FileLock, Timeout  # noqa: PLC0415

    lock = FileLock(directory / "lock", timeout=0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"another search is at work in {directory}; wait for it, or choose another --dir") from error
    except OSError as error:
        raise UsageError(f"--dir {directory}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
