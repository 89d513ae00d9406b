# SPDX-License-Identifier: Apache-2.0
"""What an administrator sets at run time and keeps: budget --save, config set, and where each
value comes from."""
import contextlib
import os
import signal
import subprocess
import time
import warnings

import pytest
from conftest import BUILD, Daemon, RawError, close_all, opened, slowness, wait_until
from test_ctl import ctl, ctl_json
from test_saved import load, saved, state_file
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.conf"
    path.write_text("[memory]\nram = 256M\nreserve = 0\n")
    return path


@pytest.fixture
def own(start_daemon, file):
    """A daemon whose settings stand in a file of its own."""
    return start_daemon(arguments=["--config", str(file)])


def budget(daemon):
    return daemon.status()["devices"][0]["budget"]


def settings(daemon):
    """{key: (value, source)}"""
    with daemon.raw() as raw:
        return {one["key"]: (one["value"], one["source"]) for one in raw.call("config")["settings"]}


def refusal(daemon, method, params):
    with daemon.raw() as raw, pytest.raises(RawError) as caught:
        raw.call(method, params)
    return caught.value.error


def restart(daemon):
    daemon.stop()
    daemon.start()


# ---- budgets -----------------------------------------------------------------------------


def test_a_saved_budget_outlives_the_daemon_and_another_does_not(own, file):
    assert ctl(own, "budget", "ram", "100M").returncode == 0
    assert budget(own) == 100 * MIB and settings(own)["memory.ram"] == ("256M", f"{file}:2")
    restart(own)
    assert budget(own) == 256 * MIB
    done = ctl(own, "budget", "ram", "100M", "--save")
    assert done.returncode == 0 and "budget 100M" in done.stdout and "unset" in done.stdout
    source = str(state_file(own))
    assert budget(own) == 100 * MIB and settings(own)["memory.ram"] == ("100M", source)
    own.kill()
    own.start()
    assert budget(own) == 100 * MIB and settings(own)["memory.ram"] == ("100M", source)
    assert "memory.ram  100M" in ctl(own, "config", "get", "memory.ram").stdout
    assert ctl(own, "budget", "ram", "120M").returncode == 0
    assert ctl(own, "budget", "--save").returncode == 0  # what it is now
    restart(own)
    assert budget(own) == 120 * MIB and saved(own)["settings"] == {"memory.ram": "120M"}
    with own.raw() as raw:
        raw.call("budget", {"device": "cpu", "bytes": 123456789, "save": True})
    restart(own)
    assert budget(own) == 123456789 and saved(own)["settings"] == {"memory.ram": "123456789B"}
    done = ctl(own, "config", "set", "memory.ram", "48")
    assert done.returncode == 2 and "48 has no unit: say 48M or 48G (48B for bytes)" in done.stderr


def test_a_lowered_budget_frees_what_is_idle_and_is_kept(own, make_model):
    paths = [make_model(f"m{i}.safetensors", size=8 * MIB, seed=i) for i in range(3)]
    load(own, paths[0], policy={"pin": True})
    for path in paths[1:]:
        load(own, path)
    with own.raw() as raw:
        answer = raw.call("budget", {"device": "ram", "bytes": 4 * MIB, "save": True})
        assert sorted(one["name"] for one in answer["evicted"]) == [path.name for path in paths[1:]]
    wait_until(lambda: [model["name"] for model in own.models()] == [paths[0].name],
               10 * slowness())
    assert budget(own) == 4 * MIB


def test_what_cannot_be_saved_is_not_set(own):
    own.tell("fault write:1:ENOSPC:ever")
    error = refusal(own, "budget", {"device": "cpu", "bytes": 100 * MIB, "save": True})
    assert error["code"] == "io" and "nothing was done" in error["message"]
    assert "No space left" in error["message"] and str(state_file(own)) in error["message"]
    error = refusal(own, "config.set", {"key": "log.level", "value": "debug"})
    assert error["code"] == "io"
    done = ctl(own, "budget", "ram", "100M", "--save")
    assert done.returncode == 1 and "No space left" in done.stderr
    assert budget(own) == 256 * MIB and saved(own) is None
    assert settings(own)["log.level"] == ("info", "default")
    for words in (["status"], ["doctor"]):
        said = ctl(own, *words).stdout
        assert "is not saved" in said and "No space left" in said and "fix: mend" in said
    assert 'distorchd_faults{what="state"} 1' in ctl(own, "metrics").stdout
    own.tell("clear")
    assert ctl(own, "budget", "ram", "100M", "--save").returncode == 0
    assert budget(own) == 100 * MIB
    assert ctl_json(own, "status")["state_fault"] is None
    assert 'distorchd_faults{what="state"} 0' in ctl(own, "metrics").stdout


def test_numbers_that_are_no_budget_are_refused_with_them(own):
    assert "0 cannot be saved" in refusal(own, "budget", {"device": "cpu", "bytes": 0,
                                                          "save": True})["message"]
    error = refusal(own, "budget", {"device": "cpu", "bytes": 1 << 50, "save": True})
    assert "1.0P is more than this machine has" in error["message"] or \
        "1024T is more than this machine has" in error["message"]
    assert ctl(own, "budget", "cuda:7", "1G", "--save").returncode == 4
    assert saved(own) is None and budget(own) == 256 * MIB


class Folderless(Daemon):
    def command(self):
        command = super().command()
        at = command.index("--state-dir")
        return command[:at] + command[at + 2:]


@pytest.mark.parametrize("key, what", [("access.group", "group"), ("access.control", "user")])
def test_a_name_that_is_none_is_not_saved(own, file, key, what):
    """The next start would not get past it."""
    error = refusal(own, "config.set", {"key": key, "value": "nosuch-name"})
    assert error["code"] == "bad-argument" and f"no such {what}" in error["message"]
    assert saved(own) is None and "state_fault" not in own.status()
    done = ctl(own, "config", "set", key, "nosuch-name")
    assert done.returncode == 2 and "nosuch-name" in done.stderr
    assert ctl(own, "config", "set", key, "root").returncode == 0
    restart(own)
    assert settings(own)[key][0] == "root"
    error = refusal(own, "config.set", {"key": key, "value": "nosuch-name"})
    assert settings(own)[key][0] == "root" and saved(own)["settings"] == {key: "root"}
    file.write_text(f"{file.read_text()}[access]\n{key[7:]} = nosuch-other\n")
    with own.raw() as raw, pytest.raises(RawError, match="nosuch-other") as caught:
        raw.call("config.set", {"key": key})  # forgotten, so that the file's would count
    assert f"{file}:5" in caught.value.error["message"]


def test_without_a_folder_it_says_what_to_do(start_daemon):
    daemon = start_daemon("memory.ram=256M", "memory.reserve=0", kind=Folderless)
    error = refusal(daemon, "budget", {"device": "cpu", "bytes": 100 * MIB, "save": True})
    assert error["code"] == "unsupported" and "--state-dir DIR" in error["message"]
    assert ctl(daemon, "config", "set", "log.level", "debug").returncode == 7
    assert budget(daemon) == 256 * MIB
    assert "state_fault" not in daemon.status(), "nobody wanted anything saved"


def test_environment_and_command_line_have_the_last_word_and_it_is_said(start_daemon):
    daemon = start_daemon("memory.ram=256M", "memory.reserve=0",
                          environment={"DISTORCHD_LOG_LEVEL": "info"})
    done = ctl(daemon, "budget", "ram", "100M", "--save")
    assert done.returncode == 0 and "the command line says memory.ram = 256M" in done.stdout
    assert budget(daemon) == 100 * MIB, "now"
    assert settings(daemon)["memory.ram"] == ("256M", "command line")
    done = ctl(daemon, "config", "set", "log.level", "debug")
    assert done.returncode == 0 and "the environment says log.level = info" in done.stdout
    restart(daemon)
    assert budget(daemon) == 256 * MIB
    assert saved(daemon)["settings"] == {"memory.ram": "100M", "log.level": "debug"}
    assert "note" in ctl(daemon, "budget", "--save").stdout
    assert ctl_json(daemon, "budget", "ram", "90M", "--save")["notice"].startswith("saved, but")


@needs_root
def test_only_an_administrator_saves(own):
    def try_all():
        codes = []
        for method, params in (("budget", {"save": True}),
                               ("budget", {"device": "cpu", "bytes": 1 << 20, "save": True}),
                               ("config.set", {"key": "log.level", "value": "debug"}),
                               ("config.set", {"key": "log.level"})):
            try:
                with own.raw() as raw:
                    raw.call(method, params)
                    codes.append("done")
            except RawError as failure:
                codes.append(failure.code)
        return " ".join(codes)

    assert as_nobody(own, try_all) == " ".join(["not-allowed"] * 4)
    assert saved(own) is None


# ---- settings ----------------------------------------------------------------------------


def test_a_setting_is_saved_judged_and_forgotten_again(own, file):
    done = ctl(own, "config", "set", "log.level", "debug")
    assert done.returncode == 0 and done.stdout == "in effect: log.level\n"
    done = ctl(own, "config", "set", "limits.connections", "77")
    assert done.stdout == "from the next start on: limits.connections\n"
    source = str(state_file(own))
    now = settings(own)
    assert now["log.level"] == ("debug", source)
    assert now["limits.connections"] == ("77", f"{source}, from the next start on")
    restart(own)
    assert settings(own)["limits.connections"] == ("77", source)
    # It ranks above the files, also when they are read again.
    file.write_text("[memory]\nram = 128M\nreserve = 0\n[log]\nlevel = error\n")
    with own.raw() as raw:
        assert raw.call("reload")["applied"] == ["memory.ram"]
    assert settings(own)["log.level"] == ("debug", source)
    assert ctl_json(own, "config", "unset", "log.level")["applied"] == ["log.level"]
    assert settings(own)["log.level"] == ("error", f"{file}:5")
    assert saved(own)["settings"] == {"limits.connections": "77"}
    done = ctl(own, "config", "unset", "log.level")
    assert done.returncode == 4 and "no log.level was saved" in done.stderr
    assert ctl(own, "config", "unset", "limits.connections").returncode == 0


def test_a_reload_does_not_count_what_is_saved_as_a_change(own):
    assert ctl(own, "budget", "ram", "100M", "--save").returncode == 0
    with own.raw() as raw:
        assert raw.call("reload") == {"applied": [], "later": []}
    assert budget(own) == 100 * MIB


@pytest.mark.parametrize("key, value, part", [
    ("memory.rma", "1G", 'did you mean "ram"'), ("memory.ram", "1Q", "memory.ram"),
    ("ram", "1G", "section.key=value is wanted"), ("warm.model", "/x", "warm add"),
    ("log.level", "loud", "debug"), ("log.level", "", "log.level"), ("", "1", "wanted"),
    ("memory.ram", "1G\n[x]", "control byte")])
def test_a_setting_that_is_none_is_refused_as_in_a_file(own, key, value, part):
    error = refusal(own, "config.set", {"key": key, "value": value})
    assert part in error["message"] and error["detail"]["field"] == "key", error
    assert saved(own) is None


def test_an_unset_with_broken_files_names_the_fault(own, file):
    assert ctl(own, "budget", "ram", "100M", "--save").returncode == 0
    file.write_text("[memory]\nrma = 1G\n")
    done = ctl(own, "config", "unset", "memory.ram")
    assert done.returncode == 2 and f"{file}:2" in done.stderr
    assert saved(own)["settings"] == {} and budget(own) == 100 * MIB
    # Setting one needs no file to be read.
    assert ctl(own, "config", "set", "memory.ram", "90M").returncode == 0
    assert budget(own) == 90 * MIB
    file.write_text("[memory]\nram = 256M\nreserve = 0\n")


def test_there_are_so_many_saved_settings_and_no_more(own):
    with own.raw() as raw:
        for number in range(64):
            raw.call("config.set", {"key": f"gpu.budget.GPU-{number}", "value": "1G"})
        with pytest.raises(RawError) as caught:
            raw.call("config.set", {"key": "gpu.budget.GPU-64", "value": "1G"})
        assert caught.value.code == "too-many" and "64" in caught.value.error["message"]
        raw.call("config.set", {"key": "gpu.budget.GPU-63", "value": "2G"})
    restart(own)
    assert settings(own)["gpu.budget.GPU-63"][0] == "2G"


def test_changes_that_cross_each_other_are_each_answered(own):
    """And whatever they found, the file and what is in effect agree."""
    with own.raw(timeout=60.0) as raw:
        numbers = []
        for number in range(8):
            numbers.append(raw.request("budget", {"device": "cpu", "bytes": (100 + number) * MIB,
                                                  "save": True}))
            numbers.append(raw.request("config.set", {"key": "log.level", "value": "debug"}))
            numbers.append(raw.request("reload"))
            numbers.append(raw.request("config.set", {"key": "log.level"}))
            own.process.send_signal(signal.SIGHUP)
        codes = set()
        for number in numbers:
            error, _result, fds = raw.wait(number)
            close_all(fds)
            codes.add((error or {"code": "done"})["code"])
    assert "done" in codes and codes <= {"done", "busy", "not-found"}
    def reloads():
        with own.raw() as raw, contextlib.suppress(RawError):
            return raw.call("reload")

    wait_until(lambda: reloads() is not None, 10 * slowness())
    in_file = saved(own)["settings"]
    assert settings(own)["memory.ram"] == (in_file["memory.ram"], str(state_file(own)))
    assert f"{budget(own) // MIB}M" == in_file["memory.ram"]
    assert settings(own)["log.level"][0] == in_file.get("log.level", "info")


def test_who_asked_and_left_has_it_saved(own):
    raw = own.raw()
    raw.request("budget", {"device": "cpu", "bytes": 100 * MIB, "save": True})
    raw.close()
    wait_until(lambda: budget(own) == 100 * MIB, 10 * slowness())
    assert saved(own)["settings"] == {"memory.ram": "100M"}


def test_an_end_while_it_is_written_ends_all_the_same(start_daemon, file):
    daemon = start_daemon(arguments=["--config", str(file)], check=False)
    daemon.tell("fault fsync:1:delay=1000")
    raw = daemon.raw()
    raw.request("budget", {"device": "cpu", "bytes": 100 * MIB, "save": True})
    wait_until(lambda: daemon.tell("hits fsync") != "0", 10 * slowness())
    daemon.stop(seconds=10)
    raw.close()
    assert saved(daemon)["settings"] == {"memory.ram": "100M"}


def test_what_cannot_be_cancelled_any_more_is_there_and_goes_on(start_daemon, file):
    daemon = start_daemon(arguments=["--config", str(file)])
    daemon.tell("fault fsync:1:delay=60000")
    with daemon.raw() as raw:
        number = raw.request("budget", {"device": "cpu", "bytes": 100 * MIB, "save": True})
        wait_until(lambda: daemon.tell("hits fsync") != "0", 10 * slowness())
        assert raw.call("cancel", {"id": number})["found"]
        daemon.tell("clear")
        error, result, _fds = raw.wait(number)
        assert error is None and result["devices"][0]["budget"] == 100 * MIB
        assert not raw.call("cancel", {"id": number})["found"], "it is answered"


# ---- from Python and the command line ----------------------------------------------------


def test_python_saves_and_warns_of_what_ranks_above(start_daemon, distorch, file):
    daemon = start_daemon("memory.reserve=0", arguments=["--config", str(file)])
    with distorch.connect(str(daemon.socket)) as d, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert d.budget("ram", 100 * MIB, save=True)[0].budget == 100 * MIB
        assert d.config_set("log.level", "debug").applied == ["log.level"]
        assert d.config_set("log.level", None).applied == ["log.level"]
        assert "command line" in d.config_set("memory.reserve", "1G").notice
        with pytest.raises(distorch.Error, match="did you mean"):
            d.config_set("log.levle", "debug")
        warnings.simplefilter("ignore")
        assert d.budget(save=True)[0].budget == 100 * MIB


def distorchd(*words, environment=None):
    return subprocess.run([str(BUILD / "bin" / "distorchd"), *map(str, words)],
                          env={"PATH": os.environ["PATH"], **(environment or {})},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)


def test_check_and_path_tell_where_values_come_from_without_a_daemon(tmp_path):
    config = tmp_path / "config" / "distorchd"
    state = tmp_path / "state" / "distorchd"
    (config / "distorchd.conf.d").mkdir(parents=True)
    state.mkdir(parents=True)
    (config / "distorchd.conf").write_text("[memory]\nram = 1G\n[log]\nlevel = debug\n")
    (config / "distorchd.conf.d" / "a.conf").write_text("[memory]\nidle-evict = 30m\n")
    text = ('{"version": 1, "saved_s": 1, "settings": {"memory.ram": "2G"}, "warm": [],'
            ' "wishes": []}')
    (state / "state.json").write_text(text)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path),
                   "XDG_STATE_HOME": str(tmp_path / "state"), "DISTORCHD_LOG_FORMAT": "text"}
    done = distorchd("--user", "--check-config", "--set", "memory.reserve=0",
                     environment=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "the configuration is good"
    for line in (f"memory.ram = 2G  ({state}/state.json)", "memory.reserve = 0  (command line)",
                 f"memory.idle-evict = 30m  ({config}/distorchd.conf.d/a.conf:2)",
                 f"log.level = debug  ({config}/distorchd.conf:4)",
                 "log.format = text  (environment)"):
        assert line in lines, lines
    done = distorchd("--user", "--list-config", environment=environment)
    lines = done.stdout.splitlines()
    assert lines[-3:] == [f"{config}/distorchd.conf", f"{config}/distorchd.conf.d/a.conf",
                          f"{state}/state.json"]
    assert lines[0].startswith("/usr/lib/distorchd/distorchd.conf")
    (state / "state.json").write_text("rubbish")
    done = distorchd("--user", "--check-config", environment=environment)
    assert done.returncode == 0 and f"{state}/state.json: byte 0" in done.stdout
    assert (state / "state.json").read_text() == "rubbish", "it only looks"
    done = ctl(None, "config", "path", environment={**environment, "HOME": str(tmp_path)})
    assert done.returncode == 0 and "/etc/distorchd/distorchd.conf" in done.stdout
    assert "/etc/distorchd/distorchd.conf" in ctl_json(None, "config", "path")["text"]


@pytest.mark.parametrize("words, part", [
    (["sett", "a", "b"], "did you mean config set?"), (["set", "log.level"], "usage"),
    (["unset"], "usage"), (["check", "x"], "--check-config"), (["path", "x"], "usage"),
    (["gibberish"], "show, get, set, unset, check and path")])
def test_a_wrong_word_behind_config_is_named(words, part):
    done = ctl(None, "config", *words)
    assert done.returncode == 2 and part in done.stderr


def test_what_is_said_no_more_is_noticed(start_daemon, file):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", arguments=["--config", str(file)])
    key = "gpu.budget.SIM-00000000-0000-4000-8000-000000000000"

    def of_the_device():
        return daemon.status()["devices"][1]["budget"]

    assert ctl(daemon, "budget", "sim:0", "12M", "--save").returncode == 0
    assert of_the_device() == 12 * MIB
    done = ctl(daemon, "config", "unset", key)
    assert done.returncode == 0 and f"in effect: {key}" in done.stdout, done.stdout
    assert of_the_device() == 64 * MIB and key not in settings(daemon)
    text = file.read_text()
    file.write_text(text + "[gpu]\nbudget.sim:0 = 16M\n[sim]\nmemory.1 = 32M\n")
    ctl(daemon, "reload")
    assert of_the_device() == 16 * MIB
    file.write_text(text)
    with daemon.raw() as raw:
        assert raw.call("reload") == {"applied": ["gpu.budget.sim:0"], "later": ["sim.memory.1"]}
    assert of_the_device() == 64 * MIB
    assert "gpu.budget.sim:0 is said no more" in daemon.log()
    with daemon.raw() as raw:
        assert raw.call("reload") == {"applied": [], "later": []}


# ---- a time to live -----------------------------------------------------------------------


def test_what_is_left_of_it_is_told_as_it_goes_by(own, make_model):
    path = make_model("m.safetensors")
    with own.raw() as raw:
        raw.load(path, policy={"ttl_ms": 3_600_000})
        before = raw.call("list")["models"][0]["ttl_left_ms"]
        time.sleep(0.5)
        after = raw.call("list")["models"][0]["ttl_left_ms"]  # nothing else has happened
        assert 3_500_000 < after <= before - 450
        with opened(path) as fd:
            lease, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
        time.sleep(0.1)
        assert raw.call("list")["models"][0]["ttl_left_ms"] == 3_600_000, "it is in use"
        close_all(fds)
        raw.call("unmapped", {"lease": lease["lease"]})
        raw.call("detach", {"lease": lease["lease"]})
