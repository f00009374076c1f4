"""Hooks: which run, when, in what order, and what a hook that fails prevents.

A tracer payload lies below the tested ones; each hook appends a letter to what dom0 then reads as Xen's extra version.
"""

from __future__ import annotations

import errno

import pytest

from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.host.livepatch_sysctl import LivepatchSysctl, Outcome
from xentests.host.xen_version import dom0_sees
from xentests.payload import hooks
from xentests.payload.builder import Hook, PayloadBuilder
from xentests.payload.code import Code, returns
from xentests.payload.factory import MINOR_VERSION, Payloads
from xentests.payload.hooks import marking, marking_outcome
from xentests.payload.sysctl import Action, Status

pytestmark = pytest.mark.needs("livepatch")

PATCHED = 61


@pytest.fixture
def bare(sysctl: LivepatchSysctl, payloads: Payloads) -> PayloadBuilder:
    """An empty payload, to be given hooks; the tracer is applied below it."""
    tracer = payloads.tracer()
    sysctl.patch(tracer)
    return payloads.builder(on=tracer)


@pytest.fixture
def traced(bare: PayloadBuilder) -> PayloadBuilder:
    """A payload that replaces the minor version by 61, to be given hooks; the tracer is applied below it."""
    return bare.replace(MINOR_VERSION, returns_value=PATCHED)


def trace(host: Host) -> str:
    """The letters of all hooks so far."""
    return dom0_sees(host)


def minor(host: Host) -> str:
    """Xen's minor version, which the traced payload replaces."""
    return dom0_sees(host, "version/minor")


def failing_once(letter: str, builder: PayloadBuilder, error: int) -> Code:
    """A hook that appends its letter and fails at its first call only."""
    calls = builder.bss(4)
    code = hooks.mark(letter, builder.new_code()).load_result(calls).go_unless(0, "again")
    return code.add32(calls, 1).set_result(-error).ret().label("again").set_result(0).ret()


def apply(host: Host, builder: PayloadBuilder) -> Outcome:
    """Upload and apply what has been built."""
    return host.livepatch.sysctl.patch(builder.build())


def apply_again(host: Host, builder: PayloadBuilder) -> Outcome:
    """Apply what has been uploaded."""
    return host.livepatch.sysctl.action(builder.name, Action.APPLY)


def revert(host: Host, builder: PayloadBuilder) -> Outcome:
    """Revert what has been applied."""
    return host.livepatch.sysctl.action(builder.name, Action.REVERT)


def test_load_and_unload_hooks(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """Load hooks run when a payload is applied, not when it is uploaded; unload hooks when it is reverted.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.load and .livepatch.hooks.unload".
    """
    traced.hook(Hook.LOAD, marking("L")).hook(Hook.UNLOAD, marking("U"))
    livepatch_host.livepatch.upload(traced.build())
    assert trace(livepatch_host) == ""
    assert apply_again(livepatch_host, traced).state == "APPLIED"
    assert trace(livepatch_host) == "L"
    assert revert(livepatch_host, traced).state == "CHECKED"
    assert trace(livepatch_host) == "LU"


def test_hooks_run_again_at_every_apply(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """A payload that is applied twice runs its load and unload hooks twice."""
    apply(livepatch_host, traced.hook(Hook.LOAD, marking("L")).hook(Hook.UNLOAD, marking("U")))
    revert(livepatch_host, traced)
    apply_again(livepatch_host, traced)
    revert(livepatch_host, traced)
    assert trace(livepatch_host) == "LULU"


def test_several_load_and_unload_hooks(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """Load and unload hooks are arrays: all run, in their order.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.load and .livepatch.hooks.unload": "an array of function pointers".
    """
    for letter in "123":
        traced.hook(Hook.LOAD, marking(letter))
    for letter in "abc":
        traced.hook(Hook.UNLOAD, marking(letter))
    apply(livepatch_host, traced)
    revert(livepatch_host, traced)
    assert trace(livepatch_host) == "123abc"


def test_the_order_of_hooks(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """Pre-apply, load, post-apply; pre-revert, unload, post-revert.

    docs/misc/livepatch.pandoc, "Hooks": before an action is scheduled, in the quiescent zone, after it has finished.
    """
    letters = {
        Hook.POST_REVERT: "6",
        Hook.UNLOAD: "5",
        Hook.PRE_REVERT: "4",
        Hook.POST_APPLY: "3",
        Hook.LOAD: "2",
        Hook.PRE_APPLY: "1",
    }
    for kind, letter in letters.items():
        traced.hook(kind, marking(letter))
    apply(livepatch_host, traced)
    assert trace(livepatch_host) == "123"
    revert(livepatch_host, traced)
    assert trace(livepatch_host) == "123456"


def test_load_hooks_see_the_old_code(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """A load hook runs before the functions are replaced, an unload hook after they have been restored.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.load and .livepatch.hooks.unload": "before payload is being applied
    (.livepatch.funcs) or after reverting the payload".
    """
    for kind in (Hook.LOAD, Hook.UNLOAD):
        look = traced.new_code().enter().call(MINOR_VERSION).leave().go_if(PATCHED, "new")
        hooks.mark("o", look).ret().label("new")
        traced.hook(kind, hooks.mark("n", look).ret())
    apply(livepatch_host, traced)
    revert(livepatch_host, traced)
    assert trace(livepatch_host) == "oo"


def test_hooks_without_functions(livepatch_host: Host, bare: PayloadBuilder) -> None:
    """A payload may consist of hooks alone.

    docs/misc/livepatch.pandoc, "Design of payload format": `.livepatch.funcs` "and/or any of" the hooks.
    """
    assert apply(livepatch_host, bare.hook(Hook.LOAD, marking("L"))).state == "APPLIED"
    assert revert(livepatch_host, bare).state == "CHECKED"
    assert trace(livepatch_host) == "L"


def test_a_pre_apply_hook_prevents_the_apply(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """When the pre-apply hook fails, its error is the action's, nothing is applied and no other hook runs.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.preapply": "useful to prevent from applying a payload".
    """
    before = minor(livepatch_host)
    traced.hook(Hook.PRE_APPLY, marking("P", returns=-errno.ENOSPC))
    traced.hook(Hook.LOAD, marking("L")).hook(Hook.POST_APPLY, marking("p"))
    outcome = apply(livepatch_host, traced)
    assert (outcome.error, outcome.status) == ("ENOSPC", Status("", "CHECKED", "ENOSPC"))
    assert (trace(livepatch_host), minor(livepatch_host)) == ("P", before)


def test_xen_livepatch_tells_the_error_of_a_hook(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """The tool reports the error of a pre-apply hook, and lists it with the payload.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": `rc` of the last action.
    """
    payload = livepatch_host.livepatch.upload(traced.hook(Hook.PRE_APPLY, returns(-errno.ENOSPC)).build())
    with pytest.raises(LivepatchError) as refused:
        payload.apply()
    assert refused.value.errno == "ENOSPC"
    info = payload.info
    assert info is not None
    assert (info.state, info.error) == ("CHECKED", "ENOSPC")


def test_an_apply_can_be_repeated_once_the_hook_agrees(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """A payload whose pre-apply hook refused once is applied when it no longer does; the old error is forgotten.

    docs/misc/livepatch.pandoc, "State transition table": APPLY with error leads to CHECKED.
    """
    traced.hook(Hook.PRE_APPLY, failing_once("P", traced, errno.EIO))
    assert apply(livepatch_host, traced).failure == "EIO"
    assert apply_again(livepatch_host, traced).status == Status("", "APPLIED", "")
    assert (trace(livepatch_host), minor(livepatch_host)) == ("PP", str(PATCHED))


def test_a_pre_revert_hook_prevents_the_revert(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """When the pre-revert hook fails, the payload stays applied and its unload and post-revert hooks do not run.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.prerevert": "useful to prevent from reverting a payload".
    """
    traced.hook(Hook.PRE_REVERT, failing_once("R", traced, errno.EIO))
    traced.hook(Hook.UNLOAD, marking("U")).hook(Hook.POST_REVERT, marking("r"))
    apply(livepatch_host, traced)
    outcome = revert(livepatch_host, traced)
    assert (outcome.error, outcome.status) == ("EIO", Status("", "APPLIED", "EIO"))
    assert (trace(livepatch_host), minor(livepatch_host)) == ("R", str(PATCHED))
    assert revert(livepatch_host, traced).failure == ""
    assert trace(livepatch_host) == "RRUr"


def test_post_hooks_are_told_of_success(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """Post-apply and post-revert hooks find the outcome in the payload's `rc`: 0.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.postapply" and ".livepatch.hooks.postrevert".
    """
    traced.hook(Hook.POST_APPLY, marking_outcome(good="+", bad="-"))
    traced.hook(Hook.POST_REVERT, marking_outcome(good="+", bad="-"))
    apply(livepatch_host, traced)
    revert(livepatch_host, traced)
    assert trace(livepatch_host) == "++"


def test_a_post_apply_hook_is_told_of_failure(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """When the apply action fails, the post-apply hook runs all the same and finds an error in `rc`.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.postapply": "to undo certain preparation steps of the preapply hook
    in case of a failure".
    """
    before = minor(livepatch_host)
    traced.hook(Hook.PRE_APPLY, marking("P")).hook(Hook.APPLY, marking("A", returns=-errno.ENODEV))
    traced.hook(Hook.POST_APPLY, marking_outcome(good="+", bad="-"))
    assert apply(livepatch_host, traced).status == Status("", "CHECKED", "ENODEV")
    assert (trace(livepatch_host), minor(livepatch_host)) == ("PA-", before)


def test_a_post_revert_hook_is_told_of_failure(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """When the revert action fails, the payload stays applied, and the post-revert hook finds an error in `rc`.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.postrevert".
    """
    calls = traced.bss(4)
    veto = hooks.mark("V", traced.new_code().enter().keep_argument()).load_result(calls).go_unless(0, "again")
    veto.add32(calls, 1).set_result(-errno.ENODEV).leave().ret()
    veto.label("again").argument_kept().leave().jump_to("revert_payload")
    traced.hook(Hook.REVERT, veto).hook(Hook.POST_REVERT, marking_outcome(good="+", bad="-"))
    apply(livepatch_host, traced)
    assert revert(livepatch_host, traced).status == Status("", "APPLIED", "ENODEV")
    assert (trace(livepatch_host), minor(livepatch_host)) == ("V-", str(PATCHED))
    assert revert(livepatch_host, traced).failure == ""
    assert trace(livepatch_host) == "V-V+"


def test_an_apply_hook_takes_the_place_of_apply(livepatch_host: Host, bare: PayloadBuilder) -> None:
    """With an apply hook, Xen's own apply does not happen: load hooks do not run. The payload counts as applied.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.apply and .livepatch.hooks.revert": "executed instead of a default
    apply (or revert) action function".
    """
    bare.hook(Hook.APPLY, marking("A")).hook(Hook.REVERT, marking("R"))
    assert apply(livepatch_host, bare.hook(Hook.LOAD, marking("L")).hook(Hook.UNLOAD, marking("U"))).state == "APPLIED"
    assert trace(livepatch_host) == "A"
    assert revert(livepatch_host, bare).state == "CHECKED"
    assert trace(livepatch_host) == "AR"


def test_action_hooks_that_augment_what_xen_does(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """An apply hook may patch the functions itself, and a revert hook call Xen's own revert: the code changes and back.

    docs/misc/livepatch.pandoc, ".livepatch.hooks.apply and .livepatch.hooks.revert": "to replace or augment default
    behavior".
    """
    before = minor(livepatch_host)
    traced.hook(Hook.APPLY, hooks.apply_action(traced.symbols, "A")).hook(Hook.REVERT, hooks.revert_action("R"))
    assert apply(livepatch_host, traced).failure == ""
    assert (trace(livepatch_host), minor(livepatch_host)) == ("A", str(PATCHED))
    assert revert(livepatch_host, traced).failure == ""
    assert (trace(livepatch_host), minor(livepatch_host)) == ("AR", before)


def test_hooks_around_action_hooks(livepatch_host: Host, bare: PayloadBuilder) -> None:
    """Pre- and post-hooks run around action hooks as they do around Xen's own actions.

    docs/misc/livepatch.pandoc, "Hooks".
    """
    kinds = (Hook.PRE_APPLY, Hook.APPLY, Hook.POST_APPLY, Hook.PRE_REVERT, Hook.REVERT, Hook.POST_REVERT)
    for kind, letter in zip(kinds, "123456", strict=True):
        bare.hook(kind, marking(letter))
    apply(livepatch_host, bare)
    revert(livepatch_host, bare)
    assert trace(livepatch_host) == "123456"


def test_replace_runs_the_hooks_of_both(livepatch_host: Host, sysctl: LivepatchSysctl, payloads: Payloads) -> None:
    """`replace` runs the unload hooks of what it reverts, the top one's first, and then the load hooks of the new one.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_REPLACE. Hooks leave their letters in the log, since the tracer goes.
    """

    def saying(builder: PayloadBuilder, text: str) -> Code:
        line = builder.string(f"<0>xentests: {text}\n")
        return builder.new_code().enter().argument_address(line).call("printk").leave().ret()

    first = payloads.builder("lower")
    below = first.hook(Hook.UNLOAD, saying(first, "lower unload")).build()
    second = payloads.builder("upper", on=below)
    third = payloads.builder("newest")
    sysctl.patch(below)
    sysctl.patch(second.hook(Hook.UNLOAD, saying(second, "upper unload")).build())
    livepatch_host.console.read()
    sysctl.patch(third.hook(Hook.LOAD, saying(third, "newest load")).build(), Action.REPLACE)
    for text in ("upper unload", "lower unload", "newest load"):
        livepatch_host.console.wait_for(f"xentests: {text}", 5)


def test_hooks_run_with_every_other_cpu_waiting(livepatch_host: Host, traced: PayloadBuilder) -> None:
    """Load hooks run with interrupts disabled, pre- and post-apply hooks with interrupts enabled.

    docs/misc/livepatch.pandoc, "Hooks": in the quiescent zone, or with all CPUs released from it.
    """
    for kind in (Hook.PRE_APPLY, Hook.LOAD, Hook.POST_APPLY):
        look = traced.new_code().load_interrupts().go_if(0, "off")
        hooks.mark("1", look).set_result(0).ret().label("off")
        traced.hook(kind, hooks.mark("0", look).set_result(0).ret())
    apply(livepatch_host, traced)
    assert trace(livepatch_host) == "101"
