"""The git tree of a Xen: which commits lie between two, and one worktree in which each of them can be laid out.

The user's tree, its index and its branches stay as they are; only the list of worktrees in its ``.git`` has one entry
more as long as a search runs. Knows nothing of tests.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xentests.errors import LabError, UsageError
from xentests.text import clean
from xentests.tools import ToolFailed, run_tool

BUILT_FROM = ("xen", "config", "tools/flask", "Config.mk")
"""What ``source:DIR`` builds a hypervisor from (:mod:`xentests.release.source`); a selftest holds the two together."""

_LIMIT_S = 600.0
# A user's settings that would run programs on every checkout, or print what is not asked for.
_PLAIN = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "log.showSignature=false")


@dataclass(frozen=True)
class Commit:
    """One commit; ``sha`` is its full name in hex, ``author`` a person's name, both texts fit for a terminal."""

    sha: str
    subject: str = ""
    author: str = ""

    @property
    def short(self) -> str:
        """Twelve digits: enough for any tree of Xen's."""
        return self.sha[:12]

    def __str__(self) -> str:
        return f'{self.short} "{self.subject}" ({self.author})'


class Tree:
    """A git repository, with a checkout or bare. UsageError when ``directory`` is in none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().absolute()
        if not self.directory.is_dir():
            raise UsageError(f"--tree {directory}: no such directory; give a git tree of Xen's")
        try:
            self._git("rev-parse", "--git-dir")
        except ToolFailed as error:
            raise UsageError(f"--tree {directory}: no git tree: {_said(error)}") from error

    def resolve(self, name: str) -> Commit:
        """The commit that a branch, tag or beginning of a hash names. UsageError for what names none."""
        try:
            sha = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except ToolFailed as error:
            raise UsageError(
                f"{name!r} names no commit of {self.directory}; give a branch, a tag or a hash, or `git fetch` it first"
            ) from error
        return self._list("--max-count=1", sha.decode().strip())[0]

    def between(self, good: Commit, bad: Commit, *, paths: Sequence[str] = BUILT_FROM) -> list[Commit]:
        """The commits after ``good`` up to ``bad``, oldest first, that change something below ``paths``.

        Along first parents: what a merge brought is one step, as osstest and git's users take it. The commits within
        were made elsewhere; often they do not build by themselves or have another Xen below them, and lined up by date
        between those of the main line they would make neighbours of commits that are none. When a merge is found
        guilty, search again between its first parent and the branch that it merged.

        Commits that change nothing of what is built make the same hypervisor, so they cannot be the first bad one.
        Where ``bad`` is such a commit the last one of the list is as good; UsageError when there is none, when the two
        are the same commit, and when ``good`` is no ancestor of ``bad``.
        """
        if good.sha == bad.sha:
            raise UsageError(f"good and bad are the same commit, {good.short}: there is nothing to search")
        try:
            self._git("merge-base", "--is-ancestor", good.sha, bad.sha)
        except ToolFailed as error:
            if error.exit_code != 1:
                raise
            raise UsageError(self._why_not_before(good, bad)) from error
        found = self._list("--first-parent", "--reverse", f"{good.sha}..{bad.sha}", "--", *paths)
        if not found:
            raise UsageError(
                f"no commit from {good.short} to {bad.short} changes {', '.join(paths)}: both ends have the same "
                f"hypervisor, and it cannot be what made the test fail"
            )
        return found

    def _why_not_before(self, good: Commit, bad: Commit) -> str:
        problem = f"the good commit {good.short} is no ancestor of the bad one, {bad.short}"
        with contextlib.suppress(ToolFailed):
            self._git("merge-base", "--is-ancestor", bad.sha, good.sha)
            return f"{problem}: it is the other way round. To find what mended a test is not what this does"
        with contextlib.suppress(ToolFailed):
            base = self._git("merge-base", good.sha, bad.sha).decode().strip()
            return f"{problem}; both come from {base[:12]}: if the test passes there, give --good {base[:12]}"
        return f"{problem}, and they have no history in common"

    @contextlib.contextmanager
    def worktree(self, path: Path, *, at: Commit | None = None) -> Iterator[Worktree]:
        """A worktree at ``path``, removed at the end whatever happens; one that a killed run left there goes first.

        Empty until something is checked out; ``at`` is any commit, for a mirror whose HEAD names none.

        The last part of ``path`` is its name in git's list, so it should be one that nobody else takes.
        """
        self._remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._git("worktree", "add", "--detach", "--no-checkout", str(path), at.sha if at else "HEAD")
        try:
            yield Worktree(path)
        finally:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        if path.exists() and not (path / ".git").is_file():
            raise UsageError(f"{path} is in the way and no worktree of ours; move it, or choose another directory")
        with contextlib.suppress(ToolFailed):  # not known to git (any more), or damaged
            self._git("worktree", "remove", "--force", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(LabError):
            self._git("worktree", "prune")

    def _list(self, *words: str) -> list[Commit]:
        listed = self._git("rev-list", "--no-commit-header", "--format=%H%x1f%an%x1f%s", "--encoding=UTF-8", *words)
        rows = [line.split("\x1f", 2) for line in listed.decode("utf-8", "replace").split("\n") if line]
        return [Commit(sha, clean(subject, limit=200), clean(author, limit=80)) for sha, author, subject in rows]

    def _git(self, *words: str) -> bytes:
        return _git(self.directory, *words)


@dataclass(frozen=True)
class Worktree:
    """A directory that holds one commit at a time."""

    path: Path

    def checkout(self, commit: Commit) -> None:
        """Lay out ``commit``, and nothing else: what was changed or left there is gone. LabError when git cannot."""
        _git(self.path, "checkout", "--quiet", "--detach", "--force", commit.sha)
        _git(self.path, "clean", "-ffdxq")


def _git(directory: Path, *words: str) -> bytes:
    return run_tool(["git", "-C", directory, *_PLAIN, *words], limit_s=_LIMIT_S, package="git")


def _said(error: ToolFailed) -> str:
    """What git wrote, or the whole error where it wrote nothing."""
    return clean(error.output, limit=300).strip() or str(error)
