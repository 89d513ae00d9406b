# SPDX-License-Identifier: Apache-2.0
"""A start with a broken configuration: models that wait come back under the last good one, loudly;
with nothing to lose the daemon ends and says why."""
import contextlib
import json
import mmap
import os
import signal
import subprocess

import pytest
from conftest import BUILD, HeldDaemon, RawError, slowness, wait_until
from store import StoredDaemon
from test_ctl import ctl, ctl_json
from test_saved import load, say, stays
from test_settings import budget, settings

MIB = 1 << 20
GOOD = "[memory]\nram = 256M\nreserve = 0\n[log]\nformat = json\n"
BROKEN = "[memory]\nram = 256M\nrma = 3\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.conf"
    path.write_text(GOOD)
    return path


@pytest.fixture
def own(start_daemon, file):
    """Under distorchd-hold, with a file of its own."""
    return start_daemon(arguments=["--config", str(file)], kind=HeldDaemon)


class Kept(StoredDaemon):
    """Its socket takes connections between two lives too, so only an answer says that it lives."""

    def _wait_for_socket(self, seconds=10.0):
        def answers():
            assert self.process.poll() is None, f"distorchd ended at start:\n{self.log()}"
            with contextlib.suppress(OSError, EOFError, RawError):
                with self.raw(timeout=0.3 * slowness()) as raw:
                    return raw.call("status")

        wait_until(answers, seconds * slowness())


@pytest.fixture
def stored(start_daemon, file):
    """The test is the store."""
    return start_daemon(arguments=["--config", str(file)], kind=Kept)


def fault(daemon):
    return daemon.status().get("config_fault")


def source_of(daemon, path):
    with daemon.raw() as raw:
        return raw.call("show", {"model": path.name})["loaded_from"]


def upgrade(daemon):
    pid = daemon.daemon_pid()
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.wait_for_another(pid)


# ---- with models that wait -----------------------------------------------------------------


@pytest.mark.fault("S12")
@pytest.mark.parametrize("end", [HeldDaemon.kill_daemon, upgrade])
def test_models_come_back_under_the_last_good_configuration(own, file, make_model, end):
    path = make_model(size=3 * MIB)
    load(own, path, policy={"pin": True})
    file.write_text(BROKEN)
    end(own)
    assert source_of(own, path) == "store" and stays(own, path)[0]
    assert f"{file}:3" in fault(own) and '"rma"' in fault(own)
    assert budget(own) == 256 * MIB
    assert settings(own)["memory.ram"] == ("256M", f"{file}:2 (last good)")
    assert settings(own)["log.level"] == ("info", "default")
    told = [line for line in own.log_events() if "BROKEN" in line.get("message", line.get("msg", ""))]
    assert len(told) == 1 and f"{file}:3" in json.dumps(told)
    # Again, and again, while nobody mends it.
    for _ in range(2):
        own.kill_daemon()
        assert source_of(own, path) == "store" and f"{file}:3" in fault(own)
        assert settings(own)["memory.ram"] == ("256M", f"{file}:2 (last good)")


def test_status_doctor_and_metrics_say_so_until_it_is_mended(own, file, make_model):
    load(own, make_model())
    good = ctl(own, "status").stdout
    assert "broken" not in good and ctl_json(own, "status")["config_fault"] is None
    file.write_text(BROKEN)
    own.kill_daemon()
    for words in (["status"], ["doctor"]):
        said = ctl(own, *words).stdout
        assert "configuration is broken" in said and f"{file}:3" in said
        assert "fix: mend it" in said and "distorchctl reload" in said
    assert ctl(own, "doctor").returncode == 9
    assert f"{file}:3" in ctl_json(own, "status")["config_fault"]
    assert 'distorchd_faults{what="config"} 1' in ctl(own, "metrics").stdout
    assert f"{file}:2 (last good)" in ctl(own, "config", "show").stdout
    done = ctl(own, "reload")
    assert done.returncode == 2 and f"{file}:3" in done.stderr
    assert f"{file}:3" in fault(own)
    file.write_text(GOOD.replace("256M", "300M"))
    assert ctl(own, "reload").returncode == 0
    assert fault(own) is None and budget(own) == 300 * MIB
    assert settings(own)["memory.ram"] == ("300M", f"{file}:2")
    assert "broken" not in ctl(own, "status").stdout
    assert 'distorchd_faults{what="config"} 0' in ctl(own, "metrics").stdout
    # And that is the last good one from then on.
    file.write_text(BROKEN)
    own.kill_daemon()
    assert budget(own) == 300 * MIB and f"{file}:3" in fault(own)
    file.write_text(GOOD)
    own.kill_daemon()
    assert fault(own) is None and budget(own) == 256 * MIB


def test_a_refused_reload_is_told_by_status_too(own, file, distorch):
    file.write_text(BROKEN)
    own.process.send_signal(signal.SIGHUP)
    wait_until(lambda: fault(own), 10 * slowness())
    with distorch.connect(str(own.socket)) as connection:
        status = connection.status()
        assert f"{file}:3" in status.config_fault and status.state_fault is None
    assert f"{file}:3" in fault(own) and settings(own)["memory.ram"] == ("256M", f"{file}:2")
    file.write_text(GOOD)
    own.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not fault(own), 10 * slowness())


def test_what_was_reloaded_is_the_last_good_one(own, file, make_model):
    path = make_model()
    load(own, path)
    file.write_text(GOOD.replace("256M", "123M"))
    with own.raw() as raw:
        raw.call("reload")
    file.write_text("[memory\n")
    own.kill_daemon()
    assert budget(own) == 123 * MIB and f"{file}:1" in fault(own)


BREAKS = {
    "gone": (os.unlink, "d.conf"),
    "no file": (lambda file: (os.unlink(file), os.mkdir(file)), "d.conf"),
    "unreadable bytes": (lambda file: file.write_bytes(b"[memory]\nram = \xff\xfe\n"), ":2"),
    "10 MB": (lambda file: file.write_bytes(b"# a\n" * 2_500_000), "d.conf"),
    "twice": (lambda file: file.write_text("[memory]\nram = 1G\nram = 2G\n"), ":3"),
    "no such user": (lambda file: file.write_text("[access]\ncontrol = nosuch-user\n"), ":2"),
    "no such group": (lambda file: file.write_text("[access]\ngroup = nosuch-group\n"), ":2"),
}


@pytest.mark.fault("U06")
@pytest.mark.parametrize("how", BREAKS)
def test_whatever_is_wrong_with_the_file(own, file, make_model, how):
    path = make_model()
    load(own, path)
    make, said = BREAKS[how]
    make(file)
    own.kill_daemon()
    assert source_of(own, path) == "store"
    assert said in fault(own) and budget(own) == 256 * MIB
    if file.is_dir():
        file.rmdir()
    file.write_text(GOOD)
    assert ctl(own, "reload").returncode == 0 and fault(own) is None


def test_a_wrong_variable_and_a_wrong_argument_are_faults_as_well(stored, make_model):
    path = make_model()
    load(stored, path)
    for environment, arguments, words in (
            ({"DISTORCHD_MEMORY_RAM": "nonsense"}, [], "DISTORCHD_MEMORY_RAM"),
            ({}, ["--set", "memory.rma=3"], "--set memory.rma"),
            ({}, ["--set", "nonsense"], "--set nonsense")):
        stored.die()
        before = dict(stored.environment), list(stored.arguments)
        stored.environment.update(environment)
        stored.arguments += arguments
        stored.start()
        assert source_of(stored, path) == "store" and budget(stored) == 256 * MIB
        assert words in fault(stored)
        stored.environment, stored.arguments = before
    stored.die()
    stored.start()
    assert fault(stored) is None


def test_what_was_set_by_variable_and_argument_stays_set(start_daemon, file, make_model):
    daemon = start_daemon("limits.connections=77", arguments=["--config", str(file)],
                          environment={"DISTORCHD_LOG_LEVEL": "debug"}, kind=HeldDaemon)
    load(daemon, make_model())
    file.write_text(BROKEN)
    daemon.kill_daemon()
    found = settings(daemon)
    assert found["limits.connections"] == ("77", "command line (last good)")
    assert found["log.level"] == ("debug", "environment (last good)")
    # What is saved ranks above the files of before, and below these two.
    with daemon.raw() as raw:
        raw.call("config.set", {"key": "memory.ram", "value": "99M"})
        raw.call("config.set", {"key": "log.level", "value": "error"})
    daemon.kill_daemon()
    found = settings(daemon)
    assert found["memory.ram"][0] == "99M" and "last good" not in found["memory.ram"][1]
    assert found["log.level"] == ("debug", "environment (last good)")
    assert budget(daemon) == 99 * MIB and fault(daemon)


def test_the_warm_list_of_before_is_loaded(own, file, make_model):
    listed, added = make_model("listed.safetensors"), make_model("added.safetensors", seed=2)
    file.write_text(f"{GOOD}[warm]\nmodel = {listed}\n")
    with own.raw() as raw:
        raw.call("reload")
        raw.call("warm", {"add": str(added)})
    wait_until(lambda: len(own.models()) == 2, 10 * slowness())
    file.write_text(BROKEN)
    for _ in range(2):
        own.kill_daemon()
        # Each is found in memory when its turn has come.
        wait_until(lambda: [one["state"] for one in ctl_json(own, "warm", "ls")["warm"]] ==
                   ["loaded", "loaded"], 10 * slowness())
        warm = ctl_json(own, "warm", "ls")["warm"]
        assert [(one["path"], "last good" in one["source"]) for one in warm] == \
            [(str(listed), True), (str(added), False)]
        assert sorted(model["name"] for model in own.models()) == [added.name, listed.name]


@pytest.mark.daemon("memory.ram=1G")
def test_a_fault_in_what_is_read_does_not_stand_over_what_is_said(own, file, make_model):
    """The daemon serves as ever: loads, pins, budgets, a drain."""
    path, other = make_model(), make_model("b.safetensors", seed=2)
    load(own, path)
    file.write_text(BROKEN)
    own.kill_daemon()
    load(own, other)
    say(own, other, pin=True)
    with own.raw() as raw:
        raw.call("budget", {"device": "cpu", "bytes": 64 * MIB})
    own.kill_daemon()
    assert stays(own, other)[0] and len(own.models()) == 2


def test_an_argument_that_is_none_costs_time_and_no_model(stored, make_model):
    """No daemon can know what was meant: it ends, and is not given up."""
    path = make_model()
    load(stored, path)
    stored.die()
    stored.arguments.append("--nonsense")
    with pytest.raises(AssertionError, match="ended at start"):
        stored.start()
    assert stored.process.returncode == 1
    stored.arguments.remove("--nonsense")
    stored.start()
    assert source_of(stored, path) == "store"


# ---- what is in the store is not believed --------------------------------------------------


def text_of(ledger):
    """Where the two texts are, and how long each may be."""
    _magic, _layout, n_leases, n_wishes, *_rest, room = \
        [ledger[:8]] + [int.from_bytes(ledger[at:at + 4], "little") for at in range(8, 40, 4)]
    return 4096 + 72 * (n_leases + n_wishes), room


def spoil(fd, how):
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size) as ledger:
        at, room = text_of(ledger)
        assert b"memory.ram=256M\n" in ledger[at:at + room] and at + 2 * room == size
        for slot in (at, at + room):
            if how == "empty":
                ledger[slot:slot + 24] = bytes(24)
            elif how == "a flipped bit":
                ledger[slot + 30] ^= 1
            elif how == "a huge size":
                ledger[slot + 16:slot + 24] = b"\xff" * 8


@pytest.mark.parametrize("how", ["empty", "a flipped bit", "a huge size"])
def test_without_a_last_good_one_the_models_wait_until_it_is_mended(stored, file, make_model, how):
    path = make_model()
    load(stored, path)
    stored.die()
    for name, fd in stored.kept:
        if name.startswith("ledger."):
            spoil(fd, how)
    file.write_text(BROKEN)
    for _ in range(2):
        with pytest.raises(AssertionError, match="ended at start"):
            stored.start()
        assert stored.process.returncode == 1, "2 would have it given up"
    assert f"{file}:3" in stored.log() and "1 models wait" in stored.log()
    assert "cannot be had" in stored.log()
    file.write_text(GOOD)
    stored.start()
    assert source_of(stored, path) == "store" and fault(stored) is None


def test_a_store_that_hands_back_rubbish_as_a_ledger(stored, file, make_model):
    path = make_model()
    load(stored, path)
    stored.die()
    rubbish = os.memfd_create("ledger")
    os.write(rubbish, os.urandom(8192))
    folder = os.open("/tmp", os.O_RDONLY)
    kept = stored.kept
    ledger = [entry for entry in kept if entry[0].startswith("ledger.")]
    others = [entry for entry in kept if not entry[0].startswith("ledger.")]
    file.write_text(BROKEN)
    try:
        stored.given = [("ledger.1", rubbish), ("ledger.2", folder), *others]
        with pytest.raises(AssertionError, match="ended at start"):
            stored.start()
        assert stored.process.returncode == 1
        stored.given = [("ledger.1", rubbish), *ledger, ("ledger.2", folder), *others]
        stored.start()
        assert source_of(stored, path) == "store" and f"{file}:3" in fault(stored)
    finally:
        stored.given = None
        os.close(rubbish)
        os.close(folder)


def test_as_many_settings_as_there_may_be_are_kept(own, file, make_model):
    path = make_model()
    load(own, path)
    n_others = len(settings(own)) - 1  # the list has one while it is empty
    n_models = 256 - n_others
    lines = "".join(f"model = /{i:04}{'x' * 4075}\n" for i in range(n_models))
    file.write_text(f"{GOOD}[warm]\n{lines}")
    with own.raw() as raw:
        raw.call("reload")
    file.write_text(BROKEN)
    own.kill_daemon()
    assert source_of(own, path) == "store" and f"{file}:3" in fault(own)
    with own.raw() as raw:
        listed = [one for one in raw.call("config")["settings"] if one["key"] == "warm.model"]
    assert len(listed) == n_models and {len(one["value"]) for one in listed} == {4080}
    assert listed[-1]["source"] == f"{file}:{6 + n_models} (last good)"
    with own.raw() as raw:
        raw.call("warm")


# ---- with nothing to lose ------------------------------------------------------------------


@pytest.mark.fault("U06")
@pytest.mark.parametrize("held", [False, True])
def test_a_first_start_ends_with_2_and_names_the_line(tmp_path, file, held):
    file.write_text(BROKEN)
    hold = [BUILD / "bin" / "distorchd-hold", "--"] if held else []
    done = subprocess.run([*hold, BUILD / "bin" / "distorchd", "--socket", tmp_path / "s",
                           "--state-dir", tmp_path / "state", "--config", file],
                          capture_output=True, text=True, timeout=20 * slowness())
    assert done.returncode == 2 and f"{file}:3" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "s").exists()


def test_when_no_model_waits_the_holder_ends_too(start_daemon, file, make_model):
    daemon = start_daemon(arguments=["--config", str(file)], kind=HeldDaemon, check=False)
    path = make_model()
    load(daemon, path)
    daemon.unload_all()
    file.write_text(BROKEN)
    os.kill(daemon.daemon_pid(), signal.SIGKILL)
    assert daemon.process.wait(20 * slowness()) == 2
    assert f"{file}:3" in daemon.log() and "no model waits" in daemon.log()
    assert not daemon.socket.exists()
    file.write_text(GOOD)
    daemon.start()
    load(daemon, path)
    daemon.stop()


def test_an_unknown_user_ends_a_start_that_has_nothing_to_lose(tmp_path, file):
    file.write_text("[access]\ncontrol = nosuch-user\n")
    done = subprocess.run([BUILD / "bin" / "distorchd", "--socket", tmp_path / "s", "--config", file],
                          capture_output=True, text=True, timeout=20 * slowness())
    assert done.returncode == 1 and f"{file}:2" in done.stderr and "nosuch-user" in done.stderr
    done = subprocess.run([BUILD / "bin" / "distorchd", "--config", file, "--check-config"],
                          capture_output=True, text=True, timeout=20 * slowness())
    assert done.returncode == 2 and f"{file}:2" in done.stderr
