"""Qualifications made up for tests of what is made from them: a telling one, and one of any size."""

from __future__ import annotations

from selftests.plugin_world import HOSTILE
from xentests.report.qualification.model import (
    SCHEMA,
    BaselineRow,
    Finding,
    Job,
    NotTested,
    Point,
    Qualification,
    Row,
    Tested,
    Trend,
)
from xentests.report.qualification.rules import Answer, Class, Effect
from xentests.report.verdict import Verdict

START = 1_769_900_000.0
RELEASE, BASELINE = "debian:trixie", "debian:bookworm"
RUN = "runs/20260131-225320-1a2b3c"

P, F, B, K = Verdict.PASSED, Verdict.FAILED, Verdict.BROKEN, Verdict.KNOWN

# (suite, feature, module, test, title) of the tests that the telling one has on each architecture.
_TESTS = [
    ("livepatch", "Expectations", "test_expectations", "test_wrong_code_is_refused",
     "A payload that expects other code is refused"),
    ("livepatch", "Lifecycle", "test_lifecycle", "test_revert",
     "Reverting a payload brings back the function it replaced"),
    ("livepatch", "Lifecycle", "test_lifecycle", "test_replace", "A payload replaces all those before it"),
    ("livepatch", "Hooks", "test_hooks", "test_hooks_run[pre-apply]", "Hooks run before a payload is applied"),
    ("hotplug", "PCI", "test_pci", "test_passed_through[vfio]", "A device passed through is the guest's"),
    ("hotplug", "vCPUs", "test_vcpus", "test_comes_and_goes", "A vCPU comes and goes while the guest runs"),
    ("lifecycle", "Ends", "test_ends", "test_crash[pvh]", "A guest that crashes leaves nothing behind"),
    ("lifecycle", "Kinds", "test_kinds", "test_starts[pv]", "A guest of each kind starts and answers"),
    ("migration", "Between releases", "test_releases", "test_up[pv]", "A guest moves to a newer release and runs on"),
    ("migration", "Remus", "test_remus", "test_fail_over[hvm]", "A guest survives the death of its host"),
    ("migration", "Same level", "test_same_level", "test_there_and_back[pv]", "A guest moves there and back"),
    ("scheduler", "RTDS", "test_rtds", "test_budget", "A guest gets its budget in each period, and no more"),
    ("scheduler", "Shares", "test_shares", "test_weights[credit2]", "Guests share a pCPU by their weights"),
    ("smoke", "Boot", "test_boot", "test_no_warnings", "The host boots without a warning that nobody knows"),
]  # fmt: skip

# What became of some of them: by test and architecture ("" for all).
_FATES: dict[tuple[str, str], tuple[Verdict | None, Class, Effect, str, str]] = {
    ("test_revert", "amd64"): (
        F, Class.REGRESSION, Effect.FORBIDS, "fails, 2 times of 2; it passed on debian:bookworm (3 times)",
        "ProductFailure: xen0: after the revert xen_extra is still 'PATCHED', not '-1'\n"
        "  asked 14 times in 30.0 s of 30 s\n"
        "  last on the console: (XEN) livepatch: xen_extra_version: reverted\n  " + HOSTILE,
    ),
    ("test_there_and_back[pv]", "arm64"): (
        B, Class.BROKEN, Effect.UNDECIDED,
        "the lab broke under it, which decides nothing; no test of this feature was decided, so that the lab hides it",
        "LabError: no room for 2 hosts of 2048 MiB: 1311 MiB are free",
    ),
    ("test_fail_over[hvm]", "amd64"): (
        F, Class.FLAKY, Effect.ACCEPT,
        "fails now, and on the same revision 2 of 7 failed (8 to 64 % at 95 % confidence)",
        "ProductFailure: the guest did not answer within 60 s of its host's death",
    ),
    ("test_budget", ""): (Verdict.NOT_BUILT, Class.LOST, Effect.ACCEPT,
        "was left out of this release, and is in debian:bookworm, where it passed",
        "not built: CONFIG_SCHED_RTDS is not set"),
    ("test_passed_through[vfio]", "arm64"): (Verdict.NOT_HERE, Class.NOT_HERE, Effect.NONE,
        "the machine lacks what the test needs", "not on this machine: an IOMMU"),
    ("test_crash[pvh]", "arm64"): (K, Class.KNOWN, Effect.ACCEPT, "fails as its test says that it does",
        "known: the domain stays a zombie until xl is called again"),
    ("test_replace", "arm64"): (P, Class.FIXED, Effect.NONE, "passes; failed on debian:bookworm", ""),
    ("test_comes_and_goes", "arm64"): (None, Class.NOT_RUN, Effect.UNDECIDED,
        "it was to be run, and the run ended before it", ""),
    ("test_no_warnings", "arm64"): (P, Class.NEW, Effect.NONE,
        "passes; it was not decided on this release before, nor on debian:bookworm", ""),
}  # fmt: skip


def row(  # every field of a row that some test wants to choose
    nodeid: str = "suites/smoke/test_boot.py::test_up",
    *,
    verdict: Verdict | None = P,
    cls: Class = Class.PASSED,
    effect: Effect = Effect.NONE,
    why: str = "passes",
    message: str = "",
    arch: str = "amd64",
    variant: str = "",
    title: str = "The host comes up",
    **more: object,
) -> Row:
    """A row; suite and feature as its node id has them unless given."""
    parts = nodeid.partition("::")[0].removesuffix(".py").split("/")
    suite, feature = str(more.pop("suite", parts[-2])), str(more.pop("feature", parts[-1].removeprefix("test_")))
    return Row(nodeid, suite, feature, title, arch, variant, verdict, cls, effect, why, message=message, **more)  # type: ignore[arg-type]


def qualification(rows: list[Row] | None = None, *, answer: Answer = Answer.NO, **more: object) -> Qualification:
    """A small one that says ``answer``; any other field of it may be given."""
    fields: dict[str, object] = {
        "schema": SCHEMA, "id": "20260131-225320-1a2b3c", "release": RELEASE, "baseline": BASELINE,
        "profile": "release", "started": START, "ended": START + 11_520, "answer": answer, "reasons": [],
        "rows": rows if rows is not None else [row()], "trends": [], "tested": [], "jobs": [], "findings": [],
        "not_tested": [], "baseline_rows": [],
    }  # fmt: skip
    return Qualification(**{**fields, **more})  # type: ignore[arg-type]


def telling() -> Qualification:
    """One that has something of everything, with what a hostile guest wrote in every text that may come from one."""
    rows = [_told(number, arch) for arch in ("amd64", "arm64") for number in range(len(_TESTS))]
    rows += [
        row(f"suites/migration/test_levels.py::test_level[{level}]", arch="amd64", variant="uefi",
            feature="CPU levels", title=f"A guest of CPU level {level} moves", seconds=8.5, run=RUN)
        for level in ("v1", "v2", "v3")
    ]  # fmt: skip
    revert = "suites/livepatch/test_lifecycle.py::test_revert"
    lost = "suites/scheduler/test_rtds.py::test_budget"
    findings = [
        Finding("Reverting a live patch leaves the new function in place on amd64: it did not on debian:bookworm.",
                Effect.FORBIDS, [f"{revert} amd64"]),
        Finding("The lab hides whether guests migrate on arm64: no test of that feature was decided.",
                Effect.UNDECIDED, ["suites/migration/test_same_level.py::test_there_and_back[pv] (arm64)"]),
        Finding("RTDS is no longer built (CONFIG_SCHED_RTDS), and is in debian:bookworm.", Effect.ACCEPT, [lost]),
        Finding("Remus fails over unreliably: " + HOSTILE, Effect.ACCEPT, ["suites/gone.py::test_gone " + HOSTILE]),
        Finding("One test passes that failed on debian:bookworm.", Effect.NONE,
                ["suites/livepatch/test_lifecycle.py::test_replace"]),
    ]  # fmt: skip
    trends = [
        trend("migration.py::test_up[pv]", "downtime, s", [0.41, 0.4, 0.43, 0.62, 0.65, 0.64, 0.66], [0.4, 0.41, 0.4],
              says="+60.5 %, medians of 4 and 3 values, Mann-Whitney U p=0.0028: a change", changed=True),
        trend("memory.py::test_giant", "peak of the host, MiB <b>", [1_234_567, 1_234_570, 1_234_567], []),
        trend("migration.py::test_remus", "checkpoint, ms", [4.0] * 5, [4.0] * 5,
              says="+0.0 %, medians of 5 and 5 values, Mann-Whitney U p=1: within noise"),
    ]  # fmt: skip
    tested = [
        Tested(RELEASE, "amd64", "", "4.20.0+68-g35cb38b222-1", {
            "Xen": "4.20.1-pre (Debian 4.20.0+68-g35cb38b222-1)", "dom0's kernel": "6.12.48+deb13-amd64",
            "command line": "dom0_mem=768M,max:768M console=com1 loglvl=all guest_loglvl=all " + HOSTILE,
            "built with": "gcc (Debian 14.2.0-19) 14.2.0", "outer QEMU": "7.2.17"}),
        Tested(RELEASE, "arm64", "", "4.20.0+68-g35cb38b222-1", {
            "Xen": "4.20.1-pre (Debian 4.20.0+68-g35cb38b222-1)", "dom0's kernel": "6.12.48+deb13-arm64"}),
        Tested(BASELINE, "amd64", "", "4.17.5+23-ga4e5191dc0-1", {"Xen": "4.17.6-pre"}),
    ]  # fmt: skip
    jobs = [
        Job("livepatch amd64", "livepatch", "amd64", "", 3105.0, 1, 143, 1),
        Job("migration amd64", "migration", "amd64", "", 4120.4, 2, 61, 0),
        Job("migration amd64 uefi", "migration", "amd64", "uefi", 61.0, 1, 3, 0),
        Job("hotplug arm64", "hotplug", "arm64", "", 1800.0, 3, 12, None, "stopped after 30 min: its host hung"),
        Job("smoke amd64", "smoke", "amd64", "", 48.2, 1, 9, 0),
    ]
    baseline = [
        BaselineRow(each.nodeid, each.suite, each.feature, each.arch, each.variant, each.baseline)
        for each in rows
        if each.baseline is not None
    ]
    baseline.append(BaselineRow("suites/hotplug/test_usb.py::test_plug", "hotplug", "USB", "amd64", "", P))
    return qualification(
        rows,
        reasons=["1 regression: reverting a live patch on amd64", "2 tests leave it undecided on arm64: " + HOSTILE],
        findings=findings, trends=trends, tested=tested, jobs=jobs, baseline_rows=baseline,
        not_tested=[
            NotTested("PCI passthrough on arm64", "this machine has no IOMMU for that architecture"),
            NotTested("suites/memory", "the profile leaves it out: it takes 40 GiB"),
            NotTested("Real hardware",
                      "hosts are nested under QEMU; its devices, firmware and timing are not those of a machine"),
        ],
    )  # fmt: skip


def _told(number: int, arch: str) -> Row:
    suite, feature, module, test, title = _TESTS[number]
    nodeid = f"suites/{suite}/{module}.py::{test}"
    plain = (P, Class.PASSED, Effect.NONE, f"passes, as on {BASELINE}", "")
    verdict, cls, effect, why, message = _FATES.get((test, arch), _FATES.get((test, ""), plain))
    before = {Class.FIXED: F, Class.NEW: None}.get(cls, P)
    ran = verdict is not None
    history = [verdict, F, P, P, P, P, P] if verdict in (F, K) else [verdict] * 7 if verdict else []
    return Row(
        nodeid, suite, feature, title, arch, "", verdict, cls, effect, why, seconds=3.7 * number if ran else 0.0,
        message=message, run=RUN if ran else "", evidence=f"{RUN}/suites.{suite}.{module}.{number}" if message else "",
        baseline=before, baseline_run="20260130-010203-abcdef" if before else "",
        history=[each for each in history if each is not None],
        rate="2 of 7 failed (8 to 64 % at 95 % confidence)" if cls is Class.FLAKY else "",
    )  # fmt: skip


def trend(
    test: str, name: str, values: list[float], before: list[float], *, says: str = "", changed: bool = False
) -> Trend:
    """A trend whose last four points are of the newest revision."""
    points = [
        Point(START - 86_400.0 * (len(values) - at), f"20260131-2253{at % 60:02d}-1a2b3c", revision, value)
        for at, value in enumerate(values)
        for revision in ["4.20.0-1" if at >= len(values) - 4 else "4.20.0~rc4-1"]
    ]
    return Trend(f"suites/migration/{test}", "amd64", "", name, points, before, says, changed)


def large(rows: int = 1500, *, history: int = 7, trends: int = 600, points: int = 7) -> Qualification:
    """One as of ``rows`` x ``history`` executions: nine in ten pass, the others are everything else."""
    fates: list[tuple[Verdict, Class, Effect]] = [
        (F, Class.REGRESSION, Effect.FORBIDS), (F, Class.LIKE, Effect.ACCEPT), (F, Class.FLAKY, Effect.ACCEPT),
        (B, Class.BROKEN, Effect.ACCEPT), (K, Class.KNOWN, Effect.ACCEPT),
        (Verdict.NOT_BUILT, Class.NOT_BUILT, Effect.NONE),
        (Verdict.NOT_HERE, Class.NOT_HERE, Effect.NONE),
    ]  # fmt: skip
    names = ("hotplug", "kconfig", "lifecycle", "livepatch", "memory", "migration", "scheduler", "smoke")
    made = []
    for number in range(rows):
        suite, module = names[number % 8], f"part_{number // 8 % 9}"
        verdict, cls, effect = fates[number // 10 % 7] if number % 10 == 0 else (P, Class.PASSED, Effect.NONE)
        passes = verdict is P
        made.append(row(
            f"suites/{suite}/test_{module}.py::test_does_what_it_is_asked_to_{number // 2}[pv-credit2]",
            verdict=verdict, cls=cls, effect=effect, arch=("amd64", "arm64")[number // 8 % 2], run=RUN,
            title=f"A guest does what it is asked to, in the case numbered {number // 2}",
            why=f"passes, as on {BASELINE}" if passes else "fails, 2 times of 2; it passed on debian:bookworm",
            message="" if passes
            else "ProductFailure: xen0 did not answer within 30.0 s of 30 s\n" + "(XEN) a line\n" * 40,
            seconds=number / 7, evidence=f"{RUN}/suites.{suite}.test_{module}.test_does_what_{number // 2}-pv-credit2",
            baseline=P, baseline_run="20260130-010203-abcdef",
            history=[P if passes or (number + at) % 3 else F for at in range(history)],
            rate="2 of 7 failed (8 to 64 % at 95 % confidence)" if cls is Class.FLAKY else "",
        ))  # fmt: skip
    figures = [
        trend(f"test_part_{number % 9}.py::test_measures_{number}", "downtime, s",
              [0.4 + (number * at % 11) / 100 for at in range(points)], [0.41, 0.42, 0.43, 0.44],
              says="+1.2 %, medians of 4 and 4 values, Mann-Whitney U p=0.34: within noise", changed=number % 50 == 0)
        for number in range(trends)
    ]  # fmt: skip
    baseline = [BaselineRow(each.nodeid, each.suite, each.feature, each.arch, each.variant, P) for each in made]
    findings = [
        Finding(f"{len(made)} tests", Effect.ACCEPT, [each.nodeid for each in made if each.effect is Effect.ACCEPT])
    ]
    return qualification(made, trends=figures, baseline_rows=baseline, findings=findings)
