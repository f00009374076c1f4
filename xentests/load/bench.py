"""A measurement of a scheduler: sections, one after the other, in one script that dom0 runs by itself.

The guests are there already, idle, and are told by their consoles what to do in each section: that takes no time of a
toolstack, and nothing comes from outside. Each section begins at a moment of Xen's time that all its guests know, ends
by itself, and says what it found; ``Outcome`` is that. The script is made here, and its answer read; who runs it where
is not known here (``host.measure``, ``fixtures.scheduling``).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xentests.errors import LabError, ProductFailure
from xentests.load.guest import Heard, heard
from xentests.load.program import Told
from xentests.trace.records import SCHEDULING, records
from xentests.trace.timeline import Timeline

FOLDER = "/run/xentests-load"
SECOND = 1_000_000_000
_AHEAD_S, _AFTER_S = 8, 2
# It sleeps until its buffer is half full, or its time is over: nothing of its own is to be seen in what it records.
_XENTRACE = f"xentrace -D -e {SCHEDULING:#x} -S 1024 -s 100000"
_FUNCTIONS = f"""\
moment() {{
    v=$1 moment= i=0
    while [ $i -lt 8 ]; do moment="$moment\\\\$(printf %03o $((v & 255)))"; v=$((v >> 8)); i=$((i + 1)); done
}}
tell() {{ {{ printf "$2"; printf "$moment"; }} > "$(cat {FOLDER}/$1.tty)"; }}
"""


@dataclass(frozen=True)
class Section:
    """What is measured at one time: ``before`` and ``after`` are shell lines of dom0, ``load`` what guests do between.

    The windows of all guests are to be ``window_s`` long. ``trace`` has Xen's trace recorded meanwhile.
    """

    name: str
    load: Mapping[str, Told] = field(default_factory=dict)
    window_s: int = 1
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    trace: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a section found: what its lines printed, what its guests said, by name, and its trace."""

    section: Section
    before: str
    after: str
    guests: Mapping[str, Heard]
    domains: Mapping[int, str]
    start: int
    trace: bytes = b""
    tick_ns: int = 1

    def guest(self, name: str) -> Heard:
        """What a guest said. ProductFailure when it said nothing: it never came to the end of its work."""
        if name not in self.guests:
            raise ProductFailure(
                f"guest {name} never came to the end of its {self.section.window_s} s of {self.section.name!r}: "
                f"it still waits for a CPU or for its timer. Heard of: {', '.join(self.guests) or 'none'}"
            )
        return self.guests[name]

    @property
    def timeline(self) -> Timeline:
        """The trace in Xen's time, from the section's beginning to its end."""
        skew = next(iter(self.guests.values())).skew_ns if self.guests else 0
        whole = Timeline(tuple(records(self.trace)), skew, self.tick_ns)
        return whole.between(self.start, self.start + self.section.window_s * SECOND) if self.guests else whole


def script(sections: Sequence[Section]) -> str:
    """POSIX sh for ``measure.arm``. Its rehearsal does all but the work."""
    return _FUNCTIONS + "".join(_section(number, each) for number, each in enumerate(sections)) + _LOGS


_LOGS = f"""\
for file in {FOLDER}/*.tty; do
    guest=${{file##*/}} guest=${{guest%.tty}}
    echo "@@ console $guest $(cat {FOLDER}/$guest.domid)"
    cat /var/log/xen/console/guest-$guest.log
    echo
done
"""


def _section(number: int, section: Section) -> str:
    lines = [f"echo '@@ before {number}'", *section.before]
    told = [f"tell {name} '{_octal(each.pack(number))}'" for name, each in section.load.items()]
    trace = f"{_XENTRACE} -T {section.window_s + _AHEAD_S + 1} {_trace(number)} &"
    rehearsed = f"{_XENTRACE} -T 1 {_trace(number)}; rm {_trace(number)}"
    work = f"""
if [ -e /run/xentests-quiet ]; then
    read -r up _ < /proc/uptime
    moment $(((${{up%.*}} + {_AHEAD_S}) * {SECOND}))
    echo "@@ moment {number} $(((${{up%.*}} + {_AHEAD_S}) * {SECOND}))"
    {trace if section.trace else ":"}
    {"; ".join(told) or ":"}
    sleep {section.window_s + _AHEAD_S + _AFTER_S}
    wait
else
    {rehearsed if section.trace else ":"}
fi
"""
    return "\n".join([*lines, textwrap.dedent(work).strip(), f"echo '@@ after {number}'", *section.after]) + "\n"


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def _trace(number: int) -> str:
    return f"{FOLDER}/trace.{number}"


def trace_files(sections: Sequence[Section]) -> dict[str, str]:
    """Where the script leaves traces in dom0, by the section's name."""
    return {each.name: _trace(number) for number, each in enumerate(sections) if each.trace}


def outcomes(
    sections: Sequence[Section], text: str, traces: Mapping[str, bytes], *, tick_ns: int = 1
) -> dict[str, Outcome]:
    """From what the script printed: each section by name. LabError when it did not come to its end."""
    parts = {key: body for key, body in re.findall(r"^@@ (.*)\n((?:(?!@@ ).*\n?)*)", text, re.MULTILINE)}
    consoles = {
        key.split()[1]: (int(key.split()[2]), heard(body)) for key, body in parts.items() if key[:8] == "console "
    }
    if not consoles:
        raise LabError(f"the measurement's script did not come to its end; it printed last: {text[-400:]!r}")
    moments = {int(key.split()[1]): int(key.split()[2]) for key in parts if key.startswith("moment ")}
    found = {}
    for number, section in enumerate(sections):
        said = {name: consoles[name][1][number] for name in section.load if number in consoles[name][1]}
        start = moments[number]
        if said and min(each.begun_ns for each in said.values()) - start > SECOND:
            raise LabError(f"section {section.name!r}: its guests were told too late, {said} of {start}")
        found[section.name] = Outcome(
            section,
            parts[f"before {number}"],
            parts[f"after {number}"],
            said,
            {0: "dom0", **{domid: name for name, (domid, _) in consoles.items()}},
            start,
            traces.get(section.name, b""),
            tick_ns,
        )
    return found
