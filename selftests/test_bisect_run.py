"""A search from end to end: a real git repository, a runner that reads what is checked out and is flaky by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from selftests.test_bisect_tree import Repository
from xentests.bisect import bisect as bisect_module
from xentests.bisect import command
from xentests.bisect.bisect import Bisect, Limits
from xentests.bisect.notes import Notes
from xentests.bisect.step import Outcome, Question, Result
from xentests.bisect.tree import Commit, Tree, Worktree
from xentests.bisect.verdict import Verdict, percent
from xentests.errors import LabError, UsageError

COUNT, CULPRIT = 32, 21
DEFAULTS = Limits()


class FileRunner:
    """Reads ``xen/code.c`` of the tree: ``good N``, ``bad N``; numbers of commits that do not build or break."""

    def __init__(
        self,
        worktree: Worktree,
        *,
        seed: int = 1,
        wrong: float = 0.0,
        unbuilt: Collection[int] = (),
        broken: Collection[int] = (),
    ) -> None:
        self.worktree, self.wrong, self.unbuilt, self.broken = worktree, wrong, unbuilt, broken
        self.seed = random.Random(seed)
        self.calls: list[int] = []
        self.stop_after = 10_000

    def decide(self, commit: Commit) -> Outcome:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.worktree.checkout(commit)
        word, number = (self.worktree.path / "xen/code.c").read_text().split()
        self.calls.append(int(number))
        if int(number) in self.unbuilt:
            return Outcome(Result.SKIP, "does not build: error: x", lasting=True)
        if int(number) in self.broken:
            return Outcome(Result.SKIP, "broken: no memory")
        fails = (word == "bad") != (self.seed.random() < self.wrong)
        return Outcome(Result.BAD, "AssertionError: it crashed", seconds=2.0) if fails else Outcome(Result.GOOD)


class World:
    """A line of commits, numbered from 0 (the good end is -1), of which those from CULPRIT on are bad."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        repository = Repository(folder / "xen")
        self.names = [repository.commit("the good end", text="good -1")]
        for number in range(COUNT):
            word = "bad" if number >= CULPRIT else "good"
            self.names.append(repository.commit(f"change {number}", text=f"{word} {number}"))
        self.tree = Tree(repository.path)
        self.said: list[str] = []
        self.last: FileRunner | None = None

    def search(
        self,
        *,
        good: int = -1,
        bad: int = COUNT - 1,
        limits: Limits = DEFAULTS,
        stop_after: int = 10_000,
        wrong: float = 0.0,
        seed: int = 1,
        unbuilt: Collection[int] = (),
        broken: Collection[int] = (),
    ) -> Verdict:
        first, last = (self.tree.resolve(self.names[number + 1]) for number in (good, bad))
        commits = self.tree.between(first, last)
        notes = Notes(self.folder / "state", {"good": first.sha, "bad": last.sha})
        with self.tree.worktree(self.folder / "laid-out") as worktree:
            runner = FileRunner(worktree, wrong=wrong, seed=seed, unbuilt=unbuilt, broken=broken)
            self.last, runner.stop_after = runner, stop_after
            return Bisect(first, commits, runner, notes, limits=limits, say=self.said.append).run()

    @property
    def calls(self) -> list[int]:
        assert self.last is not None
        return self.last.calls


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """The repository is shared; state and worktree are the test's own."""
    made.folder, made.said = tmp_path, []
    return made


def test_a_reliable_test_finds_its_commit(world: World) -> None:
    """The culprit with its author, how sure, from how many runs; culprit and parent seen three times each."""
    verdict = world.search()
    assert verdict.culprit is not None
    assert verdict.culprit.sha == world.names[CULPRIT + 1]
    assert verdict.sure >= 0.99
    assert verdict.runs == len(world.calls) <= 20
    assert world.calls.count(CULPRIT) >= 3
    assert world.calls.count(CULPRIT - 1) >= 3
    assert world.calls[:4] == [-1, -1, COUNT - 1, COUNT - 1]
    assert f'first bad: {verdict.culprit.short} "change 21" (A Nonymous), 99.' in verdict.sentence
    assert f"% sure after {verdict.runs} runs of {len(verdict.rows)} commits" in verdict.sentence
    assert verdict.wrong_good[0] == verdict.wrong_bad[0] == 0
    assert sum((verdict.wrong_good[1], verdict.wrong_bad[1])) == verdict.runs


def test_progress_is_said_step_by_step(world: World) -> None:
    """A line before and a line after each run, which says how many candidates are left and the best one's chance."""
    verdict = world.search()
    after = [line for line in world.said if " candidates left; " in line]
    assert len(after) == verdict.runs
    assert verdict.culprit is not None
    assert after[-1].startswith(f"run {verdict.runs}: ")
    assert f"1 of 32 candidates left; {verdict.culprit.short}: 99." in after[-1]
    assert "bad (AssertionError: it crashed), 2 s" in "\n".join(after)


@pytest.mark.parametrize("seed", [1, 3, 4, 6])
def test_a_flaky_test_finds_it_too(world: World, seed: int) -> None:
    """Wrong in a fifth of all runs, on either side: more runs, the same answer."""
    try:
        verdict = world.search(wrong=0.2, seed=seed)
    except UsageError as error:
        pytest.fail(f"this seed spoils an end; choose another: {error}")
    assert verdict.culprit is not None
    assert verdict.culprit.sha == world.names[CULPRIT + 1]
    assert verdict.wrong_good[0] + verdict.wrong_bad[0] > 0
    assert [line for line in verdict.lines() if line.startswith("failed in ")]


def test_an_interrupted_search_goes_on(world: World) -> None:
    """Each run is noted when it ends: the same search, given again, runs none of them again."""
    whole = world.search()
    expected = world.calls
    world.folder = world.folder / "again"
    calls = []
    for stop_after in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            world.search(stop_after=stop_after)
        calls += world.calls
    world.said.clear()
    verdict = world.search()
    assert [*calls, *world.calls] == expected
    assert world.said[0] == f"taken up after 8 runs, from {world.folder / 'state' / 'bisect.json'}"
    assert verdict == whole
    world.search()
    assert world.calls == []


def test_notes_of_another_search_are_refused(world: World) -> None:
    """As are damaged ones; nothing is overwritten."""
    world.search()
    before = (world.folder / "state/bisect.json").read_bytes()
    with pytest.raises(UsageError, match=r"is of another search \(good\); choose another --dir"):
        world.search(good=3)
    assert (world.folder / "state/bisect.json").read_bytes() == before
    (world.folder / "state/bisect.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        world.search()


def test_commits_that_do_not_build_are_skipped(world: World) -> None:
    """They are never run twice, never held against anybody, and named with the reason."""
    unbuilt = range(8, 18)
    verdict = world.search(unbuilt=unbuilt)
    assert verdict.culprit is not None
    assert verdict.culprit.sha == world.names[CULPRIT + 1]
    skipped = [number for number in world.calls if number in unbuilt]
    assert len(skipped) == len(set(skipped)) > 0
    assert f"({len(skipped)} skipped: does not build: error: x)" in verdict.sentence


def test_what_only_skipped_commits_separate_is_a_range(world: World) -> None:
    """The culprit's neighbours do not build: all three are named, and it is undecided."""
    verdict = world.search(unbuilt=[CULPRIT - 1, CULPRIT])
    assert verdict.culprit is None
    assert [commit.sha for commit in verdict.suspects] == world.names[CULPRIT : CULPRIT + 3]
    assert verdict.sentence.startswith("undecided: only skipped commits separate them; one of the 3 commits from ")
    assert world.calls.count(CULPRIT + 1) >= 3
    assert world.calls.count(CULPRIT - 2) >= 3


def test_a_lab_that_breaks_gets_another_chance(world: World) -> None:
    """A commit is left alone when it broke twice; in the next call, when the lab is mended, it is tried again."""
    verdict = world.search(broken=[CULPRIT])
    assert verdict.culprit is None
    assert world.calls.count(CULPRIT) == 2
    assert len(verdict.suspects) == 2
    verdict = world.search()
    assert verdict.culprit is not None
    assert verdict.culprit.sha == world.names[CULPRIT + 1]


def test_it_stops_when_the_runs_are_spent(world: World) -> None:
    """And says what it knows; a larger budget goes on from there."""
    verdict = world.search(limits=Limits(budget=7))
    assert (verdict.culprit, verdict.runs) == (None, 7)
    assert "out of runs after 7; the same command with a larger --runs goes on" in verdict.sentence
    assert world.names[CULPRIT + 1] in [commit.sha for commit in verdict.suspects]
    assert 1 < len(verdict.suspects) < COUNT
    assert world.search(limits=Limits(budget=3)).runs == 7
    assert world.search().culprit is not None


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (CULPRIT + 2, COUNT - 1, "the test fails on the good end too: 2 of 2 runs of"),
        (-1, CULPRIT - 2, "the test passes on the bad end too: 2 of 2 runs of"),
    ],
)
def test_ends_that_are_wrong(world: World, good: int, bad: int, said: str) -> None:
    """It is said at once, with how the test failed."""
    with pytest.raises(UsageError, match=said) as error:
        world.search(good=good, bad=bad)
    assert ("AssertionError: it crashed" in str(error.value)) is (good > 0)
    assert len(world.calls) == (2 if good > 0 else 4)
    assert "--ends 5" in str(error.value)
    with pytest.raises(UsageError, match="end too: 5 of 5"):
        world.search(good=good, bad=bad, limits=Limits(ends=5))
    assert world.calls == [good] * 3 if good > 0 else [-1] * 3 + [bad] * 3


def test_an_end_that_does_both_is_asked_more(world: World) -> None:
    """A coin instead of a test is refused after six runs of an end, if not found out before."""
    problems = []
    for seed in range(8):
        world.folder = world.folder / str(seed)
        try:
            verdict = world.search(wrong=0.5, seed=seed, limits=Limits(budget=60))
        except UsageError as error:
            problems.append(str(error))
        else:
            assert verdict.culprit is None
    assert len(problems) >= 4
    assert all(" end too: " in problem for problem in problems)
    assert any(" of 6 runs" in problem for problem in problems)


def test_ends_that_cannot_be_tested(world: World) -> None:
    """One that does not build is the caller's to change, one that breaks is the lab's."""
    with pytest.raises(UsageError, match=r"the bad end .* cannot be tested: does not build"):
        world.search(unbuilt=[COUNT - 1])
    world.folder = world.folder / "b"
    with pytest.raises(LabError, match=r"the good end .* cannot be tested: broken: no memory \(2 times\); mend"):
        world.search(broken=[-1])
    assert world.search().culprit is not None


def test_neighbours(world: World) -> None:
    """One candidate only: it is not guilty before culprit and parent were seen often enough."""
    verdict = world.search(good=CULPRIT - 1, bad=CULPRIT)
    assert verdict.culprit is not None
    assert verdict.runs >= 6


@pytest.mark.parametrize("confidence", [0.2, 1.0])
def test_a_confidence_that_cannot_be_meant(world: World, confidence: float) -> None:
    """UsageError."""
    with pytest.raises(UsageError, match="--confidence"):
        world.search(limits=Limits(confidence))


def test_percentages_promise_no_certainty() -> None:
    """Nothing is rounded to 100 %."""
    assert [percent(chance) for chance in (1.0, 0.99996, 0.996, 0.5, 0.0)] == [
        "> 99.9 %",
        "> 99.9 %",
        "99.6 %",
        "50.0 %",
        "0 %",
    ]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command alone, deciding by files."""

    def runner(worktree: Worktree, question: Question, directory: Path, *, limit_s: float) -> FileRunner:
        assert question.argv(worktree.path)[2].startswith(f"source:{worktree.path}")
        return FileRunner(worktree, unbuilt=[CULPRIT] if question.arch == "arm64" else [])

    monkeypatch.setattr("xentests.bisect.step.PytestRunner", runner)
    app = typer.Typer()
    app.command()(command.bisect)
    return app


def test_the_command(app: typer.Typer, world: World) -> None:
    """Progress on stderr, the table and the sentence on stdout; 0 when found, 1 when undecided; JSON for machines."""
    ends = ["--good", world.names[0], "--bad", "main", "--tree", str(world.tree.directory), "--test", "suites/x.py::y"]
    state = ["--dir", str(world.folder / "a")]
    done = CliRunner().invoke(app, [*ends, *state])
    assert done.exit_code == 0, done.output
    assert "candidates left" in done.stderr
    assert "candidates left" not in done.stdout
    assert "first bad: " in done.stdout
    assert f"to see it: git -C {world.tree.directory} checkout {world.names[CULPRIT + 1]} && pytest" in done.stdout
    machine = CliRunner().invoke(app, [*ends, *state, "--json"])
    assert json.loads(machine.stdout)["culprit"]["commit"] == world.names[CULPRIT + 1]
    assert "taken up after" in machine.stderr
    undecided = CliRunner().invoke(app, [*ends, "--dir", str(world.folder / "b"), "--arch", "arm64"])
    assert undecided.exit_code == 1
    assert "undecided: only skipped commits separate them" in undecided.stdout
    assert sorted(path.name for path in (world.folder / "b").iterdir()) == ["bisect.json", "lock"]


def test_the_command_guards_its_directory(app: typer.Typer, world: World) -> None:
    """Two searches at once in one directory would note over each other."""
    question = Question("suites/x.py::y")
    with command._alone(world.folder / "a"), pytest.raises(UsageError, match="another search is at work"):
        command.search(world.names[0], "main", question, tree=world.tree.directory, directory=world.folder / "a")
    with pytest.raises(UsageError, match="--kconfig"):
        command.search(
            world.names[0],
            "main",
            Question("x", kconfig=(world.folder / "absent",)),
            tree=world.tree.directory,
            directory=world.folder / "a",
        )


def test_defaults_are_the_same_everywhere() -> None:
    """The command does not import what its defaults stand for."""
    from xentests.bisect import search, step  # noqa: PLC0415

    assert (command._CONFIDENCE, command._RUNS, command._ENDS, command._LIMIT_S) == (
        search.CONFIDENCE,
        bisect_module.BUDGET,
        bisect_module.ENDS,
        step.LIMIT_S,
    )
