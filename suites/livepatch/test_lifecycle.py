"""The life of a payload: uploaded, applied, reverted, unloaded; its states, its name, and what is listed."""

from __future__ import annotations

import pytest

from xentests.host.host import Host
from xentests.host.livepatch import LivepatchError
from xentests.host.xen_version import dom0_sees
from xentests.payload.factory import Payloads

pytestmark = pytest.mark.needs("livepatch")


def test_an_uploaded_payload_is_checked_and_changes_nothing(livepatch_host: Host, payloads: Payloads) -> None:
    """Upload puts a payload into state CHECKED; the hypervisor runs its old code.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD": "The payload is not applied at this time".
    """
    before = dom0_sees(livepatch_host)
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="PATCHED"))
    assert payload.state == "CHECKED"
    assert dom0_sees(livepatch_host) == before


def test_apply_runs_the_new_code(livepatch_host: Host, payloads: Payloads) -> None:
    """Applying a payload moves it to APPLIED, and what it replaces runs anew.

    docs/misc/livepatch.pandoc, "State transition table".
    """
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="PATCHED"))
    payload.apply()
    assert payload.state == "APPLIED"
    assert livepatch_host.xl.info().xen_extra == "PATCHED"


def test_revert_restores_the_old_function(livepatch_host: Host, payloads: Payloads) -> None:
    """Reverting a payload brings back the function it replaced, and the state CHECKED.

    docs/misc/livepatch.pandoc, "State transition table": REVERT on success moves to CHECKED.
    """
    before = livepatch_host.xl.info().xen_extra
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="PATCHED"))
    payload.apply()
    payload.revert()
    assert payload.state == "CHECKED"
    assert livepatch_host.xl.info().xen_extra == before
    payload.unload()


def test_unload_removes_the_payload(livepatch_host: Host, payloads: Payloads) -> None:
    """Unloading a payload takes it off the list.

    docs/misc/livepatch.pandoc, "State transition table": UNLOAD in CHECKED always works and has no next state.
    """
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="PATCHED"))
    payload.unload()
    assert livepatch_host.livepatch.list() == []


def test_an_unloaded_payload_can_be_uploaded_again(livepatch_host: Host, payloads: Payloads) -> None:
    """The name is free after an unload, and the same file can be uploaded and applied once more.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_ACTION", LIVEPATCH_ACTION_UNLOAD.
    """
    file = payloads.replace(returns="AGAIN")
    livepatch_host.livepatch.upload(file).unload()
    payload = livepatch_host.livepatch.upload(file)
    payload.apply()
    assert dom0_sees(livepatch_host) == "AGAIN"
    payload.revert()
    payload.unload()


def test_an_applied_payload_cannot_be_unloaded(livepatch_host: Host, payloads: Payloads) -> None:
    """Unloading an applied payload is refused, and its code keeps running.

    docs/misc/livepatch.pandoc, "State transition table": "All the other state transitions are invalid".
    """
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="STAYS"))
    payload.apply()
    with pytest.raises(LivepatchError) as refused:
        payload.unload()
    assert refused.value.state == "APPLIED"
    assert dom0_sees(livepatch_host) == "STAYS"


@pytest.mark.parametrize("action", ["apply", "replace"])
def test_applying_an_applied_payload_changes_nothing(livepatch_host: Host, payloads: Payloads, action: str) -> None:
    """A payload that is applied already is left as it is.

    docs/misc/livepatch.pandoc, "State transition table": only a CHECKED payload is applied.
    """
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="ONCE"))
    payload.apply()
    livepatch_host.livepatch.act(action, payload.name)
    assert payload.state == "APPLIED"
    assert livepatch_host.console.read().count("finished APPLY with rc=0") == 1


def test_reverting_an_unapplied_payload_changes_nothing(livepatch_host: Host, payloads: Payloads) -> None:
    """A payload that is not applied is left as it is by a revert.

    docs/misc/livepatch.pandoc, "State transition table": only an APPLIED payload is reverted.
    """
    before = dom0_sees(livepatch_host)
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="NEVER"))
    payload.revert()
    assert (payload.state, dom0_sees(livepatch_host)) == ("CHECKED", before)


@pytest.mark.parametrize("action", ["apply", "revert", "replace", "unload"])
def test_an_action_needs_a_payload_that_was_uploaded(livepatch_host: Host, action: str) -> None:
    """Every action on a name that Xen does not know fails with ENOENT.

    docs/misc/livepatch.pandoc, LIVEPATCH_ACTION_UNLOAD: further hypercalls against the name result in failure.
    """
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.act(action, "nobody")
    assert refused.value.errno == "ENOENT"


def test_a_name_is_used_once(livepatch_host: Host, payloads: Payloads) -> None:
    """A second payload of a name in use is refused with EEXIST, and the first is not touched.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_UPLOAD": "Duplicate `name` are not supported".
    """
    first = livepatch_host.livepatch.upload(payloads.replace(returns="FIRST", name="twin"))
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.upload(payloads.replace(returns="SECOND", name="twin"))
    assert refused.value.errno == "EEXIST"
    first.apply()
    assert dom0_sees(livepatch_host) == "FIRST"


def test_a_file_is_uploaded_once(livepatch_host: Host, payloads: Payloads) -> None:
    """The same build-id under another name is refused with EEXIST.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": a build-id identifies one payload.
    """
    file = payloads.replace(returns="ONE")
    livepatch_host.livepatch.upload(file)
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.upload(file.renamed("other"))
    assert refused.value.errno == "EEXIST"


def test_the_longest_name(livepatch_host: Host, payloads: Payloads) -> None:
    """A name of 127 characters is taken, listed in full, and works.

    docs/misc/livepatch.pandoc, "Basic type: struct xen_livepatch_name": 128 bytes with the NUL terminator.
    """
    name = "n" * 127
    payload = livepatch_host.livepatch.upload(payloads.replace(returns="LONG", name=name))
    payload.apply()
    assert [(info.name, info.state) for info in livepatch_host.livepatch.list()] == [(name, "APPLIED")]


@pytest.mark.parametrize("length", [128, 129, 1000])
def test_a_name_that_is_too_long(livepatch_host: Host, payloads: Payloads, length: int) -> None:
    """A name of more than 127 characters is refused with EINVAL.

    docs/misc/livepatch.pandoc, "Basic type: struct xen_livepatch_name": XEN_LIVEPATCH_NAME_SIZE includes the NUL.
    """
    with pytest.raises(LivepatchError) as refused:
        livepatch_host.livepatch.upload(payloads.replace(returns="LONG", name="n" * length))
    assert refused.value.errno == "EINVAL"


def test_the_list_is_empty_without_payloads(livepatch_host: Host) -> None:
    """Listing works when there is nothing to list."""
    assert livepatch_host.succeed("xen-livepatch", "list").text == "Nothing to list"


def test_the_list_tells_names_states_and_metadata(livepatch_host: Host, payloads: Payloads) -> None:
    """Payloads are listed in the order of their upload, each with its state and metadata.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST": metadata are strings key=value, each with a NUL.
    """
    described = payloads.builder("b-first").metadata({"author": "xentests", "xsa": "999"})
    described.replace("xen_extra_version", returns_value="ONE")
    livepatch_host.livepatch.upload(described.build())
    second = livepatch_host.livepatch.upload(payloads.replace(returns="TWO", name="a-second"))
    second.apply()
    listed = [(info.name, info.state, info.metadata) for info in livepatch_host.livepatch.list()]
    assert listed == [("b-first", "CHECKED", "author=xentests;xsa=999"), ("a-second", "APPLIED", "")]


def test_load_uploads_and_applies(livepatch_host: Host, payloads: Payloads) -> None:
    """`xen-livepatch load FILE` uploads under the file's name and applies.

    xen-livepatch help: "upload and apply <file> with name as the <file> name".
    """
    livepatch_host.write_file("/tmp/hotfix.livepatch", payloads.replace(returns="LOADED").content)
    # On a busy lab a CPU may miss the tool's limit of 30 ms; the tool then unloads the payload and exits with 2.
    livepatch_host.wait_until_succeeds("xen-livepatch", "load", "/tmp/hotfix.livepatch", timeout_s=20)
    assert dom0_sees(livepatch_host) == "LOADED"


def test_load_leaves_nothing_when_apply_is_refused(livepatch_host: Host, payloads: Payloads) -> None:
    """`xen-livepatch load` of a payload that cannot be applied unloads it again.

    docs/misc/livepatch.pandoc, "Live patch interdependencies": the dependency is checked when it is applied.
    """
    orphan = payloads.replace(returns="NEVER", on=payloads.replace(returns="absent"))
    livepatch_host.write_file("/tmp/orphan.livepatch", orphan.content)
    livepatch_host.fail("xen-livepatch", "load", "/tmp/orphan.livepatch", exit_code=1)
    assert livepatch_host.livepatch.list() == []


def test_many_payloads_at_once(livepatch_host: Host, payloads: Payloads) -> None:
    """A dozen payloads can be loaded at the same time, and are all listed.

    docs/misc/livepatch.pandoc, "XEN_SYSCTL_LIVEPATCH_LIST".
    """
    names = [f"many-{number}" for number in range(12)]
    files = [payloads.replace(returns=name, name=name) for name in names]
    for file in files:
        livepatch_host.livepatch.upload(file)
    assert [info.name for info in livepatch_host.livepatch.list()] == names
