"""The command line: ``xentests doctor | build | shell | bench | report | qualify | gc``. Thin: parses, calls, prints.

Results go to stdout (``--json`` for machines), progress to stderr. Exit codes: 0 done, 1 the lab or the product is
wrong, 2 the caller is.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from xentests import cli_qualify
from xentests import doctor as doctor_
from xentests.bisect.command import bisect
from xentests.errors import UsageError, XentestsError
from xentests.lab.libvirt_driver import EMBED
from xentests.lab.store import Store, default_cache_dir
from xentests.release.arch import ARCHES
from xentests.release.spec import DEFAULT_RELEASE, SYSTEM_QEMU

if TYPE_CHECKING:
    from xentests.bench_guests import Spread

app = typer.Typer(
    help=__doc__.split(":")[0], no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
cli_qualify.register(app)
app.command()(bisect)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Release = Annotated[
    str,
    typer.Argument(help="debian:SUITE, debs:DIR[@SUITE], source:DIR, source:debian:SUITE[,kconfig=FILE] or tree:DIR."),
]
ArchOption = Annotated[
    str, typer.Option("--arch", help=f"One of {', '.join(ARCHES)}; default: the release's, or amd64.")
]
Mirror = Annotated[str | None, typer.Option("--mirror", help="Archive to fetch from; mmdebstrap's default otherwise.")]
LabUri = Annotated[str, typer.Option("--lab-uri", help="libvirt URI of the lab.")]
Qemu = Annotated[str, typer.Option("--qemu", help="QEMU of the hosts: system, or a release's own: debian:trixie.")]
Artifacts = Annotated[Path, typer.Option("--artifacts", help="Where logs and reports of runs are.")]


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and the command that mends it."""
    checks = doctor_.examine()
    if as_json:
        out.print(doctor_.as_json(checks), markup=False, soft_wrap=True)
    else:
        doctor_.render(checks, out)
    if not doctor_.healthy(checks):
        raise typer.Exit(1)


@app.command()
def build(
    release: Release = DEFAULT_RELEASE,
    arch: ArchOption = "",
    mirror: Mirror = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the archive for newer packages.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a release and build its image."""
    from xentests.image.build import build_image  # noqa: PLC0415 - keeps the other commands quick
    from xentests.release.spec import parse_release  # noqa: PLC0415

    started = time.monotonic()
    with _progress(f"building {release} {arch}".rstrip()) as say:
        store = Store(default_cache_dir(), say=say)
        image = build_image(parse_release(release, arch), store, mirror=mirror, refresh=refresh, report=say)
    facts = {
        "release": str(image.release),
        "arch": image.release.arch,
        "xen": image.xen_package_version,
        "kernel": image.kernel_version,
        **({"compiler": image.built["compiler"]} if image.built else {}),
        "packages": len(image.packages),
        "path": str(image.hypervisor.parent),
        "seconds": round(time.monotonic() - started, 1),
    }
    _print_facts(facts, as_json=as_json)


@app.command()
def shell(
    release: Release = DEFAULT_RELEASE,
    arch: ArchOption = "",
    mirror: Mirror = None,
    lab_uri: LabUri = EMBED,
    qemu: Qemu = SYSTEM_QEMU,
    artifacts: Artifacts = Path("artifacts"),
    kept: Annotated[str, typer.Option(help="Enter this host, which --xen-keep left running, instead.")] = "",
) -> None:
    """Open a root shell in dom0 of a pristine host; Ctrl-] leaves it and ends the host."""
    from xentests import shell as shell_  # noqa: PLC0415
    from xentests.lab import run_root  # noqa: PLC0415
    from xentests.session import Options, Session, machine_of  # noqa: PLC0415

    if kept:
        err.print(f"dom0 of {kept}; leave with Ctrl-], end it with: xentests gc --kept", markup=False)
        with run_root.connect_kept(kept) as channel:
            shell_.join(channel)
        return

    log_dir = artifacts / time.strftime("shell-%Y%m%d-%H%M%S")
    options = Options(run_dir=log_dir, release=release, arch=arch, mirror=mirror, lab_uri=lab_uri, qemu=qemu)
    with contextlib.ExitStack() as stack:
        with _progress(f"preparing {release} {arch}".rstrip()) as say:
            session = stack.enter_context(Session(options, say=say))
            host = session.clone(session.template(), name="shell", log_dir=log_dir, standby=False)
        err.print(
            f"dom0 of {release} on {session.machine.arch}; console in {log_dir / 'console.log'}; leave with Ctrl-]"
        )
        with machine_of(host).connect("shell") as channel:
            shell_.join(channel)
        err.print("\nended")


@app.command()
def bench(
    release: Release = DEFAULT_RELEASE,
    arch: Annotated[list[str] | None, typer.Option("--arch", help="May be given twice; both by default.")] = None,
    clones: Annotated[int, typer.Option("-n", "--clones", min=1, help="Measurements per architecture.")] = 20,
    mirror: Mirror = None,
    lab_uri: LabUri = EMBED,
    qemu: Qemu = SYSTEM_QEMU,
    artifacts: Artifacts = Path("artifacts"),
    as_json: AsJson = False,
) -> None:
    """Measure how long a pristine host takes, cloned and booted cold, its memory, and how soon guests answer."""
    from xentests import bench as bench_  # noqa: PLC0415
    from xentests.session import Options, Session  # noqa: PLC0415

    results = []
    run_dir = bench_.new_run_dir(artifacts)
    for one in arch or ([""] if ",arch=" in release else ARCHES):
        options = Options(
            run_dir=run_dir / (one or "built"), release=release, arch=one, mirror=mirror, lab_uri=lab_uri, qemu=qemu
        )
        with _progress(f"bench {release} {one}") as say, Session(options, say=say) as session:
            results.append(bench_.run(session, clones=clones, step=say))
    if as_json:
        out.print(json.dumps({result.arch: result.as_json() for result in results}, indent=1), soft_wrap=True)
        return
    table = Table("", *(f"{result.release} {result.arch} ({result.accelerator})" for result in results))
    table.add_row("cold boot to first answer", *(f"{result.cold_boot_s:.2f} s" for result in results))
    for title, name in (("clone to first answer", "clone_ready_s"), ("the same, no standby", "clone_alone_s")):
        table.add_row(title, *(_spread(getattr(result, name)) for result in results))
    table.add_row("times faster", *(f"{result.ratio:.0f}" for result in results))
    table.add_row("private memory, idle", *(f"{result.private_mib:.0f} MiB" for result in results))
    for kind in ("pv", "pvh", "hvm"):
        spreads = [result.guests.answer_s.get(kind) for result in results]
        table.add_row(f"running {kind} guest to its answer", *(_spread(spread) for spread in spreads))
    for kernel in ("vmlinux", "bzImage"):
        spreads = [result.guests.create_s.get(kernel) for result in results]
        table.add_row(f"xl create, {kernel}, to its answer", *(_spread(spread) for spread in spreads))
    for title, name in (
        ("two joined hosts", "ready_s"),
        ("migration, pvh", "migrate_s"),
        ("downtime of it", "downtime_s"),
    ):
        spreads = [getattr(result.pairs, name, None) for result in results]
        table.add_row(title, *(_spread(spread) for spread in spreads))
    out.print(table)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "none"
    return f"{spread.median:.3f} s ({spread.min:.3f} to {spread.max:.3f}, n={spread.n})"


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run's name below the artifacts directory.")] = "latest",
    against: Annotated[str, typer.Option(help="Compare its figures with this run's, not with the last's.")] = "",
    artifacts: Artifacts = Path("artifacts"),
) -> None:
    """Make the HTML report of a run with Allure and say where it is. Figures stand beside those of the run before."""
    from xentests.report import figures, html  # noqa: PLC0415
    from xentests.report.run import find_run  # noqa: PLC0415

    found = find_run(artifacts, run)
    before = find_run(artifacts, against) if against else figures.predecessor(found)
    if against and before is not None:
        figures.require_same(found, before)
    compared = figures.compared(found, before)
    with _progress("making the report"):
        path = html.build(found, compared)
    if compared:
        beside = before.id if before is not None else "none: there is no run before"
        table = Table(title=f"figures of {found.id}; before: {beside}", title_justify="left")
        for name in ("test", "figure", "now", "before", "change"):
            table.add_column(name, overflow="fold", no_wrap=name in ("now", "before", "change"))
        for figure in compared:
            was = f"{figure.before:g}" if figure.before is not None else ""
            table.add_row(*(escape(text) for text in (figure.test, figure.name, f"{figure.now:g}", was, figure.change)))
        out.print(table)
    out.print(str(path), markup=False, soft_wrap=True)


@app.command()
def gc(
    max_size: Annotated[str, typer.Option(help="Keep at most this much, such as 5G or 800M.")] = "",
    max_age: Annotated[float, typer.Option(help="Remove what was not used for this many days.")] = -1.0,
    kept: Annotated[bool, typer.Option("--kept", help="End hosts that --xen-keep left running.")] = False,
    as_json: AsJson = False,
) -> None:
    """Collect the cache by size and age, and end what killed runs have left."""
    from xentests.lab import run_root  # noqa: PLC0415

    if max_age < 0 and not max_size:
        max_age = 30.0
    size = _bytes(max_size) if max_size else None
    swept = run_root.sweep(kept_too=kept)
    done = Store(default_cache_dir()).gc(max_bytes=size, max_age_s=max_age * 86400 if max_age >= 0 else None)
    facts = {
        "removed": done.removed,
        "kept": done.kept,
        "freed_mib": done.freed_bytes >> 20,
        "left_mib": done.left_bytes >> 20,
        "runs_swept": swept,
    }
    _print_facts(facts, as_json=as_json)


def main() -> None:
    """Entry point; turns this project's errors into a message and an exit code."""
    try:
        app()
    except UsageError as error:
        err.print(f"[bold red]wrong call:[/] {escape(str(error))}")
        sys.exit(2)
    except XentestsError as error:
        err.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}")
        sys.exit(1)


def _print_facts(facts: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        out.print(json.dumps(dict(facts), indent=1), soft_wrap=True)
        return
    for name, value in facts.items():
        out.print(f"{name.replace('_', ' ')}: {value}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(doing: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the elapsed time and what is being done; lines only where stderr is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(escape(doing))

        def say(text: str) -> None:
            if err.is_terminal:
                bar.update(task, description=escape(text))
            else:
                err.print(text, markup=False)

        yield say


def _bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in units else (text, "")
    try:
        return int(float(number) * units.get(unit, 1))
    except (ValueError, OverflowError):
        raise UsageError(f"--max-size {text}: give a size such as 5G or 800M") from None
