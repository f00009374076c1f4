"""Options and the marker: wrong ones end in a usage error that says what there is; without any, nothing happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selftests.plugin_runs import environment, project, run
from selftests.project import ROOT

ONE_TEST = "def test_one():\n    pass\n"
WRONG = {
    "release": (["--xen-release", "debian:sarge"], ["unknown release 'debian:sarge'", "debian:trixie", "debs:DIR"]),
    "release-empty": (["--xen-release", ""], ["unknown release ''"]),
    "debs": (["--xen-release", "debs:/nowhere"], ["debs:/nowhere", "no such directory"]),
    "arch": (["--xen-arch", "riscv"], ["--xen-arch 'riscv'", "amd64, arm64"]),
    "qemu": (["--xen-qemu", "debian:potato"], ["--xen-qemu: unknown QEMU 'debian:potato'", "system, debian:trixie"]),
    "uri": (["--xen-lab-uri", "localhost"], ["--xen-lab-uri 'localhost'", "qemu+ssh://HOST/system"]),
    "uri-driver": (["--xen-lab-uri", "xen:///system"], ["not the URI of a libvirt QEMU driver"]),
    "mirror": (["--xen-mirror", "ftp.example"], ["--xen-mirror 'ftp.example'", "http, https, file"]),
    "mirror-hostile": (["--xen-mirror", "\x1b[31mhttp"], ["--xen-mirror"]),
    "artifacts-file": (["--xen-artifacts", "pytest.ini"], ["pytest.ini: this is not a directory"]),
    "artifacts-empty": (["--xen-artifacts", ""], ["--xen-artifacts ''"]),
    "artifacts-under-file": (["--xen-artifacts", "pytest.ini/x"], ["pytest.ini/x", "Not a directory"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_a_usage_error(tmp_path: Path, case: str) -> None:
    """pytest ends with its code for usage errors, says what there is, runs nothing and leaves nothing."""
    arguments, words = WRONG[case]
    done = run(project(tmp_path, test_one=ONE_TEST), *arguments)
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.output
    for word in words:
        assert word in done.output
    assert "Traceback" not in done.output
    assert "\x1b" not in done.output
    assert not (tmp_path / "artifacts").exists()


def test_the_plugin_is_inert_without_its_options(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a foreign project it prints nothing, writes nothing, and imports neither libvirt nor Allure's API."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(
        """
        import sys

        def test_foreign(request):
            assert request.config.pluginmanager.hasplugin("xentests")
            loaded = [name for name in sys.modules if name.startswith(("xentests.host", "xentests.lab", "libvirt"))]
            assert loaded == []
            assert "xentests.report.allure_results" not in sys.modules
            assert "xentests.pytest_plugin.active" not in sys.modules
        """
    )
    before = {path.name for path in pytester.path.iterdir()}
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*xen release*")
    result.stdout.no_fnmatch_line("*artifacts*")
    made = {path.name for path in pytester.path.iterdir()} - before
    assert made <= {"__pycache__", "runpytest-0", "runpytest-current", "stdout", "stderr"}


def test_a_fixture_without_the_switch_says_how_to_switch_on(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host asked for in a project that has not switched the plugin on is the caller's error."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest('pytest_plugins = ["selftests.plugin_world"]')
    pytester.makepyfile("def test_it(fake_host):\n    pass\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*UsageError*xentests is not switched on*--xen-release*xen_artifacts*"])


@pytest.mark.parametrize("arguments", [["--collect-only", "-q"], ["--markers"], ["--fixtures"], ["--help"]], ids=repr)
def test_looking_makes_no_files(tmp_path: Path, arguments: list[str]) -> None:
    """Runs that only look leave no run directory."""
    done = run(project(tmp_path, test_one=ONE_TEST), *arguments)
    assert done.code == 0, done.output
    assert not (tmp_path / "artifacts").exists()


def test_a_run_that_collects_nothing_leaves_nothing(tmp_path: Path) -> None:
    """A file that is not there, and no tests at all."""
    folder = project(tmp_path, test_one=ONE_TEST)
    assert run(folder, "suites/nowhere.py").code == pytest.ExitCode.USAGE_ERROR
    assert list((tmp_path / "artifacts").iterdir()) == []


MARKED = {
    "unknown": ('@pytest.mark.needs("livepach")', ["needs('livepach'): unknown capability", "livepatch, livepatch-"]),
    "empty": ("@pytest.mark.needs()", ["needs() without a capability"]),
    "bare": ("@pytest.mark.needs", ["needs() without a capability"]),
    "keyword": ('@pytest.mark.needs("livepatch", reason="x")', ["needs() takes no keyword arguments: reason"]),
    "number": ("@pytest.mark.needs(3)", ["needs(3): a capability is given by its name"]),
}


@pytest.mark.parametrize("case", MARKED)
def test_a_wrong_needs_marker_is_a_usage_error(tmp_path: Path, case: str) -> None:
    """It names the test, what is wrong, and what there is; nothing is run."""
    marker, words = MARKED[case]
    text = f"import pytest\n\ndef test_fine():\n    pass\n\n{marker}\ndef test_marked():\n    pass\n"
    done = run(project(tmp_path, test_marks=text))
    assert done.code == pytest.ExitCode.USAGE_ERROR, done.output
    for word in ["suites/area/test_marks.py::test_marked: ", *words, "needs(capability, ...) takes"]:
        assert word in done.output
    assert "passed" not in done.output
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_one_wrong_marker_of_a_module_is_said_once(tmp_path: Path) -> None:
    """A marker on a whole module names its first test and counts the others."""
    text = (
        'import pytest\n\npytestmark = pytest.mark.needs("nonsense")\n\n'
        "def test_a():\n    pass\n\n\ndef test_b():\n    pass\n"
    )
    done = run(project(tmp_path, test_marks=text))
    assert "test_marks.py::test_a and 1 more: needs('nonsense'): unknown capability" in done.output
    assert done.output.count("unknown capability") == 1


def test_the_options_are_in_the_help(tmp_path: Path) -> None:
    """Each with what it takes."""
    done = run(project(tmp_path), "--help")
    for option in ("release", "arch", "lab-uri", "qemu", "mirror", "artifacts", "fresh-boot", "keep"):
        assert f"--xen-{option}" in done.output
    assert "xen_artifacts" in done.output


def test_the_environment_helper_hides_this_run(tmp_path: Path) -> None:
    """A pytest inside a pytest must not take over its options, nor the user's cache."""
    made = environment(tmp_path)
    assert not [name for name in made if name.startswith("PYTEST_")]
    assert made["XENTESTS_CACHE"] == str(tmp_path / "cache")
