# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration again while the daemon serves."""
import signal

import pytest
from conftest import RawError, slowness, wait_until
from store import StoredDaemon

MIB = 1 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.conf"
    path.write_text("[memory]\nram = 64M\nreserve = 0\n")
    return path


@pytest.fixture
def reloading(start_daemon, file):
    return start_daemon(arguments=["--config", str(file)])


def budget(daemon):
    return daemon.status()["devices"][0]["budget"]


def test_what_can_change_changes_and_the_rest_is_named(reloading, file, make_model):
    with reloading.raw() as raw:
        raw.load(make_model(size=8 * MIB))
        file.write_text("[memory]\nram = 128M\nreserve = 0\n[limits]\nconnections = 77\n")
        assert raw.call("reload") == {"applied": ["memory.ram"], "later": ["limits.connections"]}
        assert budget(reloading) == 128 * MIB
        settings = {entry["key"]: entry for entry in raw.call("config")["settings"]}
        assert settings["memory.ram"]["source"].endswith("d.conf:2")
        assert "from the next start on" in settings["limits.connections"]["source"]
        assert raw.call("reload") == {"applied": [], "later": []}
        file.write_text("[memory]\nram = 4M\nreserve = 0\n")  # what is idle has to go
        raw.call("reload")
        assert budget(reloading) == 4 * MIB
        wait_until(lambda: reloading.status()["devices"][0]["used"] == 0)


@pytest.mark.fault("U06", "S10")
@pytest.mark.parametrize("content, part", [
    ("[memory]\nrma = 1G\n", "did you mean"), ("[memory]\nram = 1Q\n", ":2"),
    ("[memory\n", ":1"), (None, "d.conf")])
def test_a_fault_changes_nothing_and_is_named(reloading, file, content, part):
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with reloading.raw() as raw:
        with pytest.raises(RawError) as caught:
            raw.call("reload")
        assert part in caught.value.error["message"], caught.value.error
        assert budget(reloading) == 64 * MIB
    reloading.process.send_signal(signal.SIGHUP)
    wait_until(lambda: reloading.log().count("the configuration is not changed") == 2,
               what="the line of the log")
    assert budget(reloading) == 64 * MIB


@pytest.mark.fault("S10")
def test_sighup_reloads_too(reloading, file):
    file.write_text("[memory]\nram = 32M\nreserve = 0\n")
    reloading.process.send_signal(signal.SIGHUP)
    wait_until(lambda: budget(reloading) == 32 * MIB, what="the new budget")


def test_reloads_that_cross_each_other_are_each_answered(reloading):
    with reloading.raw() as raw:
        numbers = [raw.request("reload") for _ in range(20)]
        codes = {(error or {"code": "done"})["code"]
                 for error, _result, _fds in map(raw.wait, numbers)}
    assert codes <= {"done", "busy"} and "done" in codes


def test_who_asked_and_left_is_no_fault(reloading):
    for _ in range(20):
        raw = reloading.raw()
        raw.request("reload")
        raw.close()
    assert budget(reloading) == 64 * MIB


@pytest.mark.fault("S10")
@pytest.mark.parametrize("call", ["getrandom:1", "sendmsg:1"])
def test_a_reload_in_the_middle_of_a_start_waits_for_its_end(start_daemon, file, call):
    """Before the loop is there, and while it waits for the store's word."""
    class Starting(StoredDaemon):
        def _wait_for_socket(self, seconds=10.0):
            wait_until(lambda: b"nanosleep" in open(f"/proc/{self.pid}/wchan", "rb").read(),
                       10.0 * slowness(), "the middle of its start")
            file.write_text("[memory]\nram = 96M\nreserve = 0\n")
            self.process.send_signal(signal.SIGHUP)
            super()._wait_for_socket(seconds * slowness())

    daemon = start_daemon(arguments=["--config", str(file)], kind=Starting, environment={
        "DISTORCHD_FAULT_AT_START": f"{call}:delay=1000"})
    wait_until(lambda: budget(daemon) == 96 * MIB, 5.0 * slowness(), "the new budget")
