"""The hypercall interface itself: fields that must be zero, limits, versions of the list, time limits, error codes."""

from __future__ import annotations

import pytest

from xentests.host.host import Host
from xentests.host.livepatch_sysctl import LivepatchSysctl
from xentests.host.xen_version import dom0_sees
from xentests.payload import hooks
from xentests.payload.builder import Expectation, Hook
from xentests.payload.factory import MINOR_VERSION, Payloads
from xentests.payload.sysctl import NODEPS, Action, Status

pytestmark = pytest.mark.needs("livepatch")

CHECKED, APPLIED = Status("", "CHECKED", ""), Status("", "APPLIED", "")
MOMENT_NS = 1


def uploaded(host: Host, payloads: Payloads, name: str = "p", *, returns: str = "PATCHED") -> str:
    """The name of a payload that was just uploaded."""
    payload = payloads.replace(returns=returns, name=name)
    assert host.livepatch.sysctl.upload(name.encode() + b"\0", payload.content).error == ""
    return name


def test_the_normal_sequence_of_events(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Upload, get, apply, get: status CHECKED, then APPLIED, with rc 0.

    docs/misc/livepatch.pandoc, "Sequence of events".
    """
    name = uploaded(livepatch_host, payloads)
    assert sysctl.get(name) == CHECKED
    outcome = sysctl.action(name, Action.APPLY)
    assert (outcome.error, outcome.status) == ("", APPLIED)
    assert dom0_sees(livepatch_host) == "PATCHED"


def test_a_status_of_what_is_not_there(sysctl: LivepatchSysctl) -> None:
    """Asking for the status of an unknown payload answers ENOENT.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_GET": "-XEN_EXX on failure".
    """
    assert sysctl.get("nobody").error == "ENOENT"


def test_an_unknown_sub_operation(sysctl: LivepatchSysctl) -> None:
    """There are four sub-operations; the fifth is refused with EOPNOTSUPP.

    docs/misc/livepatch.pandoc, "Hypercalls".
    """
    assert sysctl.command(4) == "EOPNOTSUPP"


def test_the_member_after_the_sub_operation(sysctl: LivepatchSysctl) -> None:
    """What follows the sub-operation, padding or (where there is --force) flags, takes no unknown value: EINVAL.

    docs/misc/livepatch.pandoc, "Hypercalls": "one padding field which MUST always be zero".
    """
    assert sysctl.command(2, op_flags=1 << 31) == "EINVAL"


@pytest.mark.needs("livepatch-force")
def test_the_force_flag_is_taken(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """`xen-livepatch --force upload` works as without the flag for a sound payload.

    xen/include/public/sysctl.h, LIVEPATCH_FLAG_FORCE: "Skip some checks".
    """
    livepatch_host.livepatch.upload(payloads.replace(returns="FORCED"), force=True).apply()
    assert dom0_sees(livepatch_host) == "FORCED"


@pytest.mark.needs("livepatch-force")
def test_force_does_not_skip_the_hypervisors_build_id(livepatch_host: Host, payloads: Payloads) -> None:
    """Even with --force a payload for another hypervisor is refused.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": built against the correct build.
    """
    builder = payloads.builder().replace(MINOR_VERSION, returns_value=1)
    builder.xen_depends = bytes(20)
    payload = builder.build()
    livepatch_host.write_file("/tmp/other.livepatch", payload.content)
    answer = livepatch_host.fail("xen-livepatch", "--force", "upload", "other", "/tmp/other.livepatch")
    assert b"Error 22" in answer.stderr


@pytest.mark.parametrize(
    ("name", "size"),
    [(b"p\0", 0), (b"p" * 129 + b"\0", None), (b"p", None), (b"p\0", 1)],
    ids=["size-0", "too-long", "without-nul", "nul-beyond-size"],
)
def test_names_that_are_refused(sysctl: LivepatchSysctl, payloads: Payloads, name: bytes, size: int | None) -> None:
    """A name has a size of 1 to 128 bytes and ends with NUL; anything else is EINVAL.

    docs/misc/livepatch.pandoc, "Basic type: struct xen_livepatch_name".
    """
    answer = sysctl.upload(name, payloads.replace(returns="x").content, name_size=size)
    assert (answer.error, answer.payloads) == ("EINVAL", 0)


def test_padding_of_a_name(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """The padding of a name must be zero: EINVAL in every operation that takes one.

    docs/misc/livepatch.pandoc, "Basic type: struct xen_livepatch_name": "MUST be zero".
    """
    assert sysctl.upload(b"q\0", payloads.replace(returns="x").content, name_pad=1).error == "EINVAL"
    name = uploaded(livepatch_host, payloads)
    assert sysctl.get(name, name_pad=1).error == "EINVAL"


@pytest.mark.parametrize("size", [0, (2 << 20) + 1, 1 << 62], ids=["0", "2-MiB-and-1", "huge"])
def test_sizes_of_uploads(sysctl: LivepatchSysctl, payloads: Payloads, size: int) -> None:
    """An upload has 1 byte to 2 MiB: EINVAL otherwise.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD"; xen/include/xen/livepatch.h, LIVEPATCH_MAX_SIZE.
    """
    content = payloads.replace(returns="x").content
    assert sysctl.upload(b"p\0", content, size=size).error == "EINVAL"


def test_an_upload_from_nowhere(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A payload that reaches beyond the caller's memory is refused with EFAULT.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD": `payload` is a virtual address.
    """
    content = payloads.replace(returns="x").content
    answer = sysctl.upload(b"p\0", content, size=2 << 20)
    assert (answer.error, answer.payloads) == ("EFAULT", 0)


def test_the_list_can_be_probed(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A list of no entries tells how many payloads there are.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": `nr` zero makes "a probing one".
    """
    for count, name in enumerate(("a", "b", "c"), start=1):
        uploaded(livepatch_host, payloads, name)
        listing = sysctl.list(number=0)
        assert (listing.result, listing.left) == (0, count)


def test_the_list_goes_on_where_it_ended(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """The list is read in pieces by its index; each answer tells how many are left.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": `idx`, `nr`.
    """
    for name in ("a", "b", "c"):
        uploaded(livepatch_host, payloads, name)
    for index, name in enumerate(("a", "b", "c")):
        listing = sysctl.list(number=1, index=index)
        assert (listing.states, listing.left) == ({name: "CHECKED"}, 2 - index)


def test_the_version_of_the_list(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """The list's version changes with an upload and with an unload, and not in between.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": `version`: if it "differs the data is stale".
    """
    versions = [sysctl.list(number=0).version]
    name = uploaded(livepatch_host, payloads)
    versions.append(sysctl.list(number=0).version)
    assert sysctl.list(number=0).version == versions[-1]
    sysctl.action(name, Action.UNLOAD)
    versions.append(sysctl.list(number=0).version)
    assert len(set(versions)) == 3


@pytest.mark.parametrize(
    ("number", "index", "pad", "error"),
    [(1025, 0, 0, "E2BIG"), (8, 0, 1, "EINVAL"), (8, 1, 0, "EINVAL"), (8, 99, 0, "EINVAL")],
    ids=["too-many", "padding", "index-at-end", "index-beyond"],
)
def test_lists_that_are_refused(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, number: int, index: int, pad: int, error: str
) -> None:
    """More than 1024 entries are too many at once, padding must be zero, and the index must be below the count.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": "-XEN_E2BIG the `nr` is too big"; "`pad` - MUST be zero".
    """
    uploaded(livepatch_host, payloads)
    assert sysctl.list(number=number, index=index, pad=pad).error == error


@pytest.mark.parametrize("action", [0, 5, 1 << 31], ids=["0", "5", "huge"])
def test_an_unknown_action(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, action: int) -> None:
    """There are four actions; others are refused with EOPNOTSUPP.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION": `cmd`.
    """
    outcome = sysctl.action(uploaded(livepatch_host, payloads), action)
    assert (outcome.error, outcome.status) == ("EOPNOTSUPP", CHECKED)


@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.name.lower())
def test_padding_of_an_action(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, action: Action
) -> None:
    """The padding of an action must be zero: EINVAL, and nothing happens.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION": "`pad` - MUST be zero".
    """
    outcome = sysctl.action(uploaded(livepatch_host, payloads), action, pad=1)
    assert (outcome.error, outcome.status) == ("EINVAL", CHECKED)


def test_unloading_an_applied_payload(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Unloading an applied payload is refused with EINVAL by Xen itself, not by the tool alone.

    docs/misc/livepatch.pandoc, "State transition table".
    """
    name = uploaded(livepatch_host, payloads)
    sysctl.action(name, Action.APPLY)
    outcome = sysctl.action(name, Action.UNLOAD)
    assert (outcome.error, outcome.status) == ("EINVAL", APPLIED)


def test_after_an_unload_the_name_is_unknown(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """Any operation on an unloaded payload answers ENOENT.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_UNLOAD: "Any further hypercalls against the `name` will result in
    failure".
    """
    name = uploaded(livepatch_host, payloads)
    assert sysctl.action(name, Action.UNLOAD).error == ""
    assert [sysctl.action(name, action).error for action in Action] == ["ENOENT"] * 4
    assert sysctl.get(name).error == "ENOENT"


@pytest.mark.parametrize("action", [Action.APPLY, Action.REPLACE], ids=["apply", "replace"])
def test_a_time_limit_that_cannot_be_met(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads, action: Action
) -> None:
    """An action that takes longer than its limit fails with rc EBUSY and changes nothing; it can be tried again.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION": "the `rc` ... will be -XEN_EBUSY"; "State transition
    table": (error|timeout).
    """
    before = dom0_sees(livepatch_host)
    name = uploaded(livepatch_host, payloads)
    outcome = sysctl.action(name, action, time_limit_ns=MOMENT_NS)
    assert (outcome.error, outcome.status) == ("", Status("", "CHECKED", "EBUSY"))
    assert dom0_sees(livepatch_host) == before
    livepatch_host.console.wait_for("Timed out on semaphore in CPU quiesce phase", 5)
    assert sysctl.action(name, action).status == APPLIED
    assert dom0_sees(livepatch_host) == "PATCHED"


def test_a_time_limit_of_a_revert_that_cannot_be_met(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A revert that runs into its time limit leaves the payload applied, with rc EBUSY.

    docs/misc/livepatch.pandoc, "State transition table": REVERT (error|timeout).
    """
    name = uploaded(livepatch_host, payloads)
    sysctl.action(name, Action.APPLY)
    outcome = sysctl.action(name, Action.REVERT, time_limit_ns=MOMENT_NS)
    assert (outcome.error, outcome.status) == ("", Status("", "APPLIED", "EBUSY"))
    assert dom0_sees(livepatch_host) == "PATCHED"
    assert sysctl.action(name, Action.REVERT).status == CHECKED


def test_hooks_around_a_time_limit(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """When the CPUs do not come together in time, neither the load hook nor the post-apply hook runs.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.postapply": "after apply action has finished".
    """
    tracer = payloads.tracer()
    livepatch_host.livepatch.upload(tracer).apply()
    builder = payloads.builder("late", on=tracer)
    for kind, letter in ((Hook.PRE_APPLY, "P"), (Hook.LOAD, "L"), (Hook.POST_APPLY, "p")):
        builder.hook(kind, hooks.marking(letter))
    livepatch_host.livepatch.upload(builder.build())
    assert sysctl.action("late", Action.APPLY, time_limit_ns=MOMENT_NS).status.rc == "EBUSY"
    assert dom0_sees(livepatch_host) == "P"


def test_the_default_time_limit(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """A time limit of zero means the hypervisor's default, not none at all: the action is done or has run into it.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION": "Zero means to use the hypervisor default".
    """
    outcome = sysctl.action(uploaded(livepatch_host, payloads), Action.APPLY, time_limit_ns=0)
    assert outcome.error == ""
    assert outcome.status in (APPLIED, Status("", "CHECKED", "EBUSY"))


@pytest.mark.needs("livepatch-nodeps")
def test_the_nodeps_flag(sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """The flag that ignores the stack is bit 0 of an action's flags.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION": LIVEPATCH_ACTION_APPLY_NODEPS (1).
    """
    orphan = payloads.replace(returns="ORPHAN", on=payloads.replace(returns="absent"), name="orphan")
    sysctl.upload(b"orphan\0", orphan.content)
    assert sysctl.action("orphan", Action.APPLY).error == "EINVAL"
    assert sysctl.action("orphan", Action.APPLY, flags=NODEPS).status == APPLIED


def test_reverting_what_is_not_applied_is_an_error(
    livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads
) -> None:
    """A revert of a payload that is not applied leaves rc EINVAL.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_GET": the example with LIVEPATCH_ACTION_REVERT.
    """
    outcome = sysctl.action(uploaded(livepatch_host, payloads), Action.REVERT)
    if (outcome.error, outcome.status) == ("", CHECKED):
        pytest.xfail("Xen 4.14 to 4.22 answer 0 and leave rc alone, where the document says -XEN_EINVAL")
    assert outcome.status == Status("", "CHECKED", "EINVAL")


@pytest.mark.parametrize("cause", ["dependency", "expectation"])
def test_rc_tells_of_the_last_action(sysctl: LivepatchSysctl, payloads: Payloads, cause: str) -> None:
    """rc is the error of the last action, whatever refused it.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_GET": "errors encountered while performing the last
    LIVEPATCH_ACTION_* operation".
    """
    on = payloads.replace(returns="absent") if cause == "dependency" else None
    expect = Expectation(b"\xde\xad") if cause == "expectation" else None
    outcome = sysctl.patch(payloads.replace(returns="never", on=on, expect=expect))
    if (outcome.error, outcome.status) == ("EINVAL", CHECKED):
        pytest.xfail("Xen 4.14 to 4.22 refuse the call with EINVAL, but leave rc as it was before")
    assert outcome.status == Status("", "CHECKED", "EINVAL")
