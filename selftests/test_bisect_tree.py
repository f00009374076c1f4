"""The git side of a search, on real repositories: what lies between commits, and a worktree that leaves no trace."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from xentests.bisect.tree import BUILT_FROM, Tree
from xentests.errors import LabError, UsageError
from xentests.release import source


class Repository:
    """A git repository below ``path``, whose commits are made in a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=A Nonymous", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", self.path, *identity, *words], check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(self, subject: str, name: str = "xen/code.c", text: str = "") -> str:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or subject)
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", subject)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "xen.git-tree")


def test_what_counts_is_what_is_built() -> None:
    """The paths that are searched are those that a release's source is read from."""
    assert set(BUILT_FROM) == {*source._PARTS, *source._FILES}


def test_commits_are_listed_oldest_first(repository: Repository) -> None:
    """From after the good one to the bad one, with subject and author; what is not built from is left out."""
    good = repository.commit("zero")
    one = repository.commit("one")
    repository.commit("words", "docs/words.md")
    two = repository.commit("two \x1b[31m", "Config.mk")
    repository.commit("more words", "docs/words.md")
    tree = Tree(repository.path)
    found = tree.between(tree.resolve(good), tree.resolve("main"))
    assert [commit.sha for commit in found] == [one, two]
    assert str(found[0]) == f'{one[:12]} "one" (A Nonymous)'
    assert "\x1b" not in found[1].subject
    assert len(tree.between(tree.resolve(good), tree.resolve("main"), paths=["docs"])) == 2


def test_a_merge_is_one_step(repository: Repository) -> None:
    """What a merged branch brought is not searched commit by commit."""
    good = repository.commit("zero")
    repository.git("checkout", "--quiet", "-b", "side")
    side = [repository.commit(f"side {number}", f"xen/side{number}.c") for number in range(3)]
    repository.git("checkout", "--quiet", "main")
    one = repository.commit("one")
    repository.git("merge", "--quiet", "--no-ff", "-m", "merge", "side")
    last = repository.commit("last")
    tree = Tree(repository.path)
    found = [commit.sha for commit in tree.between(tree.resolve(good), tree.resolve(last))]
    assert found == [one, repository.git("rev-parse", "HEAD~1"), last]
    assert not set(side) & set(found)


def test_commits_are_named_as_git_names_them(repository: Repository) -> None:
    """Branches, annotated tags, short hashes; and from within the tree."""
    sha = repository.commit("zero")
    repository.git("tag", "-a", "RELEASE-4.20.0", "-m", "release")
    for name in ("main", "RELEASE-4.20.0", sha[:8], "HEAD"):
        assert Tree(repository.path / "xen").resolve(name).sha == sha


@pytest.mark.parametrize("name", ["nothing", "deadbeef", "--all", "", "main:xen", "main..main"])
def test_what_names_no_commit(repository: Repository, name: str) -> None:
    """It is said, and nothing is taken for an option."""
    repository.commit("zero")
    with pytest.raises(UsageError, match="names no commit of"):
        Tree(repository.path).resolve(name)


def test_no_git_tree(tmp_path: Path) -> None:
    """A directory that is none, and one that is not there."""
    with pytest.raises(UsageError, match="no such directory"):
        Tree(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no git tree: .*not a git repository"):
        Tree(tmp_path)


def test_ends_that_do_not_fit(repository: Repository) -> None:
    """The same commit; the wrong way round; beside each other; strangers; and with nothing built between them."""
    zero = repository.commit("zero")
    one = repository.commit("one")
    repository.commit("words", "docs/words.md")
    repository.git("checkout", "--quiet", "-b", "side", zero)
    side = repository.commit("side")
    repository.git("checkout", "--quiet", "--orphan", "stranger")
    stranger = repository.commit("stranger")
    tree = Tree(repository.path)

    def problem(good: str, bad: str) -> str:
        with pytest.raises(UsageError) as error:
            tree.between(tree.resolve(good), tree.resolve(bad))
        return str(error.value)

    assert "the same commit" in problem(zero, zero)
    assert "it is the other way round" in problem(one, zero)
    assert f"give --good {zero[:12]}" in problem(one, side)
    assert "no history in common" in problem(stranger, one)
    assert "both ends have the same hypervisor" in problem(one, "main")


def test_each_commit_is_laid_out_in_the_same_place(repository: Repository, tmp_path: Path) -> None:
    """Files come and go with the commits, nothing of a build stays; the user's tree has not changed at the end."""
    zero = repository.commit("zero")
    one = repository.commit("one", "xen/new.c")
    (repository.path / "xen/code.c").write_text("not committed")
    (repository.path / ".git/hooks/post-checkout").write_text("#!/bin/sh\nexit 1\n")
    (repository.path / ".git/hooks/post-checkout").chmod(0o755)
    status = repository.git("status", "--porcelain", "--branch")
    tree = Tree(repository.path)
    with tree.worktree(tmp_path / "work" / "laid-out") as worktree:
        worktree.checkout(tree.resolve(one))
        assert (worktree.path / "xen/new.c").read_text() == "one"
        (worktree.path / "xen/code.c").write_text("changed")
        (worktree.path / "xen/left.o").touch()
        worktree.checkout(tree.resolve(zero))
        assert sorted(path.name for path in (worktree.path / "xen").iterdir()) == ["code.c"]
        assert (worktree.path / "xen/code.c").read_text() == "zero"
        assert source.files_of(worktree.path) == ["xen/code.c"]
    assert not (tmp_path / "work" / "laid-out").exists()
    assert repository.git("worktree", "list", "--porcelain").count("worktree ") == 1
    assert repository.git("status", "--porcelain", "--branch") == status


def test_the_worktree_goes_whatever_happens(repository: Repository, tmp_path: Path) -> None:
    """After an error; and what a killed run left is taken over."""
    zero = repository.commit("zero")
    tree, path = Tree(repository.path), tmp_path / "laid-out"
    with pytest.raises(LabError, match="on purpose"), tree.worktree(path):
        raise LabError("on purpose")
    assert not path.exists()
    repository.git("worktree", "add", "--detach", str(path), zero)
    with tree.worktree(path) as worktree:
        worktree.checkout(tree.resolve(zero))
    repository.git("worktree", "add", "--detach", str(path), zero)
    repository.git("worktree", "lock", str(path))
    (path / ".git").unlink()
    (path / "xen/code.c").unlink()
    (path / "xen").rmdir()
    path.rmdir()
    with tree.worktree(path) as worktree:
        worktree.checkout(tree.resolve(zero))
    assert repository.git("worktree", "list", "--porcelain").count("worktree ") == 1


def test_somebodys_directory_stays(repository: Repository, tmp_path: Path) -> None:
    """One that is in the way and no worktree is not removed."""
    repository.commit("zero")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="no worktree of ours"), Tree(repository.path).worktree(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "file").exists()


def test_a_bare_tree_will_do(repository: Repository, tmp_path: Path) -> None:
    """A mirror without a checkout, whose HEAD names a branch that there is not."""
    zero = repository.commit("zero")
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    subprocess.run(["git", "-C", tmp_path / "bare.git", "symbolic-ref", "HEAD", "refs/heads/none"], check=True)
    tree = Tree(tmp_path / "bare.git")
    with tree.worktree(tmp_path / "laid-out", at=tree.resolve(zero)) as worktree:
        worktree.checkout(tree.resolve(zero))
        assert (worktree.path / "xen/code.c").read_text() == "zero"
